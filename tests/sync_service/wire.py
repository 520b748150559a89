"""What a Kit puts on the wire: Records and Batches as bytes."""

from collections.abc import Iterable

from gateway.message import ENVELOPE_BYTES, PEEK, begin_batch, seal_batch
from gateway.record import FRAME, INDICATED, LOST, TORN, Frame, Lost, encode, encode_frame, encode_lost

JOURNAL = b"journal1"
NONCE = b"nonce--1"
UPTIME_MS = 3_600_000


def frame(sequence: int, value: bytes = b"\x02\x61\x00\x48\x00", *, version: int = 1) -> bytes:
    """A FRAME Record of a pulse oximeter."""
    body = encode_frame(Frame(1, INDICATED, 0x2A5E, value))
    return encode(FRAME, version, sequence, 1, UPTIME_MS - 1_000 + sequence, body)


def frames(first: int, last: int) -> list[bytes]:
    return [frame(sequence) for sequence in range(first, last + 1)]


def lost(first: int, last: int) -> bytes:
    """A LOST Record."""
    return encode(LOST, 1, first, 1, UPTIME_MS, encode_lost(Lost(first, last, TORN)))


def broken(whole: bytes) -> bytes:
    """The Record with one bit of its body turned: its CRC is wrong."""
    return whole[:20] + bytes([whole[20] ^ 1]) + whole[21:]


def batch(
    records: Iterable[bytes] = (),
    *,
    first: int = 0,
    count: int | None = None,
    acked_through: int = 0,
    journal_id: bytes = JOURNAL,
    boot: int = 1,
    uptime_ms: int = UPTIME_MS,
    nonce: bytes = NONCE,
    peek: bool = False,
) -> bytes:
    """A sealed Batch."""
    records = list(records)
    body = b"".join(records)
    buffer = bytearray(ENVELOPE_BYTES + len(body) + 4)
    begin_batch(
        buffer,
        flags=PEEK if peek else 0,
        journal_id=journal_id,
        boot=boot,
        uptime_ms=uptime_ms,
        nonce=nonce,
        acked_through=acked_through,
        first=first,
        count=len(records) if count is None else count,
    )
    buffer[ENVELOPE_BYTES:-4] = body
    seal_batch(buffer, len(buffer) - 4)
    return bytes(buffer)
