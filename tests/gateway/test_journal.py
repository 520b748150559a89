"""Journal: what is appended is found again, in order, and what is gone is said."""

import sys
import unittest

from golden import vectors
from nor import JOURNAL_ID, Lock, NorFlash, lost_in, records_after

from gateway.errors import FormatError, JournalError
from gateway.journal import Journal
from gateway.limits import ACKED_EVERY, MAX_BATCH_RECORDS, MAX_BODY_BYTES, RESERVE_BLOCKS
from gateway.record import (
    ACKED,
    BAD_BLOCK,
    ERASED_LATE,
    EVENT,
    FRAME,
    INDICATED,
    OVERWRITTEN,
    ROTTEN,
    TORN,
    Frame,
    decode,
    decode_all,
    decode_body,
    encode,
)

try:
    from micropython import heap_lock, heap_unlock
except ImportError:  # CPython allocates as it likes

    def heap_lock():
        pass

    heap_unlock = heap_lock

BODY = bytes(range(30))
TAKEN = 52  # flash that a Record with this body takes
PER_BLOCK = (1024 - 32) // TAKEN


class JournalTest(unittest.TestCase):
    def setUp(self):
        self.begin(NorFlash())

    def begin(self, flash):
        self.flash = flash
        self.lock = Lock()
        self.journal = Journal(flash, self.lock)
        self.journal.format(JOURNAL_ID)

    def mount(self):
        self.lock = Lock()
        self.journal = Journal(self.flash, self.lock)
        self.journal.mount()
        return self.journal

    def append(self, count):
        for _ in range(count):
            self.journal.append(EVENT, 1, BODY, 5)
            while self.journal.maintain():
                pass

    def place(self, sequence, value):
        """Flash offset of a Record of this sequence whose body is BODY, in the first lap."""
        block, index = divmod(sequence - 1, PER_BLOCK)
        return block * self.flash.block_bytes + 32 + index * TAKEN + value


class AppendTest(JournalTest):
    def test_sequences_begin_at_one_and_follow_each_other(self):
        self.assertEqual(self.journal.append(EVENT, 1, b"", 0), 1)
        self.assertEqual(self.journal.append_frame(1, INDICATED, 0x2A35, b"v", 0, 0), 2)
        self.assertEqual(self.journal.append(EVENT, 1, b"", 0), 3)

    def test_what_was_appended_is_read_as_it_was(self):
        self.journal.append(EVENT, 7, b"abc", 1 << 40)
        self.journal.append_frame(2, INDICATED, 0x2A5F, b"value", 1 << 16, 9)
        event, frame = records_after(self.journal, 0)
        self.assertEqual(event, (EVENT, 7, 1, 1, 1 << 40, b"abc"))
        self.assertEqual((frame.type, frame.sequence, frame.uptime_ms), (FRAME, 2, 1 << 40 | 9))
        self.assertEqual(decode_body(FRAME, 1, frame.body), Frame(2, INDICATED, 0x2A5F, b"value"))

    def test_what_was_appended_is_found_after_a_restart(self):
        self.append(3 * PER_BLOCK)
        kept = records_after(self.journal, 0)
        self.mount()
        self.assertEqual(records_after(self.journal, 0), kept)
        self.assertEqual(self.journal.append(EVENT, 1, b"", 0), 3 * PER_BLOCK + 1)

    def test_a_value_of_every_length_is_kept(self):
        for length in range(0, 513, 19):
            self.journal.append_frame(1, 0, 1, bytes(length), 0, 0)
            self.journal.ack(self.journal.next_sequence - 1)
            record = records_after(self.journal, self.journal.next_sequence - 2)[0]
            self.assertEqual(len(record.body), 4 + length)

    def test_a_body_above_the_limit_is_refused_and_nothing_is_written(self):
        before = self.flash.operations
        with self.assertRaises(FormatError):
            self.journal.append(EVENT, 1, bytes(MAX_BODY_BYTES + 1), 0)
        with self.assertRaises(FormatError):
            self.journal.append_frame(1, 0, 1, bytes(MAX_BODY_BYTES), 0, 0)
        self.assertEqual(
            (self.flash.operations, self.journal.next_sequence, self.lock.held), (before, 1, False)
        )

    def test_each_boot_has_its_number_and_continues_in_the_same_block(self):
        for boot in range(1, 6):
            self.mount()
            self.assertEqual(self.journal.boot, boot)
            self.append(1)
        self.assertEqual([record.boot for record in records_after(self.journal, 0)], [1, 2, 3, 4, 5])
        self.assertEqual(self.flash.erased, self.flash.block_bytes)

    def test_the_handler_path_allocates_nothing(self):
        value = bytes(range(200))
        self.journal.maintain()
        append_frame = self.journal.append_frame
        heap_lock()
        try:
            for _ in range(10):  # crosses into the next block
                append_frame(1, INDICATED, 0xFFFF, value, 0xFFFFFF, 0xFFFFFF)
        finally:
            heap_unlock()
        self.assertEqual(len(records_after(self.journal, 0)), 10)

    def test_the_handler_path_allocates_nothing_when_it_has_to_erase(self):
        value = bytes(500)
        append_frame = self.journal.append_frame
        heap_lock()
        try:
            for _ in range(30):  # several laps without maintain
                append_frame(1, INDICATED, 0xFFFF, value, 0xFFFFFF, 0xFFFFFF)
        finally:
            heap_unlock()
        self.assertEqual(self.journal.next_sequence, 31)

    def test_the_handler_path_is_at_most_four_frames_deep(self):
        depth_here = _depth()
        deepest = []
        self.flash.watch = lambda torn: deepest.append(_depth() - depth_here - 2)
        for _ in range(30):
            self.journal.append_frame(1, INDICATED, 1, bytes(300), 0, 0)
        self.assertTrue(max(deepest) <= 4, max(deepest))

    def test_the_main_loop_never_erases_under_the_lock(self):
        erased = self.flash.erase

        def erase(position):
            self.assertFalse(self.lock.held)
            erased(position)

        self.flash.erase = erase
        for _ in range(8 * PER_BLOCK):
            self.journal.append(EVENT, 1, BODY, 0)

    def test_with_maintenance_the_handler_never_erases(self):
        for _ in range(100):
            while self.journal.maintain():
                pass
            before = self.flash.erased
            self.journal.append_frame(1, 0, 1, bytes(200), 0, 0)
            self.assertEqual(self.flash.erased, before)

    def test_a_handler_that_had_to_erase_says_so_in_an_event(self):
        for _ in range(5):
            self.journal.append_frame(1, 0, 1, bytes(300), 3, 4)
        self.journal.maintain()
        event = records_after(self.journal, 0)[-1]
        self.assertEqual(decode_body(event.type, event.version, event.body).code, ERASED_LATE)
        self.assertEqual(event.uptime_ms, 3 << 24 | 4)
        self.journal.maintain()
        self.assertEqual(self.journal.next_sequence, 7)

    def test_flash_is_programmed_and_erased_hardly_more_than_is_kept(self):
        self.begin(NorFlash(4, 4096))
        self.flash.programmed = self.flash.erased = kept = 0
        while kept < 40_000:
            self.journal.append(EVENT, 1, bytes(18), 0)  # 40 bytes
            self.journal.maintain()
            kept += 40
            self.journal.ack(self.journal.next_sequence - 1)
        self.assertTrue(self.flash.programmed < 1.05 * kept, self.flash.programmed)
        self.assertTrue(self.flash.erased < 1.15 * kept, self.flash.erased)

    def test_a_journal_that_is_not_mounted_takes_nothing(self):
        journal = Journal(NorFlash(), Lock())
        with self.assertRaises(JournalError):
            journal.append(EVENT, 1, b"", 0)
        with self.assertRaises(JournalError):
            journal.append_frame(1, 0, 1, b"", 0, 0)


class RingTest(JournalTest):
    def test_the_oldest_are_overwritten_and_stand_as_one_lost_in_their_place(self):
        self.append(10 * PER_BLOCK)
        records = records_after(self.journal, 0)
        first = self.journal.first_sequence
        self.assertEqual(lost_in(records), [(1, first - 1, OVERWRITTEN)])
        self.assertTrue(first > 5 * PER_BLOCK)
        self.assertEqual(records[-1].sequence, 10 * PER_BLOCK)

    def test_as_much_is_kept_as_the_ring_holds_beside_the_reserve(self):
        self.append(10 * PER_BLOCK)
        kept = self.journal.next_sequence - self.journal.first_sequence
        self.assertTrue(kept >= (6 - RESERVE_BLOCKS) * PER_BLOCK - PER_BLOCK, kept)

    def test_lost_has_the_same_bytes_each_time(self):
        self.append(10 * PER_BLOCK)
        again = records_after(self.journal, 0)[0]
        self.assertEqual(records_after(self.journal, 0)[0], again)
        self.mount()
        self.assertEqual(records_after(self.journal, 0)[0], again)

    def test_free_counts_down_to_the_first_record_that_is_lost(self):
        self.mount()
        while self.journal.free >= TAKEN:
            self.append(1)
        self.assertEqual(self.journal.first_sequence, 1)
        self.append(1)
        self.assertTrue(self.journal.first_sequence > 1)
        self.journal.ack(self.journal.next_sequence - 1)
        self.assertTrue(self.journal.free >= 3 * 992, self.journal.free)

    def test_a_bad_block_is_left_out_and_nothing_is_lost(self):
        self.begin(NorFlash(8))
        self.append(1)
        self.flash.refuses = [2]
        self.append(3 * PER_BLOCK)
        self.assertEqual(lost_in(records_after(self.journal, 0)), [])
        self.mount()
        self.assertEqual(len(records_after(self.journal, 0)), 3 * PER_BLOCK + 1)
        self.append(10 * PER_BLOCK)
        self.assertEqual(len(lost_in(records_after(self.journal, 0))), 1)

    def test_a_block_that_keeps_no_bits_is_left_out_and_nothing_is_lost(self):
        self.append(PER_BLOCK - 2)
        self.flash.forgets = [0, 1]
        self.append(PER_BLOCK)
        self.assertEqual(lost_in(records_after(self.journal, 0)), [])
        self.mount()
        self.assertEqual(lost_in(records_after(self.journal, 0)), [])
        self.assertEqual(self.journal.next_sequence, 2 * PER_BLOCK - 1)

    def test_a_block_with_a_stuck_bit_is_left_out_from_the_next_lap_on(self):
        self.begin(NorFlash(8))
        self.append(2 * PER_BLOCK)
        self.flash.stuck = [3 * 1024 + 500]
        self.flash.erase(3)
        self.append(12 * PER_BLOCK)
        self.assertEqual(len(lost_in(records_after(self.journal, 0))), 1)
        self.assertEqual(self.flash.cells[3 * 1024], 0xFF)  # nothing is written into it
        self.mount()
        self.append(12 * PER_BLOCK)
        self.assertEqual(len(lost_in(records_after(self.journal, 0))), 1)

    def test_a_block_that_wears_out_under_the_handler_loses_nothing(self):
        self.begin(NorFlash(14))
        self.flash.forgets, self.flash.refuses = [1, 4], [2]
        self.flash.stuck = [3 * 1024 + 40]
        for _ in range(20):
            self.journal.append_frame(1, INDICATED, 1, bytes(180), 0, 0)  # never maintained
        found = records_after(self.journal, 0)
        self.assertEqual(lost_in(found), [])
        self.assertEqual(len(found), 20)
        self.assertEqual(lost_in(records_after(self.mount(), 0)), [])

    def test_blocks_that_wear_out_one_after_the_other_leave_a_journal_that_goes_on(self):
        self.begin(NorFlash(10))
        for worn in (2, 7, 5):
            self.flash.refuses.append(worn)
            before = self.journal.next_sequence
            self.append(12 * PER_BLOCK)
            records = records_after(self.journal, before - 1)
            self.assertEqual([reason for _, _, reason in lost_in(records)], [OVERWRITTEN])
            self.assertTrue(len(records) > 4 * PER_BLOCK - len(self.flash.refuses) * PER_BLOCK)
            self.mount()

    def test_a_flash_that_takes_nothing_more_is_an_error_not_a_hang(self):
        self.flash.refuses = list(range(6))
        with self.assertRaises(JournalError):
            self.append(1)
        self.assertFalse(self.lock.held)
        with self.assertRaises(JournalError):
            self.journal.append_frame(1, 0, 1, b"", 0, 0)
        self.assertFalse(self.lock.held)


class RotTest(JournalTest):
    def setUp(self):
        self.begin(NorFlash(8))
        self.mount()
        self.append(3 * PER_BLOCK)

    def test_a_rotten_record_is_lost_alone(self):
        for sequence, value in ((5, 20), (PER_BLOCK + 1, 0), (2 * PER_BLOCK, 1)):
            self.flash.cells[self.place(sequence, value)] ^= 0x40
        lost = [
            (5, 5, ROTTEN),
            (PER_BLOCK + 1, PER_BLOCK + 1, ROTTEN),
            (2 * PER_BLOCK, 2 * PER_BLOCK, ROTTEN),
        ]
        self.assertEqual(lost_in(records_after(self.journal, 0)), lost)
        self.mount()
        self.assertEqual(lost_in(records_after(self.journal, 0)), lost)

    def test_a_length_that_reads_longer_or_erased_hides_no_neighbour(self):
        self.flash.cells[self.place(3, 0)] = 0x60
        self.flash.cells[self.place(3, 1)] = 0x02
        self.flash.cells[self.place(7, 0)] = 0xFF
        self.flash.cells[self.place(7, 1)] = 0xFF
        self.assertEqual(lost_in(records_after(self.journal, 0)), [(3, 3, ROTTEN), (7, 7, ROTTEN)])

    def test_the_ack_moves_on_past_rot(self):
        self.flash.cells[self.place(1, 5)] ^= 1
        self.assertTrue(self.journal.ack(1))
        self.assertEqual(records_after(self.journal, 1)[0].sequence, 2)

    def test_a_header_with_one_rotten_bit_is_mended(self):
        # The only block after a wipe: with its header the Journal would be gone (found by the simulation).
        self.begin(NorFlash(8))
        self.append(3)
        for bit in range(8 * 32):
            self.flash.cells[bit >> 3] ^= 1 << (bit & 7)
            self.mount()
            self.assertEqual((self.journal.journal_id, self.journal.next_sequence), (JOURNAL_ID, 4))
            self.flash.cells[bit >> 3] ^= 1 << (bit & 7)
        self.flash.cells[3] ^= 3
        with self.assertRaises(JournalError):
            self.mount()

    def test_records_of_a_block_with_a_rotten_header_are_still_sent(self):
        self.flash.cells[1024 + 9] ^= 3
        self.assertEqual(lost_in(records_after(self.journal, 0)), [])
        self.mount()
        self.assertEqual(lost_in(records_after(self.journal, 0)), [])

    def test_a_block_that_is_gone_is_lost_in_its_place(self):
        self.flash.cells[1024:2048] = bytes(1024)
        lost = [(PER_BLOCK + 1, 2 * PER_BLOCK, BAD_BLOCK)]
        self.assertEqual(lost_in(records_after(self.journal, 0)), lost)
        self.mount()
        self.assertEqual(lost_in(records_after(self.journal, 0)), lost)

    def test_a_rotten_newest_header_never_gives_a_sequence_again(self):
        self.append(1)
        last = self.journal.next_sequence - 1
        self.flash.cells[3 * 1024 + 2] ^= 3
        self.mount()
        self.assertTrue(self.journal.next_sequence > last)
        self.append(1)
        records = records_after(self.journal, 0)
        self.assertEqual([reason for _, _, reason in lost_in(records)], [TORN])
        self.assertEqual(records[last - 1].body, BODY)

    def test_rot_in_the_newest_block_hides_nothing_after_it(self):
        self.append(4)
        self.flash.cells[self.place(3 * PER_BLOCK + 2, 20)] ^= 1
        self.mount()
        self.assertEqual(self.journal.next_sequence, 3 * PER_BLOCK + 5)
        self.append(1)
        lost = [(3 * PER_BLOCK + 2, 3 * PER_BLOCK + 2, ROTTEN)]
        self.assertEqual(lost_in(records_after(self.journal, 0)), lost)

    def test_rot_between_two_tries_becomes_lost_and_the_ack_moves_on(self):
        self.assertEqual(lost_in(records_after(self.journal, 0)), [])
        self.flash.cells[self.place(1, 30)] ^= 4
        self.flash.cells[self.place(2, 30)] ^= 4
        records = records_after(self.journal, 0)
        self.assertEqual(lost_in(records), [(1, 2, ROTTEN)])
        self.assertEqual(records[1].sequence, 3)
        self.journal.ack(2)
        self.assertEqual(lost_in(records_after(self.journal, self.journal.acked)), [])

    def test_rot_behind_the_readers_mark_is_found_as_well(self):
        buffer = bytearray(1024)
        _, count, _ = self.journal.read_batch(buffer, 0, 300, 0)
        self.flash.cells[self.place(count + 1, 18)] ^= 1
        records = records_after(self.journal, count)
        self.assertEqual(lost_in(records), [(count + 1, count + 1, ROTTEN)])

    def test_a_rotten_record_before_the_ack_that_covers_it_never_gives_its_sequence_again(self):
        self.append(1)
        last = self.journal.next_sequence - 1
        self.journal.ack(last)
        self.journal.settle()
        place = self.flash.cells.rfind(BODY)
        self.flash.cells[place] ^= 1
        self.mount()
        self.assertEqual(self.journal.acked, last)
        self.assertTrue(self.journal.append(EVENT, 1, b"", 0) > last)
        # How many more Records the same bytes have held nobody knows.
        first, _, reason = lost_in(records_after(self.journal, last))[0]
        self.assertEqual((first, reason), (last + 1, TORN))

    def test_rotten_records_before_an_ack_of_earlier_ones_never_give_their_sequences_again(self):
        # The ACKED behind them is good, and the flash after it erased (found by the simulation).
        self.append(3)
        last = self.journal.next_sequence - 1
        self.journal.ack(last - 2)
        self.journal.settle()
        for sequence in (last - 1, last):
            self.flash.cells[self.place(sequence, 20)] ^= 1
        self.mount()
        self.assertTrue(self.journal.append(EVENT, 1, b"", 0) > last)
        self.assertEqual(lost_in(records_after(self.journal, 0))[0][0], last - 1)
        self.assertEqual(self.journal.acked, last - 2)

    def test_a_boot_whose_only_record_has_rotted_never_gives_its_number_again(self):
        self.append(1)
        boot = self.mount().boot
        self.append(1)
        self.flash.cells[self.flash.cells.rfind(BODY)] ^= 1
        self.assertTrue(self.mount().boot > boot)

    def test_a_bad_block_does_not_hide_the_newest_whose_header_is_rotten(self):
        self.begin(NorFlash(8))
        self.append(1)
        self.flash.refuses = [1]
        self.append(PER_BLOCK + 2)  # from block 0 on into block 2
        last = self.journal.next_sequence - 1
        self.flash.cells[2 * 1024 + 20] ^= 3
        self.mount()
        self.assertTrue(self.journal.next_sequence > last)
        self.append(1)
        self.assertEqual([reason for _, _, reason in lost_in(records_after(self.journal, 0))], [TORN])

    def test_a_bad_block_ahead_costs_no_sequence(self):
        self.flash.cells[5 * 1024 : 6 * 1024] = b"\x5a" * 1024
        self.flash.refuses = [5]
        for newest in (2, 3, 4):
            before = self.journal.next_sequence
            self.assertEqual((self.mount().next_sequence, self.journal._newest), (before, newest))
            self.assertEqual(lost_in(records_after(self.journal, 0)), [])
            self.append(PER_BLOCK)

    def test_a_record_inside_a_torn_value_neither_acks_nor_counts(self):
        """A Sensor that knows the format sends Records; the one around them is torn behind them."""
        self.append(1)
        last = self.journal.next_sequence - 1
        forged = encode(ACKED, 1, 1 << 29, 1, 0, b"") + b"pp" + encode(EVENT, 1, 1 << 29, 9, 0, b"xx")
        place = self.journal._head
        self.journal.append_frame(1, INDICATED, 0x2A35, b"pp" + forged, 0, 0)
        self.assertTrue(self.flash.cells.find(forged) % 4 == 0)
        self.flash.cells[place + 18] ^= 1
        self.mount()
        self.assertTrue(last < self.journal.next_sequence < last + 100)
        self.assertEqual(self.journal.acked, 0)


class AckTest(JournalTest):
    def test_pending_counts_what_is_not_acked(self):
        self.append(10)
        self.assertEqual((self.journal.pending, self.journal.acked), (10, 0))
        self.assertTrue(self.journal.ack(4))
        self.assertEqual((self.journal.pending, self.journal.acked), (6, 4))

    def test_an_ack_for_the_future_is_refused(self):
        self.append(3)
        with self.assertRaises(JournalError):
            self.journal.ack(4)
        self.assertEqual(self.journal.acked, 0)

    def test_an_old_ack_changes_nothing(self):
        self.append(3)
        self.journal.ack(3)
        self.assertFalse(self.journal.ack(2))
        self.assertFalse(self.journal.ack(3))
        self.assertEqual(self.journal.acked, 3)

    def test_after_a_restart_at_most_acked_every_records_are_sent_again(self):
        worst = 0
        for _ in range(8 * PER_BLOCK):
            self.append(1)
            through = self.journal.next_sequence - 1
            self.journal.ack(through)
            if through % 5 == 0:
                worst = max(worst, through - self.mount().acked)
                self.journal.ack(through)
        self.assertTrue(0 < worst <= ACKED_EVERY, worst)

    def test_after_an_orderly_end_nothing_that_was_acked_is_sent_again(self):
        for length in range(100):  # of every length, so that blocks end in every way
            self.journal.append(EVENT, 1, BODY[: length % 30], 5)
            self.journal.maintain()
            self.journal.ack(self.journal.next_sequence - 1)
            self.journal.settle()
            self.assertEqual(self.mount().pending, 0, length)

    def test_the_ack_position_is_never_sent_and_takes_no_sequence(self):
        for _ in range(3 * ACKED_EVERY):
            self.append(1)
            self.journal.ack(self.journal.next_sequence - 1)
        first = self.journal.first_sequence
        types = [record.type for record in records_after(self.journal, first - 1)]
        self.assertEqual(types, [EVENT] * (3 * ACKED_EVERY + 1 - first))

    def test_replay_sends_again_what_is_still_in_flash_and_says_what_is_not(self):
        self.append(10 * PER_BLOCK)
        self.journal.ack(10 * PER_BLOCK)
        self.journal.replay(PER_BLOCK)
        first = self.journal.first_sequence
        self.assertEqual(self.journal.pending, 9 * PER_BLOCK + 1)
        records = records_after(self.journal, self.journal.acked)
        self.assertEqual(lost_in(records), [(PER_BLOCK, first - 1, OVERWRITTEN)])
        self.journal.replay(10 * PER_BLOCK + 5)
        self.assertEqual(self.journal.acked, PER_BLOCK - 1)
        self.journal.replay(0)
        self.assertEqual(self.journal.acked, 0)

    def test_replay_from_the_middle_says_all_that_is_gone_in_its_place(self):
        self.begin(NorFlash(8))
        self.append(3 * PER_BLOCK)
        self.flash.cells[self.place(PER_BLOCK + 3, 25)] ^= 1
        self.flash.cells[2 * 1024 : 3 * 1024] = bytes(1024)
        self.journal.ack(3 * PER_BLOCK)
        self.journal.replay(PER_BLOCK)
        records = records_after(self.journal, self.journal.acked)
        self.assertEqual(records[0].sequence, PER_BLOCK)
        lost = [(PER_BLOCK + 3, PER_BLOCK + 3, ROTTEN), (2 * PER_BLOCK + 1, 3 * PER_BLOCK, BAD_BLOCK)]
        self.assertEqual(lost_in(records), lost)
        self.journal.ack(3 * PER_BLOCK)
        self.assertEqual(self.journal.pending, 0)

    def test_a_replay_that_a_restart_interrupts_is_forgotten_until_it_is_asked_for_again(self):
        self.append(PER_BLOCK)
        self.journal.ack(PER_BLOCK)
        self.journal.settle()
        self.journal.replay(3)
        self.mount()
        self.assertEqual(self.journal.acked, PER_BLOCK)
        self.journal.replay(3)
        self.append(PER_BLOCK + 1)  # the next block's header tells of it
        self.assertEqual(self.mount().acked, 2)

    def test_an_ack_position_that_was_written_before_a_replay_does_not_come_back(self):
        self.append(ACKED_EVERY + 2)
        self.journal.ack(ACKED_EVERY + 2)
        self.journal.replay(1)
        self.journal.ack(ACKED_EVERY)
        self.assertEqual(self.mount().acked, ACKED_EVERY)

    def test_a_batch_ends_at_its_limits_and_the_next_one_begins_there(self):
        buffer = bytearray(4096)
        for _ in range(MAX_BATCH_RECORDS + 3):
            self.journal.append(EVENT, 1, b"", 0)
        self.assertEqual(self.journal.read_batch(buffer, 38, 4092, 0), (1, 64, 38 + 64 * 22))
        self.assertEqual(self.journal.read_batch(buffer, 38, 4092, 64), (65, 3, 38 + 3 * 22))
        self.assertEqual(self.journal.read_batch(buffer, 38, 4092, 67), (0, 0, 38))
        self.append(60)
        first, count, end = self.journal.read_batch(buffer, 10, 1010, 67)
        self.assertEqual((first, count, end), (68, 19, 10 + 19 * 52))
        self.assertEqual(decode_all(memoryview(buffer)[10:end])[-1].sequence, 86)


class MountTest(JournalTest):
    def test_flash_without_a_journal_is_refused(self):
        for fill in (0xFF, 0x00, 0x5A):
            flash = NorFlash()
            flash.cells[:] = bytes([fill]) * flash.size
            with self.assertRaises(JournalError):
                Journal(flash, Lock()).mount()

    def test_a_golden_block_is_mounted_and_its_records_are_sent_byte_for_byte(self):
        for vector in vectors("blocks"):
            journal_id, number, boot, next_sequence, acked = vector["journal"]
            self.flash = NorFlash()
            start = number % 6 * self.flash.block_bytes
            self.flash.program(start, vector["bytes"])
            journal = self.mount()
            found = (journal.journal_id, journal.boot, journal.next_sequence, journal.acked)
            self.assertEqual(found, (journal_id, boot, next_sequence, acked))
            buffer = bytearray(1024)
            end = journal.read_batch(buffer, 0, 1024, 0)[2]
            self.assertEqual(bytes(buffer[:end]), b"".join(vector["records"]))

    def test_a_golden_block_is_written(self):
        vector = vectors("blocks")[0]
        self.journal.format(vector["journal"][0])
        self.mount()
        for raw in vector["records"]:
            record = decode(raw)
            self.journal.append(record.type, record.version, record.body, record.uptime_ms)
        length = len(vector["bytes"]) - 24  # without the Ack position
        self.assertEqual(self.flash.cells[32:length], vector["bytes"][32:length])

    def test_a_flash_too_small_for_the_reserve_is_refused(self):
        with self.assertRaises(JournalError):
            Journal(NorFlash(RESERVE_BLOCKS + 1), Lock())
        with self.assertRaises(JournalError):
            Journal(NorFlash(8, 512), Lock())

    def test_mount_reads_little_and_writes_nothing(self):
        self.begin(NorFlash(20, 1024))
        self.append(25 * PER_BLOCK)
        before = self.flash.operations
        self.flash.was_read = 0
        self.mount()
        self.assertEqual(self.flash.operations, before)
        # Every header, and a few times the newest block: on 512 blocks of 4 KiB 2 %.
        self.assertTrue(self.flash.was_read < 20 * 32 + 6 * 1024, self.flash.was_read)

    def test_after_a_wipe_nothing_old_is_found_and_sequences_begin_again(self):
        self.append(4 * PER_BLOCK)
        self.journal.format(b"journal2")
        self.assertEqual((self.journal.boot, self.journal.pending), (1, 0))
        self.append(1)
        self.mount()
        self.assertEqual((self.journal.journal_id, self.journal.boot), (b"journal2", 2))
        self.assertEqual([record.sequence for record in records_after(self.journal, 0)], [1])
        self.assertFalse(BODY in bytes(self.flash.cells[1024:]))

    def test_a_block_that_cannot_be_erased_is_wiped_by_overwriting_it(self):
        self.append(4 * PER_BLOCK)
        erase = self.flash.erase

        def refuse(position):
            if position == 3:
                raise OSError(5)
            erase(position)

        self.flash.erase = refuse
        self.journal.format(b"journal2")
        self.assertEqual(self.mount().journal_id, b"journal2")
        self.assertEqual(self.journal.next_sequence, 1)
        self.assertFalse(BODY in bytes(self.flash.cells))

    def test_a_flash_that_cannot_be_wiped_says_so(self):
        self.append(4 * PER_BLOCK)
        self.flash.refuses = [3]
        with self.assertRaises(JournalError):
            self.journal.format(b"journal2")


def _depth():
    """Frames on the stack; 0 where the interpreter does not tell."""
    getframe = getattr(sys, "_getframe", None)
    frame = getframe(1) if getframe else None
    depth = 0
    while frame:
        depth += 1
        frame = frame.f_back
    return depth
