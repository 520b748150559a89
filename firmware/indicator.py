"""Indicator: what a patient sees and hears. Every pattern stands in one table."""

import asyncio

from machine import PWM
from neopixel import NeoPixel

from firmware.wait import for_event
from gateway.port import const

TYPE_CHECKING = False
if TYPE_CHECKING:
    from machine import Pin

_RED = (40, 0, 0)
_AMBER = (30, 12, 0)
_GREEN = (0, 30, 0)
_BLUE = (0, 0, 40)
_VIOLET = (20, 0, 20)
_DARK = (0, 0, 0)
_DUTY = const(512)  # of 1023

#           colour   on ms  off ms  tone Hz (0: silent)
PATTERNS = {
    "starting": (_AMBER, 1000, 0, 0),
    "ready": (_GREEN, 50, 4950, 0),  # online, nothing waits
    "offline": (_AMBER, 50, 4950, 0),  # readings are kept here for now
    "pairing": (_BLUE, 250, 250, 0),
    "kept": (_GREEN, 400, 100, 2000),  # a reading has come and is kept
    "unprovisioned": (_VIOLET, 500, 500, 0),
    "fault": (_RED, 100, 100, 0),
}


class Indicator:
    """`run` for ever. `show` changes what is shown from now on, `flash` shows a pattern once in between."""

    def __init__(self, light: "Pin", buzzer: "Pin") -> None:
        self._pixel = NeoPixel(light, 1)
        self._buzzer = buzzer
        self._pattern = "starting"
        self._once = ""
        self._news = asyncio.Event()

    def show(self, pattern: str) -> None:
        """Show this until something else is to be shown."""
        if pattern != self._pattern:
            self._pattern = pattern
            self._news.set()

    def flash(self, pattern: str) -> None:
        """Show this once, soon."""
        self._once = pattern
        self._news.set()

    async def run(self) -> None:
        while True:
            pattern, self._once = self._once or self._pattern, ""
            colour, on_ms, off_ms, tone_hz = PATTERNS[pattern]
            self._news.clear()
            self._light(colour)
            if tone_hz:
                await self._beep(tone_hz, on_ms)
            else:
                await for_event(self._news, on_ms)
            if off_ms:
                self._light(_DARK)
                await for_event(self._news, off_ms)

    def _light(self, colour: "tuple[int, int, int]") -> None:
        self._pixel[0] = colour
        self._pixel.write()

    async def _beep(self, tone_hz: int, on_ms: int) -> None:
        tone = PWM(self._buzzer, freq=tone_hz, duty=_DUTY)
        try:
            await asyncio.sleep_ms(on_ms)
        finally:
            tone.deinit()
