"""The heap of a whole Kit: the firmware on a virtual board while it pairs, drains, sends and rests.

Rows of the budget, in bytes. `names`, MicroPython's table of them, is in the heap here and in flash when code
is frozen, so it is taken off the other rows. mbedTLS takes its memory elsewhere, here as on the chip: `tls`
is what its Python objects take.
"""

import asyncio
from pathlib import Path

from kit import home
from on_micropython import names_bytes

PROBE = Path(__file__).parent / "probe"
CHIP_FREE = 113_000
"""Bytes that a stock ESP32 without PSRAM has left for the heap with Wi-Fi and a TLS socket open."""
PSRAM_HEAP = "2048k"
_READINGS = 30  # as many as a cuff keeps
_REST_S = 1.0


async def measure(folder: Path, bits: int, heap: str, *, on_littlefs: bool = False) -> dict[str, int]:
    """names; then without them: code (imported), made (all parts), tls, idle (at rest, on line), peak."""
    async with home(folder, bits, heap, before=[PROBE], on_littlefs=on_littlefs) as here:
        await here.pair()
        here.board.wifi(False)
        for number in range(_READINGS):
            here.cuff.measure(100 + number, 60, 80, 70)
        await here.until(lambda: not here.held())
        here.board.wifi(True)
        await here.until(lambda: len(here.service.frames()) >= _READINGS)
        await asyncio.sleep(_REST_S)  # rest has no event
        return _budget(list(here.board.log))


def table(rows: dict[str, int]) -> str:
    """Columns for people."""
    return ", ".join(f"{name} {count}" for name, count in rows.items())


def _budget(log: list[str]) -> dict[str, int]:
    said = [line.split() for line in log if line.startswith("heap ")]
    rows = {name: int(count) for _, name, count in said}
    early, names = (names_bytes(line) for line in log if line.startswith("qstr pool:"))
    live = [int(count) for _, name, count in said if name == "live"]
    return {
        "names": names,
        "code": rows["code"] - early,
        "made": rows["made"] - names,
        "tls": rows["tls"],
        "idle": live[-1] - names,
        "peak": max(live) - names,
    }
