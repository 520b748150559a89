"""Makes the golden vectors: `python tests/vectors/make.py`. They are only added to, never changed.

The bytes are put together here by hand from the tables in gateway/record.py, message.py and block.py, with
nothing imported from there: a mistake in the code can't be in both. A string "hex:..." stands for bytes.
"""

import json
import struct
import zlib
from pathlib import Path

HERE = Path(__file__).parent
JOURNAL = bytes.fromhex("4a6f75726e616c21")
NONCE = bytes.fromhex("0123456789abcdef")
CUFF = bytes.fromhex("16b40053005d00e80706170e230a480000")  # 180/83/93 mmHg
UTC_MS = 1_764_000_000_123


def sealed(whole: bytes) -> bytes:
    return whole + struct.pack("<I", zlib.crc32(whole))


def text(value: object) -> object:
    """JSON has no bytes and no tuples."""
    if isinstance(value, bytes):
        return "hex:" + value.hex()
    return [text(each) for each in value] if isinstance(value, list | tuple) else value


def record(
    name: str,
    type_: int,
    sequence: int,
    boot: int,
    uptime_ms: int,
    body: bytes,
    fields: object,
    version: int = 1,
) -> dict[str, object]:
    header = struct.pack("<HBBII", len(body), type_, version, sequence, boot) + uptime_ms.to_bytes(
        6, "little"
    )
    whole = sealed(header + body)
    return {
        "name": name,
        "bytes": text(whole),
        "record": text([type_, version, sequence, boot, uptime_ms, body]),
        "body": text(fields),
    }


def records() -> list[dict[str, object]]:
    frame = bytes([3, 0x01]) + struct.pack("<H", 0x2A35) + CUFF
    address = bytes.fromhex("c0ffee123456")
    model = bytes([3, 6]) + b"BP-200"
    feature = bytes([8, 4]) + bytes.fromhex("492a2700")
    clock = bytes.fromhex("e80706170e2300")
    anchor = struct.pack("<QIBh", UTC_MS, 41, 1, 60)
    sensor_fields = [3, 1, address, [[3, b"BP-200"], [8, bytes.fromhex("492a2700")]]]
    return [
        record("frame", 1, 1, 1, 1000, frame, [3, 1, 0x2A35, CUFF]),
        record("frame without value", 1, 2, 1, 0, bytes([8, 0x0A, 0x5F, 0x2A]), [8, 10, 0x2A5F, b""]),
        record("uptime of 2^47 ms", 1, 3, 7, 1 << 47, frame, [3, 1, 0x2A35, CUFF]),
        record("greatest numbers", 1, 0xFFFFFFFF, 0xFFFFFFFF, (1 << 48) - 1, frame, [3, 1, 0x2A35, CUFF]),
        record("sensor", 2, 4, 1, 2000, bytes([3, 1]) + address + model + feature, sensor_fields),
        record("anchor", 3, 5, 1, 3000, anchor, [UTC_MS, 41, 1, 60]),
        record("sensor clock", 4, 6, 1, 4000, struct.pack("<BBhH", 3, 2, -300, 0x2A08) + clock,
               [3, 2, -300, 0x2A08, clock]),
        record("event", 5, 7, 1, 5000, bytes([9, 0, 3, 80]), [9, 3, bytes([80])]),
        record("lost", 6, 8, 2, 0, struct.pack("<IIB", 8, 176, 2), [8, 176, 2]),
        record("acked", 0xF0, 6, 2, 0, b"", None),
        record("event of a network", 5, 10, 1, 6000, bytes([20, 0, 0, 1, 7]), [20, 0, bytes([1, 7])]),
        record("event of a missing radio", 5, 11, 1, 6000, bytes([21, 0, 0, 1]), [21, 0, bytes([1])]),
        record("event of the set-up page", 5, 12, 1, 6000, bytes([22, 0, 0, 2]), [22, 0, bytes([2])]),
        record("type of the future", 0x77, 9, 2, 1, b"later", None, version=9),
    ]  # fmt: skip


def batch(name: str, flags: int, first: int, whole_records: list[bytes]) -> dict[str, object]:
    body = b"".join(whole_records)
    count = len(whole_records)
    uptime_ms = (1 << 33) + 7
    envelope = struct.pack("<BB8sI", 1, flags, JOURNAL, 2) + uptime_ms.to_bytes(6, "little")
    envelope += NONCE + struct.pack("<IIH", 41, first, count)
    return {
        "name": name,
        "bytes": text(sealed(envelope + body)),
        "batch": text([flags, JOURNAL, 2, uptime_ms, NONCE, 41, first, count, body]),
    }


def batches() -> list[dict[str, object]]:
    two = [bytes.fromhex(str(each["bytes"])[4:]) for each in records() if each["name"] in ("event", "lost")]
    return [batch("empty", 0, 0, []), batch("two records", 0, 7, two), batch("peek", 1, 8, two[1:])]


def ack(
    name: str, stored: tuple[int, int], replay: int | None, time: tuple[int, int] | None
) -> dict[str, object]:
    flags = (time is not None) | (replay is not None) << 1
    utc_ms, offset_min = time or (0, 0x7FFF)
    whole = struct.pack("<BB8s8sIII", 1, flags, JOURNAL, NONCE, 176, *stored)
    whole += struct.pack("<IQh", replay or 0, utc_ms, offset_min)
    fields = [JOURNAL, NONCE, 176, *stored, replay, utc_ms if time else None, offset_min]
    return {"name": name, "bytes": text(sealed(whole)), "ack": text(fields)}


def acks() -> list[dict[str, object]]:
    return [
        ack("of an empty batch", (0, 0), None, (UTC_MS, 0)),
        ack("with a range and summer time", (7, 176), None, (UTC_MS, 60)),
        ack("with replay, west of Greenwich", (0, 0), 12, (UTC_MS, -300)),
        ack("without time", (7, 7), None, None),
    ]


def blocks() -> list[dict[str, object]]:
    """The begin of one block as it lies in flash; 0xFF follows."""
    kept = [each for each in records() if each["name"] in ("frame", "frame without value", "event")]
    whole = sealed(b"HJ" + bytes([1, 0]) + JOURNAL + struct.pack("<IIII", 5, 1, 0, 1))
    for sequence, each in enumerate(kept):
        raw = bytes.fromhex(str(each["bytes"])[4:])
        raw = sealed(raw[:4] + struct.pack("<I", sequence + 1) + raw[8:-4])
        kept[sequence] = {"bytes": text(raw)}
        whole += raw + b"\xff" * (-len(raw) % 4)
    acked = sealed(struct.pack("<HBBII", 0, 0xF0, 1, 2, 1) + bytes(6)) + b"\xff\xff"
    return [
        {
            "name": "three records, two acked",
            "bytes": text(whole + acked),
            "journal": text(
                [JOURNAL, 5, 2, 4, 2]
            ),  # id, block number, boot after mount, next sequence, acked
            "records": [each["bytes"] for each in kept],
        }
    ]


for made in (records, batches, acks, blocks):
    (HERE / f"{made.__name__}.json").write_text(json.dumps(made(), indent=1) + "\n")
