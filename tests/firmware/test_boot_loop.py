"""A Kit in a boot loop keeps what it holds: 10,000 boots of a half-full Journal, and 60 pulled plugs."""

import asyncio
from pathlib import Path

import on_micropython
import pytest
from kit import home
from on_micropython import HEAPS

from gateway.record import BOOTED

BOOTS = 10_000
CYCLES = 60
_HEAP = "4m"  # the flash is in it
_PARTITION = "journal"


@pytest.mark.parametrize("bits", [64, 32])
def test_nothing_is_lost_in_ten_thousand_boots(bits: int, tmp_path: Path, say: list[str]) -> None:
    result = on_micropython.run(bits, "boot_loop", tmp_path, str(BOOTS), heap=_HEAP)
    assert result["boots"] == BOOTS
    assert result["waiting_before"] > 5_000
    assert result["tears"] == BOOTS // 500
    say.append(
        f"boot loop on {bits}-bit: {BOOTS} boots, {result['tears']} torn programs, "
        f"{result['values']} values in a half-full Journal: none lost, no sequence used twice"
    )


async def test_power_cycles_leave_the_journal_to_what_waits_in_it(tmp_path: Path) -> None:
    async with home(tmp_path, 64, HEAPS[64]) as here:
        await here.pair()
        board, service = here.board, here.service
        board.wifi(False)
        here.cuff.measure(128, 79, 95, 66)
        await here.until(lambda: not here.held())
        await asyncio.wait_for(here.cuff.dark(), 40)
        await board.kill()
        before = board.flash(_PARTITION)
        for number in range(CYCLES):
            await board.start()
            await asyncio.sleep(number % 8 * 0.02)  # from before the mount to a running radio
            await board.kill()
        assert board.flash(_PARTITION) == before
        board.wifi(True)
        await board.start()
        await here.until(service.frames)
        assert len(service.values()) == 1
        assert service.clashes == 0
        assert len(service.events(BOOTED)) == 2
