"""The indication handler comes between any two bytecodes of the main loop: nothing is lost or comes twice.

CPython tells of every bytecode that it is about to run. Each one in the Journal's files at which the writer
lock is free is tried, in a run of its own; in loops the first two rounds. While the lock is held the handler
waits, so all that time is one point: the bytecode after the release.
"""

import sys
from collections import Counter
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import pytest

from gateway.journal import Journal
from gateway.limits import ACKED_EVERY
from gateway.record import EVENT, FRAME, Record, decode_all

JOURNAL_ID = b"journal1"
BLOCK_BYTES = 1024
BLOCKS = 10
FILES = ("gateway/journal.py", "gateway/block.py")


class RamFlash:
    """NOR flash that checks its use."""

    def __init__(self, cells: bytes) -> None:
        self.block_bytes = BLOCK_BYTES
        self.size = len(cells)
        self.cells = bytearray(cells)

    def read(self, offset: int, buffer: bytearray | memoryview) -> None:
        buffer[:] = self.cells[offset : offset + len(buffer)]

    def program(self, offset: int, buffer: bytearray | memoryview) -> None:
        old = int.from_bytes(self.cells[offset : offset + len(buffer)])
        assert int.from_bytes(buffer) & ~old == 0
        self.cells[offset : offset + len(buffer)] = buffer

    def erase(self, position: int) -> None:
        self.cells[position * BLOCK_BYTES : (position + 1) * BLOCK_BYTES] = b"\xff" * BLOCK_BYTES


class Lock:
    def __init__(self) -> None:
        self.held = False

    def acquire(self) -> None:
        assert not self.held
        self.held = True

    def release(self) -> None:
        assert self.held
        self.held = False


class Preempted:
    """One run of the main loop's work, with a burst of indications at one bytecode."""

    def __init__(self, cells: bytes, work: "Callable[[Preempted], object]", burst: int) -> None:
        self.flash = RamFlash(cells)
        self.lock = Lock()
        self.journal = Journal(self.flash, self.lock)
        self.journal.mount()
        self.work = work
        self.burst = burst
        self.left = 0
        self.came = False
        self.frames: list[int] = []
        self.visits: Counter[tuple[CodeType, int]] = Counter()

    def run(self, at: int) -> bool:
        """Whether there was a bytecode with this number."""
        self.left = at
        tracer = sys.gettrace()
        sys.settrace(self._enter)
        try:
            self.work(self)
        finally:
            sys.settrace(tracer)
        return self.came

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.endswith(FILES):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        point = frame.f_code, frame.f_lasti
        if event == "opcode" and not self.lock.held and self.visits[point] < 2:
            self.visits[point] += 1
            self.came = self.left == 0
            self.left -= 1
            if self.came:
                sys.settrace(None)
                self._handle()
        return None if self.came else self._step

    def _handle(self) -> None:
        for _ in range(self.burst):
            self.frames.append(self.journal.append_frame(1, 1, 0x2A35, b"f" * 120, 0, 0))


def records(journal: Journal) -> list[Record]:
    found: list[Record] = []
    buffer = bytearray(4096)
    while not found or found[-1].sequence < journal.next_sequence - 1:
        end = journal.read_batch(buffer, 0, len(buffer), found[-1].sequence if found else 0)[2]
        found += decode_all(memoryview(buffer)[:end])
    return found


def append(run: Preempted) -> None:
    run.journal.append(EVENT, 1, bytes(100), 0)


def append_and_ack(run: Preempted) -> None:
    run.journal.ack(run.journal.next_sequence - 1)
    run.journal.append(EVENT, 1, bytes(100), 0)


def write_ack(run: Preempted) -> None:
    """An Ack that is due to be written, where there is room for it, and where there is none."""
    run.journal._acked_written = -ACKED_EVERY
    run.journal.ack(2)
    run.journal._acked_written = -ACKED_EVERY
    run.journal.append(EVENT, 1, bytes(100), 0)
    run.journal.ack(4)


def settle(run: Preempted) -> None:
    run.journal.ack(3)
    run.journal.settle()


def maintain(run: Preempted) -> None:
    while run.journal.maintain():
        pass
    run.journal.append(EVENT, 1, bytes(100), 0)


def read(run: Preempted) -> None:
    run.journal.read_batch(bytearray(2048), 0, 2048, 2)
    assert run.journal.read_batch(bytearray(2048), 0, 2048, 3)[0] == 4


def send(run: Preempted) -> None:
    """What an uplink asks: how much waits and fits, the oldest, and a replay of what was acked."""
    journal = run.journal
    journal.ack(3)
    assert journal.pending >= 1 and journal.free >= 0 and journal.first_sequence == 1
    journal.replay(2)
    first, _, end = journal.read_batch(buffer := bytearray(2048), 0, 2048, journal.acked)
    assert first == 2 == decode_all(memoryview(buffer)[:end])[0].sequence


def prepared(sequences: int) -> bytes:
    """Flash of a Journal with so many Records, without a block in reserve."""
    flash = RamFlash(b"\xff" * BLOCKS * BLOCK_BYTES)
    journal = Journal(flash, Lock())
    journal.format(JOURNAL_ID)
    for _ in range(sequences):
        journal.append(EVENT, 1, bytes(200), 0)
    for position in range(1, BLOCKS):  # as after a lap
        flash.program(position * BLOCK_BYTES, bytearray(4))
    return bytes(flash.cells)


WORKS = (append, append_and_ack, write_ack, settle, maintain, read, send)
BURSTS = (1, 8)


def preempt(work: Callable[[Preempted], None], burst: int) -> int:
    """Let the handler come at each bytecode of this work, and check; return how many there were."""
    cells = prepared(4)  # no more than these fit one block
    at = 0
    while True:
        run = Preempted(cells, work, burst)
        if not run.run(at):
            return at
        acked = run.journal.acked
        for _ in range(12):  # what the handler left behind is used
            run.journal.append(EVENT, 1, bytes(100), 0)
        found = records(run.journal)
        assert [record.sequence for record in found] == list(range(1, len(found) + 1)), at
        assert [record.sequence for record in found if record.type == FRAME] == run.frames, at
        again = Journal(RamFlash(run.flash.cells), Lock())
        again.mount()
        assert records(again) == found, at
        assert again.acked <= acked == run.journal.acked, at
        at += 1


@pytest.mark.parametrize("burst", BURSTS)
@pytest.mark.parametrize("work", WORKS)
def test_the_handler_may_come_at_any_bytecode(
    work: Callable[[Preempted], None], burst: int, say: list[str]
) -> None:
    points = preempt(work, burst)
    assert points > 20
    say.append(f"journal: {work.__name__} preempted at each of {points} bytecodes by {burst}")
