# mypy: ignore-errors
"""Module time with the chip's epoch of 2000, whole seconds, and ticks that wrap after 2^30 ms."""

import sys

import chip
from micropython import const

_path = sys.path[:]
sys.path.clear()
try:
    from time import *  # noqa: F403
    from time import gmtime as _gmtime
    from time import ticks_add as _ticks_add
    from time import ticks_diff as _ticks_diff
    from time import ticks_ms as _ticks_ms
    from time import ticks_us as _ticks_us
    from time import time_ns as _time_ns
finally:
    sys.path[:] = _path

_EPOCH_S = const(946684800)  # 2000-01-01 in seconds since 1970
_TICKS_MASK = const(0x3FFFFFFF)
_HALF = const(0x20000000)
_WRAPS = sys.maxsize < 1 << 32  # this port's own ticks wrap where the chip's do

_offset_ns = chip.boot["clock_offset_ns"]  # from the host's clock (1970) to the chip's (2000)
# Added in two parts: more than half a lap at once overflows.
_half_offset = (chip.boot["ticks_offset_ms"] & _TICKS_MASK) >> 1
_odd = chip.boot["ticks_offset_ms"] & 1


def time_ns() -> int:
    return _time_ns() + _offset_ns


def time() -> int:
    return time_ns() // 1_000_000_000


def gmtime(seconds: int = None) -> tuple:
    return _gmtime((time() if seconds is None else int(seconds)) + _EPOCH_S)[:8]


localtime = gmtime  # the chip knows no zones


def mktime(date: tuple) -> int:
    """Seconds since 2000 of a date in UTC, also of one with a day or a minute too many."""
    year, month, day, hour, minute, second = date[:6]
    year, month = year + (month - 1) // 12, (month - 1) % 12 + 1
    # Days before this year and month, counted from March so that the leap day comes last.
    past = year - (month < 3)
    days = past * 365 + past // 4 - past // 100 + past // 400 + (153 * ((month + 9) % 12) + 2) // 5
    return (days + day - 730_426) * 86_400 + hour * 3600 + minute * 60 + second


def ticks_ms() -> int:
    ticks = _ticks_add(_ticks_add(_ticks_ms(), _half_offset), _half_offset + _odd)
    return ticks if _WRAPS else ticks & _TICKS_MASK


def ticks_us() -> int:
    return _ticks_us() & _TICKS_MASK


def ticks_add(ticks: int, delta: int) -> int:
    return _ticks_add(ticks, delta) if _WRAPS else (ticks + delta) & _TICKS_MASK


def ticks_diff(end: int, start: int) -> int:
    if _WRAPS:
        return _ticks_diff(end, start)
    return ((end - start + _HALF) & _TICKS_MASK) - _HALF


def set_clock(seconds: int, micros: int = 0) -> None:
    """Not of the documentation: what machine.RTC and ntptime set."""
    global _offset_ns
    _offset_ns = seconds * 1_000_000_000 + micros * 1000 - _time_ns()
    chip.ask("clock", offset_ns=_offset_ns)
