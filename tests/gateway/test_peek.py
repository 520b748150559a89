"""Peek: what goes past a backlog, and what a peek may say of itself. Against a real Journal in RAM."""

import json
import unittest

from nor import Lock, NorFlash

from gateway.gateway import Gateway
from gateway.journal import Journal
from gateway.limits import MAX_BATCH_BYTES, MAX_BATCH_RECORDS, PEEK_RECORDS
from gateway.message import PEEK, WHOLE, Ack, decode_batch, encode_ack
from gateway.record import (
    ANCHOR,
    BOND_CHANGED,
    BUTTON,
    CLOCK_BEFORE,
    EVENT,
    FRAME,
    FROM_STORAGE,
    INDICATED,
    NO_OFFSET,
    NOTIFIED,
    SENSOR,
    SENSOR_CLOCK,
    SENSOR_DRAINED,
    decode_all,
    decode_body,
)
from gateway.uplink import Uplink

ADDRESS = b"\xc0\x00\x00\x00\x00\x01"
SPOT, CONTINUOUS = 0x2A5E, 0x2A5F
GOOD = b"\x02\x61\x00\x48\x00\x00\x01"
DEMO = b"\x02\x61\x00\x48\x00\x00\x04"  # its status: for demonstration
STREAMED = b"\x00\x61\x00\x48\x00"
UTC_MS = 1_764_000_000_000


class Bonds:
    """The rim's file, as JSON text; `fails`: power fails before the write."""

    def __init__(self):
        self.text = "[]"
        self.fails = False

    def load(self):
        return json.loads(self.text)

    def save(self, sensors):
        if self.fails:
            raise OSError(5)
        self.text = json.dumps(sensors)


class PeekTest(unittest.TestCase):
    def setUp(self):
        self.flash = NorFlash(14)
        Journal(self.flash, Lock()).format(b"journal1")
        self.bonds = Bonds()
        self.nonces = 0
        self.boot()
        self.sensor = self.gateway.bond(1, ADDRESS, 0)

    def boot(self):
        self.journal = self.uplink = self.gateway = None  # a board's heap holds one Gateway
        self.journal = Journal(self.flash, Lock())
        self.journal.mount()
        self.uplink = Uplink(self.journal, self.next_nonce)
        self.gateway = Gateway("HW-1", "0", journal=self.journal, uplink=self.uplink, bonds=self.bonds)
        self.gateway.start(0)

    def next_nonce(self):
        self.nonces = self.nonces % 250 + 1
        return bytes([self.nonces] * 8)

    def value(self, value=GOOD, characteristic=SPOT, flags=INDICATED):
        while self.gateway.maintain():
            pass
        return self.gateway.received(self.sensor, characteristic, value, flags, 0, 9)

    def clutter(self, count):
        for _ in range(count):
            self.gateway.append_event(BUTTON, 0, b"", 1)

    def send(self):
        whole = self.uplink.next_batch(0)
        return None if whole is None else decode_batch(bytes(whole))

    def ack(self, batch, through=None, replay_from=None):
        through = self.journal.acked if through is None else through
        whole = encode_ack(Ack(b"journal1", batch.nonce, through, 0, 0, replay_from, UTC_MS, 0))
        self.gateway.receive_ack(whole, 0)

    def greet(self):
        self.gateway.connected(0)
        self.ack(self.send())

    def peek(self):
        """What comes after the greeting."""
        self.greet()
        return self.send()

    def records(self, batch):
        return decode_all(batch.records)

    def sequences(self, batch, type=FRAME):
        return [each.sequence for each in self.records(batch) if each.type == type]

    # --- When

    def test_after_an_outage_the_newest_values_go_first_and_the_backlog_follows_in_order(self):
        self.clutter(100)
        wanted = [self.value() for _ in range(3)]
        peek = self.peek()
        self.assertEqual(peek.flags, PEEK | WHOLE)
        self.assertEqual(self.sequences(peek), wanted)
        backlog = self.send()
        self.assertEqual((backlog.flags, backlog.first, backlog.count), (0, 1, MAX_BATCH_RECORDS))
        self.assertIsNone(self.send())

    def test_a_peek_never_moves_the_cursor_of_the_backlog(self):
        self.clutter(200)
        self.value()
        self.greet()
        expected = 1
        while self.journal.pending:
            batch = self.send()
            if batch.flags & PEEK:
                self.ack(batch)
                continue
            self.assertEqual(batch.first, expected)
            expected = batch.first + batch.count
            if self.journal.pending > 2 * MAX_BATCH_RECORDS:
                self.value()  # in the middle of the backlog
            self.ack(batch, expected - 1)

    def test_what_fits_a_batch_needs_no_peek(self):
        self.value()
        self.greet()
        self.assertEqual(self.send().flags, 0)

    def test_a_live_value_is_peeked_at_once_in_the_middle_of_a_backlog(self):
        self.clutter(200)
        self.greet()
        first = self.send()  # nothing clinical: no peek
        self.assertEqual(first.flags, 0)
        self.assertIsNone(self.send())
        sequence = self.value()
        peek = self.send()
        self.assertEqual((peek.flags & PEEK, self.sequences(peek)), (PEEK, [sequence]))
        self.assertIsNone(self.send())
        self.ack(peek)
        self.assertIsNone(self.send())  # not twice

    def test_what_is_no_vital_sign_stored_or_streamed_is_not_urgent(self):
        self.clutter(200)
        self.greet()
        self.send()
        for value, characteristic, flags in (
            (DEMO, SPOT, INDICATED),
            (b"\x02", SPOT, INDICATED),
            (STREAMED, CONTINUOUS, NOTIFIED),
            (GOOD, SPOT, INDICATED | FROM_STORAGE),
        ):
            self.value(value, characteristic, flags)
            self.assertIsNone(self.send())

    def test_an_ack_of_a_peek_moves_the_pointer_no_further_than_is_contiguous(self):
        self.clutter(100)
        last = self.value()
        peek = self.peek()
        self.ack(peek, 40)  # what the service has without a gap
        self.assertEqual(self.journal.acked, 40)
        self.assertTrue(self.journal.pending >= last - 40)

    def test_an_ack_of_a_peek_that_comes_after_that_of_the_next_batch_is_no_step_back(self):
        self.clutter(100)
        self.value()
        peek = self.peek()
        batch = self.send()
        self.ack(batch, 64)
        self.ack(peek, 0)
        self.assertEqual((self.journal.acked, self.uplink.counters["behind"]), (64, 0))

    def test_a_peek_asks_for_no_replay(self):
        self.clutter(100)
        self.value()
        peek = self.peek()
        self.ack(self.send(), 64)
        self.ack(peek, 20, replay_from=21)
        self.assertEqual((self.journal.acked, self.uplink.counters["replays"]), (64, 0))

    def test_a_peek_whose_ack_is_lost_goes_again(self):
        self.clutter(100)
        sequence = self.value()
        self.peek()
        self.send()
        self.uplink.peeks.resend_ms = 0
        again = self.send()
        self.assertEqual((again.flags & PEEK, self.sequences(again)), (PEEK, [sequence]))

    # --- What

    def test_a_peek_holds_what_its_frames_are_derived_from_and_nothing_else(self):
        self.clutter(80)
        self.gateway.append_event(SENSOR_DRAINED, self.sensor, b"", 1)
        self.gateway.append_clock(self.sensor, CLOCK_BEFORE, NO_OFFSET, 0x2A08, bytes(7), 1)
        self.value()
        self.value(STREAMED, CONTINUOUS, NOTIFIED)
        peek = self.peek()
        self.assertEqual(
            [each.type for each in sorted(self.records(peek), key=lambda each: each.sequence)],
            [SENSOR, EVENT, EVENT, SENSOR_CLOCK, FRAME, ANCHOR],
        )

    def test_the_newest_sensor_and_bond_records_come_from_far_behind(self):
        self.gateway.append_event(BOND_CHANGED, self.sensor, b"bond", 1)
        bond = self.journal.next_sequence - 1
        self.clutter(250)
        self.value()
        peek = self.peek()
        self.assertEqual(peek.flags, PEEK | WHOLE)
        self.assertTrue(peek.first > bond)
        self.assertEqual(self.sequences(peek, SENSOR), [2])
        self.assertEqual(self.sequences(peek, EVENT)[:1], [bond])

    def test_what_is_acked_is_not_sent_again(self):
        self.greet()
        self.ack(self.send(), self.journal.next_sequence - 1)
        self.clutter(100)
        self.uplink.disconnected(0)
        self.value()
        self.assertEqual(self.sequences(self.peek(), SENSOR), [])

    def test_every_unstreamed_frame_from_first_on_is_in_a_peek_that_is_full(self):
        for _ in range(40):
            self.value()
            self.clutter(1)
        for _ in range(40):
            self.value()
        peek = self.peek()
        frames = self.sequences(peek)
        self.assertTrue(peek.count <= MAX_BATCH_RECORDS and len(frames) > PEEK_RECORDS)
        self.assertTrue(len(peek.records) <= MAX_BATCH_BYTES)
        kept = [
            each.sequence for each in self.all_records() if each.type == FRAME and each.sequence >= peek.first
        ]
        self.assertEqual(frames, kept)

    def all_records(self):
        from nor import records_after

        return records_after(self.journal, 0)

    def test_a_peek_of_a_boot_that_has_just_begun_knows_the_values_of_the_one_before(self):
        self.clutter(100)
        sequence = self.value()
        self.boot()
        self.assertEqual(self.sequences(self.peek()), [sequence])

    def test_without_an_anchor_since_the_window_the_boots_newest_one_is_added(self):
        self.greet()
        anchor = self.uplink.peek.anchor
        self.uplink.disconnected(0)
        self.clutter(250)
        self.value()
        peek = self.peek()  # so soon after the first it gives no anchor
        self.assertEqual(self.sequences(peek, ANCHOR), [anchor])

    # --- Whole

    def test_marks_survive_a_boot(self):
        self.clutter(100)
        self.boot()
        self.value()
        self.assertEqual(self.peek().flags, PEEK | WHOLE)

    def test_a_peek_is_not_whole_where_power_failed_before_a_mark_was_kept(self):
        self.bonds.fails = False
        marked = self.gateway._append

        def cut(type, body, now_ms):
            marked(type, body, now_ms)
            raise OSError(5)

        self.gateway._append = cut
        with self.assertRaises(OSError):
            self.gateway.append_event(BOND_CHANGED, self.sensor, b"bond", 1)
        changed = self.journal.next_sequence - 1
        self.clutter_and_value_after_boot()
        peek = self.peek()
        self.assertEqual(peek.flags, PEEK)
        self.ack(peek, changed)  # now the service has it, whatever it was
        self.value()
        self.assertEqual(self.send().flags, PEEK | WHOLE)

    def clutter_and_value_after_boot(self):
        self.boot()
        self.clutter(100)
        self.value()

    def test_a_peek_is_not_whole_where_the_sensors_were_kept_by_an_earlier_release(self):
        kept = json.loads(self.bonds.text)
        for each in kept:
            del each["is_marked"], each["bond_sequence"]
        self.bonds.text = json.dumps(kept)
        self.clutter_and_value_after_boot()
        self.assertEqual(self.peek().flags, PEEK)

    def test_a_peek_is_not_whole_where_a_marked_record_is_gone(self):
        self.clutter(100)
        self.value()
        self.gateway._bonded[0].bond_sequence = self.journal.next_sequence + 5
        self.assertEqual(self.peek().flags, PEEK)

    def test_no_peek_is_whole_while_a_replay_runs(self):
        # Derived early, what was derived in order before would get another key (found by the simulation).
        self.greet()
        self.clutter(2 * MAX_BATCH_RECORDS)
        self.value()
        last = self.journal.next_sequence - 1
        while self.journal.pending:
            batch = self.send()
            self.ack(batch, min(last, batch.first + batch.count - 1))
        self.uplink.disconnected(0)
        self.gateway.connected(0)
        self.ack(self.send(), 1, replay_from=2)
        self.value()
        peek = self.send()
        self.assertEqual(peek.flags, PEEK)
        self.ack(peek)
        while self.journal.acked < last:
            batch = self.send()
            self.ack(batch, min(self.journal.next_sequence - 1, batch.first + batch.count - 1))
        self.clutter(2 * MAX_BATCH_RECORDS)
        self.value()
        self.assertEqual(self.send().flags, PEEK | WHOLE)

    def test_a_changed_bond_is_in_the_peek_that_shows_its_value(self):
        self.clutter(100)
        self.gateway.append_event(BOND_CHANGED, self.sensor, b"bond", 1)
        self.value()
        codes = [
            decode_body(EVENT, 1, each.body).code for each in self.records(self.peek()) if each.type == EVENT
        ]
        self.assertIn(BOND_CHANGED, codes)
