"""The plug pulled at every point that matters, on the firmware as it is in a home: nothing lost.

What is compared: the Sensors' own ledgers, with what a service has that acks. A measurement that a Sensor saw
confirmed has to be there; one that it did not comes again.
"""

import asyncio
import platform
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from kit import Home, home
from on_micropython import HEAPS

from gateway.record import TORN, Lost
from hw.virtual.board_host import PARTITIONS
from hw.virtual.board_radio import INDICATE

WORDS = [64] + ([32] if platform.machine() == "x86_64" else [])
SEED = 20
_BLOCK_BYTES = 4096


class Readings:
    """Blood pressures, each with a systolic of its own."""

    def __init__(self, here: Home) -> None:
        self.here = here
        self.taken = 0

    def take(self, count: int = 1) -> None:
        for _ in range(count):
            self.taken += 1
            self.here.cuff.measure(100 + self.taken, 60, 80, 70)

    @property
    def confirmed(self) -> list[float]:
        return [m.values["systolic"] or 0 for m in self.here.cuff.ledger.confirmed]

    @property
    def arrived(self) -> list[int]:
        """At the service, in the order of the Journal; one that was not confirmed may stand there twice."""
        frames = self.here.service.frames()
        return [int.from_bytes(frame.value[1:3], "little") & 0xFFF for frame in frames]

    async def all_arrive(self) -> None:
        """Everything, in order, without a gap."""
        here = self.here
        every = [100 + number for number in range(1, self.taken + 1)]
        await here.until(lambda: len(self.confirmed) == self.taken)
        await here.until(lambda: list(dict.fromkeys(self.arrived)) == every)
        assert self.confirmed == every
        assert here.service.clashes == 0

    async def plug_in_again(self) -> None:
        """After a cut: what was not confirmed is still in the cuff, and comes."""
        await self.here.board.off()
        await self.here.board.start()
        self.here.cuff.wake()


@asynccontextmanager
async def bonded(folder: Path, bits: int = 64) -> AsyncIterator[Readings]:
    async with home(folder, bits, HEAPS[bits]) as here:
        await here.pair()
        yield Readings(here)


@pytest.mark.parametrize("bits", WORDS)
async def test_around_the_append_of_an_indication(bits: int, tmp_path: Path) -> None:
    async with bonded(tmp_path, bits) as readings:
        for where in ("before", "after"):
            readings.here.board.cut_power_at_event(INDICATE, where=where)
            readings.take()
            await readings.here.board.off()
            assert readings.here.held() == 1  # not confirmed: the cuff has it still
            await readings.plug_in_again()
            await readings.all_arrive()
        assert readings.arrived == [101, 102, 102]  # after the append: twice, and once with its own sequence


@pytest.mark.parametrize("bits", WORDS)
async def test_in_the_middle_of_a_program(bits: int, tmp_path: Path) -> None:
    """After none, some or nearly all of its bytes, in each of the Records that a visit begins with."""
    async with bonded(tmp_path, bits) as readings:
        for nth, done_bytes in ((1, 0), (1, 4), (2, 21), (3, 8), (4, 27), (5, 1)):
            readings.here.board.cut_power(at="program", after=nth, done_bytes=done_bytes)
            readings.take()
            await readings.plug_in_again()
            await readings.all_arrive()
        lost = [body for body in readings.here.service.bodies() if isinstance(body, Lost)]
        assert lost and {each.reason for each in lost} == {TORN}  # sequences that nothing had, skipped


@pytest.mark.parametrize("bits", WORDS)
async def test_during_an_erase(bits: int, tmp_path: Path) -> None:
    async with bonded(tmp_path, bits) as readings:
        board = readings.here.board
        await board.kill()
        for done_bytes in (0, 1, 2048, 4095):
            wear(board.folder / "flash")
            await board.start()
            board.cut_power(at="erase", done_bytes=done_bytes)
            readings.take()
            await board.off()
        await readings.plug_in_again()
        await readings.all_arrive()


@pytest.mark.parametrize("bits", WORDS)
async def test_between_an_ack_and_the_move_of_the_pointer(bits: int, tmp_path: Path) -> None:
    """The next program after the Ack of a whole backlog is the pointer's."""
    async with bonded(tmp_path, bits) as readings:
        here, board = readings.here, readings.here.board
        for done_bytes in (0, 8):
            pulled = pull_at_backlog(here, done_bytes)
            board.wifi(False)
            readings.take(30)
            await here.until(lambda: not here.held())
            await asyncio.wait_for(here.cuff.dark(), 40)  # nothing else is written any more
            board.wifi(True)
            await board.off()
            assert pulled
            before = here.service.repeats
            await readings.plug_in_again()
            await readings.all_arrive()
            assert here.service.repeats == before  # the Ack of the greeting says what the service has
        await here.until(lambda: any(isinstance(body, Lost) for body in here.service.bodies()))


async def test_ten_times_while_a_cuff_drains(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    async with bonded(tmp_path) as readings:
        here, board = readings.here, readings.here.board
        for _ in range(10):
            readings.take(20 - here.held())
            while here.held() == 20:  # noqa: ASYNC110 - a drain is over in an instant
                await asyncio.sleep(0)
            await asyncio.sleep(chance.random() * 0.004)
            assert here.held()
            await board.kill()
            await readings.plug_in_again()
        await readings.all_arrive()


def pull_at_backlog(here: Home, done_bytes: int) -> list[int]:
    """Cut the power in the program that comes after a long Batch's Ack; return where that Batch is noted."""
    pulled: list[int] = []

    def pull(count: int) -> None:
        if count > 30 and not pulled:
            pulled.append(count)
            here.board.cut_power(at="program", done_bytes=done_bytes)

    here.service.before_ack = pull
    return pulled


def wear(path: Path) -> None:
    """Blocks of the Journal that were not used are now full of old bits: each has to be erased first."""
    row = next(row for row in PARTITIONS if row.label == "journal")
    with path.open("r+b") as file:
        for address in range(row.address, row.address + row.size, _BLOCK_BYTES):
            file.seek(address)
            if file.read(_BLOCK_BYTES) == b"\xff" * _BLOCK_BYTES:
                file.seek(address)
                file.write(bytes(_BLOCK_BYTES))
