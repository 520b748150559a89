"""`homeward-station image`: the whole flash of one Kit as a file, and what such a file holds.

    bootloader   of the stock binary, with the board's flash size in its header
    table        the board's own
    app          of the stock binary
    nvs          identity and keys of one Kit
    vfs          the application, compiled
    the rest     erased: bonds, Journal, second slot

The one rule: the same input gives the same bytes, and no secret lies outside of NVS: every image is read back
and searched before it is written.
"""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hw.station import (
    StationError,
    application,
    board,
    filesystem,
    inspection,
    kit_folder,
    micropython,
    nvs,
    partitions,
)
from hw.station.board import FLASH_SIZES, Board
from hw.station.kit_folder import KitFolder
from hw.station.micropython import Micropython
from hw.station.partitions import TABLE_OFFSET

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_MODE = 0o600  # it holds a private key


class ImageError(StationError):
    """An image that can't be made or must not be used."""


def add(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-command `image`."""
    parser = commands.add_parser(
        "image", help="the whole flash of one Kit as a file, or what such a file holds"
    )
    parser.add_argument("--inspect", metavar="FILE", type=Path, help="say what an image holds, and stop")
    parser.add_argument("--board", metavar="NAME", help=f"one of {', '.join(board.names())}")
    parser.add_argument("--micropython", metavar="FILE", type=Path, help="stock binary of this chip")
    parser.add_argument(
        "--allow-unknown", action="store_true", help="take a binary of a release not known here"
    )
    parser.add_argument("--kit", metavar="KIT", help="its folder, or its name in the bench's folder")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="where the image goes; it holds the Kit's key"
    )
    kit_folder.add_bench(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be made, and stop")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Make an image, or say what one holds. Raises StationError."""
    if options.inspect:
        _inspect(options.inspect, as_json=options.json)
        return
    for needed in ("board", "micropython", "kit", "out"):
        if getattr(options, needed) is None:
            raise ImageError(f"--{needed} is missing (or --inspect FILE)")
    kit = KitFolder.load(kit_folder.locate(options.kit, options.bench))
    chosen = board.load(options.board)
    stock = micropython.read(options.micropython, chosen, allow_unknown=options.allow_unknown)
    flash = compose(chosen, stock, kit)
    if not options.dry_run:
        write(options.out, flash)
    _print(
        inspection.describe(flash, inspection.inspect(flash))
        | {"written": None if options.dry_run else str(options.out)},
        options.json,
    )


def compose(chosen: Board, stock: Micropython, kit: KitFolder) -> bytes:
    """The flash of a Kit, as large as the chip's. Raises StationError."""
    if kit.board != chosen.name:
        raise ImageError(f"Kit {kit.kit} was made for board {kit.board}, not for {chosen.name}")
    flash = bytearray(inspection.ERASED * chosen.flash_bytes)
    files = application.listed(application.files(chosen), chosen, stock.version)
    rows = {row.label: row for row in chosen.partitions}
    pieces = {
        chosen.chip.bootloader_offset: micropython.stamped(stock.bootloader, chosen),
        TABLE_OFFSET: partitions.encode(chosen.partitions),
        partitions.app(chosen.partitions).offset: stock.app.content,
        rows["nvs"].offset: nvs.encode(nvs.identity(kit), rows["nvs"].size),
        rows["vfs"].offset: filesystem.encode(files, rows["vfs"].size),
    }
    for offset, piece in pieces.items():
        flash[offset : offset + len(piece)] = piece
    image = bytes(flash)
    inspection.accept(inspection.inspect(image))
    return image


def write(path: Path, flash: bytes) -> None:
    """Write the image for its owner alone; it appears whole or not at all. Raises ImageError."""
    part = path.with_name(path.name + ".part")
    try:
        part.unlink(missing_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE), "wb") as file:
            file.write(flash)
        part.replace(path)
    except OSError as problem:
        raise ImageError(f"{path} can't be written: {problem.strerror}") from None


def load(path: Path) -> bytes:
    """The bytes of an image. Raises ImageError."""
    try:
        if path.stat().st_size not in FLASH_SIZES.values():
            raise ImageError(f"{path} is as large as no flash: it is no image of `homeward-station image`")
        return path.read_bytes()
    except OSError as problem:
        raise ImageError(f"{path} can't be read: {problem.strerror}") from None


def _inspect(path: Path, *, as_json: bool) -> None:
    flash = load(path)
    found = inspection.inspect(flash)
    _print(inspection.describe(flash, found), as_json)
    inspection.accept(found)


def _print(about: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(about, indent=2) if as_json else inspection.table(about))
