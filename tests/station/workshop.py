"""A technicians' workshop: a real service with its API, real broker and Hub, a bench, and the commands."""

import asyncio
import io
import json
import os
import pty
import signal
import sys
import tty
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from hw.station import command
from hw.virtual.board_host import Board
from sync_service import config
from sync_service.command import main as sync
from sync_service.store import connect
from tests import broker
from tests.sync_service.hub_server import HubServer, serve_hub

NETWORK, PASSWORD = "home", "correct horse"
BENCH = """\
service = "https://127.0.0.1:{port}"
ca = "ca.pem"
token_file = "token"
board = "esp32-4mb"
support = "0800 000 0000"
pairing_s = 60

[[networks]]
name = "{network}"
password = "{password}"
"""
_READY_S = 20.0


class Said:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        """The last line of stdout."""
        value: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return value


class Heard(io.StringIO):
    """What a command says, and who waits for a word of it."""

    def __init__(self, hears: Callable[[str], None]) -> None:
        super().__init__()
        self._hears = hears

    def write(self, text: str) -> int:
        self._hears(text)
        return super().write(text)


class Workshop:
    """What a test has in its hands. `hears`: is told what the commands say, from a thread of theirs."""

    def __init__(self, sync: Path, bench: Path, broker: broker.Broker, hub: HubServer) -> None:
        self.sync, self.bench, self.broker, self.hub = sync, bench, broker, hub
        self.hears: Callable[[str], None] = lambda text: None

    async def station(self, *arguments: str) -> Said:
        """Run `homeward-station` with this bench, beside everything else."""
        out, err = Heard(self.hears), Heard(self.hears)
        with redirect_stdout(out), redirect_stderr(err):
            code = await asyncio.to_thread(command.main, [*arguments, "--bench", str(self.bench)])
        return Said(code, out.getvalue(), err.getvalue())

    def operator(self, *arguments: str) -> str:
        """Run `homeward-sync`; what it says on stdout."""
        return operated(self.sync, *arguments)

    def lives(self) -> dict[str, str]:
        """Where each Kit's life is."""
        with closing(connect(self.sync / "store.sqlite")) as db:
            return dict(db.execute("select kit, life from kit").fetchall())

    def rows(self, query: str) -> list[Any]:
        with closing(connect(self.sync / "store.sqlite")) as db:
            return db.execute(query).fetchall()


def operated(project: Path, *arguments: str) -> str:
    """Run `homeward-sync` on a project; what it says on stdout."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert sync(["--dir", str(project), *arguments]) == 0, err.getvalue()
    return out.getvalue()


def set_up(folder: Path, hub: str) -> tuple[Path, Path]:
    """Make project and bench; return their folders."""
    project, bench = folder / "sync", folder / "bench"
    operated(project, "init", str(project), "--hub", hub)
    operated(project, "station")
    bench.mkdir()
    station = config.load(project).station
    assert station is not None
    text = BENCH.format(port=station.port, network=NETWORK, password=PASSWORD)
    _private(bench / "bench.toml", text)
    (bench / "ca.pem").write_bytes((project / "ca/ca.pem").read_bytes())
    _private(bench / "token", operated(project, "technician", "add", "ann"))
    return project, bench


@asynccontextmanager
async def workshop(folder: Path) -> AsyncIterator[Workshop]:
    """Everything runs."""
    async with AsyncExitStack() as world:
        hub = await world.enter_async_context(serve_hub(folder))
        project, bench = set_up(folder, hub.url)
        mosquitto = world.enter_context(broker.running(project))
        log = world.enter_context((folder / "service.log").open("wb"))
        serving = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sync_service.command", "--dir", str(project), "serve"),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
        assert serving.stdout is not None
        try:
            async with asyncio.timeout(_READY_S):
                assert b"ready" in await serving.stdout.readline()
            yield Workshop(project, bench, mosquitto, hub)
        finally:
            serving.send_signal(signal.SIGTERM)
            await serving.wait()


class Wire:
    """The serial port of a virtual board: a terminal of its own, on which its console is heard."""

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        tty.setraw(theirs)
        self.port = os.ttyname(theirs)
        self._theirs = theirs  # stays open: nobody listening is no fault of the board

    def say(self, line: str) -> None:
        """For `Board(say=)`."""
        os.write(self._ours, line.encode() + b"\r\n")

    def close(self) -> None:
        os.close(self._ours)
        os.close(self._theirs)


def showed(board: Board, channel: int) -> bool:
    """Whether the neopixel was red (0), green (1) or blue (2) and nothing else, in the last 200 changes."""
    return any(pixel[channel] and sum(pixel) == pixel[channel] for pixel in board.pixels)


def _private(path: Path, text: str) -> None:
    path.touch(0o600)
    path.write_text(text)
