"""Block: the erase unit of the flash, as the Journal fills it. This file alone knows the bytes of its header.

    offset  size  field                         little-endian; frozen for ever
    0       2     magic "HJ"
    2       u8    version (1)
    3       u8    flags (AFTER_TEAR)
    4       8     Journal id
    12      u32   block number: grows by one with each block; its place in the ring is number % blocks
    16      u32   first sequence: of the next Record when the block was begun
    20      u32   acked through
    24      u32   boot number
    28      u32   CRC-32 over everything before it
    32      ...   Records, each begun at a multiple of 4 bytes; 0xFF between and after

A word (4 bytes) never holds bytes of two Records: a program that a power cut has torn can't harm its
neighbour, and where a Record is broken the next one is found by trying each word.
"""

import struct
from binascii import crc32
from collections import namedtuple

from gateway.errors import FormatError
from gateway.port import const
from gateway.record import HEADER_BYTES as RECORD_HEADER_BYTES
from gateway.record import OVERHEAD_BYTES, Record, decode, length_at, seal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Flash(Protocol):
        """NOR flash, given by the rim. Every method raises OSError when the chip refuses."""

        size: int
        """Bytes; a multiple of block_bytes."""
        block_bytes: int
        """The unit of erase."""

        def read(self, offset: int, buffer: "bytearray | memoryview") -> None:
            """Fill the whole buffer."""

        def program(self, offset: int, buffer: "bytearray | memoryview") -> None:
            """Program the buffer without erasing: bits only go from 1 to 0. Whole words only."""

        def erase(self, position: int) -> None:
            """Set every bit of the block at this position to 1."""


HEADER_BYTES = const(32)
WORD_BYTES = const(4)
AFTER_TEAR = const(0x01)
"""The Records before this block end in a torn one; the sequences up to this block's first were skipped."""

Header = namedtuple("Header", ("flags", "journal_id", "number", "first_sequence", "acked", "boot"))

_MAGIC = b"HJ"
_VERSION = const(1)
_HEADER = "<2sBB8sIIII"
_CRC_OFFSET = const(28)
_CHUNK_BYTES = const(64)
_ERASED = b"\xff" * 64


def put_header(
    buffer: bytearray, flags: int, journal_id: bytes, number: int, first_sequence: int, acked: int, boot: int
) -> None:
    """Write the header at offset 0. Does not allocate."""
    struct.pack_into(
        _HEADER, buffer, 0, _MAGIC, _VERSION, flags, journal_id, number, first_sequence, acked, boot
    )
    seal(buffer, _CRC_OFFSET)


def decode_header(whole: "bytes | bytearray | memoryview") -> "Header | None":
    """Return the header, None when these 32 bytes are none. One bit of them may have rotted.

    After a wipe nothing else holds the Journal's id. A CRC-32 of so few bytes tells which bit it is.
    """
    header = _checked(whole)
    if header is not None or (whole[0] != _MAGIC[0]) + (whole[1] != _MAGIC[1]) + (whole[2] != _VERSION) > 1:
        return header
    mended = bytearray(whole)
    for bit in range(8 * HEADER_BYTES):
        mended[bit >> 3] ^= 1 << (bit & 7)
        header = _checked(mended)
        if header is not None:
            return header
        mended[bit >> 3] ^= 1 << (bit & 7)
    return None


def _checked(whole: "bytes | bytearray | memoryview") -> "Header | None":
    magic, version, *fields, crc = struct.unpack_from(_HEADER + "I", whole)
    if magic != _MAGIC or version != _VERSION or crc32(whole[:_CRC_OFFSET]) & 0xFFFFFFFF != crc:
        return None
    return Header(*fields)


def padded(length: int) -> int:
    """Bytes of flash that a Record of this length takes."""
    return (length + WORD_BYTES - 1) & -WORD_BYTES


def read_header(flash: "Flash", position: int, scratch: memoryview) -> "Header | None":
    """Return the header of the block at this position, None when it has none that can be read."""
    whole = scratch[:HEADER_BYTES]
    try:
        flash.read(position * flash.block_bytes, whole)
    except OSError:
        return None
    return decode_header(whole)


def read_record(flash: "Flash", offset: int, stop: int, scratch: memoryview) -> "Record | None":
    """Read the Record at `offset` into `scratch`; None: no good one that ends before `stop` lies there."""
    if stop - offset < OVERHEAD_BYTES:
        return None
    try:
        flash.read(offset, scratch[:RECORD_HEADER_BYTES])
        length = length_at(scratch, 0)
        if not length or offset + length > stop:
            return None
        flash.read(offset + RECORD_HEADER_BYTES, scratch[RECORD_HEADER_BYTES:length])
        return decode(scratch[:length])
    except (OSError, FormatError):
        return None


def is_erased(flash: "Flash", offset: int, stop: int, scratch: memoryview) -> bool:
    """Whether every byte from `offset` to `stop` reads 0xFF. Stops at the first chunk that does not."""
    while offset < stop:
        chunk = scratch[: min(_CHUNK_BYTES, stop - offset)]
        try:
            flash.read(offset, chunk)
        except OSError:
            return False
        if chunk != _ERASED[: len(chunk)]:
            return False
        offset += len(chunk)
    return True
