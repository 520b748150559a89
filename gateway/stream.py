"""Stream: continuous oximetry, thinned. One value in each window is kept, and each that changes class.

A class is what the bits of a value and its SpO2 say of its worth: finger off, poor signal, no number, plain.
So the end of a good stretch and the begin of the next are in the Journal to the second, and a stream that
runs is never silent for longer than the window. No number is judged: what changed but a number can wait.

The indication handler asks, of notified values alone, which nobody confirms. Nothing here allocates.
"""

from gateway.limits import MAX_SENSORS
from gateway.port import const
from gateway.sensors.pulse_oximeter import PLX_CONTINUOUS, stream_class

_NEVER = const(-1)
_HALF_BITS = const(24)  # of an uptime's lower half


class Stream:
    """Of each Sensor: when a value was last kept, and of which class it was."""

    def __init__(self, window_ms: int) -> None:
        self._window_ms = window_ms
        self._hi = [_NEVER] * (MAX_SENSORS + 1)
        self._lo = [0] * (MAX_SENSORS + 1)
        self._class = [0] * (MAX_SENSORS + 1)

    def thins(
        self, sensor: int, characteristic: int, value: "bytes | memoryview", uptime_hi: int, uptime_lo: int
    ) -> bool:
        """Whether to leave a notified value out. Uptime: `uptime_hi << 24 | uptime_lo` ms."""
        if characteristic != PLX_CONTINUOUS:
            return False
        found = stream_class(value)
        halves = uptime_hi - self._hi[sensor]
        if (
            self._hi[sensor] != _NEVER
            and found == self._class[sensor]
            and halves <= 1  # else hours have passed, in more ms than a small integer holds
            and (halves << _HALF_BITS) + uptime_lo - self._lo[sensor] < self._window_ms
        ):
            return True
        self._hi[sensor] = uptime_hi
        self._lo[sensor] = uptime_lo
        self._class[sensor] = found
        return False
