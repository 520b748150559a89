"""Chip: the flash of a board on a serial port, through esptool and its stub: reads all of it, erases it.

The rule: what is reported as erased or read has come from the chip. Nothing is remembered in between.
"""

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self

from hw.station import StationError
from hw.station.board import FLASH_SIZES

_CHUNK_BYTES = 256 << 10
"""Read at once: a second at the usual speed, so that somebody sees it go on."""
_BAUD = 921_600
"""What every USB bridge of these boards does: 4 MB take 45 s. The S3's own USB takes no notice of it."""


class ChipError(StationError):
    """The board does not answer, or not as it should; one sentence that says what to do."""


class Flash(Protocol):
    """What the bench does with a flash."""

    name: str
    size: int

    def read(self, offset: int, size: int, told: Callable[[int], None] = ...) -> bytes:
        """These bytes; `told` hears how many have come. Raises ChipError."""

    def erase(self) -> None:
        """Every bit is 1 afterwards. Raises ChipError."""


def _nobody(done: int) -> None:
    """Who does not look."""


class Chip:
    """The flash of the chip on a port. A context manager: the board begins a boot when it is left."""

    def __init__(self, port: str, *, baud: int = _BAUD) -> None:
        self._port, self._baud = port, baud
        self._esp: Any = None
        self.name = ""
        self.size = 0

    def __enter__(self) -> Self:
        from esptool import cmds
        from esptool.logger import log

        log.set_verbosity("silent")
        try:
            self._esp = cmds.run_stub(cmds.detect_chip(self._port))
            if self._baud > self._esp.ESP_ROM_BAUD:
                self._esp.change_baud(self._baud)
            cmds.attach_flash(self._esp)
            self.name = str(self._esp.CHIP_NAME)
            self.size = FLASH_SIZES[str(cmds.detect_flash_size(self._esp))]
        except Exception as problem:
            self._close()
            raise self._error(problem, "does not answer; hold BOOT, press RESET, and try again") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(Exception):  # it may be gone
            self._esp.hard_reset()
        self._close()

    def read(self, offset: int, size: int, told: Callable[[int], None] = _nobody) -> bytes:
        """These bytes; `told` hears how many have come. Raises ChipError."""
        found = bytearray()
        try:
            while len(found) < size:
                found += self._esp.read_flash(offset + len(found), min(_CHUNK_BYTES, size - len(found)))
                told(len(found))
        except Exception as problem:
            raise self._error(problem, "can't be read: is the cable good?") from None
        return bytes(found)

    def erase(self) -> None:
        """Every bit is 1 afterwards. Raises ChipError."""
        try:
            self._esp.erase_flash()
        except Exception as problem:
            raise self._error(problem, "can't be erased: its flash may be worn out") from None

    def _error(self, problem: Exception, advice: str) -> ChipError:
        why = " ".join(str(problem).split())[:120] or type(problem).__name__
        return ChipError(f"the board on {self._port} {advice} ({why})")

    def _close(self) -> None:
        with suppress(Exception):
            self._esp._port.close()
