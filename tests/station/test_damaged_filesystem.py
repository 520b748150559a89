"""A damaged file system on a Kit: no Record is lost by it, nothing is formatted, and there is a way back."""

import ast
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hw.hil.service import Service
from hw.station import application, board, image, micropython, nvs, partitions
from hw.station.command import main
from hw.station.kit_folder import KitFolder
from hw.virtual import programs, romfs
from hw.virtual.board_host import Board, Partition
from hw.virtual.radio import Room
from hw.virtual.rom_loader import RomLoader
from tests import broker
from tests.broker import Broker
from tests.station import binaries
from tests.station.kits import kit_folder, project

ROOT = Path(__file__).parents[2]
RELEASE = ROOT / "hw/boards/HOMEWARD"
KIT, BOARD = "HW-0001", "esp32-4mb"
ROWS = board.load(BOARD).partitions
VFS, JOURNAL = partitions.find(ROWS, "vfs"), partitions.find(ROWS, "journal")
_PATIENCE_S = 40.0
_BOOTED = 1


@pytest.fixture
def mosquitto(tmp_path: Path) -> "broker.Iterator[Broker]":
    with broker.running(project(tmp_path / "sync")) as running:
        yield running


@pytest.fixture
def kit(tmp_path: Path, mosquitto: Broker) -> KitFolder:
    networks = (("home", "correct horse"),)
    return kit_folder(tmp_path / "sync", KIT, host="127.0.0.1", port=mosquitto.port, networks=networks)


@pytest.fixture
def flash(tmp_path: Path, kit: KitFolder) -> Path:
    """The chip's flash, as the board's folder and the loader both use it."""
    chosen = board.load(BOARD)
    (tmp_path / "board").mkdir()
    (tmp_path / "image").write_bytes(image.compose(chosen, micropython.read(binaries.esp32(), chosen), kit))
    (tmp_path / "board/flash").write_bytes((tmp_path / "image").read_bytes())
    return tmp_path / "board/flash"


def virtual(
    flash: Path, kit: KitFolder, *program: Path, rows: tuple[partitions.Partition, ...] = ROWS
) -> Board:
    """The board of that flash. NVS is files there; what the firmware has changed in it stays."""
    made = Board(
        Room(),
        flash.parent,
        address="C0:00:00:00:00:31",
        program=[*program, programs.umqtt()],
        partitions=[Partition(*row) for row in rows],
    )
    if not made.nvs(nvs.NAMESPACE):
        made.provision(nvs.NAMESPACE, nvs.identity(kit))
    made.wifi(True)
    return made


@asynccontextmanager
async def serving(mosquitto: Broker) -> AsyncIterator[Service]:
    service = Service(KIT)
    answering = asyncio.create_task(service.run(mosquitto.service()))
    try:
        yield service
    finally:
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)


async def boots(made: Board, service: Service, count: int) -> None:
    """Run it until so many boots have arrived in all."""
    try:
        async with made, asyncio.timeout(_PATIENCE_S):
            while len(service.events(_BOOTED)) < count:  # noqa: ASYNC110 - has no event
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError("\n".join(made.log)) from None


def damage(flash: Path, content: bytes) -> None:
    """Both copies of littlefs' first block."""
    with flash.open("r+b") as file:
        file.seek(VFS.offset)
        file.write(content * (2 * 4096))


def journal(flash: Path) -> bytes:
    return JOURNAL.of(flash.read_bytes())


def filesystem(flash: Path) -> bytes:
    return VFS.of(flash.read_bytes())


def frozen(folder: Path) -> Path:
    """The application as a release holds it: executed where it lies, here out of a ROMFS image."""
    for path, content in application.files(board.load(BOARD)).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    rom = folder.with_suffix(".rom")
    rom.write_bytes(romfs.image(folder))
    return rom


async def test_a_stock_image_stops_loses_nothing_and_is_repaired_on_the_bench(
    flash: Path, kit: KitFolder, mosquitto: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(mosquitto) as service:
        await boots(virtual(flash, kit), service, 1)
        kept = journal(flash)
        assert kept.strip(b"\xff")
        damage(flash, b"\0")
        damaged = filesystem(flash)
        stuck = virtual(flash, kit)
        async with stuck:
            await stuck.says("appears to be corrupted")
        assert filesystem(flash) == damaged and journal(flash) == kept
        monkeypatch.chdir(tmp_path)
        with RomLoader(flash) as loader:
            words = ["flash", "--repair", "--board", BOARD, "--image", str(tmp_path / "image")]
            assert (
                await asyncio.to_thread(main, [*words, "--port", loader.port, "--bench", str(tmp_path)]) == 0
            )
        assert journal(flash) == kept
        await boots(virtual(flash, kit), service, 2)
        assert service.clashes == 0


@pytest.mark.parametrize("content", [b"\0", b"\xff"])
async def test_a_release_with_frozen_code_goes_on_and_formats_nothing(
    flash: Path, kit: KitFolder, mosquitto: Broker, tmp_path: Path, content: bytes
) -> None:
    damage(flash, content)
    before = filesystem(flash)
    async with serving(mosquitto) as service:
        await boots(virtual(flash, kit, RELEASE, frozen(tmp_path / "frozen")), service, 1)
    assert filesystem(flash) == before


async def test_a_firmware_that_ends_begins_again(flash: Path, kit: KitFolder) -> None:
    rows = tuple(row for row in ROWS if row.label != "journal")
    made = virtual(flash, kit, rows=rows)
    async with made, asyncio.timeout(_PATIENCE_S):
        while sum("no partition journal" in line for line in list(made.log)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert made.boots >= 2 and not any("REPL" in line for line in made.log)


def test_what_is_frozen_is_here() -> None:
    named = []
    for manifest in (RELEASE / "manifest.py", ROOT / "firmware/manifest.py"):
        for call in (
            node for node in ast.walk(ast.parse(manifest.read_text())) if isinstance(node, ast.Call)
        ):
            name = str(ast.literal_eval(call.args[0]))
            base = next(
                (ast.literal_eval(word.value) for word in call.keywords if word.arg == "base_path"), "."
            )
            if ast.unparse(call.func) in ("module", "package", "include") and not name.startswith("$"):
                named.append((manifest.parent / base / name).resolve())
    assert {path.relative_to(ROOT).as_posix() for path in named} == {
        "hw/boards/HOMEWARD/_boot.py",
        "hw/boards/HOMEWARD/main.py",
        "firmware/manifest.py",
        "firmware/boot.py",
        "firmware",
        "gateway",
    }
    assert all(path.exists() for path in named)
