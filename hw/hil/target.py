"""The board that is checked: a real one on a serial port, or the virtual one. Both run the Probe."""

import asyncio
import json
import shutil
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any, Protocol

from hw.demo.kit import ROOT, Identity
from hw.virtual import romfs
from hw.virtual.board_host import Board

_SOURCES = ("gateway/*.py", "gateway/sensors/*.py", "firmware/*.py")
_NOT_FOR_A_BOARD = ("firmware/manifest.py", "firmware/boot.py")
_COMMAND_S = 120.0
_BOOT_S = 5.0
"""USB goes with the chip's reset and comes again."""
_PROVISION = """\
from esp32 import NVS
nvs = NVS({namespace!r})
for key, value in {values!r}.items():
    (nvs.set_i32 if isinstance(value, int) else nvs.set_blob)(key, value)
nvs.commit()
"""
_MISSING = """\
import esp32
for label in ("journal", "bonds"):
    if not esp32.Partition.find(esp32.Partition.TYPE_DATA, label=label):
        print("partition", label)
"""


class TargetError(Exception):
    """The board can't be used as it is; the message says why."""


class Target(Protocol):
    """What the bench does with a board."""

    is_real: bool

    async def deploy(self) -> None:
        """Bring the firmware and the Probe onto it. Raises TargetError."""

    async def provision(self, values: Identity) -> None:
        """Write the Kit's identity into NVS. The firmware is not running."""

    async def start(self, *, hold_ms: int = 0) -> None:
        """Begin a boot of the firmware with the Probe in it."""

    async def stop(self) -> None:
        """End it by machine.reset() or harder."""

    def said(self) -> list[str]:
        """What the console has shown since the last start."""


class SerialTarget:
    """
    An ESP32 on a serial port, through mpremote.

    Neither boot.py nor main.py is left on it: every boot begins at its REPL, and the bench starts the
    firmware from there, so that no failure can lock the bench out.
    """

    is_real = True

    def __init__(self, port: str) -> None:
        self._port = port
        self._lines: deque[str] = deque(maxlen=5_000)
        self._running: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None

    async def deploy(self) -> None:
        missing = (await self._mpremote("exec", _MISSING)).split("\n")
        if any(missing):
            raise TargetError(f"the board on {self._port} lacks: {', '.join(filter(None, missing))}")
        with tempfile.TemporaryDirectory() as folder:
            tree = compiled(Path(folder))
            await self._mpremote("fs", "cp", "-r", *map(str, sorted(tree.iterdir())), ":")

    async def provision(self, values: Identity) -> None:
        await self._mpremote("exec", _PROVISION.format(namespace="homeward", values=values))

    async def start(self, *, hold_ms: int = 0) -> None:
        self._lines.clear()
        self._running = await asyncio.create_subprocess_exec(
            *self._command("exec", f"import probe; probe.start({hold_ms})"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._listening = asyncio.create_task(self._listen(self._running), name="console")

    async def stop(self) -> None:
        if self._running is not None and self._listening is not None:
            if self._running.returncode is None:
                self._running.terminate()
            await self._listening
            self._running = self._listening = None
        # Not only Ctrl-C: the watchdog of the boot before would bite in the next one.
        await self._mpremote("exec", "--no-follow", "import machine; machine.reset()")
        await asyncio.sleep(_BOOT_S)

    def said(self) -> list[str]:
        return list(self._lines)

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self._lines.append(line.decode(errors="replace").rstrip())
        await process.wait()

    async def _mpremote(self, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *self._command(*arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await asyncio.wait_for(process.communicate(), _COMMAND_S)
        if process.returncode:
            raise TargetError(f"mpremote {arguments[0]}: {said.decode(errors='replace').strip()}")
        return said.decode(errors="replace").replace("\r", "")

    def _command(self, *arguments: str) -> list[str]:
        """`resume`: without the soft reset, which would hide the cause of the last real one."""
        return [sys.executable, "-m", "mpremote", "connect", self._port, "resume", *arguments]


class VirtualTarget:
    """The virtual board: it shows that the checks themselves run."""

    is_real = False

    def __init__(self, board: Board, program: Path) -> None:
        self._board = board
        self._program = program  # a folder on its path, for main.py
        self._before = 0  # lines of earlier boots

    async def deploy(self) -> None:
        """It is on the board's path from the start."""

    async def provision(self, values: Identity) -> None:
        self._board.provision("homeward", values)

    async def start(self, *, hold_ms: int = 0) -> None:
        (self._program / "main.py").write_text(f"import probe\nprobe.start({hold_ms})\n")
        self._before = len(self._board.log)
        await self._board.start()

    async def stop(self) -> None:
        await self._board.kill()

    def said(self) -> list[str]:
        return list(self._board.log)[self._before :]


def compiled(into: Path) -> Path:
    """The core, the firmware and the Probe as .mpy files, in the folders that a board has them in."""
    names = [str(path.relative_to(ROOT)) for pattern in _SOURCES for path in sorted(ROOT.glob(pattern))]
    names = [name for name in names if name not in _NOT_FOR_A_BOARD]
    romfs.compiled(ROOT, [*names, "hw/hil/probe.py"], into)
    (into / "hw/hil/probe.mpy").rename(into / "probe.mpy")
    shutil.rmtree(into / "hw")
    return into


def last_report(target: Target) -> dict[str, Any] | None:
    """The Probe's newest line."""
    for line in reversed(target.said()):
        if line.startswith("PROBE {"):
            report: dict[str, Any] = json.loads(line.removeprefix("PROBE "))
            return report
    return None
