"""A technicians' workshop: a real service with its API, a real broker, a bench folder, and the commands."""

import asyncio
import json
import os
import pty
import signal
import sys
import tty
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from hw.station import command
from hw.virtual.board_host import Board
from sync_service import config
from sync_service.command import main as sync
from sync_service.store import connect
from tests import broker

NETWORK, PASSWORD = "home", "correct horse"
BENCH = """\
service = "https://127.0.0.1:{port}"
ca = "ca.pem"
token_file = "token"
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


class Workshop:
    """What a test has in its hands."""

    def __init__(self, sync: Path, bench: Path, broker: broker.Broker, capsys: Any) -> None:
        self.sync, self.bench, self.broker, self._capsys = sync, bench, broker, capsys

    async def station(self, *arguments: str) -> Said:
        """Run `homeward-station` with this bench, beside everything else."""
        self._capsys.readouterr()
        code = await asyncio.to_thread(command.main, [*arguments, "--bench", str(self.bench)])
        return Said(code, *self._capsys.readouterr())

    def lives(self) -> dict[str, str]:
        """Where each Kit's life is."""
        with closing(connect(self.sync / "store.sqlite")) as db:
            return dict(db.execute("select kit, life from kit").fetchall())

    def rows(self, query: str) -> list[Any]:
        with closing(connect(self.sync / "store.sqlite")) as db:
            return db.execute(query).fetchall()


def set_up(folder: Path) -> tuple[Path, Path]:
    """Make project and bench; return their folders."""
    project, bench = folder / "sync", folder / "bench"
    assert sync(["init", str(project)]) == 0
    assert sync(["--dir", str(project), "station"]) == 0
    bench.mkdir()
    station = config.load(project).station
    assert station is not None
    text = BENCH.format(port=station.port, network=NETWORK, password=PASSWORD)
    _private(bench / "bench.toml", text)
    (bench / "ca.pem").write_bytes((project / "ca/ca.pem").read_bytes())
    return project, bench


@asynccontextmanager
async def workshop(folder: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Workshop]:
    """Everything runs."""
    project, bench = set_up(folder)
    capsys.readouterr()
    assert sync(["--dir", str(project), "technician", "add", "ann"]) == 0
    _private(bench / "token", capsys.readouterr().out)
    with broker.running(project) as mosquitto, (folder / "service.log").open("wb") as log:
        serving = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sync_service.command", "--dir", str(project), "serve"),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
        assert serving.stdout is not None
        try:
            async with asyncio.timeout(_READY_S):
                assert b"ready" in await serving.stdout.readline()
            yield Workshop(project, bench, mosquitto, capsys)
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


def showed(board: Board, colour: tuple[int, int, int]) -> bool:
    """Whether the neopixel has had this colour (red, green, blue) since power-on."""
    return bytes(colour) in board.pixels


def _private(path: Path, text: str) -> None:
    path.touch(0o600)
    path.write_text(text)
