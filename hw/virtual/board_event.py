"""What an event of a virtual board carries, and what its handler returns; `board/chip.py` reads the bytes."""

import struct
from typing import NamedTuple


class Signed(NamedTuple):
    """A byte with a sign."""

    value: int


class Uuid(NamedTuple):
    """A UUID's little-endian bytes."""

    value: bytes


Value = int | bool | Signed | Uuid | bytes | None
"""An int is a u16; bytes reach the handler as a view that dies when it returns."""

Reply = bool | bytes


def encode(value: Value) -> bytes:
    """Tag and bytes."""
    match value:
        case None:
            return b"n\0"
        case bool():
            return bytes((ord("t"), value))
        case int():
            return b"i" + struct.pack("<H", value)
        case Signed():
            return b"s" + struct.pack("b", value.value)
        case Uuid():
            return b"u" + bytes((len(value.value),)) + value.value
        case _:
            return b"v" + struct.pack("<H", len(value)) + value
