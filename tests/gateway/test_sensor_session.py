"""SensorSession: the order of what is asked of a Sensor, and what is kept when it leaves in the middle."""

import unittest

from gateway.errors import SensorError
from gateway.limits import QUIET_MS, RACP_WAIT_MS
from gateway.record import (
    BOND_CHANGED,
    CLOCK_AFTER,
    CLOCK_BEFORE,
    CLOCK_SET,
    FEATURE,
    FROM_STORAGE,
    INDICATED,
    MODEL,
    NOTIFIED,
    RACP_ENDED,
    SENSOR_CONNECTED,
    SENSOR_DISCONNECTED,
    SENSOR_DRAINED,
    SENSOR_FAILED,
    SERIAL,
)
from gateway.sensor_session import (
    CAN_INDICATE,
    CAN_NOTIFY,
    CAN_READ,
    CAN_WRITE,
    DISCONNECT,
    READ,
    SUBSCRIBE,
    WRITE,
    SensorSession,
    encode_clock,
)

SENSOR = 3
CUFF = {
    0x2A25: CAN_READ,
    0x2A24: CAN_READ,
    0x2A49: CAN_READ,
    0x2A35: CAN_INDICATE,
    0x2A36: CAN_NOTIFY,
    0x2A08: CAN_READ | CAN_WRITE,
    0x2A19: CAN_READ,
}
OXIMETER = {
    0x2A25: CAN_READ,
    0x2A60: CAN_READ,
    0x2A5E: CAN_INDICATE,
    0x2A5F: CAN_NOTIFY,
    0x2A52: CAN_INDICATE | CAN_WRITE,
    0x2A2B: CAN_READ | CAN_WRITE,
}
ANSWERS = {
    0x2A25: b"SN-1",
    0x2A24: b"V1",
    0x2A49: b"\x37\x00",
    0x2A60: b"\x8c\x00",  # storage, timestamps, multiple bonds
    0x2A08: b"\xda\x07\x01\x01\x00\x00\x05",  # 2010-01-01 00:00:05
    0x2A2B: b"\xda\x07\x01\x01\x00\x00\x05\x05\x00\x00",
    0x2A19: b"\x58",
}
LOCAL = (1_764_000_000_400, 60)  # 2025-11-24 16:00:00.400 of a home one hour east of UTC
KNOWN_CUFF = (((SERIAL, b"SN-1"), (MODEL, b"V1"), (FEATURE, b"\x49\x2a\x37\x00")), True)


class Log:
    """What a session has appended, as tuples in order."""

    def __init__(self, identity=((), False), local=LOCAL):
        self.known = identity
        self.local = local
        self.lines = []

    def identity(self, sensor):
        return self.known

    def describe(self, sensor, items, complete, now_ms):
        self.known = (items, complete)
        self.lines.append(("sensor", items, complete))

    def append_clock(self, sensor, kind, offset_min, characteristic, value, now_ms):
        self.lines.append(("clock", kind, offset_min, characteristic, value, now_ms))

    def append_event(self, code, sensor, detail, now_ms):
        self.lines.append(("event", code, detail))

    def append_battery(self, sensor, percent, now_ms):
        self.lines.append(("battery", percent))

    def local_time(self, now_ms):
        return self.local

    def events(self):
        return [line[1] for line in self.lines if line[0] == "event"]

    def clocks(self):
        return [(line[1], line[4]) for line in self.lines if line[0] == "clock"]


def begin(log, table, now_ms=0):
    return SensorSession(log, SENSOR, name="Cuff", services=[0x1810], table=table, now_ms=now_ms)


def answer(session, step, now_ms):
    session.step_done(ANSWERS.get(step[1]) if step[0] == READ else None, now_ms)


def run(session, now_ms=0, steps=100):
    """Answer what the session asks, a ms each, until it waits; return the steps and the time."""
    asked = []
    while len(asked) < steps:
        step = session.next_step(now_ms)
        if step is None:
            break
        asked.append(step[:2])
        now_ms += 1
        answer(session, step, now_ms)
    return asked, now_ms


def leave_after(steps, session):
    """Answer so many operations; the link ends while the next one is open."""
    now_ms = 0
    while True:
        step = session.next_step(now_ms)
        if step is None:
            now_ms = session.due_ms(now_ms)
        elif steps:
            answer(session, step, now_ms)
            steps -= 1
        else:
            session.closed(now_ms)
            session.step_done(b"late", now_ms)
            return


class CuffTest(unittest.TestCase):
    def test_new_cuff_is_read_in_full_described_and_then_subscribed(self):
        log = Log()
        asked, _ = run(begin(log, CUFF))
        self.assertEqual(
            asked, [(READ, 0x2A25), (READ, 0x2A24), (READ, 0x2A49), (READ, 0x2A08), (SUBSCRIBE, 0x2A35)]
        )
        kinds = [line[0] for line in log.lines]
        self.assertEqual(kinds, ["event", "sensor", "clock"])
        items, complete = log.known
        self.assertTrue(complete)
        self.assertIn((SERIAL, b"SN-1"), items)
        self.assertIn((FEATURE, b"\x49\x2a\x37\x00"), items)

    def test_known_cuff_is_subscribed_after_two_reads(self):
        log = Log(KNOWN_CUFF)
        asked, _ = run(begin(log, CUFF))
        self.assertEqual(asked, [(READ, 0x2A25), (READ, 0x2A08), (SUBSCRIBE, 0x2A35)])
        self.assertEqual(log.lines[1], ("sensor", KNOWN_CUFF[0], True))

    def test_another_serial_at_the_same_address_is_a_changed_bond_and_is_read_in_full(self):
        log = Log((((SERIAL, b"SN-0"), (MODEL, b"V0")), True))
        asked, _ = run(begin(log, CUFF))
        self.assertEqual([uuid for what, uuid in asked if what == READ][:4], [0x2A25, 0x2A25, 0x2A24, 0x2A49])
        self.assertEqual(log.events(), [SENSOR_CONNECTED, BOND_CHANGED])
        self.assertIn((MODEL, b"V1"), log.known[0])
        self.assertFalse((SERIAL, b"SN-0") in log.known[0])

    def test_clock_is_read_set_to_local_time_and_read_again_only_when_the_cuff_is_quiet(self):
        log = Log(KNOWN_CUFF)
        session = begin(log, CUFF)
        _, now_ms = run(session)
        self.assertEqual(log.clocks(), [(CLOCK_BEFORE, ANSWERS[0x2A08])])
        session.value_received(0x2A35, b"\x00", now_ms + QUIET_MS - 1)
        self.assertIsNone(session.next_step(now_ms + QUIET_MS))
        now_ms = session.due_ms(now_ms)
        asked, _ = run(session, now_ms)
        self.assertEqual(asked, [(WRITE, 0x2A08), (READ, 0x2A08), (READ, 0x2A19)])
        written = b"\xe9\x07\x0b\x18\x10\x00\x00"
        self.assertEqual(
            log.clocks(),
            [(CLOCK_BEFORE, ANSWERS[0x2A08]), (CLOCK_SET, written), (CLOCK_AFTER, ANSWERS[0x2A08])],
        )
        self.assertEqual(log.lines[-3], ("clock", CLOCK_SET, 60, 0x2A08, written, now_ms))
        self.assertEqual(log.lines[-1], ("battery", 88))
        self.assertEqual(log.events(), [SENSOR_CONNECTED, SENSOR_DRAINED])

    def test_on_both_days_of_the_change_the_clock_is_read_as_it_was_and_set_to_the_new_local_time(self):
        days = (
            (1_774_749_600_000, 60, b"\xea\x07\x03\x1d\x03\x00\x00"),  # 2026-03-29 02:00 UTC: 03:00
            (1_792_890_000_000, 60, b"\xea\x07\x0a\x19\x02\x00\x00"),  # 2026-10-25 01:00 BST, not yet
            (1_792_893_600_000, 0, b"\xea\x07\x0a\x19\x02\x00\x00"),  # an hour later 02:00 again
        )
        for utc_ms, offset_min, local in days:
            log = Log(KNOWN_CUFF, local=(utc_ms + offset_min * 60_000, offset_min))
            session = begin(log, CUFF)
            _, now_ms = run(session)
            run(session, session.due_ms(now_ms))
            self.assertEqual(log.clocks()[:2], [(CLOCK_BEFORE, ANSWERS[0x2A08]), (CLOCK_SET, local)])
            self.assertEqual(log.lines[-3][2], offset_min)

    def test_a_power_cut_between_setting_the_clock_and_its_answer_leaves_the_set_in_the_journal(self):
        # Unsaid, a step within what drift allows would make times false (found by the simulation).
        log = Log(KNOWN_CUFF)
        session = begin(log, CUFF)
        _, now_ms = run(session)
        step = session.next_step(session.due_ms(now_ms))
        self.assertEqual(step[0], WRITE)
        self.assertEqual(log.clocks()[-1], (CLOCK_SET, step[2]))

    def test_every_new_value_is_followed_by_drained_and_the_clock_is_set_once(self):
        log = Log(KNOWN_CUFF)
        session = begin(log, CUFF)
        _, now_ms = run(session)
        _, now_ms = run(session, session.due_ms(now_ms))
        self.assertTrue(session.drained)
        session.value_received(0x2A35, b"\x00", now_ms)
        self.assertFalse(session.drained)
        self.assertIsNone(session.next_step(now_ms))
        asked, _ = run(session, now_ms + QUIET_MS)
        self.assertEqual(asked, [])
        self.assertEqual(log.events(), [SENSOR_CONNECTED, SENSOR_DRAINED, SENSOR_DRAINED])

    def test_clock_is_left_alone_while_the_home_time_is_unknown_and_set_when_it_becomes_known(self):
        log = Log(KNOWN_CUFF, local=None)
        session = begin(log, CUFF)
        _, now_ms = run(session)
        asked, now_ms = run(session, session.due_ms(now_ms))
        self.assertEqual(asked, [(READ, 0x2A19)])
        log.local = LOCAL
        self.assertTrue(session.due_ms(now_ms) < now_ms + 5_000)
        asked, _ = run(session, session.due_ms(now_ms))
        self.assertEqual(asked[:2], [(WRITE, 0x2A08), (READ, 0x2A08)])

    def test_a_refused_time_begins_an_epoch_without_a_value(self):
        log = Log(KNOWN_CUFF)
        session = begin(log, CUFF)
        _, now_ms = run(session)
        now_ms = session.due_ms(now_ms)
        self.assertEqual(session.next_step(now_ms)[0], WRITE)
        session.step_failed("Application-specific Error 0x80", now_ms, refused=True)
        self.assertEqual(log.clocks()[-1], (CLOCK_SET, b""))
        self.assertEqual(session.next_step(now_ms), (READ, 0x2A08, None))

    def test_intermediate_cuff_pressure_is_not_subscribed(self):
        asked, _ = run(begin(Log(KNOWN_CUFF), CUFF))
        self.assertFalse((SUBSCRIBE, 0x2A36) in asked)

    def test_leaving_at_each_step_keeps_what_was_learnt_before(self):
        for steps in range(8):
            log = Log()
            leave_after(steps, begin(log, CUFF))
            self.assertEqual(log.events()[-1], SENSOR_DISCONNECTED)
            self.assertEqual("sensor" in [line[0] for line in log.lines], steps >= 3)
            kinds = [kind for kind, _ in log.clocks()]
            unknown = [CLOCK_SET] if steps == 5 else []  # it left while its clock was written
            clocks = (0, 0, 0, 0, 1, 2, 2, 3)[steps]
            expected = [CLOCK_BEFORE, CLOCK_SET] + unknown + [CLOCK_AFTER]
            self.assertEqual(kinds, expected[: clocks + len(unknown)])
            self.assertEqual(SENSOR_DRAINED in log.events(), steps >= 5)

    def test_leaving_while_the_clock_is_written_leaves_its_time_unknown(self):
        log = Log()
        leave_after(5, begin(log, CUFF))
        self.assertEqual(log.clocks()[-1], (CLOCK_SET, b""))

    def test_a_cuff_that_leaves_before_it_is_identified_is_read_in_full_next_time(self):
        log = Log()
        run(begin(log, CUFF), steps=2)
        asked, _ = run(begin(log, CUFF))
        self.assertEqual(asked[:3], [(READ, 0x2A25), (READ, 0x2A24), (READ, 0x2A49)])

    def test_a_read_without_answer_is_asked_again_next_time_and_what_was_known_stays(self):
        log = Log((((SERIAL, b"SN-1"),), False))
        session = begin(log, CUFF)
        session.next_step(0)
        session.step_failed("no answer", 1)
        run(session, 1)
        items, complete = log.known
        self.assertFalse(complete)
        self.assertIn((SERIAL, b"SN-1"), items)
        self.assertIn((MODEL, b"V1"), items)

    def test_a_read_that_is_refused_for_good_is_not_asked_for_again(self):
        log = Log()
        session = begin(log, CUFF)
        session.next_step(0)
        session.step_failed("Read Not Permitted", 1, refused=True)
        run(session, 1)
        self.assertTrue(log.known[1])

    def test_a_refused_subscription_ends_the_session_with_its_reason(self):
        log = Log(KNOWN_CUFF)
        session = begin(log, CUFF)
        run(session, steps=2)
        session.next_step(2)
        session.step_failed("Insufficient Encryption", 2)
        self.assertEqual(log.lines[-1], ("event", SENSOR_FAILED, b"Insufficient Encryption"))
        self.assertEqual(session.next_step(3)[0], DISCONNECT)

    def test_a_sensor_without_measurements_is_refused(self):
        with self.assertRaises(SensorError):
            begin(Log(), {0x2A25: CAN_READ})


class OximeterTest(unittest.TestCase):
    def start(self):
        self.log = Log()
        self.session = begin(self.log, OXIMETER)
        return run(self.session)

    def test_store_is_asked_for_after_everything_is_subscribed(self):
        asked, _ = self.start()
        self.assertEqual(
            asked[-4:], [(SUBSCRIBE, 0x2A5E), (SUBSCRIBE, 0x2A5F), (SUBSCRIBE, 0x2A52), (WRITE, 0x2A52)]
        )

    def test_values_of_the_store_are_marked_until_the_response_and_streamed_ones_never(self):
        _, now_ms = self.start()
        self.assertEqual(self.session.frame_flags(INDICATED), INDICATED | FROM_STORAGE)
        self.assertEqual(self.session.frame_flags(NOTIFIED), NOTIFIED)
        self.session.value_received(0x2A5E, b"\x00", now_ms)
        self.session.value_received(0x2A52, b"\x06\x00\x01\x01", now_ms)
        self.assertEqual(self.session.frame_flags(INDICATED), INDICATED)
        self.assertEqual(self.log.lines[-1], ("event", RACP_ENDED, b"\x01"))

    def test_no_records_found_is_an_empty_store(self):
        _, now_ms = self.start()
        self.session.value_received(0x2A52, b"\x06\x00\x01\x06", now_ms)
        run(self.session, now_ms + QUIET_MS)
        self.assertIn(SENSOR_DRAINED, self.log.events())

    def test_a_response_that_comes_before_the_write_is_done_ends_the_report(self):
        log = Log()
        session = begin(log, OXIMETER)
        run(session, steps=6)
        self.assertEqual(session.next_step(6), (WRITE, 0x2A52, b"\x01\x01"))
        session.value_received(0x2A52, b"\x06\x00\x01\x06", 7)
        session.step_done(None, 8)
        self.assertIsNone(session.next_step(9))
        self.assertEqual(session.due_ms(9), 7 + QUIET_MS)

    def test_a_report_that_stops_is_not_drained(self):
        _, now_ms = self.start()
        self.session.value_received(0x2A5E, b"\x00", now_ms + 4_000)
        self.assertIsNone(self.session.next_step(now_ms + RACP_WAIT_MS))
        now_ms = self.session.due_ms(now_ms)
        self.assertIsNone(self.session.next_step(now_ms))
        self.assertEqual(self.log.lines[-1], ("event", RACP_ENDED, b"\x00"))
        run(self.session, now_ms + QUIET_MS)
        self.assertFalse(SENSOR_DRAINED in self.log.events())

    def test_short_and_strange_responses_are_passed_over(self):
        _, now_ms = self.start()
        for value in (b"", b"\x06", b"\x06\x00\x02\x01", b"\x05\x00\x03\x00"):
            self.session.value_received(0x2A52, value, now_ms)
        self.assertEqual(self.session.frame_flags(INDICATED), INDICATED | FROM_STORAGE)

    def test_streamed_values_do_not_keep_it_from_being_quiet(self):
        _, now_ms = self.start()
        self.session.value_received(0x2A52, b"\x06\x00\x01\x01", now_ms)
        self.session.value_received(0x2A5F, b"\x00", now_ms + QUIET_MS - 1)
        asked, _ = run(self.session, now_ms + QUIET_MS)
        self.assertIn((WRITE, 0x2A2B), asked)

    def test_a_store_that_cannot_be_subscribed_costs_only_the_store(self):
        log = Log()
        session = begin(log, OXIMETER)
        run(session, steps=5)
        self.assertEqual(session.next_step(5)[:2], (SUBSCRIBE, 0x2A52))
        session.step_failed("Unlikely Error", 6)
        self.assertIsNone(session.next_step(7))
        run(session, 7 + QUIET_MS)
        self.assertFalse(SENSOR_DRAINED in log.events())

    def test_an_oximeter_without_store_and_clock_is_only_subscribed(self):
        log = Log()
        session = begin(log, {0x2A5E: CAN_INDICATE, 0x2A52: CAN_INDICATE | CAN_WRITE})
        asked, now_ms = run(session)
        self.assertEqual(asked, [(SUBSCRIBE, 0x2A5E)])
        asked, _ = run(session, now_ms + QUIET_MS)
        self.assertEqual(asked, [])
        self.assertIn(SENSOR_DRAINED, log.events())


class ClockTest(unittest.TestCase):
    def test_date_time_is_rounded_to_the_nearest_second(self):
        self.assertEqual(encode_clock(0x2A08, 951_782_399_500), b"\xd0\x07\x02\x1d\x00\x00\x00")  # 2000-02-29
        self.assertEqual(encode_clock(0x2A08, 951_782_399_499), b"\xd0\x07\x02\x1c\x17\x3b\x3b")

    def test_year_and_leap_year_turn(self):
        self.assertEqual(encode_clock(0x2A08, 0), b"\xb2\x07\x01\x01\x00\x00\x00")
        self.assertEqual(
            encode_clock(0x2A08, 1_735_689_599_000), b"\xe8\x07\x0c\x1f\x17\x3b\x3b"
        )  # 2024-12-31
        self.assertEqual(
            encode_clock(0x2A08, 1_709_251_200_000), b"\xe8\x07\x03\x01\x00\x00\x00"
        )  # 2024-03-01

    def test_current_time_has_weekday_fraction_and_reason(self):
        whole = encode_clock(0x2A2B, 1_764_000_000_500)  # a Monday
        self.assertEqual(whole, b"\xe9\x07\x0b\x18\x10\x00\x00\x01\x80\x02")
