"""Links of the firmware on which nothing is reset and nothing comes back: given up, and made anew."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kit import Home, home
from on_micropython import HEAPS

IMPATIENT = Path(__file__).parent / "impatient"
TIMED_OUT = "broker: [Errno 110]"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Home]:
    async with home(tmp_path, 64, HEAPS[64], before=[IMPATIENT]) as here:
        await here.pair()
        yield here


def lost(here: Home) -> int:
    """How often a link was given up for its silence."""
    return sum(line.startswith(TIMED_OUT) for line in here.board.log)


async def test_a_connection_that_is_open_at_one_end_only_is_given_up_and_made_anew(here: Home) -> None:
    here.board.wifi(True, internet=False)
    await here.until(lambda: lost(here) >= 1)
    here.cuff.measure(121, 81, 90, 60)
    await here.until(lambda: not here.held())
    here.board.wifi(True)
    await here.until(lambda: here.service.has_frames)


async def test_a_link_on_which_the_service_never_answers_is_made_anew(here: Home) -> None:
    here.service.deaf = True  # the broker answers each ping
    here.cuff.measure(121, 81, 90, 60)
    await here.until(lambda: lost(here) >= 2)
    assert not here.service.has_frames
    here.service.deaf = False
    await here.until(lambda: here.service.has_frames)


async def test_a_link_with_answers_is_never_given_up(here: Home) -> None:
    for number in range(4):
        here.cuff.measure(121 + number, 81, 90, 60)
        await here.until(lambda: not here.held())
    await here.until(lambda: len(here.service.frames()) == 4)
    assert lost(here) == 0
