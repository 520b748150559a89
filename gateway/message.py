"""Batch and Ack: what travels between the Kit and the service, and the topics they travel on.

Batch, little-endian            offset  size
    version (1)                 0       u8
    flags (PEEK, WHOLE)         1       u8
    Journal id                  2       8 bytes
    boot                        10      u32
    uptime in ms when sent      14      u48
    nonce of this try           20      8 bytes
    acked through               28      u32
    first sequence (0: empty)   32      u32     of a peek: see below
    count                       36      u16
    Records as in flash         38      ...
    CRC-32 over all before it           u32

Ack, little-endian              offset  size
    version (1)                 0       u8
    flags (HAS_TIME, REPLAY)    1       u8
    Journal id                  2       8 bytes
    nonce, echoed               10      8 bytes
    contiguous through          18      u32     every sequence up to here is stored (or known to be lost)
    stored first, stored last   22      2 x u32 range stored from this Batch; 0, 0 for an empty one
    replay from                 30      u32     with REPLAY: send again from here what is still in flash
    service UTC in ms           34      u64     with HAS_TIME; taken when the Ack was made
    home's UTC offset, minutes  42      i16
    CRC-32 over all before it   44      u32

A Record in a peek Batch lies out of order and comes again in its place; deduplication makes that free. A peek
with WHOLE says besides: of what came at `first sequence` or later, up to the last Record here, nothing that
bears on the time, key or patient of a Frame is missing, and of what came before (but after `acked through`)
the newest SENSOR and the newest bond EVENT of each Sensor are here.
"""

import struct
from binascii import crc32
from collections import namedtuple

from gateway.errors import Corrupt, Truncated, Unknown
from gateway.limits import MAX_BATCH_BYTES
from gateway.port import const
from gateway.record import NO_OFFSET

VERSION = const(1)
ENVELOPE_BYTES = const(38)
ACK_BYTES = const(48)
JOURNAL_ID_BYTES = const(8)
NONCE_BYTES = const(8)

PEEK = const(0x01)  # Batch
WHOLE = const(0x02)  # Batch, with PEEK
HAS_TIME = const(0x01)  # Ack
REPLAY = const(0x02)  # Ack

Batch = namedtuple(
    "Batch",
    ("flags", "journal_id", "boot", "uptime_ms", "nonce", "acked_through", "first", "count", "records"),
)
Ack = namedtuple(
    "Ack",
    ("journal_id", "nonce", "through", "stored_first", "stored_last", "replay_from", "utc_ms", "offset_min"),
)

_BATCH = "<BB8sIHHH8sIIH"
_ACK = "<BB8s8sIIIIQh"


def up_topic(kit: str) -> str:
    """Topic on which a Kit publishes its Batches."""
    return "homeward/1/" + kit + "/up"


def ack_topic(kit: str) -> str:
    """Topic on which the service answers."""
    return "homeward/1/" + kit + "/down/ack"


def command_topic(kit: str) -> str:
    """Topic on which the service sends commands."""
    return "homeward/1/" + kit + "/down/command"


def status_topic(kit: str) -> str:
    """Topic of the retained status and of the last will."""
    return "homeward/1/" + kit + "/status"


def begin_batch(
    buffer: "bytearray | memoryview",
    *,
    flags: int,
    journal_id: bytes,
    boot: int,
    uptime_ms: int,
    nonce: bytes,
    acked_through: int,
    first: int,
    count: int,
) -> None:
    """Write the envelope at offset 0; Records follow at ENVELOPE_BYTES, then `seal_batch`."""
    struct.pack_into(
        _BATCH,
        buffer,
        0,
        VERSION,
        flags,
        journal_id,
        boot,
        uptime_ms & 0xFFFF,
        uptime_ms >> 16 & 0xFFFF,
        uptime_ms >> 32,
        nonce,
        acked_through,
        first,
        count,
    )


def seal_batch(buffer: "bytearray | memoryview", end: int) -> int:
    """Write the CRC at `end`; return the length of the Batch."""
    struct.pack_into("<I", buffer, end, crc32(memoryview(buffer)[:end]) & 0xFFFFFFFF)
    return end + 4


def decode_batch(whole: "bytes | memoryview") -> Batch:
    """Return the Batch, its Records still as bytes. Raises Truncated, Corrupt (size, CRC), Unknown (version).

    The CRC is looked at first: a Batch that fails it gets no Ack, one of an unknown version is quarantined.
    """
    if len(whole) < ENVELOPE_BYTES + 4:
        raise Truncated("batch of %d bytes" % len(whole))
    if len(whole) > MAX_BATCH_BYTES:
        raise Corrupt("batch of %d bytes is above %d" % (len(whole), MAX_BATCH_BYTES))
    _check_crc(whole, "batch")
    version, flags, journal_id, boot, lo, mid, hi, nonce, acked, first, count = struct.unpack_from(
        _BATCH, whole
    )
    if version != VERSION:
        raise Unknown("batch version %d" % version)
    uptime_ms = hi << 32 | mid << 16 | lo
    records = bytes(whole[ENVELOPE_BYTES:-4])
    return Batch(flags, journal_id, boot, uptime_ms, nonce, acked, first, count, records)


def encode_ack(ack: Ack) -> bytes:
    """Return the Ack's 48 bytes. `utc_ms` and `replay_from` are None where they are not given."""
    flags = (0 if ack.utc_ms is None else HAS_TIME) | (0 if ack.replay_from is None else REPLAY)
    body = struct.pack(
        _ACK,
        VERSION,
        flags,
        ack.journal_id,
        ack.nonce,
        ack.through,
        ack.stored_first,
        ack.stored_last,
        ack.replay_from or 0,
        ack.utc_ms or 0,
        ack.offset_min,
    )
    return body + struct.pack("<I", crc32(body) & 0xFFFFFFFF)


def decode_ack(whole: "bytes | memoryview") -> Ack:
    """Return the Ack. Raises Truncated, Corrupt, Unknown."""
    if len(whole) != ACK_BYTES:
        raise Truncated("ack of %d bytes, not %d" % (len(whole), ACK_BYTES))
    _check_crc(whole, "ack")
    version, flags, journal_id, nonce, through, first, last, replay, utc, offset = struct.unpack_from(
        _ACK, whole
    )
    if version != VERSION:
        raise Unknown("ack version %d" % version)
    return Ack(
        journal_id,
        nonce,
        through,
        first,
        last,
        replay if flags & REPLAY else None,
        utc if flags & HAS_TIME else None,
        offset if flags & HAS_TIME else NO_OFFSET,
    )


def _check_crc(whole: "bytes | memoryview", what: str) -> None:
    if crc32(memoryview(whole)[:-4]) & 0xFFFFFFFF != struct.unpack_from("<I", whole, len(whole) - 4)[0]:
        raise Corrupt(what + " CRC does not match")
