"""A Kit in a boot loop, its Journal half full and nothing sent: `boot_loop BOOTS`. The last line is JSON.

Most boots die with nothing to tell. Some keep a value or an event first, some reach a broker behind which
nobody acks, and some die in the middle of a program. At the end the Journal has to give back all it took.
"""

import json
import struct
import sys
import time

from nor import Lock, NorFlash

from gateway.gateway import Gateway
from gateway.journal import Journal
from gateway.message import ENVELOPE_BYTES, decode_batch
from gateway.record import BUTTON, FRAME, INDICATED, LOST, TORN, decode_all, decode_body
from gateway.uplink import Uplink

BLOCKS, BLOCK_BYTES = 128, 4096  # the board's partition
SENSOR, CHARACTERISTIC = 1, 0x2A35
KEEPS, TELLS, SENDS, TEARS = 12, 60, 100, 500  # each so many boots


class PowerCut(Exception):
    """In a program."""


class Flash(NorFlash):
    """As fast as this interpreter copies. `left`: bytes until the power goes, -1: it stays."""

    left = -1

    def read(self, offset, buffer):
        buffer[:] = memoryview(self.cells)[offset : offset + len(buffer)]

    def program(self, offset, buffer):
        if self.left < 0:
            NorFlash.program(self, offset, buffer)
            return
        self._program(offset, buffer, min(self.left, len(buffer)))
        raise PowerCut

    def _blank(self, position):
        start = position * self.block_bytes
        self.cells[start : start + self.block_bytes] = b"\xff" * self.block_bytes


class Kept:
    """Bonds with one Sensor; the list survives."""

    def __init__(self):
        self.sensors = [{"reference": SENSOR, "address_type": 1, "address": "c00000000001"}]

    def load(self):
        return self.sensors

    def save(self, sensors):
        self.sensors = sensors


class Loop:
    """The flash, and what the world has seen of the boots."""

    def __init__(self):
        self.flash = Flash(BLOCKS, BLOCK_BYTES)
        self.bonds = Kept()
        self.values = 0  # kept and confirmed: 0, 1, 2, ...
        self.sequence = 0  # of the last
        self.boots_seen = [0]
        self.sent = {}  # sequence: bytes that a broker has seen
        self.tears = 0
        Journal(self.flash, Lock()).format(b"journal1")

    def boot(self):
        """As firmware/main.py: mount, start."""
        self.journal = Journal(self.flash, Lock())
        self.journal.mount()
        self.uplink = Uplink(self.journal, lambda: b"noncenon")
        self.gateway = Gateway("HW-0001", "0", journal=self.journal, uplink=self.uplink, bonds=self.bonds)
        self.gateway.start(1, cause=3)

    def keep(self):
        """A value comes; its Sensor forgets it when this returns."""
        value = struct.pack("<I15x", self.values)
        sequence = self.gateway.received(SENSOR, CHARACTERISTIC, value, INDICATED, 0, 9)
        assert sequence > self.sequence, "a sequence used twice"
        self.sequence = sequence
        self.values += 1

    def tear(self, done_bytes):
        self.flash.left = done_bytes
        try:
            self.keep()
            raise AssertionError("the power stayed")
        except PowerCut:
            self.flash.left = -1
            self.tears += 1

    def send(self):
        """The first Batch, and one from the Journal's end; no Ack comes."""
        self.gateway.connected(5)
        batch = decode_batch(bytes(self.uplink.next_batch(5)))
        assert batch.boot > max(self.boots_seen), "a boot's number used twice"
        self.boots_seen.append(batch.boot)
        for record in self.records_after(max(0, self.journal.next_sequence - 20)):
            before = self.sent.setdefault(record.sequence, record)
            assert before == record or LOST in (before.type, record.type), "a sequence with other bytes"

    def records_after(self, sequence):
        buffer = bytearray(BLOCK_BYTES)
        while sequence < self.journal.next_sequence - 1:
            first, count, end = self.journal.read_batch(buffer, ENVELOPE_BYTES, BLOCK_BYTES - 4, sequence)
            assert first == sequence + 1
            for record in decode_all(memoryview(buffer)[ENVELOPE_BYTES:end]):
                lost = record.type == LOST
                sequence = decode_body(LOST, 1, record.body).last if lost else record.sequence
                yield record

    def fill_half(self):
        self.boot()
        while self.journal.free > BLOCKS * BLOCK_BYTES // 2:
            for _ in range(50):
                self.keep()
            while self.gateway.maintain():
                pass

    def check(self):
        """Every value, in order; nothing is gone but the sequences that a tear skips.

        A program that was whole when the power went was not confirmed: that value came again.
        """
        self.boot()
        values = repeats = 0
        for record in self.records_after(0):
            assert self.sent.get(record.sequence, record) == record, "a sequence with other bytes"
            body = decode_body(record.type, record.version, record.body)
            if record.type == LOST:
                assert body.reason == TORN, "lost"
            elif record.type == FRAME:
                value = struct.unpack("<I", body.value[:4])[0]
                assert value in (values, values - 1), "a value is gone"
                repeats += value != values
                values = value + 1
        assert values == self.values, "values are gone"
        assert repeats <= self.tears


def main(boots):
    loop = Loop()
    loop.fill_half()
    begun, start_ms = loop.journal.next_sequence, time.ticks_ms()
    free = loop.journal.free
    for number in range(boots):
        loop.boot()
        if number % KEEPS == 1:
            loop.keep()
        if number % TELLS == 2:
            loop.gateway.append_event(BUTTON, 0, b"", 3)
        if number % SENDS == 3:
            loop.send()
        if number % TEARS == 4:
            loop.tear(number // TEARS % 13 * 4)
        loop.gateway.maintain()
    boots_ms = time.ticks_diff(time.ticks_ms(), start_ms)
    loop.check()
    print(
        json.dumps(
            {
                "boots": boots,
                "boot_us": boots_ms * 1000 // boots,
                "values": loop.values,
                "waiting_before": begun - 1,
                "tears": loop.tears,
                "written_bytes": free - loop.journal.free,
            }
        )
    )


main(int(sys.argv[1]))
