"""The emulated ROM loader, by the real esptool: what it says it has done is in the flash, and no more."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hw.virtual.rom_chip import SECTOR_BYTES, Faults, Flash, Refused
from hw.virtual.rom_loader import RomLoader

MAC = "24:0A:C4:12:34:56"
CONTENT = random.Random(1).randbytes(48 * 1024)  # three blocks of the stub, and it can't be compressed
AT = 0x10000
# Waits are for people who press buttons; the emulator answers at once or never.
CONFIG = "[esptool]\ntimeout = 0.5\nconnect_attempts = 1\nwrite_block_attempts = 2\nsync_timeout = 0.1\n"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.bin"
    path.write_bytes(CONTENT)
    (tmp_path / "esptool.cfg").write_text(CONFIG)
    return path


def esptool(loader: RomLoader, image: Path, *arguments: str) -> tuple[int, str]:
    """Exit code, and all that it said."""
    done = subprocess.run(
        [sys.executable, "-m", "esptool", "--port", loader.port, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=image.parent,  # where its configuration lies
        timeout=60,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("chip, size", [("esp32", 4 << 20), ("esp32s3", 8 << 20)])
@pytest.mark.parametrize("options", [[], ["--no-stub"], ["--no-stub", "--compress"]])
def test_what_is_written_is_in_the_flash_and_read_back(
    tmp_path: Path, image: Path, chip: str, size: int, options: list[str]
) -> None:
    no_stub, compress = options[:1], ["--compress"] * ("--compress" in options)
    (tmp_path / "flash").write_bytes(bytes(size))  # every bit is programmed: nothing takes without an erase
    with RomLoader(tmp_path / "flash", chip=chip, flash_bytes=size) as loader:
        code, said = esptool(
            loader, image, *no_stub, "--baud", "921600", "write-flash", *compress, hex(AT), str(image)
        )
        assert code == 0 and "Hash of data verified" in said
        code, said = esptool(loader, image, *no_stub, "verify-flash", hex(AT), str(image))
        assert code == 0 and "digest matched" in said
        back = tmp_path / "back"
        assert esptool(loader, image, *no_stub, "read-flash", hex(AT), str(len(CONTENT)), str(back))[0] == 0
    assert back.read_bytes() == CONTENT
    assert (tmp_path / "flash").read_bytes() == (bytes(AT) + CONTENT).ljust(size, b"\0")


@pytest.mark.parametrize(
    "chip, size, words",
    [
        ("esp32", 4 << 20, ("ESP32-D0WD-V3 (revision v3.0)", "flash size: 4MB")),
        ("esp32s3", 8 << 20, ("ESP32-S3 (QFN56)", "flash size: 8MB")),
    ],
)
def test_a_chip_says_who_it_is(
    tmp_path: Path, image: Path, chip: str, size: int, words: tuple[str, ...]
) -> None:
    with RomLoader(tmp_path / "flash", chip=chip, flash_bytes=size, mac=MAC) as loader:
        code, said = esptool(loader, image, "flash-id")
    assert code == 0 and MAC.lower() in said
    assert all(word in said for word in words)


def test_another_chip_than_wanted_is_refused_by_esptool(tmp_path: Path, image: Path) -> None:
    with RomLoader(tmp_path / "flash") as loader:
        code, said = esptool(loader, image, "--chip", "esp32s3", "write-flash", hex(AT), str(image))
    assert code != 0 and "This chip is ESP32, not ESP32-S3" in said
    assert not (tmp_path / "flash").read_bytes().strip(b"\xff")


def test_a_rom_that_refuses_the_stub_can_be_written_without_it(tmp_path: Path, image: Path) -> None:
    with RomLoader(tmp_path / "flash", faults=Faults(stub=False)) as loader:
        code, said = esptool(loader, image, "write-flash", hex(AT), str(image))
        assert code != 0 and "Failed to enter RAM download mode" in said
        assert esptool(loader, image, "--no-stub", "write-flash", hex(AT), str(image))[0] == 0


def test_a_board_that_does_not_answer(tmp_path: Path, image: Path) -> None:
    with RomLoader(tmp_path / "flash", faults=Faults(dumb=True)) as loader:
        code, said = esptool(loader, image, "flash-id")
    assert code != 0 and "Failed to connect" in said and loader.blocks == 0


def test_a_damaged_block_is_sent_again(tmp_path: Path, image: Path) -> None:
    with RomLoader(tmp_path / "flash", faults=Faults(bad_checksums=1)) as loader:
        code, _ = esptool(loader, image, "write-flash", hex(AT), str(image))
        assert loader.faults.bad_checksums == 0
    assert code == 0 and CONTENT in (tmp_path / "flash").read_bytes()


@pytest.mark.parametrize("fault", ["silent_after", "unplug_after"])
@pytest.mark.parametrize("options", [[], ["--no-stub"]])
def test_an_interrupted_write_leaves_what_it_had_done_and_can_be_done_again(
    tmp_path: Path, image: Path, fault: str, options: list[str]
) -> None:
    faults = Faults(silent_after=2) if fault == "silent_after" else Faults(unplug_after=2)
    with RomLoader(tmp_path / "flash", faults=faults) as loader:
        assert esptool(loader, image, *options, "write-flash", hex(AT), str(image))[0] != 0
    left = (tmp_path / "flash").read_bytes()[AT : AT + len(CONTENT)]
    done = loader.blocks * (1024 if options else 16 * 1024)
    assert left[: done // 2] == CONTENT[: done // 2]
    assert left != CONTENT and left[done:] == b"\xff" * (len(CONTENT) - done)
    with RomLoader(tmp_path / "flash") as loader:
        assert esptool(loader, image, "write-flash", hex(AT), str(image))[0] == 0
    assert (tmp_path / "flash").read_bytes()[AT : AT + len(CONTENT)] == CONTENT


def test_a_cell_that_cannot_be_programmed_is_noticed(tmp_path: Path, image: Path) -> None:
    place = next(at for at, byte in enumerate(CONTENT) if at > 20_000 and byte != 0xFF)
    with RomLoader(tmp_path / "flash", faults=Faults(weak_cell=AT + place)) as loader:
        code, said = esptool(loader, image, "write-flash", hex(AT), str(image))
    assert code != 0 and "MD5" in said


def test_a_speed_that_one_end_does_not_know_is_noise(tmp_path: Path, image: Path) -> None:
    with RomLoader(tmp_path / "flash") as loader:
        code, said = esptool(loader, image, "--baud", "57600", "--before", "no-reset", "chip-id")
    assert code != 0 and "Failed to connect" in said


def test_programming_only_clears_bits(tmp_path: Path) -> None:
    flash = Flash(tmp_path / "flash", 4 << 20, None)
    try:
        flash.program(10, b"\xf0")
        flash.program(10, b"\x3f")
        assert flash.read(9, 3) == b"\xff\x30\xff"
        flash.erase(SECTOR_BYTES - 1, 1)
        assert flash.read(10, 1) == b"\xff"
        with pytest.raises(Refused):
            flash.read((4 << 20) - 1, 2)
    finally:
        flash.close()


def test_as_a_program_it_is_a_board_until_ctrl_c(tmp_path: Path, image: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "hw.virtual.rom_loader",
        "--flash",
        str(tmp_path / "flash"),
        "--mac",
        MAC,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as board:
        try:
            assert board.stdout is not None
            port = board.stdout.readline().strip()
            said = subprocess.run(
                [sys.executable, "-m", "esptool", "--port", port, "--no-stub", "read-mac"],
                capture_output=True,
                text=True,
                cwd=image.parent,
                check=True,
            ).stdout
        finally:
            board.send_signal(signal.SIGINT)
    assert MAC.lower() in said and board.returncode == 0
