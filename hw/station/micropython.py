"""A stock MicroPython binary for an ESP32: what lies in it, whose it is, and the flash's size in its header.

The file is a piece of flash that starts with the bootloader: bootloader, partition table at 0x8000, then the
application where that table says. Bootloader and application have one format, ESP-IDF's image: a header of 24
bytes, segments, a checksum over what is in them, and the SHA-256 of all before it.

The one rule: nothing is taken from a binary that is not whole, for this chip, and known (or allowed by name).
"""

import hashlib
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hw.station import StationError, partitions
from hw.station.board import Board
from hw.station.partitions import TABLE_OFFSET, PartitionError

_MAGIC = 0xE9
_HEADER = struct.Struct(
    "<BBBBI4xH9xB"
)  # magic, segments, mode, size and frequency, entry, chip, hash appended
_SEGMENT = struct.Struct("<II")  # address, length
_CHECKSUM_SEED = 0xEF
_CHECKSUM_ALIGNMENT = 16
_HASH_BYTES = 32
_MAX_SEGMENTS = 16
_MAX_FILE_BYTES = 16 << 20
_VERSION = re.compile(rb"MicroPython (v[\w.+-]{1,32}) on (\d{4}-\d\d-\d\d)")


class MicropythonError(StationError):
    """A binary that no board could start from; one sentence that says why."""


class Release(NamedTuple):
    """A binary as the MicroPython project has published it."""

    board: str  # in MicroPython's words
    version: str


KNOWN = {
    "1eb1a88473e32aa6a4d45dc1b5b6ad40bc1f06128e7aa8548e438cfa4633da1b": Release("ESP32_GENERIC", "v1.25.0"),
}
"""By SHA-256 of the file. A row is added by who has compared it with the project's own download."""
KNOWN_APPS = {
    "e43147eca4187db2be1e7945c8058e3a6ccc07de84d7264257ff3652aa68caab": Release("ESP32_GENERIC", "v1.25.0"),
}
"""By SHA-256 of the application in it: public bytes, in which no secret of ours can lie."""


class Part(NamedTuple):
    """A bootloader or an application. `content` ends with its hash."""

    content: bytes
    chip_id: int
    flash_mode: int
    flash_size: int  # code
    flash_frequency: int  # code
    has_hash: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Micropython:
    """A binary that was read. `release` is None when it is not known."""

    bootloader: Part
    app: Part
    sha256: str
    version: str
    release: Release | None


def read(path: Path, board: Board, *, allow_unknown: bool = False) -> Micropython:
    """The checked binary of a file, for this board. Raises MicropythonError."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise MicropythonError(f"{path} is larger than any flash; it is no MicroPython binary")
        content = path.read_bytes()
    except OSError as problem:
        raise MicropythonError(f"{path} can't be read: {problem.strerror}") from None
    sha256 = hashlib.sha256(content).hexdigest()
    release = KNOWN.get(sha256)
    if release is None and not allow_unknown:
        raise MicropythonError(
            f"{path} has the SHA-256 {sha256}, which no release known here has. Compare it with the one on "
            "the MicroPython project's download page; if they agree, say --allow-unknown"
        )
    try:
        return _parts(content, board, sha256, release)
    except (MicropythonError, PartitionError) as problem:
        raise MicropythonError(f"{path}: {problem}") from None


def part(content: bytes, offset: int = 0) -> Part:
    """The image that starts at this offset, up to its hash. Raises MicropythonError where it is damaged."""
    try:
        magic, segments, mode, size, _, chip, has_hash = _HEADER.unpack_from(content, offset)
        if magic != _MAGIC or not 0 < segments <= _MAX_SEGMENTS:
            raise MicropythonError(f"there is no image at {offset:#x}")
        end, checksum = _walk(content, offset, segments)
        if content[end] != checksum:
            raise MicropythonError(f"the checksum of the image at {offset:#x} is wrong")
    except (struct.error, IndexError):
        raise MicropythonError(f"the image at {offset:#x} is cut off") from None
    end += 1
    if has_hash:
        if hashlib.sha256(content[offset:end]).digest() != content[end : end + _HASH_BYTES]:
            raise MicropythonError(f"the hash of the image at {offset:#x} is wrong")
        end += _HASH_BYTES
    return Part(content[offset:end], chip, mode, size >> 4, size & 0xF, bool(has_hash))


def stamped(bootloader: Part, board: Board) -> bytes:
    """The bootloader with the board's flash size, mode and frequency in its header, and its hash made new."""
    chip, changed = board.chip, bytearray(bootloader.content)
    changed[2] = chip.modes[board.flash_mode]
    changed[3] = chip.sizes[board.flash_size] << 4 | chip.frequencies[board.flash_frequency]
    if bootloader.has_hash:  # the checksum is one of the segments alone
        changed[-_HASH_BYTES:] = hashlib.sha256(changed[:-_HASH_BYTES]).digest()
    return bytes(changed)


def version(content: bytes) -> str:
    """What MicroPython calls itself, such as "v1.25.0 on 2025-04-15"; "" where it does not say."""
    found = _VERSION.search(content)
    return f"{found[1].decode()} on {found[2].decode()}" if found else ""


def _parts(content: bytes, board: Board, sha256: str, release: Release | None) -> Micropython:
    start = board.chip.bootloader_offset
    bootloader = part(content)
    _check_chip(bootloader, board)
    app_row = partitions.app(partitions.decode(content[TABLE_OFFSET - start :]))
    app = part(content, app_row.offset - start)
    _check_chip(app, board)
    named = version(app.content)
    if not named:
        raise MicropythonError("its application is not MicroPython")
    if len(bootloader.content) > board.bootloader_bytes:
        raise MicropythonError(
            f"its bootloader of {len(bootloader.content)} bytes reaches the partition table"
        )
    room = partitions.app(board.partitions).size
    if len(app.content) > room:
        raise MicropythonError(
            f"its application has {len(app.content)} bytes, board {board.name} room for {room}"
        )
    return Micropython(bootloader, app, sha256, named, release)


def _check_chip(image: Part, board: Board) -> None:
    if image.chip_id != board.chip.image_id:
        raise MicropythonError(f"it is for another chip than the {board.chip.name} of board {board.name}")


def _walk(content: bytes, offset: int, segments: int) -> tuple[int, int]:
    """Where the checksum lies, and what it has to be."""
    at, checksum = offset + _HEADER.size, 0
    for _ in range(segments):
        _, length = _SEGMENT.unpack_from(content, at)
        at += _SEGMENT.size
        if at + length > len(content):
            raise MicropythonError(f"the image at {offset:#x} is cut off")
        checksum ^= _xor(content[at : at + length])
        at += length
    return offset + ((at - offset) | (_CHECKSUM_ALIGNMENT - 1)), checksum ^ _CHECKSUM_SEED


def _xor(content: bytes) -> int:
    """All bytes, xored: in halves, since a loop over each byte of an application takes a second."""
    number, bits = int.from_bytes(content, "little"), 8
    while bits < 8 * len(content):
        bits *= 2
    while bits > 8:
        bits //= 2
        number = (number >> bits) ^ (number & ((1 << bits) - 1))
    return number
