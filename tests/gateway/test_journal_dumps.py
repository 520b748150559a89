"""The Journals of earlier releases (tests/vectors/journals) mount, and are sent byte for byte."""

import json
import os
import unittest

from nor import Lock, NorFlash

from gateway.journal import Journal
from gateway.record import EVENT, decode

DUMPS = "tests/vectors/journals"


def dumped(name):
    """The flash of a dump, and what the release that wrote it has found in it."""
    with open(DUMPS + "/" + name) as file:
        dump = json.load(file)
    size = dump["block_bytes"]
    flash = NorFlash(len(dump["blocks"]), size)
    for position, block in enumerate(dump.pop("blocks")):
        whole = bytes.fromhex(block[4:])
        flash.cells[position * size : position * size + len(whole)] = whole
    return flash, dump


def sent(journal, after):
    """Every byte that the Journal sends after a sequence."""
    whole = b""
    buffer = bytearray(1024)
    while after < journal.next_sequence - 1:
        end = journal.read_batch(buffer, 0, len(buffer), after)[2]
        whole += bytes(buffer[:end])
        after = journal._mark[0]
    return whole


class DumpTest(unittest.TestCase):
    def test_dumps_of_a_release_are_there(self):
        names = [name for name in os.listdir(DUMPS) if name.endswith(".json")]
        self.assertTrue(len(names) >= 4, names)

    def test_each_dump_mounts_and_is_sent_byte_for_byte(self):
        for name in os.listdir(DUMPS):
            flash, dump = dumped(name)
            journal = Journal(flash, Lock())
            journal.mount()
            found = ["hex:" + journal.journal_id.hex(), journal.boot, journal.next_sequence, journal.acked]
            self.assertEqual(found, dump["journal"], name)
            self.assertTrue(sent(journal, 0) == bytes.fromhex(dump["sent"][4:]), name)

    def test_each_dump_goes_on_behind_what_it_holds(self):
        for name in os.listdir(DUMPS):
            flash, dump = dumped(name)
            journal = Journal(flash, Lock())
            journal.mount()
            sequence = journal.append(EVENT, 1, b"\x0a\0\0", 0)
            self.assertEqual(sequence, dump["journal"][2], name)
            self.assertEqual(decode(sent(journal, sequence - 1)).boot, dump["journal"][1], name)
