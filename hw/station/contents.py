"""Contents: what the flash of a Kit holds of its patient: identity, networks, bonds, every Record.

It is read out of the flash itself, so a Kit that no longer starts can be judged too. All of it is then known,
and is what a wiped flash is searched for.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.errors import JournalError
from gateway.journal import Journal
from gateway.limits import MAX_BATCH_BYTES
from gateway.record import decode_all, encode
from hw.station import nvs, partitions, secret
from hw.station.partitions import TABLE_BYTES, TABLE_OFFSET, Partition, PartitionError
from sync_service.arrival import last_of
from sync_service.kit_id import mistake

BLOCK_BYTES = 4096
ERASED = 0xFF
_MIN_SECRET = secret.MIN_BYTES
"""What is shorter is found in any flash by chance."""
_RAW_VALUE = slice(4, None)
"""Of a FRAME's body: the value as the Sensor sent it."""


class Flash(Protocol):
    """What is read: a board (hw/station/loader.py), or its image."""

    def read(self, offset: int, length: int, /) -> bytes:
        """These bytes."""


@dataclass
class Contents:
    """What was found. `journal_id` "": no Journal; `readable` False: there is something that is none."""

    kit: str = ""
    journal_id: str = ""
    last: int = 0  # sequence of the newest Record
    acked: int = 0  # as the Kit knows it
    readable: bool = True
    records: int = 0
    places: int = 0  # where any of the secrets stands in these partitions, in whatever form
    sensors: list[str] = field(default_factory=list)  # addresses, C0:FF:EE:00:00:01
    secrets: dict[str, bytes] = field(default_factory=dict, repr=False)

    def missing(self, journals: Mapping[str, int]) -> int:
        """Records that the service does not have, by the Journals that it knows and how far it has them."""
        return max(0, self.last - journals.get(self.journal_id, 0)) if self.journal_id else 0


def read(flash: Flash, ours: Sequence[Partition] = ()) -> Contents:
    """What the flash holds. One that was never written holds nothing. Raises LoaderError.

    `ours`: where to look when the board's own partition table is lost.
    """
    found = Contents()
    rows: Sequence[Partition]
    try:
        rows = partitions.decode(flash.read(TABLE_OFFSET, TABLE_BYTES))
    except PartitionError:
        rows, found.readable = ours, bool(ours)
    read = {row.label: flash.read(row.offset, row.size) for row in rows if row.label in _READERS}
    for label, content in read.items():
        _READERS[label](found, content)
    found.places = sum(len(secret.places(content, found.secrets)) for content in read.values())
    return found


def is_erased(content: bytes) -> bool:
    """Whether nothing was ever written there."""
    return content.count(ERASED) == len(content)


def _identity(found: Contents, partition: bytes) -> None:
    values = nvs.decode(partition)
    kit = values.get("kit", b"")
    if isinstance(kit, bytes) and mistake(kit.decode(errors="replace")) is None:
        found.kit = kit.decode(errors="replace")
    for name, value in nvs.secrets(values).items():
        found.secrets[name] = value
    for key, content in values.items():
        if isinstance(content, bytes) and len(content) >= _MIN_SECRET:
            found.secrets[f"NVS {key}"] = content


def _bonds(found: Contents, partition: bytes) -> None:
    """Of both copies: the older one tells of Sensors before."""
    half = len(partition) // 2 // BLOCK_BYTES * BLOCK_BYTES
    for copy in (partition[:half], partition[half : 2 * half]):
        content = _bond_content(copy)
        for row in content.get("sensors", ()):
            address = bytes.fromhex(row["address"]).hex(":").upper()
            if address not in found.sensors:
                found.sensors.append(address)
        for number, (_, _, value) in enumerate(content.get("secrets", ()), 1):
            found.secrets[f"bond key {number} {len(found.secrets)}"] = bytes.fromhex(value)


def _bond_content(copy: bytes) -> dict[str, Any]:
    """As firmware/bonds.py writes it; {} where nothing whole lies."""
    if not copy.startswith(b"HB"):
        return {}
    length = int.from_bytes(copy[8:12], "little")
    try:
        content = json.loads(copy[16 : 16 + length])
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _journal(found: Contents, partition: bytes) -> None:
    journal = Journal(_Read(partition), _NoLock())
    try:
        journal.mount()
    except JournalError:
        found.readable = found.readable and is_erased(partition)
        return
    found.journal_id, found.acked = journal.journal_id.hex(), journal.acked
    found.last = journal.next_sequence - 1
    buffer, after = bytearray(MAX_BATCH_BYTES), 0
    while after < found.last:
        _, count, end = journal.read_batch(buffer, 0, len(buffer), after)
        if not count:
            break
        for record in decode_all(bytes(buffer[:end])):
            found.records += 1
            found.secrets[f"Record {record.sequence}"] = encode(*record)
            if len(record.body[_RAW_VALUE]) >= _MIN_SECRET:
                found.secrets[f"value of Record {record.sequence}"] = record.body[_RAW_VALUE]
            after = last_of(record)


_READERS = {"nvs": _identity, "bonds": _bonds, "journal": _journal}


class _Read:
    """A partition that was read out: the Journal mounts it and writes nothing."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)
        self.block_bytes = BLOCK_BYTES

    def read(self, offset: int, buffer: "bytearray | memoryview") -> None:
        buffer[:] = self._content[offset : offset + len(buffer)]

    def program(self, offset: int, buffer: "bytearray | memoryview") -> None:
        raise OSError("this is a copy")

    def erase(self, position: int) -> None:
        raise OSError("this is a copy")


class _NoLock:
    """Nobody else has the copy."""

    def acquire(self) -> None:
        pass

    def release(self) -> None:
        pass
