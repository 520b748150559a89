"""A part of the demo: a process of its own, so that it can be killed as a power cut would kill it."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from hw.virtual.programs import die_with_parent

READY_S = 60.0
"""A cold start of Python with bumble and the FHIR models takes 3-6 s on two busy cores."""
STOP_S = 10.0


class PartFailed(RuntimeError):
    """A part did not start, or ended by itself: the message names its log."""


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def listening(port: int) -> bool:
    """Whether something accepts connections on this loopback port."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


class Part:
    """One child process: started, killed -9, started again, stopped. Its output goes to a log file."""

    def __init__(
        self,
        name: str,
        command: list[str],
        *,
        log: Path,
        ready: Callable[[], Awaitable[bool]],
        talks: bool = False,
    ) -> None:
        self.name = name
        self.command = command
        self.kills = 0
        self._log = log
        self._ready = ready
        self._talks = talks
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        """Whether the process is there now."""
        return self._process is not None and self._process.returncode is None

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The running process; raises PartFailed when it has ended."""
        if self._process is None or self._process.returncode is not None:
            raise PartFailed(f"{self.name} is not running: see {self._log}")
        return self._process

    async def start(self) -> None:
        """Start the process and wait until it is ready. Raises PartFailed."""
        pipe = asyncio.subprocess.PIPE if self._talks else None
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=pipe or asyncio.subprocess.DEVNULL,
                stdout=pipe or log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches only us: we stop the parts in order
                preexec_fn=die_with_parent,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                limit=1 << 20,
            )
        deadline = asyncio.get_running_loop().time() + READY_S
        while not await self._ready():
            if not self.running or asyncio.get_running_loop().time() > deadline:
                raise PartFailed(f"{self.name} did not come up: see {self._log}")
            await asyncio.sleep(0.05)

    async def kill(self) -> None:
        """SIGKILL: nothing is flushed, nothing is said."""
        await ended(self.process)
        self.kills += 1

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL when it does not go."""
        if not self.running:
            return
        process = self.process
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            await ended(process)


async def ended(process: asyncio.subprocess.Process) -> None:
    """Kill the process unless it has ended by itself."""
    if process.returncode is None:
        process.kill()
    await process.wait()


def python(module: str, *arguments: str) -> list[str]:
    """The command line of one of our own modules."""
    return [sys.executable, "-m", module, *arguments]
