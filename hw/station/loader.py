"""Loader: a board in download mode, by way of esptool, which is run as a program of its own.

esptool says what went wrong in its own words; `LoaderError` says what to do. The one rule: a write has
happened only when the chip's own digest of its flash says so, asked for in a session after the write.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from hw.station import StationError

BAUD = 460_800
"""What every USB bridge of such boards can do; the ones that can do more do not all do it well."""
BAUDS = (115_200, 230_400, BAUD, 921_600)
Progress = Callable[[int, int], None]  # (done, of)

_MB = 1 << 20
_CHUNK_BYTES = 4096
_KEPT_BYTES = 64 * 1024  # of what esptool said: errors stand at its end
_PERCENT = re.compile(rb"(?:Writing at|Reading from) 0x[0-9a-f]+ .*?(\d+)\.\d%")
_OTHER = (
    "what the board on {port} reads back is not what was written: run this again with another cable; if it "
    "comes back, put the board aside"
)
_MEANINGS = (
    (r"No module named '?esptool", "esptool is not here: pip install 'homeward[station]'"),
    (
        r"Permission denied",
        "you may not use the port {port}: add yourself to the group dialout (Linux), log out and in again",
    ),
    (
        r"Could not open|No such file|could not open port",
        "the port {port} can't be opened: plug the board in, and close every other program that uses it",
    ),
    (
        r"Failed to connect|Wrong boot mode",
        "no board answers on {port}: hold its BOOT button, press EN (RST) once, let BOOT go, and run this "
        "again",
    ),
    (r"MD5 of file does not match", _OTHER),
    (r"will not fit in", "the board on {port} has less flash than the image"),
    (
        r"[Ss]ecure [Bb]oot|[Ff]lash encryption|[Ss]ecure download",
        "the chip on {port} is locked with fuses that Homeward does not use: put the board aside",
    ),
    (
        r"disconnected|returned no data|Input/output error|stream stopped|transfer stopped|No serial data|"
        r"[Ff]ailed to (?:write|read|enter|leave|calculate|get)|Write timeout|Invalid head",
        "the board on {port} has stopped answering: check its cable and run this again",
    ),
)
_NO_STUB = re.compile(r"Failed to enter RAM download mode|Failed to write to target RAM|Failed to start stub")


class LoaderError(StationError):
    """esptool could not do it; one sentence that says what to do."""


class Found(NamedTuple):
    """A board that answered."""

    chip: str  # as esptool writes it: ESP32-S3
    mac: str
    flash_bytes: int


class Loader:
    """The board on a port. Each call is a session of its own. Raises LoaderError."""

    def __init__(self, port: str, *, baud: int = BAUD) -> None:
        self.port = port
        self.has_stub = True  # until a ROM refuses it
        self._baud = baud

    def identify(self) -> Found:
        """Who is there."""
        said = self._esptool("--no-stub", "flash-id", after="no-reset")
        chip = re.search(r"Connected to (ESP[\w-]+)", said)
        mac = re.search(r"MAC:\s+((?:[0-9a-f]{2}:){5}[0-9a-f]{2})", said)
        size = re.search(r"Detected flash size: (\d+)MB", said)
        if not (chip and mac and size):
            raise LoaderError(f"the board on {self.port} does not say what it is: put it aside")
        return Found(chip[1], mac[1].upper(), int(size[1]) * _MB)

    def read(
        self, offset: int, length: int, progress: Progress | None = None, *, reset: bool = False
    ) -> bytes:
        """What lies in the flash. With `reset` the board starts then."""
        after = "hard-reset" if reset else "no-reset"
        with tempfile.TemporaryDirectory() as work:
            path = Path(work, "read")
            words = ("read-flash", hex(offset), str(length), str(path))
            self._with_stub(*words, after=after, progress=progress)
            return path.read_bytes()

    def erase(self, flash_bytes: int, progress: Progress) -> None:
        """Set every bit of the flash to 1. The ROM can't; what it writes it erases first."""
        if self.has_stub:
            try:
                self._esptool("erase-flash", after="no-reset")
                return
            except _StubRefused:
                self.has_stub = False
        self.write({0: b"\xff" * flash_bytes}, progress)

    def write(self, pieces: Mapping[int, bytes], progress: Progress) -> None:
        """Write each piece at its offset. The chip's digest is compared at the end of each."""
        with tempfile.TemporaryDirectory() as work:
            self._with_stub("write-flash", *_files(pieces, Path(work)), after="no-reset", progress=progress)

    def holds(self, pieces: Mapping[int, bytes], *, reset: bool = False) -> bool:
        """Whether the chip's own digests are those of the pieces. With `reset` the board starts then."""
        with tempfile.TemporaryDirectory() as work:
            try:
                after = "hard-reset" if reset else "no-reset"
                self._with_stub("verify-flash", *_files(pieces, Path(work)), after=after)
            except _Mismatch:
                return False
        return True

    def _with_stub(self, *words: str, after: str, progress: Progress | None = None) -> str:
        """The faster way; where a ROM does not take the stub, the slower one."""
        if self.has_stub:
            try:
                return self._esptool(*words, after=after, progress=progress)
            except _StubRefused:
                self.has_stub = False
        if words[0] == "write-flash":
            words = ("write-flash", "--compress", *words[1:])  # the stub does so unasked
        return self._esptool("--no-stub", *words, after=after, progress=progress)

    def _esptool(self, *words: str, after: str, progress: Progress | None = None) -> str:
        command = [sys.executable, "-m", "esptool", "--port", self.port, "--baud", str(self._baud)]
        surroundings = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "200", "NO_COLOR": "1"}
        esptool = subprocess.Popen(
            [*command, "--after", after, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=surroundings,
        )
        with esptool:
            try:
                said = _listen(esptool, progress)
            except BaseException:
                esptool.kill()
                raise
        if esptool.returncode:
            raise self._meaning(said)
        return said

    def _meaning(self, said: str) -> LoaderError:
        if "digest mismatch" in said:
            return _Mismatch(_OTHER.format(port=self.port))
        if _NO_STUB.search(said) and self.has_stub:
            return _StubRefused(f"the board on {self.port} does not take esptool's stub")
        for pattern, meaning in _MEANINGS:
            if re.search(pattern, said):
                return LoaderError(meaning.format(port=self.port))
        lines = [line for line in said.splitlines() if line.strip()]
        return LoaderError(
            f"esptool could not work with the board on {self.port}: {lines[-1] if lines else ''}"
        )


class _Mismatch(LoaderError):
    """The flash holds something else."""


class _StubRefused(LoaderError):
    """The ROM does not load the stub."""


def _files(pieces: Mapping[int, bytes], folder: Path) -> list[str]:
    """esptool takes files: offset, path, offset, path, ..."""
    words = []
    for offset, content in sorted(pieces.items()):
        path = folder / f"{offset:08x}"
        path.write_bytes(content)
        words += [hex(offset), str(path)]
    return words


def _listen(esptool: "subprocess.Popen[bytes]", progress: Progress | None) -> str:
    """All that it says, until it ends; how far it is on the way."""
    assert esptool.stdout is not None
    said = b""
    while chunk := os.read(esptool.stdout.fileno(), _CHUNK_BYTES):
        said = (said + chunk)[-_KEPT_BYTES:]
        percents = _PERCENT.findall(said[-_CHUNK_BYTES:])
        if percents and progress is not None:
            progress(int(percents[-1]), 100)
    return said.decode(errors="replace")
