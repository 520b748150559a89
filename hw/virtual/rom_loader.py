"""
A board in download mode behind a pseudo-terminal, for the real esptool.

The line between esptool and `rom_chip.Chip`: SLIP frames at the speed that both ends agreed on. Closing the
port resets the chip, as the lines DTR and RTS do on a board; the flash's file outlives the board.

    with RomLoader(folder / "flash", chip="esp32", mac="24:0A:C4:00:00:01") as loader:
        subprocess.run([sys.executable, "-m", "esptool", "--port", loader.port, "flash-id"])

As a program it is such a board until Ctrl-C: python -m hw.virtual.rom_loader --flash FILE
"""

import argparse
import os
import pty
import select
import sys
import termios
import threading
import tty
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from hw.virtual.rom_chip import MODELS, SIZE_CODES, Chip, Faults, Flash

_READ_BYTES = 64 * 1024
_LOOK_S = 0.01  # for a host that opens the port
_SPEED_AT = 5  # in termios attributes: of what the host sends
_SPEEDS = {
    getattr(termios, f"B{speed}"): speed
    for speed in (9600, 115200, 230400, 460800, 921600, 1000000, 1500000, 2000000)
    if hasattr(termios, f"B{speed}")
}


class RomLoader:
    """A board in download mode while it is entered. `port`: what esptool opens."""

    def __init__(
        self,
        flash: Path,
        *,
        chip: str = "esp32",
        mac: str = "24:0A:C4:00:00:01",
        flash_bytes: int = 4 << 20,
        faults: Faults | None = None,
    ) -> None:
        self.mac = mac.upper()
        self.faults = faults or Faults()
        self.sessions = 0  # how often a host has opened the port and said something
        self._flash = Flash(flash, flash_bytes, self.faults.weak_cell)
        self._chip = Chip(self._flash, MODELS[chip], mac, self.faults)
        self._stop, self._stopping = os.pipe()
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        self.port = os.ttyname(slave)
        os.close(slave)  # whoever has it open from now on is a host
        self._thread = threading.Thread(target=self._serve, name=f"ROM loader {self.port}")

    def __enter__(self) -> Self:
        os.set_blocking(self._master, False)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.write(self._stopping, b"x")
        self._thread.join()
        for end in (self._stop, self._stopping):
            os.close(end)
        self._flash.close()

    @property
    def blocks(self) -> int:
        """Blocks of flash that were written, over all sessions."""
        return self._chip.blocks

    def _serve(self) -> None:
        """Until it is stopped, or the cable is out: one host after the other."""
        try:
            while not self._stopped() and not self._chip.is_unplugged:
                self._session()
        finally:
            os.close(self._master)

    def _session(self) -> None:
        """From the first bytes of a host to its closing of the port."""
        received: bytes | None = None
        while not self._chip.is_unplugged:
            try:
                chunk = os.read(self._master, _READ_BYTES)
            except BlockingIOError:
                if self._stopped(self._master):
                    return
                continue
            except OSError:  # nobody has it open
                break
            self.sessions += received is None
            received = self._take((received or b"") + chunk)
        if received is None:
            self._stopped(timeout_s=_LOOK_S)
        elif not self._chip.is_unplugged:
            self._chip.reset()

    def _take(self, received: bytes) -> bytes:
        """Answer each whole frame; return what is not yet whole."""
        *frames, rest = received.split(b"\xc0")
        for frame in frames:
            if frame and self._hears():
                for answer in self._chip.take(
                    frame.replace(b"\xdb\xdc", b"\xc0").replace(b"\xdb\xdd", b"\xdb")
                ):
                    self._send(answer)
        return rest

    def _hears(self) -> bool:
        """Whether both ends speak at one speed: what comes at another one is noise."""
        return _SPEEDS.get(termios.tcgetattr(self._master)[_SPEED_AT]) == self._chip.baud

    def _send(self, frame: bytes) -> None:
        escaped = b"\xc0" + frame.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc") + b"\xc0"
        while escaped:
            try:
                escaped = escaped[os.write(self._master, escaped) :]
            except BlockingIOError:
                if self._stop in select.select([self._stop], [self._master], [])[0]:
                    return
            except OSError:  # the host has gone
                return

    def _stopped(self, *others: int, timeout_s: float | None = 0) -> bool:
        """Whether it is to stop; with others, wait until that or something on them."""
        return self._stop in select.select([self._stop, *others], [], [], None if others else timeout_s)[0]


def main(arguments: list[str] | None = None) -> int:
    """Be a board until Ctrl-C; the first line says on which port."""
    parser = argparse.ArgumentParser(prog="python -m hw.virtual.rom_loader", description=__doc__)
    parser.add_argument(
        "--flash", type=Path, required=True, help="file that holds its flash; made when missing"
    )
    parser.add_argument("--chip", choices=MODELS, default="esp32")
    parser.add_argument("--mac", default="24:0A:C4:00:00:01")
    parser.add_argument("--size-mb", type=int, choices=[size >> 20 for size in SIZE_CODES], default=4)
    parser.add_argument("--no-stub", action="store_true", help="refuse esptool's stub")
    options = parser.parse_args(arguments)
    faults = Faults(stub=not options.no_stub)
    size = options.size_mb << 20
    with RomLoader(
        options.flash, chip=options.chip, mac=options.mac, flash_bytes=size, faults=faults
    ) as loader:
        print(loader.port, flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
