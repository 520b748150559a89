"""NOR flash in RAM, with what goes wrong with NOR flash, and what tests of the Journal have in common.

Programming a 1 over a 0 is a mistake of the Journal's and raises ValueError: a chip would say nothing.
"""

from gateway.message import ENVELOPE_BYTES
from gateway.record import LOST, decode_all, decode_body

JOURNAL_ID = b"journal1"
_BATCH_BYTES = 2048


class NorFlash:
    """`watch(torn)` is called before each program and erase; `torn(n)` is a copy whose power failed in it.

    That copy is the same object each time: a board's heap has no room in one piece for a new one at each cut.
    """

    TEARS = 3
    """Ways to fail: before it; in the first word; half-way, with random bits of the last word."""

    def __init__(self, blocks=6, block_bytes=1024):
        self.block_bytes = block_bytes
        self.size = blocks * block_bytes
        self.cells = bytearray(self.size)
        self._copy = None
        self._forget()
        for position in range(blocks):
            self._blank(position)

    def _forget(self):
        self.watch = None
        self.refuses = []  # positions of blocks that raise OSError
        self.forgets = []  # positions of blocks in which bits stay 1
        self.stuck = []  # offsets of bytes that stay 0
        self.operations = 0
        self.programmed = 0
        self.erased = 0
        self.was_read = 0

    def copy(self):
        """What a power cut leaves: the cells, and none of the rest."""
        if self._copy is None:
            self._copy = NorFlash(self.size // self.block_bytes, self.block_bytes)
        self._copy.cells[:] = self.cells
        self._copy._forget()
        return self._copy

    def read(self, offset, buffer):
        assert 0 <= offset <= self.size - len(buffer)
        self.was_read += len(buffer)
        for i in range(len(buffer)):  # a slice would allocate, and the handler reads back
            buffer[i] = self.cells[offset + i]

    def program(self, offset, buffer):
        assert offset % 4 == len(buffer) % 4 == 0 and offset + len(buffer) <= self.size
        if self.watch:
            self._watched(self._torn, offset, buffer)
        self._count(offset // self.block_bytes)
        self.programmed += len(buffer)
        if offset // self.block_bytes not in self.forgets:
            self._program(offset, buffer, len(buffer))

    def erase(self, position):
        if self.watch:
            self._watched(self._half_erased, position * self.block_bytes, None)
        self._count(position)
        self.erased += self.block_bytes
        self._blank(position)

    def _blank(self, position):
        for i in range(position * self.block_bytes, (position + 1) * self.block_bytes):
            self.cells[i] = 0xFF
        for i in self.stuck:
            self.cells[i] = 0

    def _watched(self, fails, offset, buffer):
        self.watch(lambda n: fails(n, offset, buffer))

    def _count(self, position):
        self.operations += 1
        if position in self.refuses:
            raise OSError(5)

    def _program(self, offset, buffer, length):
        cells = self.cells
        for i in range(length):
            if buffer[i] & ~cells[offset + i] & 0xFF and offset + i not in self.stuck:
                raise ValueError("a 1 over a 0")
            cells[offset + i] &= buffer[i]

    def _torn(self, n, offset, buffer):
        torn = self.copy()
        half = len(buffer) // 8 * 4 if n == 2 else 0
        torn._program(offset, buffer, half)
        if n:
            for i in range(half, half + 4):
                torn.cells[offset + i] &= buffer[i] | (i * 37 + offset) & 0xFF
        return torn

    def _half_erased(self, n, start, _):
        torn = self.copy()
        if n:
            for i in range(start, start + self.block_bytes // 2 * n):
                torn.cells[i] |= (i * 101 >> 2) & 0xFF if n == 1 else 0xFF
        return torn


class Lock:
    """The writer lock of one task: it must never be taken twice."""

    def __init__(self):
        self.held = False

    def acquire(self):
        assert not self.held
        self.held = True

    def release(self):
        assert self.held
        self.held = False


def records_after(journal, sequence):
    """Every Record that the Journal sends after a sequence, as many Batches as it takes."""
    records = []
    buffer = bytearray(_BATCH_BYTES)
    while sequence < journal.next_sequence - 1:
        first, count, end = journal.read_batch(buffer, ENVELOPE_BYTES, _BATCH_BYTES - 4, sequence)
        batch = decode_all(memoryview(buffer)[ENVELOPE_BYTES:end])
        assert count == len(batch) > 0 and first == batch[0].sequence == sequence + 1
        records += batch
        sequence = last_of(batch[-1])
    return records


def last_of(record):
    """The last sequence that a Record stands for."""
    if record.type == LOST:
        return decode_body(record.type, record.version, record.body).last
    return record.sequence


def lost_in(records):
    """[(first, last, reason)] of the LOST among them; all others follow each other without a gap."""
    lost = []
    expected = records[0].sequence if records else 0
    for record in records:
        assert record.sequence == expected
        expected = last_of(record) + 1
        if record.type == LOST:
            body = decode_body(LOST, 1, record.body)
            lost.append((body.first, body.last, body.reason))
    return lost
