"""
The clock inside a Sensor: local wall time without a zone, and everything that goes wrong with it.

It counts an injected monotonic time, so that a test or a simulation decides how fast the world turns.
"""

import struct
import time
from collections.abc import Callable
from datetime import datetime, timedelta

Monotonic = Callable[[], float]  # seconds from any beginning


class SensorClock:
    """
    A clock that can be set, lost, stopped, stepped, and that drifts with `rate` (1.0001 gains 100 ppm).

    Never set, it counts from `factory` (a date such as 2010-01-01), or shows nothing when that is None (year
    0). `ignores_setting` makes it accept a time and keep its own (DOMAIN section 3: seen on Omron cuffs).
    """

    def __init__(
        self,
        wall: datetime | None = None,
        *,
        monotonic: Monotonic = time.monotonic,
        rate: float = 1.0,
        factory: datetime | None = None,
        ignores_setting: bool = False,
    ) -> None:
        self._monotonic = monotonic
        self._rate = rate
        self._factory = factory
        self.ignores_setting = ignores_setting
        self._running = True
        self._rebase(factory)
        self._is_set = False
        if wall is not None:
            self._rebase(wall)
            self._is_set = True

    @property
    def is_set(self) -> bool:
        return self._is_set

    @property
    def state(self) -> str:
        """ "unset", "stopped" or "set", the worse first."""
        if not self._is_set:
            return "unset"
        return "set" if self._running else "stopped"

    def read(self) -> datetime | None:
        """What the Sensor's display would show now; None when it has no date at all."""
        if self._base is None:
            return None
        passed = (self._monotonic() - self._since) * self._rate if self._running else 0.0
        return self._base + timedelta(seconds=passed)

    def set(self, wall: datetime) -> None:
        if not self.ignores_setting:
            self._rebase(wall)
            self._is_set = True

    def lose(self) -> None:
        """A battery change: back to the factory date."""
        self._rebase(self._factory)
        self._is_set = False

    def stop(self) -> None:
        self._rebase(self.read())
        self._running = False

    def run(self, rate: float | None = None) -> None:
        """Go on from what is shown now, at this rate if one is given."""
        self._rebase(self.read())
        self._running = True
        self._rate = self._rate if rate is None else rate

    def step(self, seconds: float) -> None:
        """Jump, as when a patient presses the wrong button."""
        shown = self.read()
        self._rebase(None if shown is None else shown + timedelta(seconds=seconds))

    def _rebase(self, wall: datetime | None) -> None:
        self._base = wall
        self._since = self._monotonic()


def encode_date_time(wall: datetime | None) -> bytes:
    """Date Time 0x2A08: year u16, month, day, hours, minutes, seconds; all zero for an unknown date."""
    if wall is None:
        return bytes(7)
    return struct.pack("<H5B", wall.year, wall.month, wall.day, wall.hour, wall.minute, wall.second)


def decode_date_time(value: bytes) -> datetime:
    """ValueError when it is not seven bytes of a real date."""
    if len(value) != 7:
        raise ValueError("Date Time has 7 bytes")
    year, *rest = struct.unpack("<H5B", value)
    return datetime(year, *rest)


def encode_current_time(wall: datetime | None) -> bytes:
    """Current Time 0x2A2B: Date Time, day of week (Monday 1, unknown 0), 1/256 s, adjust reason (none)."""
    if wall is None:
        return bytes(10)
    return encode_date_time(wall) + bytes((wall.isoweekday(), wall.microsecond * 256 // 1_000_000, 0))


def decode_current_time(value: bytes) -> datetime:
    """ValueError when it is not ten bytes with a real date."""
    if len(value) != 10:
        raise ValueError("Current Time has 10 bytes")
    return decode_date_time(value[:7]) + timedelta(microseconds=value[8] * 1_000_000 // 256)
