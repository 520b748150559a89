"""Inspection: what the image of a flash holds, read out of its bytes alone, and what is wrong with it."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from hw.station import StationError, application, filesystem, micropython, nvs, partitions, secret
from hw.station.board import CHIPS, FLASH_SIZES, Chip
from hw.station.micropython import MicropythonError, Part
from hw.station.partitions import TABLE_BYTES, TABLE_OFFSET, Partition, PartitionError

ERASED = b"\xff"
EMPTY_IN_AN_IMAGE = ("bonds", "journal", "otadata")
_FIRST = (
    "kit",
    "board",
    "chip",
    "flash_size",
    "micropython",
    "release",
    "boot.py",
    "sha256",
    "secrets_outside_nvs",
)
_SUM_DIGITS = 16
_MPY = b"M\x06"
"""What a compiled file begins with: bytecode of version 6, which every MicroPython since 1.19 reads."""
_TYPE_WORDS = {number: word for word, number in partitions.TYPES.items()}


class InspectionError(StationError):
    """An image that can't be read, or must not be used."""


@dataclass(frozen=True)
class Contents:
    """What was read out of an image."""

    chip: Chip
    bootloader: Part
    rows: tuple[Partition, ...]
    app: Part
    values: nvs.Values
    files: dict[str, bytes]
    about: dict[str, Any]  # the list of the application; {} where there is none
    problems: tuple[str, ...]
    leaks: tuple[tuple[str, int], ...]  # (secret, offset) outside of NVS


def inspect(flash: bytes) -> Contents:
    """What an image holds, and what is wrong with it. Raises StationError where it can't be read at all."""
    chip, bootloader = _bootloader(flash)
    rows = partitions.decode(flash[TABLE_OFFSET : TABLE_OFFSET + TABLE_BYTES])
    app = micropython.part(flash, partitions.app(rows).offset)
    values = nvs.decode(partitions.find(rows, "nvs").of(flash))
    files = filesystem.decode(partitions.find(rows, "vfs").of(flash))
    about = _about(files)
    leaks = tuple(_leaks(flash, rows, app, values))
    problems = [
        *_layout_problems(flash, chip, bootloader, rows, app),
        *_file_problems(files, about),
        *(f"{name} stands outside of NVS, at {at:#x}" for name, at in leaks),
    ]
    return Contents(chip, bootloader, rows, app, values, files, about, tuple(problems), leaks)


def describe(flash: bytes, found: Contents) -> dict[str, Any]:
    """All that is known of an image, ready for JSON. No secret is in it."""
    known = micropython.KNOWN_APPS.get(found.app.sha256)
    kit = found.values.get("kit")
    return {
        "sha256": hashlib.sha256(flash).hexdigest(),
        "bytes": len(flash),
        "chip": found.chip.name,
        "board": found.about.get("board"),
        "kit": kit.decode(errors="replace") if isinstance(kit, bytes) else None,
        "release": found.about.get("release"),
        "micropython": micropython.version(found.app.content) or None,
        "micropython_known": bool(known),
        "flash_size": _size_word(found),
        "boot.py": application.BOOT in found.files,
        "parts": _parts(flash, found),
        "files": [
            {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for path, content in sorted(found.files.items())
        ],
        "secrets_outside_nvs": len(found.leaks),
        "problems": list(found.problems),
    }


def table(about: dict[str, Any]) -> str:
    """The same for people, aligned."""
    lines = [f"{key.replace('_', ' '):<20} {_word(about[key])}" for key in _FIRST]
    lines.append("")
    for part in about["parts"]:
        content = "erased" if part["erased"] else part["sha256"][:_SUM_DIGITS]
        lines.append(f"{part['label']:<16} {part['offset']:#9x} {part['bytes'] // 1024:>6} KiB  {content}")
    lines.append("")
    for file in about["files"]:
        lines.append(f"{file['path']:<40} {file['bytes']:>6}  {file['sha256'][:_SUM_DIGITS]}")
    return "\n".join([*lines, *(f"WRONG: {problem}" for problem in about["problems"])])


def accept(found: Contents) -> None:
    """Raise InspectionError when something is wrong."""
    if found.problems:
        raise InspectionError(f"this image must not be used: {'; '.join(found.problems)}")


def _word(value: object) -> str:
    return {"True": "yes", "False": "no", "None": "none"}.get(str(value), str(value))


# --- What is wrong with it ----------------------------------------------------------------------------------


def _bootloader(flash: bytes) -> tuple[Chip, Part]:
    for chip in CHIPS.values():
        try:
            found = micropython.part(flash, chip.bootloader_offset)
        except MicropythonError:
            continue
        if found.chip_id == chip.image_id:
            return chip, found
    raise InspectionError("there is no whole bootloader of a known chip in it")


def _layout_problems(
    flash: bytes, chip: Chip, bootloader: Part, rows: tuple[Partition, ...], app: Part
) -> list[str]:
    problems = []
    try:
        partitions.check(rows, len(flash))
        partitions.check_needs(rows)
    except PartitionError as problem:
        problems.append(str(problem))
    if FLASH_SIZES.get(_size_name(chip, bootloader.flash_size)) != len(flash):
        problems.append("the flash size in the bootloader's header is not that of the image")
    if app.chip_id != chip.image_id:
        problems.append(f"the application is for another chip than the {chip.name}")
    for row in rows:
        if row.label in EMPTY_IN_AN_IMAGE and row.of(flash).strip(ERASED):
            problems.append(f"partition {row.label} is not erased")
    return problems


def _file_problems(files: dict[str, bytes], about: dict[str, Any]) -> list[str]:
    problems = [f"there is no {name}" for name in (application.BOOT, application.MAIN) if name not in files]
    problems += [
        f"{path} is no bytecode that this MicroPython reads"
        for path, content in sorted(files.items())
        if path.endswith(".mpy") and content[: len(_MPY)] != _MPY
    ]
    sums = about.get("files", {})
    if not sums:
        problems.append(f"there is no {application.LIST}")
    for path in sorted(sums.keys() | files.keys() - {application.LIST}):
        if sums and (path not in files or hashlib.sha256(files[path]).hexdigest() != sums.get(path)):
            problems.append(f"{path} is not as {application.LIST} says")
    return problems


def _about(files: dict[str, bytes]) -> dict[str, Any]:
    try:
        about = json.loads(files.get(application.LIST, b"{}"))
    except ValueError:
        return {}
    return about if isinstance(about, dict) and isinstance(about.get("files"), dict) else {}


def _leaks(flash: bytes, rows: tuple[Partition, ...], app: Part, values: nvs.Values) -> list[tuple[str, int]]:
    """Where secrets of this NVS stand outside of it. A published application can hold none."""
    searched = bytearray(flash)
    row = partitions.find(rows, "nvs")
    searched[row.offset : row.end] = ERASED * row.size
    if app.sha256 in micropython.KNOWN_APPS:
        start = partitions.app(rows).offset
        searched[start : start + len(app.content)] = ERASED * len(app.content)
    return secret.places(bytes(searched), nvs.secrets(values))


# --- What is said about it ----------------------------------------------------------------------------------


def _size_name(chip: Chip, code: int) -> str:
    return next((name for name, number in chip.sizes.items() if number == code), "unknown")


def _size_word(found: Contents) -> str:
    return _size_name(found.chip, found.bootloader.flash_size)


def _parts(flash: bytes, found: Contents) -> list[dict[str, Any]]:
    start = found.chip.bootloader_offset
    table = Partition("partition table", partitions.DATA, 0, TABLE_OFFSET, partitions.SECTOR_BYTES)
    first = Partition("bootloader", partitions.APP, 0, start, TABLE_OFFSET - start)
    return [_part(flash, row) for row in (first, table, *found.rows)]


def _part(flash: bytes, row: Partition) -> dict[str, Any]:
    content = row.of(flash)
    return {
        "label": row.label,
        "type": _TYPE_WORDS.get(row.type, row.type),
        "offset": row.offset,
        "bytes": row.size,
        "erased": not content.strip(ERASED),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
