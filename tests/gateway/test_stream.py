"""Stream: continuous oximetry is thinned to one value per window and class, never to silence."""

import struct
import unittest

from gateway.limits import MAX_SENSORS
from gateway.sensors import decode
from gateway.sensors.pulse_oximeter import stream_class
from gateway.stream import Stream

try:
    from micropython import heap_lock, heap_unlock
except ImportError:  # CPython

    def heap_lock():
        pass

    heap_unlock = heap_lock

CONTINUOUS = 0x2A5F
WINDOW_MS = 10_000
ONGOING, QUESTIONABLE, VALIDATED = 0x0020, 0x4000, 0x0080
FINGER_OFF, DISPLAY_UPDATE = 0x0800, 0x0001


def streamed(spo2=97, pulse=72, status=ONGOING, sensor=0):
    return struct.pack("<BHHHHB", 0x0C, spo2, pulse, status, sensor, 0)


class StreamTest(unittest.TestCase):
    def setUp(self):
        self.stream = Stream(WINDOW_MS)

    def kept(self, values, period_ms=1_000, start_ms=0, sensor=1):
        """Those values, one each period, that were kept."""
        kept = []
        for number, value in enumerate(values):
            at_ms = start_ms + number * period_ms
            if not self.stream.thins(sensor, CONTINUOUS, value, at_ms >> 24, at_ms & 0xFFFFFF):
                kept.append(number)
        return kept

    def test_one_value_in_a_window_is_kept_whatever_its_number(self):
        self.assertEqual(self.kept([streamed(90 + n % 9) for n in range(35)]), [0, 10, 20, 30])

    def test_a_stream_slower_than_the_window_is_kept_whole(self):
        self.assertEqual(self.kept([streamed()] * 5, period_ms=WINDOW_MS), [0, 1, 2, 3, 4])

    def test_every_change_of_class_is_kept_and_begins_a_window(self):
        values = [streamed()] * 3 + [streamed(sensor=FINGER_OFF)] * 12 + [streamed()] * 2
        self.assertEqual(self.kept(values), [0, 3, 13, 15])

    def test_what_makes_a_class(self):
        plain = streamed()
        for other in (
            streamed(status=ONGOING | QUESTIONABLE),
            streamed(sensor=FINGER_OFF),
            streamed(spo2=0x07FF),  # NaN
            streamed(spo2=0x0800),  # NRes
            streamed(spo2=101),
            streamed(spo2=0),
            plain[:4],  # malformed
        ):
            self.assertNotEqual(stream_class(other), stream_class(plain))
        for same in (
            streamed(85, 140),
            streamed(spo2=0xF3C7),  # 96.7
            streamed(status=ONGOING | VALIDATED),
            streamed(sensor=DISPLAY_UPDATE),
            plain + b"\x01",
        ):
            self.assertEqual(stream_class(same), stream_class(plain))

    def test_two_values_of_one_class_are_of_one_trust(self):
        trusts = {}
        for bit in range(16):
            words = [
                streamed(spo2=bit << 12 | mantissa) for mantissa in (0, 1, 2, 97, 100, 101, 999, 0x7FF, 0x801)
            ]
            for value in [streamed(status=1 << bit), streamed(sensor=1 << bit)] + words:
                trust = decode(CONTINUOUS, value).trust
                self.assertEqual(trusts.setdefault(stream_class(value), trust), trust)

    def test_bits_stand_where_the_fields_before_them_leave_them(self):
        head = struct.pack("<BHHHHHH", 0x0F, 97, 72, 96, 71, 98, 73)
        fast_and_slow = head + struct.pack("<HHB", ONGOING, FINGER_OFF, 0)
        self.assertEqual(stream_class(fast_and_slow), stream_class(streamed(sensor=FINGER_OFF)))

    def test_a_malformed_stream_is_thinned_as_well_and_not_to_silence(self):
        for length in range(5):
            self.setUp()
            self.assertEqual(self.kept([b"\x0c\x61\x00\x48\x00"[:length]] * 25), [0, 10, 20])

    def test_sensors_have_windows_of_their_own(self):
        for sensor in range(1, MAX_SENSORS + 1):
            self.assertEqual(self.kept([streamed()] * 2, sensor=sensor), [0])

    def test_the_window_holds_over_the_wrap_of_the_lower_half_and_after_a_long_silence(self):
        wrap_ms = 1 << 24
        self.assertEqual(self.kept([streamed()] * 12, start_ms=wrap_ms - 5_500), [0, 10])
        self.assertEqual(self.kept([streamed()] * 2, start_ms=3 * wrap_ms + 1), [0])
        self.assertEqual(self.kept([streamed()], start_ms=(1 << 47) + 1), [0])

    def test_nothing_but_continuous_oximetry_is_thinned(self):
        for characteristic in (0x2A5E, 0x2A35, 0):
            for _ in range(2):
                self.assertFalse(self.stream.thins(1, characteristic, streamed(), 0, 1))

    def test_the_decision_does_not_allocate(self):
        values = [streamed(), streamed(0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF), b"", streamed()]
        views = [memoryview(value) for value in values]
        heap_lock()
        try:
            for view in views:
                self.stream.thins(MAX_SENSORS, CONTINUOUS, view, 0xFFFFFF, 0xFFFFFF)
        finally:
            heap_unlock()
        self.assertEqual(self.stream._hi[MAX_SENSORS], 0xFFFFFF)
