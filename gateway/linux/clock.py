"""Uptime of the Linux Gateway: a boot is the life of its process. UTC comes from Acks, as on the ESP32."""

import time

_SOURCE = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""CLOCK_MONOTONIC stands still while a laptop sleeps: times extrapolated over the gap would be wrong."""


class Clock:
    """Counts ms from its making."""

    def __init__(self) -> None:
        self._start_ns = time.clock_gettime_ns(_SOURCE)

    def now_ms(self) -> int:
        """Uptime in ms."""
        return (time.clock_gettime_ns(_SOURCE) - self._start_ns) // 1_000_000
