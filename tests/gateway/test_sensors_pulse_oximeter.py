import struct
import unittest
from binascii import unhexlify

from gateway import sensors
from gateway.errors import Truncated
from gateway.reading import Value, text

_SPOT = 0x2A5E
_CONTINUOUS = 0x2A5F
_WHOLE_SPOT = unhexlify("0f6100480 0ea070b170e230a 0003 200000 19f0".replace(" ", ""))
_WHOLE_CONTINUOUS = unhexlify("1f 61004800 62004900 60004700 2001 200000 19f0".replace(" ", ""))

_NEVER_STATUS = (10, 11, 13, 15)
_QUESTIONABLE_STATUS = (5, 6, 12, 14)
_NEVER_SENSOR = (1, 7, 11, 12, 14, 15)
_QUESTIONABLE_SENSOR = (2, 3, 4, 5, 6, 8, 9, 10, 13)


def with_status(bits):
    return sensors.decode(_SPOT, struct.pack("<BHHH", 0x02, 97, 72, bits))


def with_sensor_status(bits):
    return sensors.decode(_SPOT, struct.pack("<BHHHB", 0x04, 97, 72, bits & 0xFFFF, bits >> 16))


class SpotCheck(unittest.TestCase):
    def test_every_field_is_read(self):
        reading = sensors.decode(_SPOT, _WHOLE_SPOT)
        self.assertEqual((reading.kind, reading.trust), ("spot_check", "questionable"))
        self.assertEqual(
            reading.values,
            (
                Value("spo2", 97, 0, "%", None),
                Value("pulse_rate", 72, 0, "/min", None),
                Value("pulse_amplitude_index", 25, -1, "%", None),
            ),
        )
        self.assertEqual(
            reading.status, ("fully qualified data", "data from measurement storage", "low perfusion")
        )
        self.assertEqual(reading.timestamp, (2026, 11, 23, 14, 35, 10))
        self.assertIs(reading.clock_set, True)
        self.assertIs(reading.stored, True)

    def test_the_plainest_value(self):
        reading = sensors.decode(_SPOT, b"\x00\x61\x00\x48\x00")
        self.assertEqual((reading.trust, reading.status, reading.timestamp), ("good", (), None))
        self.assertIsNone(reading.clock_set)
        self.assertIsNone(reading.stored)

    def test_trust_by_measurement_status(self):
        for bit in range(5, 16):
            wanted = (
                "never" if bit in _NEVER_STATUS else "questionable" if bit in _QUESTIONABLE_STATUS else "good"
            )
            reading = with_status(1 << bit)
            self.assertEqual((bit, reading.trust, len(reading.status)), (bit, wanted, 1))

    def test_trust_by_device_and_sensor_status(self):
        for bit in range(16):
            wanted = (
                "never" if bit in _NEVER_SENSOR else "questionable" if bit in _QUESTIONABLE_SENSOR else "good"
            )
            reading = with_sensor_status(1 << bit)
            self.assertEqual((bit, reading.trust, len(reading.status)), (bit, wanted, 1))

    def test_the_worst_bit_decides(self):
        self.assertEqual(with_status(0xC100).trust, "never")
        self.assertEqual(with_status(0xC100).status[-1], "invalid measurement")

    def test_reserved_bits_are_reported_and_not_fatal(self):
        self.assertEqual(with_status(0x001F).status, ("reserved bits set",))
        self.assertEqual(with_sensor_status(0xFF0000).status, ("reserved bits set",))
        reading = sensors.decode(_SPOT, b"\xe0\x61\x00\x48\x00")
        self.assertEqual((reading.status, reading.trust), (("reserved bits set",), "good"))

    def test_spo2_without_a_number_is_never_a_vital(self):
        for word in (0x7FF, 0x800, 0x7FE, 0x802, 0x801, 127, 0):
            reading = sensors.decode(_SPOT, struct.pack("<BHH", 0, word, 72))
            self.assertEqual(reading.trust, "never")
            self.assertIsNone(text(reading.values[0]))

    def test_pulse_rate_without_a_number_leaves_spo2(self):
        reading = sensors.decode(_SPOT, b"\x00\x61\x00\xff\x07")
        self.assertEqual(reading.trust, "good")
        self.assertEqual([text(value) for value in reading.values], ["97", None])

    def test_the_flag_clock_not_set_is_believed_over_the_date(self):
        reading = sensors.decode(_SPOT, unhexlify("1161004800ea070b170e230a"))
        self.assertIs(reading.clock_set, False)
        self.assertEqual(reading.status, ("clock not set",))
        self.assertEqual(reading.timestamp, (2026, 11, 23, 14, 35, 10))

    def test_a_bad_date_does_not_cost_the_vital(self):
        reading = sensors.decode(_SPOT, unhexlify("0161004800ea070d170e230a"))
        self.assertEqual((reading.trust, reading.timestamp, reading.clock_set), ("good", None, False))
        self.assertEqual(reading.status, ("timestamp not valid",))

    def test_flags_that_promise_more_than_there_is_are_refused(self):
        for length in range(len(_WHOLE_SPOT)):
            self.assertRaises(Truncated, sensors.decode, _SPOT, _WHOLE_SPOT[:length])

    def test_trailing_bytes_are_reported(self):
        self.assertIn("trailing bytes", sensors.decode(_SPOT, _WHOLE_SPOT + b"\x00").status)


class Continuous(unittest.TestCase):
    def test_every_field_is_read(self):
        reading = sensors.decode(_CONTINUOUS, _WHOLE_CONTINUOUS)
        self.assertEqual((reading.kind, reading.trust), ("continuous", "questionable"))
        self.assertEqual(
            [(value.name, text(value)) for value in reading.values],
            [
                ("spo2", "97"),
                ("pulse_rate", "72"),
                ("spo2_fast", "98"),
                ("pulse_rate_fast", "73"),
                ("spo2_slow", "96"),
                ("pulse_rate_slow", "71"),
                ("pulse_amplitude_index", "2.5"),
            ],
        )
        self.assertEqual(reading.status, ("measurement ongoing", "fully qualified data", "low perfusion"))
        self.assertIsNone(reading.timestamp)

    def test_flag_bits_differ_from_those_of_a_spot_check(self):
        reading = sensors.decode(_CONTINUOUS, unhexlify("04610048000001"))
        self.assertEqual((reading.status, reading.trust), (("fully qualified data",), "good"))

    def test_flags_that_promise_more_than_there_is_are_refused(self):
        for length in range(len(_WHOLE_CONTINUOUS)):
            self.assertRaises(Truncated, sensors.decode, _CONTINUOUS, _WHOLE_CONTINUOUS[:length])


class Features(unittest.TestCase):
    def test_features_with_both_masks(self):
        feature = sensors.decode(0x2A60, unhexlify("8f00 0083 040000".replace(" ", "")))
        self.assertEqual(
            feature.supported,
            (
                "measurement status",
                "device and sensor status",
                "measurement storage for spot-check",
                "timestamp for spot-check",
                "multiple bonds",
            ),
        )
        self.assertEqual(
            feature.measurement_status,
            ("fully qualified data", "data from measurement storage", "invalid measurement"),
        )
        self.assertEqual(feature.sensor_status, ("signal processing irregularity",))

    def test_absent_masks_say_nothing(self):
        feature = sensors.decode(0x2A60, b"\x04\x00")
        self.assertIsNone(feature.measurement_status)
        self.assertIsNone(feature.sensor_status)
        self.assertEqual(
            sensors.decode(0x2A60, b"\x02\x00\x04\x00\x00").sensor_status, ("signal processing irregularity",)
        )

    def test_features_that_end_early_are_refused(self):
        for value in (b"", b"\x00", b"\x01\x00\x00", b"\x02\x00\x00\x00", b"\x03\x00\x00\x00\x00\x00"):
            self.assertRaises(Truncated, sensors.decode, 0x2A60, value)

    def test_a_value_from_storage_is_known_again(self):
        date_time = b"\xea\x07\x01\x02\x03\x04\x05"
        for timed in (b"", date_time):
            flags = b"\x03" if timed else b"\x02"
            new = flags + b"\x61\x00\x48\x00" + timed + b"\x00\x01"
            stored = new[:-1] + b"\x03"
            self.assertEqual(sensors.essence(_SPOT, new), new)
            self.assertEqual(sensors.essence(_SPOT, stored), new)
            self.assertEqual(sensors.essence(_CONTINUOUS, stored), stored)
        for value in (b"", b"\x02", b"\x03\x61\x00\x48\x00\x02", b"\x01\x61\x02\x48\x02" + date_time):
            self.assertEqual(sensors.essence(_SPOT, value), value)

    def test_who_may_have_stored_a_value(self):
        stores = sensors.decode(0x2A60, b"\x0c\x00")
        plain = sensors.decode(0x2A60, b"\x00\x00")
        self.assertTrue(sensors.can_store(_SPOT, stores))
        self.assertTrue(sensors.can_store(_SPOT))
        self.assertFalse(sensors.can_store(_SPOT, plain))
        self.assertFalse(sensors.can_store(_CONTINUOUS, stores))
        self.assertTrue(sensors.can_store(0x2A35))


if __name__ == "__main__":
    unittest.main()
