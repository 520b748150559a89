"""The watchdog bites what shows no life, and nothing else; what was kept stays kept."""

import asyncio
from pathlib import Path

import pytest
from kit import home
from on_micropython import HEAPS
from test_pulled_plug import WORDS

from gateway.record import BOOTED
from hw.virtual.board_host import WATCHDOG

BOUND_MS = 2_000
"""Of every part and of the watchdog, in place of minutes: the same code, in less time."""

# Before main.py: shorter bounds; and in the first boot one part fails for ever as soon as a value is kept.
_BOOT = """
import gc, machine
gc.threshold(32 * 1024)
import firmware.supervisor as supervisor
import firmware.mqtt, firmware.radio, gateway.gateway
supervisor.{name} = {bound}
WDT = supervisor.WDT
supervisor.WDT = lambda timeout: WDT(timeout={bound})
if machine.reset_cause() == 1:
    wake = firmware.mqtt.Link.wake
    def ill(link):
        wake(link)
        {illness}
    firmware.mqtt.Link.wake = {when}
"""
# What goes wrong in a part: its task fails at once whenever it is begun again.
_ILLNESSES = {
    "storage": ("STORAGE_MS", "gateway.gateway.Gateway.maintain = lambda self: 1 // 0"),
    "uplink": ("UPLINK_MS", "firmware.mqtt.Link._send_due = firmware.mqtt.Link._pause = None"),
    "radio": ("RADIO_MS", "firmware.radio.Radio._attend = None"),
}


def boot(folder: Path, part: str, *, ill: bool) -> Path:
    name, illness = _ILLNESSES[part]
    place = folder / "before"
    place.mkdir()
    text = _BOOT.format(name=name, bound=BOUND_MS, illness=illness, when="ill" if ill else "wake")
    (place / "boot.py").write_text(text)
    return place


@pytest.mark.parametrize("bits", WORDS)
@pytest.mark.parametrize("part", _ILLNESSES)
async def test_part_that_shows_no_life_is_begun_again_with_the_board(
    part: str, bits: int, tmp_path: Path
) -> None:
    async with home(tmp_path, bits, HEAPS[bits], before=[boot(tmp_path, part, ill=True)]) as here:
        here.cuff.pairing_mode()
        here.cuff.measure(123, 60, 80, 70)
        await here.until(lambda: here.board.boots == 2)
        assert here.board.cause == WATCHDOG
        here.cuff.wake()
        here.cuff.measure(124, 60, 80, 70)
        await here.until(lambda: {value[1] for value in here.service.values()} >= {123, 124})
        await here.until(lambda: here.service.events(BOOTED)[-1].detail == bytes([WATCHDOG]))
        assert here.service.clashes == 0
        assert here.board.boots == 2


async def test_healthy_kit_is_never_bitten(tmp_path: Path) -> None:
    """Through pairing, a loss of the network and a rest of several bounds."""
    async with home(tmp_path, 64, None, before=[boot(tmp_path, "storage", ill=False)]) as here:
        await here.pair()
        here.board.wifi(False)
        here.cuff.measure(123, 60, 80, 70)
        await here.until(lambda: not here.held())
        await asyncio.sleep(3 * BOUND_MS / 1000)  # what must not happen has no event
        here.board.wifi(True)
        await here.until(lambda: here.service.frames())
        assert here.board.boots == 1
        assert here.board.counter("fed") > 3
