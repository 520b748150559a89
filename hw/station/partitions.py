"""The partition table: what lies where in a board's flash, and its bytes at 0x8000 as ESP-IDF reads them.

Each row: magic, type, subtype, offset, size, label, flags; after the last row its MD5, then 0xFF to the end.
The one rule: a table that is encoded can be booted from, since `check` has seen every row of it.
"""

import hashlib
import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from hw.station import StationError

TABLE_OFFSET = 0x8000
TABLE_BYTES = 0xC00
"""What a bootloader reads; the rest of its sector is erased."""
SECTOR_BYTES = 0x1000
APP_ALIGNMENT = 0x10000
"""The flash is mapped into the address space in pages of this size."""
APP, DATA = 0x00, 0x01

TYPES = {"app": APP, "data": DATA}
SUBTYPES = {
    "app": {"factory": 0x00, "ota_0": 0x10, "ota_1": 0x11},
    "data": {"ota": 0x00, "phy": 0x01, "nvs": 0x02, "undefined": 0x06, "fat": 0x81},
}
NEEDED = ("nvs", "bonds", "vfs", "journal")
"""What the firmware asks for by its label (firmware/board.py, MicroPython's own start)."""

_ROW = struct.Struct("<HBBII16sI")
_ROW_MAGIC = 0x50AA
_MD5_START = b"\xeb\xeb" + b"\xff" * 14
_MAX_LABEL_BYTES = 15
_MIN_NVS_BYTES = 3 * SECTOR_BYTES  # one page is always kept free
_OTADATA_BYTES = 2 * SECTOR_BYTES


class PartitionError(StationError):
    """A table that no board could work with; one sentence that names the row."""


class Partition(NamedTuple):
    """A row. Offsets and sizes in bytes; type and subtype are numbers of ESP-IDF."""

    label: str
    type: int
    subtype: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size

    def of(self, flash: bytes) -> bytes:
        """Its bytes in an image of the whole flash."""
        return flash[self.offset : self.end]


def check(rows: Sequence[Partition], flash_bytes: int) -> None:
    """Raise PartitionError unless every row lies in the flash, aligned, beside all others."""
    if (len(rows) + 1) * _ROW.size > TABLE_BYTES:
        raise PartitionError(f"{len(rows)} partitions do not fit into the table")
    for row in rows:
        _check_row(row, flash_bytes)
    labels = [row.label for row in rows]
    for label in labels:
        if labels.count(label) > 1:
            raise PartitionError(f"two partitions are named {label}")
    for lower, upper in pairwise(sorted(rows, key=lambda row: row.offset)):
        if lower.end > upper.offset:
            raise PartitionError(f"partition {lower.label} (to {lower.end:#x}) runs into {upper.label}")


def check_needs(rows: Sequence[Partition]) -> None:
    """Raise PartitionError unless the firmware finds all that it needs."""
    by_label = {row.label: row for row in rows}
    for label in NEEDED:
        if label not in by_label or by_label[label].type != DATA:
            raise PartitionError(f"there is no data partition {label}")
    apps = [row.subtype for row in rows if row.type == APP]
    if not apps:
        raise PartitionError("there is no app partition")
    needs_choice = SUBTYPES["app"]["factory"] not in apps or len(apps) > 1
    choices = [row for row in rows if (row.type, row.subtype) == (DATA, SUBTYPES["data"]["ota"])]
    if needs_choice and not choices:
        raise PartitionError(
            "app slots ota_0 and ota_1 need a data partition of subtype ota, which names one"
        )
    if any(row.size != _OTADATA_BYTES for row in choices):
        raise PartitionError(f"a partition of subtype ota has {_OTADATA_BYTES:#x} bytes")
    if by_label["nvs"].size < _MIN_NVS_BYTES:
        raise PartitionError(f"partition nvs needs {_MIN_NVS_BYTES:#x} bytes at least")


def encode(rows: Sequence[Partition]) -> bytes:
    """The table's bytes, with their MD5."""
    packed = b"".join(
        _ROW.pack(_ROW_MAGIC, row.type, row.subtype, row.offset, row.size, row.label.encode(), 0)
        for row in rows
    )
    return (packed + _MD5_START + hashlib.md5(packed).digest()).ljust(TABLE_BYTES, b"\xff")


def decode(table: bytes) -> tuple[Partition, ...]:
    """The rows of a table. Raises PartitionError where it is damaged."""
    rows: list[Partition] = []
    for at in range(0, min(len(table), TABLE_BYTES) - _ROW.size + 1, _ROW.size):
        packed = table[at : at + _ROW.size]
        if packed.startswith(_MD5_START):
            if packed[16:] != hashlib.md5(table[:at]).digest():
                raise PartitionError("the MD5 of the partition table is wrong")
            return tuple(rows)
        rows.append(_decode_row(packed, at))
    raise PartitionError("the partition table has no end")


def find(rows: Sequence[Partition], label: str) -> Partition:
    """The partition with this label. Raises PartitionError."""
    for row in rows:
        if row.label == label:
            return row
    raise PartitionError(f"there is no partition {label}")


def app(rows: Sequence[Partition]) -> Partition:
    """The partition that an erased choice boots from: factory, else the first slot. Raises PartitionError."""
    apps = sorted((row for row in rows if row.type == APP), key=lambda row: row.subtype)
    if not apps:
        raise PartitionError("there is no app partition")
    return apps[0]


def _check_row(row: Partition, flash_bytes: int) -> None:
    if not 0 < len(row.label.encode()) <= _MAX_LABEL_BYTES:
        raise PartitionError(f"partition {row.label!r}: a label has 1 to {_MAX_LABEL_BYTES} bytes")
    alignment = APP_ALIGNMENT if row.type == APP else SECTOR_BYTES
    if row.offset % alignment or row.size % SECTOR_BYTES or row.size <= 0:
        raise PartitionError(
            f"partition {row.label}: {row.size:#x} bytes at {row.offset:#x}, but it must start on a multiple "
            f"of {alignment:#x} and hold a multiple of {SECTOR_BYTES:#x}"
        )
    if row.offset < TABLE_OFFSET + SECTOR_BYTES:
        raise PartitionError(f"partition {row.label} starts at {row.offset:#x}, inside the partition table")
    if row.end > flash_bytes:
        raise PartitionError(f"partition {row.label} ends at {row.end:#x}, the flash at {flash_bytes:#x}")


def _decode_row(packed: bytes, at: int) -> Partition:
    magic, type_, subtype, offset, size, label, _ = _ROW.unpack(packed)
    if magic != _ROW_MAGIC:
        raise PartitionError(f"there is no partition table: no row at {TABLE_OFFSET + at:#x}")
    return Partition(label.rstrip(b"\0").decode(errors="replace"), type_, subtype, offset, size)
