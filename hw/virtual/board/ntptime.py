# mypy: ignore-errors
"""Module ntptime: the world's time if the router lets it through. Seconds since 2000."""

import chip
import machine

host = "pool.ntp.org"
timeout = 1


def time() -> int:
    return chip.ask("ntp")


def settime() -> None:
    import time as clock

    year, month, day, hour, minute, second, weekday, _ = clock.gmtime(time())
    machine.RTC().datetime((year, month, day, weekday, hour, minute, second, 0))
