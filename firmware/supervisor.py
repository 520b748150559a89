"""Supervisor: feeds the watchdog only while radio, uplink and storage each show life.

A task that has failed is begun again after a pause. That alone would hide one that fails for ever: such a
one shows no life, and the watchdog then begins the whole boot again.
"""

import asyncio
import sys

from machine import WDT

from gateway.port import const

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from firmware.clock import Clock

_WATCHDOG_MS = const(60_000)
"""A lookup of a name blocks for 14 s and more where the network swallows the question."""
_FEED_MS = const(1_000)
_AGAIN_MS = const(1_000)

# How long each may be silent.
RADIO_MS = const(3_600_000)
"""Adverts are rare in a lonely house; the radio itself has been begun again eleven times by then."""
UPLINK_MS = const(180_000)
STORAGE_MS = const(60_000)


class Supervisor:
    """`alive` returns what a part calls to show its life. `run` for ever."""

    def __init__(self, clock: "Clock") -> None:
        self.failures: dict[str, int] = {}
        self._clock = clock
        self._bounds_ms: dict[str, int] = {}
        self._seen_ms: dict[str, int] = {}

    def alive(self, part: str, bound_ms: int) -> "Callable[[], None]":
        """From now on this part may not be silent for longer than the bound."""
        self._bounds_ms[part] = bound_ms

        def seen() -> None:
            self._seen_ms[part] = self._clock.now_ms()

        seen()
        return seen

    def seen_ms(self, part: str) -> int:
        """When the part has last shown life."""
        return self._seen_ms[part]

    def silent(self) -> "list[str]":
        """The parts that show no life."""
        now_ms = self._clock.now_ms()
        return [part for part, bound in self._bounds_ms.items() if now_ms - self._seen_ms[part] > bound]

    async def run(self) -> None:
        """Feed the watchdog as long as nothing is silent."""
        watchdog = WDT(timeout=_WATCHDOG_MS)
        while True:
            if not self.silent():
                watchdog.feed()
            await asyncio.sleep_ms(_FEED_MS)

    async def keep(self, name: str, begin: "Callable[[], Coroutine[None, None, None]]") -> None:
        """Run a task for ever."""
        while True:
            try:
                await begin()
            except Exception as error:
                self.failures[name] = self.failures.get(name, 0) + 1
                print("task", name)
                sys.print_exception(error)
            await asyncio.sleep_ms(_AGAIN_MS)
