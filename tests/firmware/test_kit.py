"""The firmware as a whole on real MicroPython: bonded, offline, cut off; a real broker with certificates."""

import platform
from pathlib import Path

import pytest
from kit import home
from on_micropython import HEAPS

from gateway.record import BOND_CHANGED, BOND_MADE, HANDLER_RESTARTED, INDICATED

WORDS = [64] + ([32] if platform.machine() == "x86_64" else [])


@pytest.mark.parametrize("bits", WORDS)
async def test_kit_bonds_keeps_while_offline_and_sends_to_the_broker(bits: int, tmp_path: Path) -> None:
    async with home(tmp_path, bits, HEAPS[bits]) as here:
        await here.pair()
        service = here.service
        assert len(service.events(BOND_MADE)) == 2
        here.board.wifi(False)
        here.cuff.measure(128, 79, 95, 66)
        here.oximeter.measure_spot_check(97, 61)
        await here.until(lambda: not here.held())  # confirmed, so forgotten by the Sensors
        assert not service.frames()
        here.board.wifi(True)
        await here.until(lambda: len(service.frames()) == 2)
        assert {frame.characteristic for frame in service.frames()} == {0x2A35, 0x2A5E}
        assert all(frame.flags & INDICATED for frame in service.frames())
        assert service.clashes == 0
        assert service.events(HANDLER_RESTARTED) == service.events(BOND_CHANGED) == []
        assert service.statuses[-1]["host_confirmed"] is False
