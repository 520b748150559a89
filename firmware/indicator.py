"""Indicator: what a patient sees and hears. Every pattern stands in one table.

Chosen for people who see or hear badly. No two patterns have the same rhythm, so that nobody has to tell
colours apart: what is counted are flashes, one for "all is well", more for what somebody can do. At most
three flashes in any second: faster ones can set off a seizure (WCAG 2.3.1). Only what the patient has just
done sounds, in tones of 500 to 1500 Hz: what is higher is what ageing ears lose first.
"""

import asyncio

from machine import PWM
from neopixel import NeoPixel

from firmware.wait import for_event
from gateway.port import const

TYPE_CHECKING = False
if TYPE_CHECKING:
    from machine import Pin

_RED = (60, 0, 0)
_AMBER = (45, 18, 0)
_GREEN = (0, 45, 0)
_BLUE = (0, 0, 60)
_VIOLET = (30, 0, 30)
_DARK = (0, 0, 0)
_DUTY = const(512)  # of 1023

# fmt: off
#                   colour   ms on, off, on, off, ...                   Hz of each "on"
PATTERNS = {
    "starting":       (_AMBER,  (1000,),                                ()),
    "ready":          (_GREEN,  (150, 4850),                            ()),  # on line, nothing to do
    "offline":        (_AMBER,  (150, 350, 150, 4350),                  ()),  # readings are kept here for now
    "password":       (_RED,    (150, 350, 150, 350, 150, 3850),        ()),  # a known network's is wrong
    "captive":        (_RED,    (150, 350, 150, 350, 150, 350, 150, 3350), ()),  # its page comes first
    "pairing":        (_BLUE,   (500, 500),                             ()),
    "portal":         (_BLUE,   (1500, 500),                            ()),  # the set-up page is open
    "no_radio":       (_RED,    (1500, 500, 150, 2850),                 ()),  # no Sensor can be heard
    "unprovisioned":  (_VIOLET, (500, 1500),                            ()),
    "fault":          (_RED,    (250, 250),                             ()),
    # Once, for what the patient has just done.
    "kept":           (_GREEN,  (300, 100, 700, 300),                   (784, 1047)),  # upwards
    "failed":         (_RED,    (300, 200, 300, 200, 300, 300),         (587, 587, 587)),  # again
    "refused":        (_RED,    (900, 300, 900, 300),                   (740, 523)),  # wrong password
}
# fmt: on
SOUNDING = ("kept", "failed", "refused")


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
            once, self._once = self._once, ""
            self._news.clear()
            colour, rhythm, tones = PATTERNS[once or self._pattern]
            for number in range(len(rhythm)):
                self._light(_DARK if number % 2 else colour)
                if number % 2 == 0 and number // 2 < len(tones):
                    await self._beep(tones[number // 2], rhythm[number])
                elif once:
                    await asyncio.sleep_ms(rhythm[number])
                elif await for_event(self._news, rhythm[number]):
                    break

    def _light(self, colour: "tuple[int, int, int]") -> None:
        self._pixel[0] = colour
        self._pixel.write()

    async def _beep(self, tone_hz: int, on_ms: int) -> None:
        tone = PWM(self._buzzer, freq=tone_hz, duty=_DUTY)
        try:
            await asyncio.sleep_ms(on_ms)
        finally:
            tone.deinit()
