"""The checks for a real board run on the virtual one, over a controller of their own; and on a real one."""

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bumble.transport.tcp_server import open_tcp_server_transport_with_socket

from hw.hil import checks
from hw.hil.__main__ import HOW, NEEDED, run, wanted
from hw.hil.bench import Bench, CheckFailed, Wifi, bench
from hw.hil.checks import CHECKS
from hw.hil.target import VirtualTarget, compiled
from hw.virtual import programs, romfs
from hw.virtual.air import Air
from hw.virtual.board_host import Board
from hw.virtual.radio import Room, controller

BOARD = "C0:00:00:00:00:10"
WIFI = Wifi("home", "correct horse", "127.0.0.1")


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Bench]:
    """A virtual board; the cuff is on a controller that is reached as a real one is, through its HCI."""
    room, program = Room(), tmp_path / "program"
    program.mkdir()
    image = tmp_path / "hil.rom"
    tree = romfs.compiled(programs.umqtt(), ["umqtt/simple.py"], compiled(tmp_path / "tree"))
    image.write_bytes(romfs.image(tree))
    board = Board(room, tmp_path / "board", address=BOARD, program=[program, image])
    board.wifi(True)
    listening = socket.create_server(("127.0.0.1", 0))
    async with await open_tcp_server_transport_with_socket(listening) as served:
        controller(room, "Air", served)
        air = Air(f"tcp-client:127.0.0.1:{listening.getsockname()[1]}")
        async with bench(VirtualTarget(board, program), air, tmp_path, WIFI) as made:
            yield made
        await board.network.close()
    served.server.close()


async def test_every_check_runs_on_the_virtual_board(here: Bench, say: list[str]) -> None:
    result = await run(here)
    assert result["failed"] == {}
    assert len(result["passed"]) == len(CHECKS)
    say.append(f"hil: {len(CHECKS)} checks run on the virtual board; a real one: `make hil`")


async def test_a_check_that_does_not_hold_says_what_it_saw(
    here: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "WRONG_PASSWORD", 15)
    with pytest.raises(CheckFailed, match="refused with .202."):
        await checks.wrong_password_is_named(here)


def test_real_board_passes_every_check() -> None:
    if not wanted(os.environ):
        pytest.skip(HOW)
    assert subprocess.run([sys.executable, "-m", "hw.hil"]).returncode == 0


def test_without_a_board_it_says_how_to_enable_it() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NEEDED}
    done = subprocess.run([sys.executable, "-m", "hw.hil"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, HOW)


def test_board_that_cannot_be_reached_is_one_sentence() -> None:
    setting = dict(zip(NEEDED, ("/dev/no-such-port", "usb:0", "home:secret:127.0.0.1"), strict=True))
    command = [sys.executable, "-m", "hw.hil"]
    done = subprocess.run(command, env=os.environ | setting, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("mpremote exec: ") and "/dev/no-such-port" in done.stderr
    assert "Traceback" not in done.stderr
