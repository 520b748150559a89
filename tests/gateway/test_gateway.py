"""Gateway: Sensors, time and Journal together, on a Journal in RAM."""

import json
import struct
import unittest

from nor import Lock, NorFlash

from gateway.errors import JournalError, SensorError
from gateway.gateway import Gateway
from gateway.journal import Journal
from gateway.limits import MAX_SENSORS, QUIET_MS, SPEAK_AFTER_MS
from gateway.message import Ack, decode_batch, encode_ack
from gateway.record import (
    ANCHOR,
    BATTERY,
    BOND_CHANGED,
    BOND_MADE,
    BOOTED,
    BUTTON,
    EVENT,
    FRAME,
    FROM_SNTP,
    HOST_CONFIRMED,
    INDICATED,
    NO_OFFSET,
    SENSOR,
    SENSOR_CLOCK,
    SENSOR_FAILED,
    SERIAL,
    SNTP_REFUSED,
    decode_all,
    decode_body,
)
from gateway.sensor_session import CAN_INDICATE, CAN_READ, READ
from gateway.sntp import BEFORE_FLOOR, EXCLUDED
from gateway.uplink import Uplink

try:
    from micropython import heap_lock, heap_unlock
except ImportError:  # CPython

    def heap_lock():
        pass

    heap_unlock = heap_lock

ADDRESS = b"\xc0\x00\x00\x00\x00\x01"
TABLE = {0x2A25: CAN_READ, 0x2A35: CAN_INDICATE}
STREAMED = b"\x00\x61\x00\x48\x00"
UTC_MS = 1_764_000_000_000
MINUTE, HOUR = 60_000, 3_600_000


class Bonds:
    """The rim's file, as JSON text."""

    def __init__(self):
        self.text = "[]"

    def load(self):
        return json.loads(self.text)

    def save(self, sensors):
        self.text = json.dumps(sensors)


class GatewayTest(unittest.TestCase):
    def setUp(self):
        self.flash = NorFlash()
        self.bonds = Bonds()
        Journal(self.flash, Lock()).format(b"journal1")
        self.boot()

    def boot(self):
        self.journal = self.uplink = self.gateway = None  # a board's heap holds one Gateway
        self.journal = Journal(self.flash, Lock())
        self.journal.mount()
        self.uplink = Uplink(self.journal, lambda: b"noncenon")
        self.gateway = Gateway(
            "HW-0001",
            "0.1.0",
            journal=self.journal,
            uplink=self.uplink,
            bonds=self.bonds,
            frame_flags=HOST_CONFIRMED,
        )
        self.gateway.start(0)

    def bodies(self):
        """Type and body of every Record that waits, in order."""
        self.gateway.connected(0)
        self.ack(decode_batch(bytes(self.uplink.next_batch(0))))
        batch = decode_batch(bytes(self.uplink.next_batch(0)))
        return [(r.type, decode_body(r.type, r.version, r.body)) for r in decode_all(batch.records)]

    def ack(self, batch, now_ms=0, through=0, offset_min=60, utc_ms=UTC_MS):
        ack = Ack(self.journal.journal_id, batch.nonce, through, 0, 0, None, utc_ms, offset_min)
        self.gateway.receive_ack(encode_ack(ack), now_ms)

    def visit(self, sensor, answers, now_ms=0):
        """A whole session that answers reads with `answers` until the Sensor is quiet."""
        session = self.gateway.session(sensor, name="Cuff", services=[0x1810], table=TABLE, now_ms=now_ms)
        for at_ms in (now_ms, now_ms + QUIET_MS):
            while True:
                step = session.next_step(at_ms)
                if step is None:
                    break
                session.step_done(answers.get(step[1]) if step[0] == READ else None, at_ms)
        session.closed(now_ms + QUIET_MS)

    def bond(self, address=ADDRESS):
        return self.gateway.bond(1, address, 0)

    # --- Frames

    def test_a_value_is_in_the_journal_with_its_flags_and_its_time(self):
        sensor = self.bond()
        sequence = self.gateway.received(sensor, 0x2A35, b"\x00\x78\x00", INDICATED, 1 << 10, 5)
        self.assertEqual(sequence, self.journal.next_sequence - 1)
        kind, frame = self.bodies()[-2]  # the anchor of `bodies` came after it
        self.assertEqual(kind, FRAME)
        self.assertEqual(frame.flags, INDICATED | HOST_CONFIRMED)
        self.assertEqual((frame.sensor, frame.characteristic, frame.value), (sensor, 0x2A35, b"\x00\x78\x00"))
        status = json.loads(self.gateway.status(0))
        self.assertEqual(status["sensors"], [{"sensor": sensor, "seen_ms": (1 << 34) + 5}])

    def test_the_handler_path_does_not_allocate(self):
        sensor = self.bond()
        value = bytes(range(19))
        heap_lock()
        try:
            self.gateway.received(sensor, 0x2A35, value, INDICATED, 0xFFFFFF, 0xFFFFFF)
        finally:
            heap_unlock()
        self.assertEqual(self.journal.next_sequence, 5)

    def test_streamed_values_that_are_left_out_are_counted_and_shown(self):
        sensor = self.bond()
        before = self.journal.next_sequence
        for uptime_ms in range(0, 5_000, 1_000):
            self.assertEqual(self.gateway.thins(sensor, 0x2A5F, STREAMED, 0, uptime_ms), uptime_ms > 0)
        self.assertEqual(self.journal.next_sequence, before)
        self.assertEqual(json.loads(self.gateway.status(0))["counters"]["thinned"], 4)

    # --- Sensors

    def test_only_bonded_sensors_are_wanted_and_strangers_are_counted(self):
        self.bond()
        self.assertTrue(self.gateway.wants(ADDRESS, [], 0))
        self.assertFalse(self.gateway.wants(b"\xc0\x00\x00\x00\x00\x02", [0x1810], 0))
        self.assertEqual(self.gateway.counters["strangers"], 1)
        self.assertFalse(self.gateway.wants(b"\xc0\x00\x00\x00\x00\x02", [0x180F], 0))
        self.assertEqual(self.gateway.counters["strangers"], 1)

    def test_a_pairing_window_lets_sensors_with_our_services_in_and_closes(self):
        stranger = b"\xc0\x00\x00\x00\x00\x02"
        self.gateway.open_pairing(1000, 500)
        self.assertTrue(self.gateway.wants(stranger, [0x180A, 0x1822], 1499))
        self.assertFalse(self.gateway.wants(stranger, [0x180F], 1499))
        self.assertFalse(self.gateway.wants(stranger, [0x1822], 1500))

    def test_a_new_bond_is_described_before_it_is_told(self):
        sensor = self.bond()
        bodies = self.bodies()
        self.assertEqual([kind for kind, _ in bodies[:3]], [EVENT, SENSOR, EVENT])
        self.assertEqual(bodies[0][1].code, BOOTED)
        self.assertEqual((bodies[1][1].sensor, bodies[1][1].address), (sensor, ADDRESS))
        self.assertEqual((bodies[2][1].code, bodies[2][1].sensor), (BOND_MADE, sensor))

    def test_a_bond_made_again_is_a_changed_bond_of_the_same_sensor(self):
        self.assertEqual(self.bond(), self.bond())
        self.assertEqual(self.bodies()[-2][1].code, BOND_CHANGED)

    def test_no_more_sensors_than_references(self):
        for i in range(MAX_SENSORS):
            self.assertEqual(self.bond(bytes([0xC0, 0, 0, 0, 0, i])), i + 1)
        self.gateway.open_pairing(0, 1000)
        self.assertFalse(self.gateway.wants(b"\xc0\x00\x00\x00\x01\x00", [0x1810], 0))
        with self.assertRaises(SensorError):
            self.bond(b"\xc0\x00\x00\x00\x01\x00")

    def test_bonded_sensors_and_what_was_read_of_them_survive_a_restart(self):
        sensor = self.bond()
        self.visit(sensor, {0x2A25: b"SN-1"})
        self.boot()
        self.assertEqual(self.gateway.reference_of(ADDRESS), sensor)
        items, complete = self.gateway.identity(sensor)
        self.assertTrue(complete)
        self.assertIn((SERIAL, b"SN-1"), items)

    def test_a_sensor_is_described_once_per_journal_and_not_at_every_session_or_boot(self):
        sensor = self.bond()
        for _ in range(3):
            self.visit(sensor, {0x2A25: b"SN-1"})
            self.boot()
        kinds = [kind for kind, _ in self.bodies()]
        self.assertEqual(kinds.count(SENSOR), 2)  # when it was bonded, and when it was known in full

    def test_a_new_journal_describes_every_sensor_before_anything_comes_of_it(self):
        sensor = self.bond()
        self.visit(sensor, {0x2A25: b"SN-1"})
        self.journal.format(b"journal2")
        self.boot()
        self.gateway.received(sensor, 0x2A35, b"\x00", INDICATED, 0, 1)
        kinds = [kind for kind, _ in self.bodies()]
        self.assertEqual(kinds[:3], [EVENT, SENSOR, FRAME])

    def test_a_sensor_that_fails_again_and_again_does_not_fill_the_journal(self):
        sensor = self.bond()
        before = self.journal.next_sequence
        for now_ms in range(0, 500_000, 1_000):
            self.gateway.append_event(SENSOR_FAILED, sensor, b"no answer", now_ms)
        self.assertEqual(self.journal.next_sequence, before + 1)
        self.assertEqual(self.gateway.counters["failures"], 500)

    def test_battery_is_told_when_it_changes(self):
        sensor = self.bond()
        for percent in (90, 90, 89):
            self.gateway.append_battery(sensor, percent, 0)
        events = [body for kind, body in self.bodies() if kind == EVENT and body.code == BATTERY]
        self.assertEqual([event.detail for event in events], [b"\x5a", b"\x59"])

    # --- Boots

    def test_boots_with_nothing_to_tell_leave_the_journal_as_it_is(self):
        before, boot = bytes(self.flash.cells), self.journal.boot
        for _ in range(3):
            self.boot()
        self.assertEqual(self.flash.cells, before)
        self.assertEqual(self.journal.boot, boot)  # nobody has seen that number

    def test_a_boot_tells_itself_before_its_first_record_and_only_once(self):
        self.boot()
        for _ in range(2):
            self.gateway.append_event(BUTTON, 0, b"", 7)
        events = [body.code for kind, body in self.bodies() if kind == EVENT]
        self.assertEqual(events, [BOOTED, BUTTON, BUTTON])

    def test_a_boot_speaks_of_its_troubles_when_it_is_known_or_too_old_for_a_loop(self):
        self.assertFalse(self.gateway.may_speak(SPEAK_AFTER_MS - 1))
        self.assertTrue(self.gateway.may_speak(SPEAK_AFTER_MS))
        self.gateway.append_event(BUTTON, 0, b"", 0)
        self.assertTrue(self.gateway.may_speak(0))

    def test_a_boot_that_sends_has_a_number_of_its_own(self):
        self.gateway.connected(0)
        batch = decode_batch(bytes(self.uplink.next_batch(0)))  # its Ack never comes
        self.boot()
        self.assertEqual(self.journal.boot, batch.boot + 1)

    def test_a_boot_that_only_kept_a_value_has_a_number_of_its_own(self):
        sensor = self.bond()
        self.boot()
        boot = self.journal.boot
        self.gateway.received(sensor, 0x2A35, b"\x00", INDICATED, 0, 1)
        self.boot()
        self.assertEqual(self.journal.boot, boot + 1)

    # --- Time

    def test_local_time_is_known_from_the_first_ack_on(self):
        self.assertIsNone(self.gateway.local_time(0))
        self.gateway.connected(100)
        self.ack(decode_batch(bytes(self.uplink.next_batch(100))), 100)
        self.assertEqual(self.gateway.local_time(1_100), (UTC_MS + 1_000 + 3_600_000, 60))

    def test_local_time_stays_unknown_without_the_home_offset(self):
        self.gateway.connected(0)
        self.ack(decode_batch(bytes(self.uplink.next_batch(0))), offset_min=NO_OFFSET)
        self.assertIsNone(self.gateway.local_time(0))

    def test_on_the_day_of_the_change_the_next_ack_moves_local_time_by_the_hour(self):
        for before_min, after_min in ((0, 60), (60, 0)):
            self.boot()
            self.gateway.connected(0)
            self.ack(decode_batch(bytes(self.uplink.next_batch(0))), offset_min=before_min)
            self.assertEqual(self.gateway.local_time(HOUR), (UTC_MS + HOUR + before_min * MINUTE, before_min))
            asked = decode_batch(bytes(self.uplink.next_batch(2 * HOUR)))
            self.ack(asked, 2 * HOUR, utc_ms=UTC_MS + 2 * HOUR, offset_min=after_min)
            self.assertEqual(
                self.gateway.local_time(2 * HOUR), (UTC_MS + 2 * HOUR + after_min * MINUTE, after_min)
            )

    def sntp(self, utc_ms, now_ms, floor_ms=0):
        seconds, ms = divmod(utc_ms, 1000)
        packet = b"\x24\x02" + bytes(22) + b"noncenon" + bytes(8)
        packet += struct.pack(">II", seconds + 2_208_988_800, (ms << 32) // 1000)
        self.gateway.receive_sntp(packet, b"noncenon", sent_ms=now_ms, now_ms=now_ms, floor_ms=floor_ms)

    def test_an_sntp_answer_gives_an_anchor_and_sets_no_sensors_clock(self):
        self.assertTrue(self.gateway.wants_sntp(0))
        self.sntp(UTC_MS, 5)
        self.assertFalse(self.gateway.wants_sntp(5))
        self.assertIsNone(self.gateway.local_time(5))
        kind, anchor = self.bodies()[1]
        self.assertEqual((kind, anchor.source, anchor.offset_min), (ANCHOR, FROM_SNTP, NO_OFFSET))
        self.assertTrue(abs(anchor.utc_ms - UTC_MS) <= 1 and anchor.uncertainty_ms >= 5_000)

    def test_an_sntp_answer_that_the_floor_or_an_ack_excludes_is_told_and_gives_no_anchor(self):
        self.sntp(1_000_000_000_000, 5, floor_ms=UTC_MS)
        self.gateway.connected(5)
        self.ack(decode_batch(bytes(self.uplink.next_batch(5))), 5)
        self.sntp(UTC_MS + 20_000, 10)
        self.assertFalse(self.gateway.wants_sntp(100 * HOUR))
        told = [body for kind, body in self.bodies() if kind == EVENT and body.code == SNTP_REFUSED]
        self.assertEqual([event.detail for event in told], [bytes([BEFORE_FLOOR]), bytes([EXCLUDED])])
        self.assertEqual(self.gateway.counters["sntp_refused"], 2)

    def test_an_ack_that_excludes_what_an_sntp_server_said_is_told(self):
        self.sntp(UTC_MS - 60_000, 5)
        self.gateway.connected(10)
        self.ack(decode_batch(bytes(self.uplink.next_batch(10))), 10)
        told = [body for kind, body in self.bodies() if kind == EVENT and body.code == SNTP_REFUSED]
        self.assertEqual([event.detail for event in told], [bytes([EXCLUDED])])

    def test_nonsense_from_an_sntp_server_is_counted(self):
        self.gateway.receive_sntp(b"", b"noncenon", sent_ms=0, now_ms=1, floor_ms=0)
        self.assertEqual(self.gateway.counters["sntp_refused"], 1)
        self.assertEqual(self.bodies()[0][0], EVENT)  # that the boot has begun

    def test_a_sensor_clock_record_keeps_the_raw_value(self):
        self.gateway.append_clock(2, 1, NO_OFFSET, 0x2A08, b"\xe9\x07\x0b\x18\x10\x00\x00", 9)
        kind, clock = self.bodies()[1]
        self.assertEqual(kind, SENSOR_CLOCK)
        self.assertEqual((clock.sensor, clock.value), (2, b"\xe9\x07\x0b\x18\x10\x00\x00"))

    # --- Wipe

    def test_wipe_is_refused_while_records_wait_unless_they_are_given_up(self):
        self.bond()
        with self.assertRaises(JournalError):
            self.gateway.wipe(b"journal2")
        self.gateway.wipe(b"journal2", force_unsent=True)
        self.boot()
        self.assertEqual(self.journal.journal_id, b"journal2")
        self.assertEqual(self.gateway.reference_of(ADDRESS), 0)
        self.assertEqual([kind for kind, _ in self.bodies()][:1], [EVENT])
