"""ButtonWatch: what a person asks for by holding the one button."""

import asyncio

from firmware import board
from gateway.port import const

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PAIRING_HOLD_MS = const(3_000)
"""Nobody opens a pairing window by brushing against the button."""
PORTAL_HOLD_MS = const(8_000)
"""Longer than anybody waits who only wants to pair; the light shows when either has begun."""
_LOOK_MS = const(100)


class ButtonWatch:
    """`run` for ever. `pair` is called when it is held for a while, `set_up` when it is held on."""

    def __init__(self, *, pair: "Callable[[], None]", set_up: "Callable[[], None]") -> None:
        self._pair = pair
        self._set_up = set_up

    async def run(self) -> None:
        button = board.Button()
        held_ms = 0
        while True:
            held_ms = held_ms + _LOOK_MS if button.is_down() else 0
            if held_ms == PAIRING_HOLD_MS:
                self._pair()
            elif held_ms == PORTAL_HOLD_MS:
                self._set_up()
            await asyncio.sleep_ms(_LOOK_MS)
