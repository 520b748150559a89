"""Flashing, by the real esptool and an emulated board: what is refused, what is recovered, what is proved."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.block import HEADER_BYTES, put_header
from hw.station import board, image, micropython, partitions
from hw.station.command import main
from hw.station.kit_folder import KitFolder
from hw.station.register import BEGUN, FLASHED, Register
from hw.virtual.rom_chip import Faults
from hw.virtual.rom_loader import RomLoader
from tests.station import binaries
from tests.station.kits import kit_folder, project

KIT, OTHER = "HW-0001", "HW-0002"
ESP32, S3 = "esp32-4mb", "esp32-s3-8mb"
MAC, OTHER_MAC = "24:0A:C4:00:00:01", "24:0A:C4:00:00:02"
# Waits are for people who press buttons; the emulator answers at once or never.
CONFIG = "[esptool]\ntimeout = 1\nconnect_attempts = 1\nwrite_block_attempts = 2\nsync_timeout = 0.1\n"
ERASED = b"\xff"


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, KitFolder]:
    sync = project(tmp_path_factory.mktemp("project") / "sync")
    return {kit: kit_folder(sync, kit) for kit in (KIT, OTHER, "HW-0003")}


@pytest.fixture(scope="module")
def flashes(kits: dict[str, KitFolder]) -> dict[str, bytes]:
    chosen = board.load(ESP32)
    stock = micropython.read(binaries.esp32(), chosen)
    return {kit: image.compose(chosen, stock, kits[kit]) for kit in (KIT, OTHER)}


class Bench:
    """A bench's folder with an image, and the command on it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], flash: bytes) -> None:
        self.folder = folder
        self.register = Register(folder)
        self.chip = folder / "chip"  # the flash of the board that is plugged in
        self.flash = flash
        self._capsys = capsys
        (folder / "flash.bin").write_bytes(flash)

    def run(self, *arguments: str, port: str = "") -> tuple[int, dict[str, Any], str]:
        """Exit code, the JSON that was said, and what stands on stderr."""
        words = ["flash", "--board", ESP32, "--image", str(self.folder / "flash.bin"), "--json"]
        words += ["--bench", str(self.folder), *(["--port", port] if port else []), *arguments]
        code = main(words)
        said = self._capsys.readouterr()
        return code, json.loads(said.out.splitlines()[-1]) if said.out else {}, said.err

    def state(self, mac: str = MAC) -> str | None:
        path = self.folder / "boards.json"
        rows = json.loads(path.read_text()) if path.exists() else {}
        return rows[mac]["state"] if mac in rows else None


@pytest.fixture
def bench(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flashes: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> Bench:
    (tmp_path / "esptool.cfg").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)  # where esptool looks for it
    return Bench(tmp_path, capsys, flashes[KIT])


# --- What goes well -----------------------------------------------------------------------------------------


def test_a_board_is_flashed_and_verified_by_its_own_digest(bench: Bench) -> None:
    with RomLoader(bench.chip, mac=MAC) as loader:
        code, said, _ = bench.run(port=loader.port)
    assert code == 0
    assert bench.chip.read_bytes() == bench.flash
    assert (said["kit"], said["mac"], said["chip"], said["verified"]) == (KIT, MAC, "ESP32", True)
    assert said["stub"] is True and said["bytes"] == len(bench.flash)
    assert bench.register.kit_of(MAC) == KIT and bench.state() == FLASHED


def test_the_recommended_board_is_flashed_with_its_image(bench: Bench, tmp_path: Path) -> None:
    flash = s3_flash(tmp_path)
    (bench.folder / "flash.bin").write_bytes(flash)
    with RomLoader(bench.chip, chip="esp32s3", flash_bytes=8 << 20, mac=MAC) as loader:
        code, said, _ = bench.run("--board", S3, port=loader.port)
    assert code == 0 and (said["chip"], said["bytes"]) == ("ESP32-S3", 8 << 20)
    assert bench.chip.read_bytes() == flash


def s3_flash(folder: Path) -> bytes:
    chosen = board.load(S3)
    stock = micropython.read(binaries.for_s3(folder / "s3.bin"), chosen, allow_unknown=True)
    return image.compose(chosen, stock, kit_folder(project(folder / "sync"), KIT, board=S3))


def test_a_board_whose_rom_takes_no_stub_is_flashed_all_the_same(bench: Bench) -> None:
    with RomLoader(bench.chip, mac=MAC, faults=Faults(stub=False, bad_checksums=1)) as loader:
        code, said, _ = bench.run(port=loader.port)
    assert code == 0 and said["stub"] is False
    assert bench.chip.read_bytes() == bench.flash


@pytest.mark.parametrize("faults", [Faults(unplug_after=40), Faults(silent_after=40)])
def test_an_interrupted_flash_is_recovered_by_running_again(bench: Bench, faults: Faults) -> None:
    with RomLoader(bench.chip, mac=MAC, faults=faults) as loader:
        code, _, said = bench.run(port=loader.port)
    assert code == 1 and "has stopped answering: check its cable and run this again" in said
    assert bench.chip.read_bytes() != bench.flash and bench.state() == BEGUN
    with RomLoader(bench.chip, mac=MAC) as loader:
        assert bench.run(port=loader.port)[0] == 0
    assert bench.chip.read_bytes() == bench.flash and bench.state() == FLASHED


def test_a_repair_keeps_identity_bonds_and_journal(bench: Bench) -> None:
    rows = {row.label: row for row in board.load(ESP32).partitions}
    used = bytearray(bench.flash)
    for label in ("bonds", "journal"):
        used[rows[label].offset : rows[label].offset + 4] = b"kept"
    used[rows["nvs"].end - 4 : rows["nvs"].end] = b"kept"
    expected = bytes(used)
    for label in ("vfs", "factory"):
        used[rows[label].offset + 64 : rows[label].offset + 64 + 8192] = bytes(8192)
    bench.chip.write_bytes(used)
    with RomLoader(bench.chip, mac=MAC) as loader:
        code, said, _ = bench.run("--repair", port=loader.port)
    assert code == 0 and said["bytes"] < len(bench.flash)
    assert bench.chip.read_bytes() == expected


def test_a_dry_run_says_the_plan_and_touches_nothing(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    with RomLoader(bench.chip, mac=MAC) as loader:
        code, said, _ = bench.run("--dry-run", port=loader.port)
        assert code == 0 and said["dry_run"] is True and loader.sessions == 0
    assert any("4096 KiB" in step for step in said["plan"])
    assert not bench.chip.read_bytes().strip(ERASED) and bench.state() is None
    words = ["flash", "--dry-run", "--board", ESP32, "--image", str(bench.folder / "flash.bin")]
    assert main(words) == 0
    assert "nothing was done" in capsys.readouterr().out


# --- What is refused ----------------------------------------------------------------------------------------


def refused(bench: Bench, loader: RomLoader, *arguments: str) -> str:
    """What a refusal says; not a byte of the board has changed."""
    before = bench.chip.read_bytes()
    code, _, said = bench.run(*arguments, port=loader.port)
    assert code == 1 and loader.blocks == 0 and bench.chip.read_bytes() == before
    return said


def test_a_wrong_chip_is_refused(bench: Bench) -> None:
    with RomLoader(bench.chip, chip="esp32s3", flash_bytes=8 << 20) as loader:
        said = refused(bench, loader)
    assert "the board has an ESP32-S3, but esp32-4mb an ESP32: take the right board" in said


def test_a_flash_that_is_too_small_is_refused(bench: Bench, tmp_path: Path) -> None:
    (bench.folder / "flash.bin").write_bytes(s3_flash(tmp_path))
    with RomLoader(bench.chip, chip="esp32s3") as loader:
        assert "has 4 MB of flash, esp32-s3-8mb needs 8MB" in refused(bench, loader, "--board", S3)


def test_a_board_that_the_register_knows_as_another_kit_is_refused(bench: Bench) -> None:
    bench.register.claim(MAC, OTHER, image="", state=FLASHED)
    with RomLoader(bench.chip, mac=MAC) as loader:
        said = refused(bench, loader)
    assert f"this board ({MAC}) is Kit {OTHER}, not {KIT}" in said and f"wipe {OTHER}" in said


def test_a_second_board_for_one_kit_is_refused(bench: Bench) -> None:
    bench.register.claim(OTHER_MAC, KIT, image="", state=FLASHED)
    with RomLoader(bench.chip, mac=MAC) as loader:
        assert f"Kit {KIT} has a board already ({OTHER_MAC})" in refused(bench, loader)


def test_a_board_that_says_itself_that_it_is_another_kit_is_refused(
    bench: Bench, flashes: dict[str, bytes]
) -> None:
    bench.chip.write_bytes(flashes[OTHER])  # by another bench, whose register is not here
    with RomLoader(bench.chip, mac=MAC) as loader:
        assert f"says that it is Kit {OTHER}, not {KIT}" in refused(bench, loader)
    assert bench.register.kit_of(MAC) is None


def test_a_journal_that_holds_anything_is_not_overwritten(bench: Bench) -> None:
    row = partitions.find(board.load(ESP32).partitions, "journal")
    at = row.offset + 700 * 1024
    bench.chip.write_bytes(bench.flash[:at] + b"\0" + bench.flash[at + 1 :])
    with RomLoader(bench.chip, mac=MAC) as loader:
        said = refused(bench, loader)
    assert "Journal is not empty" in said and "--repair" in said


@pytest.mark.parametrize("lost", ["erased", "stock"])
def test_a_journal_is_found_where_the_table_is_lost(bench: Bench, lost: str) -> None:
    stock = binaries.esp32().read_bytes()[partitions.TABLE_OFFSET - 0x1000 :][:4096]
    row = partitions.find(board.load(ESP32).partitions, "journal")
    block = bytearray(HEADER_BYTES)
    put_header(block, 0, b"journal!", 3, 1, 0, 1)
    at = row.offset + 3 * 4096
    used = bytearray(bench.flash)
    used[at : at + len(block)] = block
    table = ERASED * 4096 if lost == "erased" else stock
    used[partitions.TABLE_OFFSET : partitions.TABLE_OFFSET + 4096] = table
    bench.chip.write_bytes(used)
    with RomLoader(bench.chip, mac=MAC) as loader:
        assert "Journal is not empty" in refused(bench, loader)


def test_another_program_on_a_new_board_is_written_over(bench: Bench) -> None:
    bench.chip.write_bytes(b"HJ demo program " * (len(bench.flash) // 16))
    with RomLoader(bench.chip, mac=MAC) as loader:
        assert bench.run(port=loader.port)[0] == 0
    assert bench.chip.read_bytes() == bench.flash


@pytest.mark.parametrize("blocks", [1, 30])
def test_an_interrupted_repair_keeps_what_a_repair_keeps(bench: Bench, blocks: int) -> None:
    row = partitions.find(board.load(ESP32).partitions, "journal")
    kept = b"kept".ljust(row.size, ERASED)
    bench.chip.write_bytes(bench.flash[: row.offset] + kept)
    with RomLoader(bench.chip, mac=MAC, faults=Faults(unplug_after=blocks)) as loader:
        assert bench.run("--repair", port=loader.port)[0] == 1
    with RomLoader(bench.chip, mac=MAC) as loader:
        assert "Journal is not empty" in refused(bench, loader)
        assert bench.run("--repair", port=loader.port)[0] == 0
    assert bench.chip.read_bytes() == bench.flash[: row.offset] + kept


def test_a_board_of_another_layout_is_not_repaired(bench: Bench) -> None:
    with RomLoader(bench.chip, mac=MAC) as loader:
        assert "a repair can't keep its Journal" in refused(bench, loader, "--repair")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--kit", OTHER), f"is an image of Kit {KIT}, not of {OTHER}"),
        (("--board", S3), f"is an image for board {ESP32}, not for {S3}"),
        (("--image", "none.bin"), "none.bin can't be read"),
        (("--image", "esptool.cfg"), "is as large as no flash"),
        (("--batch",), "--batch makes its images itself"),
    ],
)
def test_a_wrong_image_is_refused_before_the_board_is_touched(
    bench: Bench, arguments: tuple[str, ...], said: str
) -> None:
    with RomLoader(bench.chip, mac=MAC) as loader:
        assert said in refused(bench, loader, *arguments)
        assert loader.sessions == 0


def test_two_boards_are_refused_where_one_was_meant(bench: Bench, tmp_path: Path) -> None:
    with RomLoader(bench.chip) as one, RomLoader(tmp_path / "second") as two:
        for number, loader in enumerate((one, two)):
            (tmp_path / f"board{number}").symlink_to(loader.port)
        code, _, said = bench.run(port=str(tmp_path / "board*"))
        assert code == 1 and "2 boards are plugged in where one was meant" in said
        assert one.sessions == two.sessions == 0


@pytest.mark.parametrize(
    "port, said", [("/dev/no-such-port", "can't be opened"), ("no-board*", "no board is plugged in")]
)
def test_a_board_that_is_not_there_is_said_plainly(bench: Bench, port: str, said: str) -> None:
    code, _, error = bench.run(port=port)
    assert code == 1 and said in error and error.count("\n") <= 10


def test_a_board_that_does_not_answer_is_said_plainly(bench: Bench) -> None:
    with RomLoader(bench.chip, faults=Faults(dumb=True)) as loader:
        assert "hold its BOOT button, press EN (RST) once" in refused(bench, loader)


def test_a_flash_that_does_not_keep_a_byte_is_found_out(bench: Bench) -> None:
    row = partitions.app(board.load(ESP32).partitions)
    place = next(at for at in range(row.offset + 5000, row.end) if bench.flash[at] != 0xFF)
    with RomLoader(bench.chip, mac=MAC, faults=Faults(weak_cell=place)) as loader:
        code, _, said = bench.run(port=loader.port)
    assert code == 1 and "is not what was written" in said and bench.state() == BEGUN


def test_a_damaged_register_is_not_taken_for_an_empty_one(bench: Bench) -> None:
    (bench.folder / "boards.json").write_text('{"24:0A:C4:00:00:01": 5}')
    with RomLoader(bench.chip, mac=MAC) as loader:
        assert "boards.json can't be used" in refused(bench, loader)


# --- One after the other ------------------------------------------------------------------------------------


class Hands:
    """Plugs boards in and out at one socket, as the command asks for them."""

    def __init__(self, folder: Path, boards: list[dict[str, Any]]) -> None:
        self.sockets = str(folder / "usb*")
        self._folder, self._boards = folder, boards
        self._stack = ExitStack()
        self.plugged: list[RomLoader] = []

    def plug_in(self) -> None:
        about = dict(self._boards[len(self.plugged)])
        flash = self._folder / f"chip-{about['mac'].replace(':', '')}"
        loader = self._stack.enter_context(RomLoader(flash, **about))
        self.plugged.append(loader)
        self._socket = self._folder / f"usb{len(self.plugged)}"
        self._socket.symlink_to(loader.port)

    def take_out(self) -> None:
        self._socket.unlink()
        self._stack.close()


@pytest.fixture
def batch(bench: Bench, kits: dict[str, KitFolder], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    for name in (KIT, OTHER):
        kits[name].save(bench.folder / "kits" / name)
    yield bench


def _run_batch(bench: Bench, hands: Hands, *names: str) -> int:
    """The command in the foreground, the hands in a thread: they follow what the register says."""
    done = threading.Event()

    def act() -> None:
        for number in range(len(hands._boards)):
            hands.plug_in()
            while not done.wait(0.02):
                if sum(bench.register.is_flashed(kit) for kit in (KIT, OTHER)) > number:
                    break
            hands.take_out()

    acting = threading.Thread(target=act)
    acting.start()
    try:
        words = [
            "flash",
            "--board",
            ESP32,
            "--bench",
            str(bench.folder),
            "--port",
            hands.sockets,
            "--json",
        ]
        return main([*words, "--micropython", str(binaries.esp32()), "--batch", *names])
    finally:
        done.set()
        acting.join()


def test_a_batch_takes_one_board_after_the_other(
    batch: Bench, kits: dict[str, KitFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    hands = Hands(batch.folder, [{"mac": MAC}, {"mac": OTHER_MAC}])
    assert _run_batch(batch, hands) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["kit"], row["mac"]) for row in said["flashed"]] == [(KIT, MAC), (OTHER, OTHER_MAC)]
    assert batch.register.boards_of(OTHER) == [OTHER_MAC]
    assert main(["flash", "--board", ESP32, "--bench", str(batch.folder), "--micropython",
                 str(binaries.esp32()), "--batch"]) == 1  # fmt: skip
    assert "waits to be flashed" in capsys.readouterr().err


def test_a_batch_stops_at_an_error_and_goes_on_where_it_stopped(
    batch: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    hands = Hands(batch.folder, [{"mac": MAC, "faults": Faults(unplug_after=10)}])
    assert _run_batch(batch, hands) == 1
    assert "check its cable and run this again" in capsys.readouterr().err
    hands = Hands(batch.folder, [{"mac": MAC}, {"mac": MAC}])  # the same board is left in for the second Kit
    assert _run_batch(batch, hands) == 1
    assert f"this board ({MAC}) is Kit {KIT}, not {OTHER}" in capsys.readouterr().err
    assert batch.state() == FLASHED
