"""The self-test: the firmware on a virtual board, a real broker and service, the Station on its port."""

import asyncio
import builtins
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.linux.config import Config
from hw.demo.kit import identity as kit_identity
from hw.demo.kit import release
from hw.station import StationError, bench, board, nvs, partitions
from hw.station.kit_folder import KitFolder
from hw.station.loader import Loader
from hw.station.report import Report
from hw.station.selftest import NAMES, ask_again, listen
from hw.station.service import Service
from hw.virtual.board_host import Board
from hw.virtual.clock import SensorClock
from hw.virtual.cuff import Cuff
from hw.virtual.radio import Room
from hw.virtual.rom_loader import RomLoader
from hw.virtual.sensor import Habits, Label
from tests.station.kits import kit_folder, project
from tests.station.used_kit import BOARD, used_flash
from tests.station.workshop import Said, Wire, Workshop, showed, workshop

KIT = "HW-0001-Z"
BUTTON_PIN = 0
RED, GREEN, BLUE = (60, 0, 0), (0, 45, 0), (0, 0, 60)
QUIET = Report(json=True, dry_run=False)
HEARD = [
    'TEST {"name": "journal", "passed": true, "detail": "d"}',
    "TEST light red, green with a beep, blue",
    'TEST {"name": "light", "passed": true, "detail": "shown"}',
    *(f'TEST {{"name": "{name}", "passed": true, "detail": "d"}}' for name in NAMES[2:]),
    'TEST done {"journal": "00", "sequence": 3, "passed": true}',
]


# --- What is heard ------------------------------------------------------------------------------------------


def test_a_test_that_says_all_has_passed_with_a_technicians_word() -> None:
    outcome = listen(HEARD, QUIET, lambda question: True)
    assert outcome.failed == [] and outcome.sequence == 3
    assert listen(HEARD, QUIET, lambda question: False).failed == ["light"]


def test_what_was_never_heard_of_has_failed() -> None:
    outcome = listen([line for line in HEARD if "wifi" not in line], QUIET, lambda question: True)
    assert outcome.failed == ["wifi"]
    assert outcome.body()["checks"][-1] == {"name": "wifi", "passed": False, "detail": "not heard of"}
    assert listen([], QUIET, lambda question: True).failed == list(NAMES)


def test_noise_on_the_line_is_no_check() -> None:
    noise = [
        "TEST",
        "TEST {",
        "TEST []",
        'TEST {"name": "root", "passed": true, "detail": "d"}',
        "\ufffd\ufffd",
    ]
    noise += ['TEST {"name": "wifi", "passed": 1, "detail": "d"}', "TEST done 7"]
    assert listen(noise, QUIET, lambda question: True).checks == []


def test_a_board_that_begins_again_is_judged_by_its_last_word() -> None:
    failed = 'TEST {"name": "journal", "passed": false, "detail": "d"}'
    assert listen([failed, *HEARD], QUIET, lambda question: True).failed == []


def test_a_kit_is_asked_again_and_nothing_else_in_its_flash_changes(tmp_path: Path) -> None:
    flash = used_flash(kit_folder(project(tmp_path / "sync"), KIT))
    row = partitions.find(board.load(BOARD).partitions, "nvs")
    tested = {key: value for key, value in nvs.decode(row.of(flash)).items() if key != "selftest"}
    before = bytearray(flash)
    before[row.offset : row.end] = nvs.encode(tested, row.size)
    (tmp_path / "flash").write_bytes(before)
    with RomLoader(tmp_path / "flash") as loader:
        with pytest.raises(StationError, match="look at the label"):
            ask_again(Loader(loader.port), "HW-0002-X")
        assert (tmp_path / "flash").read_bytes() == before
        ask_again(Loader(loader.port), KIT)
    after = (tmp_path / "flash").read_bytes()
    assert nvs.decode(row.of(after)) == tested | {"selftest": 1}
    assert after[: row.offset] == before[: row.offset] and after[row.end :] == before[row.end :]


# --- A board ------------------------------------------------------------------------------------------------


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Workshop]:
    async with workshop(tmp_path) as started:
        said = await started.station("provision", "--next")
        assert said.code == 0, said.err
        yield started


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    made = Wire()
    yield made
    made.close()


def board_of(here: Workshop, tmp_path: Path, wire: Wire, room: Room) -> Board:
    """A board that was flashed with the Kit's identity, and its self-test asked for."""
    folder = here.bench / "kits" / KIT
    port = KitFolder.load(folder).port
    config = Config(
        kit=KIT,
        journal=folder,
        sensors=folder,
        host="127.0.0.1",
        port=port,
        ca=folder / "ca.pem",
        certificate=folder / "kit.pem",
        key=folder / "kit.key",
    )
    board = Board(
        room, tmp_path / "board", address="C0:00:00:00:00:01", program=release(tmp_path), say=wire.say
    )
    board.provision("homeward", kit_identity(config) | {"selftest": 1})
    return board


async def try_out(
    here: Workshop, board: Board, wire: Wire, monkeypatch: pytest.MonkeyPatch, *, press: bool = True
) -> Said:
    """A technician: plugs in, looks at the light, presses the button, answers truly."""
    loop, pressed = asyncio.get_running_loop(), threading.Event()

    def answer(question: str) -> str:
        return "y" if all(showed(board, colour) for colour in (RED, GREEN, BLUE)) else "n"

    monkeypatch.setattr(builtins, "input", answer)

    def watch(line: str) -> None:
        wire.say(line)
        if line == "TEST wait button" and press and not pressed.is_set():
            pressed.set()
            loop.call_soon(board.set_pin, BUTTON_PIN, 0)

    board._say = watch
    testing = asyncio.create_task(here.station("selftest", KIT, "--port", wire.port, "--json"))
    await asyncio.sleep(0.5)
    await board.start()
    said = await testing
    await board.kill()
    return said


async def test_a_good_board_passes_and_its_reading_is_nobodys(
    here: Workshop, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: list[str]
) -> None:
    room = Room()
    board = board_of(here, tmp_path, wire, room)
    board.wifi(True)
    cuff = Cuff(room, "C0:00:00:00:00:02", label=Label("Cuff"), clock=SensorClock(), habits=Habits())
    await cuff.power_on()
    cuff.pairing_mode()
    flashed = await flash_step(here)
    assert flashed == "flashed"
    said = await try_out(here, board, wire, monkeypatch)
    assert said.code == 0, said.err + said.out + "\n".join(board.log)
    assert [check["name"] for check in said.json["checks"]] == list(NAMES)
    assert here.lives() == {KIT: "tested"}
    rows = here.rows("select who, passed from self_test")
    assert rows == [("bench/ann", 1)]
    held = here.rows("select state, trust, reason from reading")
    assert held == [("held", "never", "a self-test of the bench: no Sensor has measured it")]
    assert "selftest" not in board.nvs("homeward")
    say.append(f"selftest: {len(NAMES)} checks on the virtual board in {said.json['took_s']} s")
    await cuff.power_off()
    await board.network.close()


async def flash_step(here: Workshop) -> str:
    """What `homeward-station flash` tells the service."""
    return await asyncio.to_thread(lambda: Service(bench.load(here.bench)).step(KIT, "flash"))
