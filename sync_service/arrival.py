"""Arrival: what the bytes on a Kit's topic are, before the Store is asked. Pure.

The one rule: what is broken costs itself alone. A Batch whose CRC fails is refused without an Ack (the Kit
sends it again); a Record that is broken inside a good Batch is quarantined, and a LOST stands in its place so
that the Ack can move on.
"""

import re
from typing import NamedTuple

import orjson

from gateway.errors import FormatError, Truncated, Unknown
from gateway.limits import MAX_BATCH_BYTES
from gateway.message import PEEK, WHOLE, Batch, decode_batch
from gateway.record import FRAME, LOST, ROTTEN, Lost, Record, decode_body, encode_lost, scan

KIT = re.compile(r"[A-Z0-9][A-Z0-9-]{1,15}")
MAX_STATUS_BYTES = 4096
"""A Kit's status has 300 bytes and some for each Sensor; more than this is not one."""

_TOPIC = re.compile(rf"homeward/1/({KIT.pattern})/(up|status)")


class Refusal(NamedTuple):
    """Bytes that are not stored as what they claim to be. Gets no Ack."""

    kit: str  # '' when the topic names none
    reason: str  # name of the counter
    quarantine: bytes | None  # to keep: good by its CRC, but of a version that this release does not know


class Said(NamedTuple):
    """A Kit's status."""

    kit: str
    json: str
    received_ms: int


class Arrival(NamedTuple):
    """A good Batch."""

    kit: str
    batch: Batch
    records: list[Record]
    spans: list[tuple[int, int]]  # sequences that it accounts for, first and last, as they lie in the Batch
    broken: list[bytes]
    unknown: int  # Records of a type or version that this release carries without knowing it
    received_ms: int

    @property
    def is_peek(self) -> bool:
        """Whether its Records lie out of order and come again in their place."""
        return bool(self.batch.flags & PEEK)

    @property
    def is_whole(self) -> bool:
        """Whether it is a peek that holds all that its Frames need, and all of that has come."""
        whole = PEEK | WHOLE
        return self.batch.flags & whole == whole and bool(self.records) and not self.broken


def decode(topic: str, whole: bytes, received_ms: int) -> Arrival | Said | Refusal:
    """What has come on a topic. `received_ms`: UTC at receipt. Raises nothing."""
    match = _TOPIC.fullmatch(topic)
    if match is None:
        return Refusal("", "topic unknown", None)
    kit, kind = match.groups()
    return _status(kit, whole, received_ms) if kind == "status" else _batch(kit, whole, received_ms)


def _status(kit: str, whole: bytes, received_ms: int) -> Said | Refusal:
    if len(whole) > MAX_STATUS_BYTES:
        return Refusal(kit, "status oversized", None)
    try:
        said = orjson.loads(whole)
    except orjson.JSONDecodeError:
        return Refusal(kit, "status not JSON", None)
    if not isinstance(said, dict) or said.get("kit", kit) != kit or not isinstance(said.get("online"), bool):
        return Refusal(kit, "status not a Kit's", None)
    return Said(kit, whole.decode(), received_ms)


def _batch(kit: str, whole: bytes, received_ms: int) -> Arrival | Refusal:
    if len(whole) > MAX_BATCH_BYTES:
        return Refusal(kit, "batch oversized", None)
    try:
        batch = decode_batch(whole)
    except Truncated:
        return Refusal(kit, "batch truncated", None)
    except Unknown:
        return Refusal(kit, "batch of unknown version", whole)
    except FormatError:
        return Refusal(kit, "batch CRC broken", None)
    records, broken = scan(batch.records)
    if broken and not batch.flags & PEEK:
        records = _with_placeholders(batch, records, [at for at, _ in broken])
    spans, unknown = _account(records)
    return Arrival(kit, batch, records, spans, [piece for _, piece in broken], unknown, received_ms)


def _account(records: list[Record]) -> tuple[list[tuple[int, int]], int]:
    """The spans of sequences that the Records account for, and how many Records are of no known type."""
    spans: list[tuple[int, int]] = []
    unknown = 0
    start = end = 0
    for type, version, first, *_, body in records:
        last = first
        if type != FRAME or version != 1:
            try:
                last = _last(decode_body(type, version, body), first)
            except Unknown:
                unknown += 1
            except FormatError:
                pass  # derivation quarantines it when it comes to it
        if start and start <= first <= end + 1:
            end = max(end, last)
            continue
        if start:
            spans.append((start, end))
        start, end = first, last
    if start:
        spans.append((start, end))
    return spans, unknown


def last_of(record: Record) -> int:
    """The last sequence that a Record accounts for: its own, or the end of a LOST range."""
    if record.type != LOST:
        return int(record.sequence)
    try:
        return _last(decode_body(record.type, record.version, record.body), record.sequence)
    except FormatError:
        return int(record.sequence)


def _last(body: object, sequence: int) -> int:
    return int(body.last) if isinstance(body, Lost) and body.first == sequence else sequence


def _with_placeholders(batch: Batch, records: list[Record], broken_at: list[int]) -> list[Record]:
    """The Records with a LOST for what the broken ones between them accounted for.

    Their own sequences are not to be trusted; the neighbours' are, and the envelope's first and count. Never
    past what the Batch holds: an Ack for the future is refused by the Kit.
    """
    end = batch.first + batch.count + sum(last_of(one) - one.sequence for one in records)
    whole: list[Record] = []
    for i in range(len(records) + 1):
        first = last_of(whole[-1]) + 1 if whole else batch.first
        after = records[i].sequence if i < len(records) else end
        if i in broken_at and first < after:
            whole.append(_placeholder(batch, whole, first, after - 1))
        whole += records[i : i + 1]
    return whole


def _placeholder(batch: Batch, whole: list[Record], first: int, last: int) -> Record:
    boot, uptime_ms = (whole[-1].boot, whole[-1].uptime_ms) if whole else (batch.boot, batch.uptime_ms)
    return Record(LOST, 1, first, boot, uptime_ms, encode_lost(Lost(first, last, ROTTEN)))
