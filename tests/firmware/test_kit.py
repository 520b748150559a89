"""The firmware as a whole on real MicroPython, cut off; what it does otherwise is in tests/scenarios."""

from pathlib import Path

import pytest
from kit import home

from gateway.record import BOOTED
from hw.virtual.board_radio import INDICATE


@pytest.mark.parametrize("where", ["before", "after"])
async def test_plug_pulled_at_the_indication_loses_nothing(where: str, tmp_path: Path) -> None:
    async with home(tmp_path, 64, None) as here:
        await here.pair()
        here.board.cut_power_at_event(INDICATE, where=where)
        here.cuff.measure(128, 79, 95, 66)
        await here.board.off()
        assert here.held() == 1  # not confirmed: the cuff has it still
        await here.board.start()
        await here.until(lambda: not here.held() and here.service.has_frames)
        await here.until(lambda: len(here.service.frames()) == (2 if where == "after" else 1))
        assert len(here.service.values()) == 1
        assert here.service.clashes == 0
        assert len(here.service.events(BOOTED)) == 2
