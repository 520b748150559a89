"""Clock: uptime for everything, and the wall clock that TLS looks at. Only this file knows the epoch."""

import time
from time import ticks_diff, ticks_ms

from machine import RTC

from gateway.port import const

_REBASE_MS = const(0x1000000)
"""4.7 h; `ticks_ms` wraps after 2^30 ms and a difference holds for half of that, 6.2 days."""
_SECONDS_TO_2000 = const(946_684_800)
_EPOCH_S = _SECONDS_TO_2000 if time.gmtime(0)[0] == 2000 else 0
"""From 1970 to the interpreter's own epoch: 2000 on an ESP32."""
_TOLERANCE_S = const(2)


class Clock:
    """Counts ms from its making. `now_ms` is asked every second; every few days would do."""

    def __init__(self) -> None:
        # Uptime in two halves and the ticks at that moment. Replaced as a whole, since the handler may come
        # between any two bytecodes of the main loop.
        self._base = (0, 0, ticks_ms())
        self.hi = 0
        self.lo = 0

    def mark(self) -> None:
        """Put the uptime into `hi << 24 | lo`. For the indication handler alone: does not allocate."""
        hi, lo, ticks = self._base
        lo += ticks_diff(ticks_ms(), ticks)
        self.hi = hi + (lo >> 24)
        self.lo = lo & 0xFFFFFF

    def now_ms(self) -> int:
        """Uptime in ms. For the main loop."""
        hi, lo, ticks = self._base
        now = ticks_ms()
        lo += ticks_diff(now, ticks)
        if lo >= _REBASE_MS:
            hi, lo = hi + (lo >> 24), lo & 0xFFFFFF
            self._base = (hi, lo, now)
        return hi << 24 | lo


def utc_s() -> int:
    """What the wall clock says, in seconds since 1970."""
    return int(time.time()) + _EPOCH_S


def set_utc_s(seconds: int) -> None:
    """Set the wall clock, unless it is right already."""
    if abs(utc_s() - seconds) > _TOLERANCE_S:
        year, month, day, hour, minute, second, weekday = time.gmtime(seconds - _EPOCH_S)[:7]
        RTC().datetime((year, month, day, weekday, hour, minute, second, 0))


def not_before(seconds: int) -> None:
    """It is this late at least. A wall clock without a battery begins in 2000, when no certificate holds."""
    if utc_s() < seconds:
        set_utc_s(seconds)
