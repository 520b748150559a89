"""What flashing promises, each looked for in the bytes of an emulated board's flash."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from hw.station import board, image, inspection, micropython
from hw.station.command import main
from hw.station.register import FLASHED, Register
from hw.virtual.rom_chip import Faults
from hw.virtual.rom_loader import RomLoader
from tests.station import binaries
from tests.station.kits import kit_folder, project

BOARD, KIT, OTHER = "esp32-4mb", "HW-0001", "HW-0002"
MAC, OTHER_MAC = "24:0A:C4:00:00:01", "24:0A:C4:00:00:02"
# Waits are for people who press buttons; the emulator answers at once or never.
_CONFIG = "[esptool]\ntimeout = 1\nconnect_attempts = 1\nwrite_block_attempts = 2\n"
_SOME_BLOCKS = 30


def prove(folder: Path) -> dict[str, Any]:
    """A flash, an interrupted one, and a wrong chip."""
    chosen = board.load(BOARD)
    stock = micropython.read(binaries.esp32(), chosen)
    sync = project(folder / "sync")
    flashes = {kit: image.compose(chosen, stock, kit_folder(sync, kit)) for kit in (KIT, OTHER)}
    for kit, flash in flashes.items():
        image.write(folder / f"{kit}.bin", flash)
    register = Register(folder)
    began = time.monotonic()
    with _esptool_settings(folder):
        whole = _flash(folder, KIT, mac=MAC)
        seconds = time.monotonic() - began
        flashed = whole == 0 and _holds(folder, MAC, flashes[KIT])
        torn = _flash(folder, OTHER, mac=OTHER_MAC, faults=Faults(unplug_after=_SOME_BLOCKS))
        was_torn = (
            torn == 1 and not _holds(folder, OTHER_MAC, flashes[OTHER]) and not register.is_flashed(OTHER)
        )
        again = _flash(folder, OTHER, mac=OTHER_MAC)
        refused = _flash(folder, KIT, mac="24:0A:C4:00:00:03", chip="esp32s3", flash_bytes=8 << 20)
        untouched = not (folder / "24:0A:C4:00:00:03").read_bytes().strip(inspection.ERASED)
    return {
        "flashed": flashed,
        "verified": flashed and register.is_flashed(KIT) and FLASHED in (folder / "boards.json").read_text(),
        "interrupted_recovered": was_torn and again == 0 and _holds(folder, OTHER_MAC, flashes[OTHER]),
        "refused_wrong_chip": refused == 1 and untouched,
        "secrets_outside_nvs": sum(len(inspection.inspect(flash).leaks) for flash in flashes.values()),
        "flash_seconds": round(seconds, 1),
    }


def _flash(folder: Path, kit: str, *, mac: str, **about: Any) -> int:
    """The command's exit code; the flash of the board stands in a file named after its MAC."""
    with RomLoader(folder / mac, mac=mac, **about) as loader, open(os.devnull, "w") as nowhere:
        words = ["flash", "--board", BOARD, "--image", str(folder / f"{kit}.bin"), "--port", loader.port]
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            return main([*words, "--bench", str(folder), "--json"])


def _holds(folder: Path, mac: str, flash: bytes) -> bool:
    return (folder / mac).read_bytes() == flash


@contextmanager
def _esptool_settings(folder: Path) -> Iterator[None]:
    """esptool reads its settings in the folder that it is started in."""
    before = Path.cwd()
    (folder / "esptool.cfg").write_text(_CONFIG)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
