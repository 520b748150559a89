"""Console: what a Kit says on its serial port, line by line. It takes nothing: a Kit has no REPL."""

import queue
import threading
import time
from collections.abc import Iterator

import serial

from hw.station import StationError

_BAUD = 115_200
_LOOK_S = 0.2
_RESET_S = 0.1
_MAX_LINE_BYTES = 4_096
"""A traceback's line has some hundred; noise of a wrong speed has no end."""


class ConsoleError(StationError):
    """The port can't be opened, or the board has gone from it."""


class Console:
    """Lines of a port: a device name, or what pyserial calls a URL. Use as a context manager."""

    def __init__(self, port: str) -> None:
        self._port = port
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._ended = threading.Event()
        try:
            self._serial = serial.serial_for_url(port, _BAUD, timeout=_LOOK_S)
        except (OSError, ValueError) as problem:
            raise ConsoleError(f"the port {port} can't be opened: {_why(problem)}") from None
        self._reading = threading.Thread(target=self._read, name=f"console {port}", daemon=True)
        self._reading.start()

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._reading.join()
        self._serial.close()

    def reset(self) -> bool:
        """Begin a boot, by the reset line of the USB bridge; False where the port has none."""
        try:
            self._serial.dtr = False
            self._serial.rts = True
            time.sleep(_RESET_S)
            self._serial.rts = False
        except OSError:
            return False
        return True

    def line(self, within_s: float) -> str | None:
        """The next line; None: none came in time. Raises ConsoleError when the board is gone."""
        try:
            line = self._lines.get(timeout=within_s)
        except queue.Empty:
            return None
        if line is None:
            self._lines.put(None)
            raise ConsoleError(f"the board on {self._port} is gone: is its cable in?")
        return line

    def lines(self, within_s: float) -> Iterator[str]:
        """Every line until the time is over. Raises ConsoleError."""
        until = time.monotonic() + within_s
        while (left := until - time.monotonic()) > 0:
            line = self.line(left)
            if line is not None:
                yield line

    def _read(self) -> None:
        waiting = b""
        try:
            while not self._ended.is_set():
                waiting += self._serial.read(self._serial.in_waiting or 1)
                *whole, waiting = waiting[-_MAX_LINE_BYTES:].split(b"\n")
                for line in whole:
                    self._lines.put(line.decode(errors="replace").rstrip("\r"))
        except OSError:  # of which SerialException is one
            self._lines.put(None)


def _why(problem: Exception) -> str:
    return getattr(problem, "strerror", None) or str(problem)
