"""Uplink: what is sent when, and which Acks are believed, against a real Journal in RAM."""

import unittest

from nor import Lock, NorFlash

from gateway.journal import Journal
from gateway.limits import ACK_WAIT_MAX_MS, ACK_WAIT_MS, ANCHOR_EVERY_MS, MAX_BATCH_BYTES, MAX_ROUND_TRIP_MS
from gateway.message import Ack, decode_batch, encode_ack
from gateway.record import (
    ANCHOR,
    EVENT,
    FROM_ACK,
    NO_OFFSET,
    REPLAYED,
    Anchor,
    Event,
    decode_all,
    decode_body,
    encode_event,
)
from gateway.uplink import Uplink

JOURNAL_ID = b"journal1"
UTC_MS = 1_764_000_000_000


class UplinkTest(unittest.TestCase):
    def setUp(self):
        self.journal = Journal(NorFlash(10), Lock())
        self.journal.format(JOURNAL_ID)
        self.journal.mount()
        self.nonces = 0
        self.uplink = Uplink(self.journal, self.next_nonce)

    def next_nonce(self):
        self.nonces += 1
        return bytes([self.nonces] * 8)

    def append(self, count=1):
        for _ in range(count):
            last = self.journal.append(EVENT, 1, encode_event(Event(10, 0, b"")), 5)
        return last

    def send(self, now_ms):
        whole = self.uplink.next_batch(now_ms)
        return None if whole is None else decode_batch(bytes(whole))

    def ack(self, batch, now_ms, through=None, journal_id=JOURNAL_ID, replay_from=None, utc_ms=UTC_MS):
        if through is None:
            through = batch.first + batch.count - 1 if batch.count else self.journal.acked
        whole = encode_ack(Ack(journal_id, batch.nonce, through, 0, 0, replay_from, utc_ms, 60))
        return self.uplink.receive_ack(whole, now_ms)

    def greet(self, now_ms=0):
        """Connect, and bring the greeting and its anchor behind us."""
        self.uplink.connected(now_ms)
        self.ack(self.send(now_ms), now_ms)
        self.ack(self.send(now_ms), now_ms)
        self.assertEqual(self.journal.pending, 0)

    # --- Sending

    def test_nothing_is_sent_without_a_connection(self):
        self.append()
        self.assertIsNone(self.send(0))

    def test_an_empty_batch_goes_first_and_alone(self):
        self.append()
        self.uplink.connected(1000)
        batch = self.send(1000)
        self.assertEqual((batch.first, batch.count, batch.records), (0, 0, b""))
        self.assertEqual((batch.journal_id, batch.boot, batch.uptime_ms), (JOURNAL_ID, 1, 1000))
        self.assertIsNone(self.send(1001))

    def test_records_follow_in_order_after_the_acked_one(self):
        self.greet()
        first = self.append(3) - 2
        batch = self.send(10)
        self.assertEqual((batch.first, batch.count, batch.acked_through), (first, 3, first - 1))
        self.assertEqual([each.sequence for each in decode_all(batch.records)], [first, first + 1, first + 2])
        self.assertIsNone(self.send(11))
        self.ack(batch, 12)
        self.assertEqual(self.journal.pending, 0)
        self.assertIsNone(self.send(13))

    def test_a_backlog_goes_in_batches_of_bounded_size(self):
        self.greet()
        self.append(150)
        batches = 0
        while self.journal.pending:
            whole = self.uplink.next_batch(batches)
            self.assertTrue(len(whole) <= MAX_BATCH_BYTES)
            self.ack(decode_batch(bytes(whole)), batches)
            batches += 1
        self.assertEqual(batches, 3)

    def test_a_lost_ack_is_answered_by_sending_again_with_a_new_nonce(self):
        self.greet()
        self.append(2)
        batch = self.send(0)
        self.assertIsNone(self.send(ACK_WAIT_MS - 1))
        again = self.send(ACK_WAIT_MS)
        self.assertEqual((again.first, again.count, again.records), (batch.first, batch.count, batch.records))
        self.assertTrue(again.nonce != batch.nonce)
        self.assertEqual(self.uplink.counters["resent"], 1)

    def test_waits_for_an_ack_grow_up_to_a_bound_and_start_anew_after_one(self):
        self.greet()
        self.append()
        now_ms, waits = 0, []
        for _ in range(8):
            self.nonces = 254  # the next nonce asks for the longest wait
            batch = self.send(now_ms)
            wait_ms = self.uplink.due_ms(now_ms) - now_ms
            waits.append(wait_ms)
            now_ms += wait_ms
        self.assertEqual(waits[0], ACK_WAIT_MS)
        self.assertEqual(waits, sorted(waits))
        self.assertEqual(waits[-1], ACK_WAIT_MAX_MS)
        self.ack(batch, now_ms)
        self.append()
        self.nonces = 254
        self.send(now_ms)
        self.assertEqual(self.uplink.due_ms(now_ms) - now_ms, ACK_WAIT_MS)

    def test_a_new_connection_greets_again_and_sends_what_was_in_flight(self):
        self.greet()
        self.append()
        batch = self.send(1)
        self.uplink.disconnected(2)
        self.assertIsNone(self.send(3))
        self.uplink.connected(4)
        greeting = self.send(5)
        self.assertEqual(greeting.count, 0)
        self.ack(greeting, 6)
        self.assertEqual(self.send(7).records, batch.records)

    def test_it_is_due_at_once_with_records_and_in_an_hour_without(self):
        self.greet(5)
        self.assertEqual(self.uplink.due_ms(6), 5 + ANCHOR_EVERY_MS)
        self.append()
        self.assertEqual(self.uplink.due_ms(6), 6)

    # --- Time

    def test_an_ack_gives_an_anchor_with_half_the_round_trip_as_bound(self):
        self.uplink.connected(1000)
        anchor = self.ack(self.send(1000), 1401)
        self.assertEqual(anchor, Anchor(UTC_MS + 200, 202, FROM_ACK, 60))
        record = decode_all(self.send(1402).records)[0]
        self.assertEqual((record.type, record.uptime_ms), (ANCHOR, 1401))
        self.assertEqual(decode_body(record.type, record.version, record.body), anchor)

    def test_time_is_asked_for_again_every_hour(self):
        self.greet(0)
        self.assertIsNone(self.send(ANCHOR_EVERY_MS - 1))
        batch = self.send(ANCHOR_EVERY_MS)
        self.assertEqual(batch.count, 0)
        self.assertTrue(self.ack(batch, ANCHOR_EVERY_MS) is not None)

    def test_a_link_that_flaps_does_not_fill_the_journal_with_anchors(self):
        self.greet(0)
        self.uplink.connected(1000)
        self.assertIsNone(self.ack(self.send(1000), 1001))
        self.assertEqual(self.journal.pending, 0)

    def test_an_ack_without_time_or_after_too_long_gives_none_and_time_is_asked_for_later(self):
        self.uplink.connected(0)
        self.assertIsNone(self.ack(self.send(0), 10, utc_ms=None))
        self.assertIsNone(self.send(11))
        batch = self.send(self.uplink.due_ms(11))
        self.assertIsNone(self.ack(batch, batch.uptime_ms + MAX_ROUND_TRIP_MS + 1))
        self.assertEqual(self.journal.pending, 0)

    # --- Acks that are not believed

    def refused(self, why, whole, now_ms=1):
        before = (self.journal.acked, self.journal.pending, dict(self.uplink.counters))
        self.assertIsNone(self.uplink.receive_ack(whole, now_ms))
        self.assertEqual((self.journal.acked, self.journal.pending), before[:2])
        self.assertEqual(self.uplink.counters[why], before[2][why] + 1)

    def test_broken_bytes_are_refused(self):
        self.greet()
        last = self.append()
        whole = bytearray(encode_ack(Ack(JOURNAL_ID, self.send(0).nonce, last, 0, 0, None, UTC_MS, 0)))
        whole[18] ^= 1
        for broken in (b"", b"\x01", bytes(whole), bytes(whole[:-1]), bytes(whole) + b"\x00"):
            self.refused("broken", broken)

    def test_an_ack_of_another_journal_is_refused(self):
        self.greet()
        last = self.append()
        self.refused(
            "other_journal", encode_ack(Ack(b"journal2", self.send(0).nonce, last, 0, 0, None, 1, 0))
        )

    def test_an_ack_for_the_future_is_refused_and_gives_no_time(self):
        self.uplink.connected(0)
        last = self.append()
        self.refused(
            "future", encode_ack(Ack(JOURNAL_ID, self.send(0).nonce, last + 1, 0, 0, None, UTC_MS, 0))
        )

    def test_an_ack_of_an_earlier_try_is_refused(self):
        self.uplink.connected(0)
        self.append(2)
        old = self.send(0)
        self.send(ACK_WAIT_MS)
        self.refused("stale", encode_ack(Ack(JOURNAL_ID, old.nonce, 1, 0, 0, None, UTC_MS, 0)))

    def test_an_ack_that_comes_twice_is_refused_the_second_time(self):
        self.greet()
        self.append(2)
        batch = self.send(1)
        self.ack(batch, 2)
        self.append()
        self.refused("stale", encode_ack(Ack(JOURNAL_ID, batch.nonce, 3, 0, 0, None, UTC_MS, 0)))

    def test_an_ack_that_says_less_than_an_earlier_one_is_refused_and_the_batch_goes_again(self):
        self.greet()
        last = self.append(2)
        nonce = self.send(1).nonce
        self.refused("behind", encode_ack(Ack(JOURNAL_ID, nonce, last - 3, 0, 0, None, UTC_MS, 0)))
        self.assertEqual(self.send(1 + ACK_WAIT_MS).count, 2)

    # --- Replay

    def test_a_service_that_has_lost_records_gets_them_again(self):
        self.greet()
        last = self.append(3)
        self.ack(self.send(1), 2)
        self.append()
        self.ack(self.send(3), 4, replay_from=2)
        self.assertEqual(self.uplink.counters["replays"], 1)
        batch = self.send(5)
        records = decode_all(batch.records)
        self.assertEqual([each.sequence for each in records], list(range(2, last + 3)))
        event = decode_body(EVENT, 1, records[-1].body)
        self.assertEqual((event.code, event.detail), (REPLAYED, b"\x02\x00\x00\x00"))

    def test_a_replay_of_what_is_still_to_be_sent_is_nothing_new(self):
        self.greet()
        last = self.append(2)
        self.ack(self.send(1), 2, through=last - 2, replay_from=last - 1)
        self.assertEqual((self.uplink.counters["replays"], self.journal.pending), (0, 2))

    def test_a_replay_is_not_believed_from_an_old_answer(self):
        self.greet()
        self.append(2)
        batch = self.send(1)
        self.ack(batch, 2)
        self.ack(batch, 3, replay_from=1)
        self.assertEqual((self.uplink.counters["replays"], self.journal.pending), (0, 0))

    def test_an_anchor_without_the_home_offset_keeps_that_unknown(self):
        self.uplink.connected(0)
        whole = encode_ack(Ack(JOURNAL_ID, self.send(0).nonce, 0, 0, 0, None, UTC_MS, NO_OFFSET))
        self.assertEqual(self.uplink.receive_ack(whole, 1).offset_min, NO_OFFSET)
