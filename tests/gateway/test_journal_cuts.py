"""Power cuts at every program and erase: everything kept is found, and no sequence comes twice.

The Journal under test is never cut itself: at each operation of its flash a copy is made in which power
failed there, and a Journal that mounts the copy is looked at. What that one appends is cut at each operation
in turn.
"""

import unittest

from nor import JOURNAL_ID, Lock, NorFlash, last_of, lost_in, records_after

from gateway.journal import Journal
from gateway.record import EVENT, FRAME, OVERWRITTEN, TORN

APPENDS = 140
HANDLER = b"handler"


class PowerCutTest(unittest.TestCase):
    def setUp(self):
        self.flash = NorFlash(5)
        self.journal = Journal(self.flash, Lock())
        self.returned = 0  # sequence of the last append that returned
        self.operations = self.cuts = 0
        self.reasons = set()

    def test_a_cut_at_any_operation_of_two_laps_loses_nothing(self):
        self.journal.format(JOURNAL_ID)
        self.flash.watch = self.cut
        for _ in range(APPENDS):
            self.append_next()
            if self.returned % 3 == 0:
                self.journal.ack(self.returned * 3 // 4)
            if self.returned % 4 == 0:  # not always in time: the append erases too
                self.journal.maintain()
        self.assertTrue(self.operations > 150, self.operations)
        self.assertTrue(self.cuts > 4 * self.operations, self.cuts)
        self.assertEqual(self.reasons, {OVERWRITTEN, TORN})

    def test_a_cut_at_any_operation_of_a_wipe_uses_no_sequence_twice(self):
        self.journal.format(JOURNAL_ID)
        for _ in range(APPENDS - 10):
            self.append_next()
        self.assertTrue(self.journal._newest % 5 < 3)  # older blocks stand behind it in the ring
        self.flash.watch = self.cut_wipe
        self.journal.format(b"journal2")
        self.assertTrue(self.cuts > 5, self.cuts)

    def test_a_record_in_a_block_that_was_left_never_stands_for_the_one_that_came_after(self):
        self.journal.format(JOURNAL_ID)
        self.append_next()
        program = self.flash.program

        def program_and_complain(offset, buffer):
            program(offset, buffer)
            if offset < self.flash.block_bytes:
                raise OSError(5)

        self.flash.program = program_and_complain
        copies = []
        self.flash.watch = lambda torn: copies.append(torn(0))
        self.append_next()
        # Its Record is whole in block 0; block 1 has a header, and power fails.
        journal = mounted(copies[-1])
        self.assertEqual(journal.append(EVENT, 1, b"next boot", 0), 2)
        self.assertEqual(records_after(journal, 0)[1].body, b"next boot")

    def append_next(self):
        sequence = self.returned + 1
        body = body_of(sequence)
        if sequence % 2:
            self.journal.append(EVENT, 1, body, sequence)
        else:
            self.journal.append_frame(0, 0, 0, body, 0, sequence)
        self.returned = sequence

    def cut(self, torn):
        """Look at every way in which power can fail now."""
        self.operations += 1
        given_up = self.journal.first_sequence - 1
        for n in range(NorFlash.TEARS):
            self.look(torn(n), given_up)

    def look(self, flash, given_up):
        self.cuts += 1
        before = flash.operations
        journal = mounted(flash)
        self.assertEqual(flash.operations, before)
        self.assertTrue(journal.next_sequence > self.returned)
        self.assertTrue(journal.acked <= self.journal.acked)
        self.append_and_cut(journal, flash, self.check(journal, given_up))

    def check(self, journal, given_up):
        """Hold what this Journal sends against what was appended to the first; return the last sequence."""
        records = records_after(journal, 0)
        for first, last, reason in lost_in(records):
            self.reasons.add(reason)
            if reason == TORN:
                self.assertTrue(first > self.returned)
            else:  # what the ring was about to overwrite, and nothing after it
                self.assertTrue(last <= given_up)
        for record in records:
            if record.type in (EVENT, FRAME) and record.boot == 1:
                body = record.body if record.type == EVENT else record.body[4:]
                self.assertEqual(body, body_of(record.sequence))
        return last_of(records[-1]) if records else 0

    def append_and_cut(self, journal, flash, seen):
        """The next boot appends, and is cut at each operation of that; the boot after it still counts on."""

        def cut(torn):
            for n in range(NorFlash.TEARS):
                self.cuts += 1
                after = mounted(torn(n))
                self.assertTrue(after.next_sequence > seen)

        flash.watch = cut
        sequence = journal.append(EVENT, 1, b"next boot", 0)
        flash.watch = None
        self.assertTrue(sequence > max(seen, self.returned))
        last = records_after(mounted(flash), sequence - 1)[0]
        self.assertEqual((last.type, last.sequence, last.body), (EVENT, sequence, b"next boot"))

    def cut_wipe(self, torn):
        self.cuts += 1
        for n in range(NorFlash.TEARS):
            flash = torn(n)
            try:
                journal = mounted(flash)
            except Exception as none:
                self.assertTrue("no Journal" in str(none))
                continue
            if journal.journal_id == JOURNAL_ID:
                self.assertTrue(journal.next_sequence > self.returned)
            else:
                self.assertEqual(journal.next_sequence, 1)


class PreemptionTest(unittest.TestCase):
    """The handler comes between any two steps of the main loop in which the lock is free."""

    def test_a_handler_at_any_lock_or_erase_loses_nothing_and_repeats_nothing(self):
        at = 0
        while self.run_with_handler(at):
            at += 1
        self.assertTrue(at > 50, at)

    def run_with_handler(self, at):
        """Whether the handler came, at the step with this number."""
        flash = NorFlash(8)
        journal = Journal(flash, Lock())
        journal.format(JOURNAL_ID)
        for position in range(1, 8):  # as after a lap: there is something to erase
            flash.program(position * flash.block_bytes, bytes(4))
        steps = Steps(journal, at)
        journal._lock = steps
        erase = flash.erase

        def slow_erase(position):
            steps.step()
            erase(position)
            steps.step()

        flash.erase = slow_erase
        appended = []
        read = []
        for i in range(18):
            appended.append(journal.append(EVENT, 1, bytes(40 + i), 0))
            if i % 5 == 0:
                read += records_after(journal, last_of(read[-1]) if read else 0)
                journal.ack(last_of(read[-1]))
        read += records_after(journal, last_of(read[-1]))
        self.check(steps, appended, read)
        found = records_after(mounted(flash), 0)
        self.assertEqual(lost_in(found), [])
        self.assertEqual(found, read)
        return steps.came

    def check(self, steps, appended, read):
        self.assertEqual(lost_in(read), [])
        frames = [record.sequence for record in read if record.type == FRAME]
        self.assertEqual(frames, steps.sequences)
        self.assertEqual(sorted(appended + frames), [record.sequence for record in read])


class Steps:
    """A lock that runs the handler at one of the steps at which it is free: more Frames than a block has."""

    def __init__(self, journal, at):
        self.journal = journal
        self.left = at
        self.held = self.came = False
        self.sequences = []

    def step(self):
        if self.held or self.came:
            return
        self.came = self.left == 0
        self.left -= 1
        if self.came:
            for _ in range(7):
                self.sequences.append(self.journal.append_frame(1, 0, 1, HANDLER * 20, 0, 0))

    def acquire(self):
        self.step()
        self.held = True

    def release(self):
        self.held = False
        self.step()


def body_of(sequence):
    return bytes([sequence & 0xFF]) * (sequence * 7 % 60)


def mounted(flash):
    journal = Journal(flash, Lock())
    journal.mount()
    return journal
