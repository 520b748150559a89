"""NVS: the partition in which a Kit finds its identity (firmware/identity.py), written and read back.

Espressif's own generator writes it. Reading is ours, since that generator does not: pages of 4 KiB with a
state, a map of 2 bits for each entry, and 126 entries of 32 bytes (ESP-IDF: "NVS internals"). The one rule:
what is read carries a good CRC and stands in the map as written; the rest of a page may be anything.
"""

import io
import json
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from zlib import crc32

from hw.station import StationError, secret
from hw.station.kit_folder import KitFolder

NAMESPACE = "homeward"
MAX_BLOB_BYTES = 1984
"""As firmware/identity.py."""
Values = dict[str, int | bytes]

_PAGE_BYTES = 4096
_ENTRY_BYTES = 32
_ENTRIES = 126
_MAP_AT, _ENTRIES_AT = 32, 64
_WRITTEN = 0b10
_I32, _BLOB_PIECE, _BLOB_INDEX, _U8 = 0x14, 0x42, 0x48, 0x01
_ACTIVE, _FULL, _FREEING = 0xFFFFFFFE, 0xFFFFFFFC, 0xFFFFFFF8
_ENTRY = struct.Struct("<BBBBI16s8s")
_FROM_1970_TO_2000_S = 946_684_800


class NvsError(StationError):
    """Values that do not fit, or a partition that can't be read."""


class Entry(NamedTuple):
    """What stands in an entry; a blob's piece with its bytes."""

    namespace: int
    kind: int
    chunk: int
    key: str
    value: bytes


def identity(kit: KitFolder) -> Values:
    """What a Kit is told, by key, as firmware/identity.py reads it. Its first boot begins a new Journal."""
    values: Values = {
        "kit": kit.kit.encode(),
        "host": kit.host.encode(),
        "port": kit.port,
        "wifi": json.dumps([list(network) for network in kit.networks], ensure_ascii=False).encode(),
        "ca": kit.ca,
        "cert": kit.certificate,
        "key": kit.key,
        "wipe": 1,
        "selftest": 1,
        "utc_s": kit.made_at - _FROM_1970_TO_2000_S,
    }
    optional: Values = {
        "pair_s": kit.pairing_s,
        "portal_key": kit.portal_key.encode(),
        "sntp": kit.sntp.encode(),
    }
    values |= {key: value for key, value in optional.items() if value}
    return values if kit.stream_s is None else values | {"stream_s": kit.stream_s}


def encode(values: Mapping[str, int | bytes], size: int) -> bytes:
    """The partition that holds these values in the firmware's namespace. Raises NvsError."""
    from esp_idf_nvs_partition_gen import nvs_partition_gen as generator

    for key, value in values.items():
        if isinstance(value, bytes) and len(value) > MAX_BLOB_BYTES:
            raise NvsError(f"{key} has {len(value)} bytes; the firmware reads {MAX_BLOB_BYTES} at most")
    written = io.BytesIO()
    try:
        # One page stays free: NVS moves things by way of it.
        partition = generator.nvs_open(written, size - _PAGE_BYTES, version=generator.Page.VERSION2)
        generator.write_entry(partition, NAMESPACE, "namespace", "", "")
        for key, value in values.items():
            if isinstance(value, int):
                generator.write_entry(partition, key, "data", "i32", str(value))
            else:
                generator.write_entry(partition, key, "data", "hex2bin", value.hex())
        generator.nvs_close(partition)
    except generator.InsufficientSizeError:
        raise NvsError(f"the identity does not fit into the {size} bytes of partition nvs") from None
    return written.getvalue().ljust(size, b"\xff")


def decode(partition: bytes, namespace: str = NAMESPACE) -> Values:
    """The values of a namespace; {} where there is none. A blob that is not whole is left out."""
    entries = list(_entries(partition))
    numbers = [one.value[0] for one in entries if (one.namespace, one.kind, one.key) == (0, _U8, namespace)]
    if not numbers:
        return {}
    own = [one for one in entries if one.namespace == numbers[-1]]
    values: Values = {one.key: struct.unpack("<i", one.value[:4])[0] for one in own if one.kind == _I32}
    for index in (one for one in own if one.kind == _BLOB_INDEX):
        length, count, first = struct.unpack("<IBB", index.value[:6])
        pieces = {one.chunk: one.value for one in own if (one.kind, one.key) == (_BLOB_PIECE, index.key)}
        blob = b"".join(pieces.get(first + number, b"") for number in range(count))
        if len(blob) == length:
            values[index.key] = blob
    return values


def secrets(values: Values) -> dict[str, bytes]:
    """What of these values may stand nowhere else, by name. {} for what is no identity."""
    key, wifi, portal_key = (values.get(name, b"") for name in ("key", "wifi", "portal_key"))
    if not (isinstance(key, bytes) and isinstance(wifi, bytes) and isinstance(portal_key, bytes)):
        return {}
    try:
        passwords = [str(password) for _, password in json.loads(wifi)]
        return secret.named(key, passwords, portal_key.decode(errors="replace"))
    except (ValueError, TypeError):
        return {}


def _entries(partition: bytes) -> Iterator[Entry]:
    """Every entry that is written and whole, in the order of the pages' numbers."""
    pages = []
    for at in range(0, len(partition) - _PAGE_BYTES + 1, _PAGE_BYTES):
        page = partition[at : at + _PAGE_BYTES]
        state, number = struct.unpack_from("<II", page)
        if state in (_ACTIVE, _FULL, _FREEING) and _crc(page[4:28]) == struct.unpack_from("<I", page, 28)[0]:
            pages.append((number, page))
    for _, page in sorted(pages):
        yield from _page_entries(page)


def _page_entries(page: bytes) -> Iterator[Entry]:
    states = int.from_bytes(page[_MAP_AT:_ENTRIES_AT], "little")
    place = 0
    while place < _ENTRIES:
        at = _ENTRIES_AT + _ENTRY_BYTES * place
        entry = page[at : at + _ENTRY_BYTES]
        namespace, kind, span, chunk, crc, key, value = _ENTRY.unpack(entry)
        place += 1
        if states >> 2 * (place - 1) & 0b11 != _WRITTEN or _crc(entry[:4] + entry[8:]) != crc:
            continue
        place += span - 1
        if kind == _BLOB_PIECE:
            length, _, content_crc = struct.unpack("<HHI", value)
            value = page[at + _ENTRY_BYTES :][:length]
            if _crc(value) != content_crc:
                continue
        yield Entry(namespace, kind, chunk, key.rstrip(b"\0").decode(errors="replace"), value)


def _crc(content: bytes) -> int:
    return crc32(content, 0xFFFFFFFF)
