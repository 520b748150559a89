"""On real MicroPython: the Journal beside JSON lines on littlefs, on the same flash in RAM. Last line: JSON.

    micropython flash_cost.py ROOT

The same Readings go both ways: a Record of 40 bytes, and the JSON line that a program would write for it,
with a flush, since littlefs keeps nothing before. "Per byte" is per byte of the Record, both ways. Times are
those of the code: the chip's own come on top, in proportion to the bytes programmed and erased.
"""

import gc
import json
import sys
import time

sys.path[:] = [sys.argv[1], ".frozen"]

from vfs import VfsLfs2, mount, umount  # noqa: E402

from gateway.journal import Journal  # noqa: E402
from gateway.record import INDICATED  # noqa: E402

BLOCK_BYTES = 4096
BLOCKS = 64
WHOLE_BLOCKS = 512  # 2 MiB
RECORD_BYTES = 40
VALUE = bytes(range(RECORD_BYTES - 26))
APPENDS = 20_000  # three laps
LINES = 1_500
ACK_EVERY = 10
_ERASE, _COUNT, _SIZE = 6, 4, 5  # of a block device's ioctl


class Flash:
    """NOR flash that counts: for the Journal, and as a block device for littlefs."""

    def __init__(self, blocks):
        self.block_bytes = BLOCK_BYTES
        self.size = blocks * BLOCK_BYTES
        self.cells = bytearray(self.size)
        self.blank = b"\xff" * BLOCK_BYTES
        self.forget()
        for position in range(blocks):
            self.erase(position)

    def forget(self):
        self.programmed = self.erased = self.was_read = 0

    def read(self, offset, buffer):
        self.was_read += len(buffer)
        buffer[:] = memoryview(self.cells)[offset : offset + len(buffer)]

    def program(self, offset, buffer):
        self.programmed += len(buffer)
        self.cells[offset : offset + len(buffer)] = buffer

    def erase(self, position):
        self.erased += BLOCK_BYTES
        self.cells[position * BLOCK_BYTES : (position + 1) * BLOCK_BYTES] = self.blank

    def readblocks(self, number, buffer, offset=0):
        self.read(number * BLOCK_BYTES + offset, buffer)

    def writeblocks(self, number, buffer, offset=0):
        self.program(number * BLOCK_BYTES + offset, buffer)

    def ioctl(self, operation, argument):
        if operation == _ERASE:
            self.erase(argument)
        return {_COUNT: self.size // BLOCK_BYTES, _SIZE: BLOCK_BYTES}.get(operation, 0)


class Lock:
    """Nobody else is here."""

    def acquire(self):
        pass

    def release(self):
        pass


def append(journal, count):
    """Keep so many Records, as the handler does, with the main loop's housekeeping and Acks between them."""
    for each in range(count):
        journal.append_frame(1, INDICATED, 0x2A35, VALUE, each >> 24, each & 0xFFFFFF)
        journal.maintain()
        if each % ACK_EVERY == 0:
            journal.ack(journal.next_sequence - 1)


def journal_cost():
    """Programmed and erased per byte kept, us per append."""
    flash = Flash(BLOCKS)
    journal = Journal(flash, Lock())
    journal.format(b"journal1")
    append(journal, flash.size // RECORD_BYTES)  # one lap: from here on blocks have to be erased
    flash.forget()
    gc.collect()
    began = time.ticks_us()
    append(journal, APPENDS)
    took = time.ticks_diff(time.ticks_us(), began)
    kept = APPENDS * RECORD_BYTES
    return flash.programmed / kept, flash.erased / kept, took / APPENDS


def littlefs_cost():
    """The same of JSON lines, appended to one file and flushed each."""
    flash = Flash(BLOCKS)
    VfsLfs2.mkfs(flash)
    mount(VfsLfs2(flash), "/lines")
    flash.forget()
    with open("/lines/readings", "a") as file:
        gc.collect()
        began = time.ticks_us()
        for each in range(LINES):
            line = {
                "sequence": each,
                "sensor": 1,
                "uuid": "2a35",
                "uptime": each * 1000,
                "value": VALUE.hex(),
            }
            file.write(json.dumps(line) + "\n")
            file.flush()
        took = time.ticks_diff(time.ticks_us(), began)
        kept = LINES * RECORD_BYTES
        cost = flash.programmed / kept, flash.erased / kept, took / LINES
    umount("/lines")
    return cost


def recovery_cost():
    """Part of a full 2 MiB that a mount reads, in percent: after an orderly end, and after a torn Record."""
    flash = Flash(WHOLE_BLOCKS)
    journal = Journal(flash, Lock())
    journal.format(b"journal1")
    append(journal, flash.size // RECORD_BYTES + 50)
    gc.collect()
    clean, took = mounted(flash)
    for offset in range(0, 600, 7):  # the longest Record, torn in its last word, behind the others
        flash.cells[journal._head + offset] = 0x00
    torn, _ = mounted(flash)
    return clean, torn, took


def mounted(flash):
    flash.forget()
    began = time.ticks_us()
    Journal(flash, Lock()).mount()
    return 100 * flash.was_read / flash.size, time.ticks_diff(time.ticks_us(), began) / 1000


def main():
    result = {}
    for prefix, costs in (("", journal_cost()), ("littlefs_", littlefs_cost())):
        for name, cost in zip(("programmed_per_byte", "erased_per_byte", "append_us"), costs):  # noqa: B905
            result[prefix + name] = round(cost, 3)
    clean, torn, mount_ms = recovery_cost()
    result.update({"recovery_percent": round(clean, 2), "recovery_torn_percent": round(torn, 2)})
    result["mount_ms"] = round(mount_ms, 1)
    print(json.dumps(result))


main()
