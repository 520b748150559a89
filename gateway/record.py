"""Record: one format, in flash and on the wire. This file alone knows the bytes.

    offset  size  field                         little-endian; header and CRC are frozen for ever
    0       u16   body length (0xFFFF: erased flash, the end of what was written)
    2       u8    type
    3       u8    body version
    4       u32   sequence, from 1, contiguous within a Journal id
    8       u32   boot number
    12      u48   uptime in ms (8,900 years: never wraps)
    18      ...   body
    18+n    u32   CRC-32 (zlib) over everything before it

New meaning gets a new type or a new body version. Unknown types are carried and acked, never dropped.

Two ways to write the same bytes: `encode` for the main loop and the service, and `begin` / `put` / `seal` for
the indication handler, which runs with the heap locked. There a CRC or an uptime of 2^30 or more would be a
big integer on 32-bit MicroPython, so both travel as two halves and the loops use only small integers.
"""

import struct
from binascii import crc32
from collections import namedtuple

from gateway.errors import Corrupt, FormatError, Truncated, Unknown
from gateway.limits import MAX_BODY_BYTES
from gateway.port import const

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

HEADER_BYTES = const(18)
CRC_BYTES = const(4)
OVERHEAD_BYTES = const(22)
ERASED_LENGTH = const(0xFFFF)

# Types.
FRAME = const(1)
SENSOR = const(2)
ANCHOR = const(3)
SENSOR_CLOCK = const(4)
EVENT = const(5)
LOST = const(6)
ACKED = const(0xF0)
"""The Ack position in flash: its sequence is the one acked through. Never sent, takes no sequence."""

# FRAME flags.
INDICATED = const(0x01)
NOTIFIED = const(0x02)
READ = const(0x04)
FROM_STORAGE = const(0x08)
"""The Gateway asked for it by a RACP report procedure."""
UUID_INDEX = const(0x10)
"""`characteristic` is an index into the SENSOR record's 128-bit UUIDs, not a 16-bit UUID."""
HOST_CONFIRMED = const(0x20)
"""The operating system may have confirmed it before it was kept (Linux Gateway: P1 does not hold)."""

# ANCHOR sources.
FROM_ACK = const(1)
FROM_HOST = const(2)
FROM_SNTP = const(3)

# SENSOR_CLOCK kinds: the order on connect is read, collect, set, read again (DESIGN 8).
CLOCK_BEFORE = const(1)
CLOCK_SET = const(2)
CLOCK_AFTER = const(3)

# EVENT codes. The detail bytes follow the code and the Sensor reference.
BOOTED = const(1)  # u8 reset cause
BOND_MADE = const(2)
BOND_CHANGED = const(3)
SENSOR_CONNECTED = const(4)
SENSOR_DRAINED = const(5)  # the Sensor went quiet after it had sent what it holds
SENSOR_DISCONNECTED = const(6)
SENSOR_FAILED = const(7)  # UTF-8 reason, short
RACP_ENDED = const(8)  # u8 RACP response code
BATTERY = const(9)  # u8 percent
BUTTON = const(10)
HANDLER_RESTARTED = const(11)
ERASED_LATE = const(12)  # the handler had to erase: no reserve block was left
REPLAYED = const(13)  # u32 first sequence sent again at the service's request
UPDATE_ENDED = const(14)
SNTP_REFUSED = const(15)  # u8 reason (sntp.py)
NETWORK = const(20)  # u8 place in the list of known networks, u8 state: how that one stands from now on
RADIO_MISSING = const(21)  # u8 1: Bluetooth can't be had, 0: it can again
PORTAL = const(22)  # u8: what has happened to the set-up page

# NETWORK states.
NET_UNTRIED = const(0)
NET_ONLINE = const(1)  # the service's broker has accepted the Kit through it
NET_ABSENT = const(2)  # no such network is in reach
NET_WRONG_PASSWORD = const(3)
NET_NOT_JOINED = const(4)  # the router did not let the Kit in, and did not say that it is the password
NET_NO_ADDRESS = const(5)  # joined, but the router gave no address
NET_NO_INTERNET = const(6)  # an address, but no way to the service's name or host
NET_CAPTIVE = const(7)  # a page of somebody else's stands in the way
NET_FOREIGN = const(8)  # who answers has no certificate of the project: nothing was sent
NET_AWAY = const(9)  # the service's host does not take the Kit in, or nobody listens there

# PORTAL happenings.
PORTAL_OPENED = const(1)
PORTAL_LEARNED = const(2)  # a network that works was given, and is kept
PORTAL_CLOSED = const(3)  # after its time, without one

# LOST reasons.
OVERWRITTEN = const(1)
TORN = const(2)
BAD_BLOCK = const(3)
ROTTEN = const(4)

# SENSOR items (tag, length, value).
NAME = const(1)
MANUFACTURER = const(2)
MODEL = const(3)
SERIAL = const(4)
FIRMWARE = const(5)
SYSTEM_ID = const(6)
SERVICE_UUID = const(7)  # 2 or 16 bytes, little-endian
FEATURE = const(8)  # u16 characteristic, then its raw value
CHARACTERISTIC_UUID = const(9)  # 16 bytes; its position among these items is the index of UUID_INDEX

NO_OFFSET = const(0x7FFF)
"""UTC offset in minutes is not known."""

Record = namedtuple("Record", ("type", "version", "sequence", "boot", "uptime_ms", "body"))
Frame = namedtuple("Frame", ("sensor", "flags", "characteristic", "value"))
Sensor = namedtuple("Sensor", ("sensor", "address_type", "address", "items"))
Anchor = namedtuple("Anchor", ("utc_ms", "uncertainty_ms", "source", "offset_min"))
SensorClock = namedtuple("SensorClock", ("sensor", "kind", "offset_min", "characteristic", "value"))
Event = namedtuple("Event", ("code", "sensor", "detail"))
Lost = namedtuple("Lost", ("first", "last", "reason"))

_HEADER = "<HBBIIHBHB"
_HEADER_WIDE = "<HBBIIHI"  # the same with 32 bits of the uptime in one
_FRAME = "<BBH"
_FRAME_BYTES = const(4)
_ANCHOR = "<QIBh"
_SENSOR_CLOCK = "<BBhH"
_EVENT = "<HB"
_LOST = "<IIB"

_TOO_SHORT = (IndexError, ValueError, getattr(struct, "error", ValueError))
"""What reading past the end raises: MicroPython's struct raises ValueError, CPython's an error of its own."""

# CRC-32 by nibble, reflected polynomial 0xEDB88320: entry i as four bytes, little-endian.
_NIBBLES = (
    b"\x00\x00\x00\x00\x64\x10\xb7\x1d\xc8\x20\x6e\x3b\xac\x30\xd9\x26"
    b"\x90\x41\xdc\x76\xf4\x51\x6b\x6b\x58\x61\xb2\x4d\x3c\x71\x05\x50"
    b"\x20\x83\xb8\xed\x44\x93\x0f\xf0\xe8\xa3\xd6\xd6\x8c\xb3\x61\xcb"
    b"\xb0\xc2\x64\x9b\xd4\xd2\xd3\x86\x78\xe2\x0a\xa0\x1c\xf2\xbd\xbd"
)


# --- Writing ------------------------------------------------------------------------------------------------


def encode(type: int, version: int, sequence: int, boot: int, uptime_ms: int, body: bytes) -> bytes:
    """Return the whole Record. Raises FormatError when the body is longer than MAX_BODY_BYTES."""
    if len(body) > MAX_BODY_BYTES:
        raise FormatError("record body of %d bytes is longer than %d" % (len(body), MAX_BODY_BYTES))
    whole = bytearray(OVERHEAD_BYTES + len(body))
    begin(whole, len(body), type, version, sequence, boot, uptime_ms >> 24, uptime_ms & 0xFFFFFF)
    end = HEADER_BYTES + len(body)
    whole[HEADER_BYTES:end] = body
    struct.pack_into("<I", whole, end, crc32(memoryview(whole)[:end]) & 0xFFFFFFFF)
    return bytes(whole)


def begin(
    buffer: bytearray,
    length: int,
    type: int,
    version: int,
    sequence: int,
    boot: int,
    uptime_hi: int,
    uptime_lo: int,
) -> None:
    """Write the header at offset 0. The uptime is `uptime_hi << 24 | uptime_lo` ms. Does not allocate."""
    struct.pack_into(
        _HEADER,
        buffer,
        0,
        length,
        type,
        version,
        sequence,
        boot,
        uptime_lo & 0xFFFF,
        uptime_lo >> 16,
        uptime_hi & 0xFFFF,
        uptime_hi >> 16,
    )


def put(buffer: bytearray, offset: int, value: "bytes | bytearray | memoryview") -> int:
    """Copy `value` to `offset`; return the offset after it. Does not allocate: a slice would."""
    for i in range(len(value)):
        buffer[offset + i] = value[i]
    return offset + len(value)


def put_frame(
    buffer: bytearray, sensor: int, flags: int, characteristic: int, value: "bytes | memoryview"
) -> int:
    """Write a FRAME body after the header; return the offset after it. Does not allocate."""
    struct.pack_into(_FRAME, buffer, HEADER_BYTES, sensor, flags, characteristic)
    return put(buffer, HEADER_BYTES + _FRAME_BYTES, value)


def seal(buffer: bytearray, end: int) -> int:
    """Write the CRC of buffer[0:end] at `end`; return the Record's length. Does not allocate."""
    lo = hi = 0xFFFF
    for i in range(end):
        lo ^= buffer[i]
        for _ in range(2):
            n = (lo & 0x0F) << 2
            lo = (lo >> 4 | (hi & 0x0F) << 12) ^ (_NIBBLES[n] | _NIBBLES[n + 1] << 8)
            hi = hi >> 4 ^ (_NIBBLES[n + 2] | _NIBBLES[n + 3] << 8)
    struct.pack_into("<HH", buffer, end, lo ^ 0xFFFF, hi ^ 0xFFFF)
    return end + CRC_BYTES


def frame_length(value_length: int) -> int:
    """Body length of a FRAME whose raw value has `value_length` bytes."""
    return _FRAME_BYTES + value_length


# --- Reading ------------------------------------------------------------------------------------------------


def length_at(buffer: "bytes | bytearray | memoryview", offset: int) -> int:
    """Return the whole length of the Record at `offset`, 0 for erased flash. Raises Corrupt, Truncated."""
    if offset + 2 > len(buffer):
        raise Truncated("record header ends at the end of the buffer")
    body = buffer[offset] | buffer[offset + 1] << 8
    if body == ERASED_LENGTH:
        return 0
    if body > MAX_BODY_BYTES:
        raise Corrupt("record body length %d is above %d" % (body, MAX_BODY_BYTES))
    return OVERHEAD_BYTES + body


def decode(buffer: "bytes | bytearray | memoryview", offset: int = 0) -> Record:
    """Return the Record at `offset`. Raises Truncated or Corrupt; any type and body version passes."""
    length = length_at(buffer, offset)
    end = offset + length
    if not length or end > len(buffer):
        raise Truncated("record of %d bytes, %d left" % (length, len(buffer) - offset))
    whole = memoryview(buffer)[offset:end]
    if crc32(whole[:-4]) & 0xFFFFFFFF != struct.unpack_from("<I", whole, length - 4)[0]:
        raise Corrupt("record CRC does not match")
    _, type, version, sequence, boot, lo, lo8, hi, hi8 = struct.unpack_from(_HEADER, whole)
    uptime_ms = (hi8 << 16 | hi) << 24 | (lo8 << 16 | lo)
    return Record(type, version, sequence, boot, uptime_ms, bytes(whole[HEADER_BYTES:-4]))


def decode_all(buffer: "bytes | bytearray | memoryview") -> "list[Record]":
    """Return every Record of a Batch body, in order. Raises Truncated or Corrupt at the first broken one."""
    records = []
    offset = 0
    while offset < len(buffer):
        records.append(decode(buffer, offset))
        offset += length_at(buffer, offset)
    return records


def scan(buffer: bytes) -> "tuple[list[Record], list[tuple[int, bytes]]]":
    """Return the good Records of a Batch body, and each broken piece: (good Records before it, bytes).

    The service's way to read: a broken Record costs itself alone. Where a length makes no sense, the next
    Record can't be found, and all that is left is one broken piece.
    """
    records: list[Record] = []
    broken: list[tuple[int, bytes]] = []
    start = 0
    while start < len(buffer):
        end = (
            start
            + OVERHEAD_BYTES
            + (buffer[start] | buffer[start + 1] << 8 if start + 1 < len(buffer) else 0)
        )
        if end > len(buffer) or end > start + OVERHEAD_BYTES + MAX_BODY_BYTES:
            broken.append((len(records), buffer[start:]))
            break
        if crc32(buffer[start : end - 4]) & 0xFFFFFFFF == struct.unpack_from("<I", buffer, end - 4)[0]:
            _, type, version, sequence, boot, lo, hi = struct.unpack_from(_HEADER_WIDE, buffer, start)
            records.append(
                Record(type, version, sequence, boot, hi << 16 | lo, buffer[start + HEADER_BYTES : end - 4])
            )
        else:
            broken.append((len(records), buffer[start:end]))
        start = end
    return records, broken


# --- Bodies -------------------------------------------------------------------------------------------------
# Each pair is version 1 of its type. `decode_body` raises Unknown for any other type or version.


def encode_frame(frame: Frame) -> bytes:
    """FRAME: u8 sensor, u8 flags, u16 characteristic, raw value."""
    return struct.pack(_FRAME, frame.sensor, frame.flags, frame.characteristic) + bytes(frame.value)


def encode_sensor(sensor: Sensor) -> bytes:
    """SENSOR: u8 sensor, u8 address type (0 public, 1 random), 6 bytes address, items (tag, length, value).

    The address is in the order in which people write it, most significant byte first.
    """
    body = bytes([sensor.sensor, sensor.address_type]) + bytes(sensor.address)
    for tag, value in sensor.items:
        body += bytes([tag, len(value)]) + bytes(value)
    return body


def encode_anchor(anchor: Anchor) -> bytes:
    """ANCHOR: u64 UTC ms since 1970, u32 uncertainty ms, u8 source, i16 UTC offset of the home in minutes."""
    return struct.pack(_ANCHOR, anchor.utc_ms, anchor.uncertainty_ms, anchor.source, anchor.offset_min)


def encode_sensor_clock(clock: SensorClock) -> bytes:
    """SENSOR_CLOCK: u8 sensor, u8 kind, i16 UTC offset used when set, u16 characteristic, its raw value."""
    return struct.pack(
        _SENSOR_CLOCK, clock.sensor, clock.kind, clock.offset_min, clock.characteristic
    ) + bytes(clock.value)


def encode_event(event: Event) -> bytes:
    """EVENT: u16 code, u8 sensor (0: none), detail."""
    return struct.pack(_EVENT, event.code, event.sensor) + bytes(event.detail)


def encode_lost(lost: Lost) -> bytes:
    """LOST: u32 first, u32 last, u8 reason. The Record's own sequence is `first`."""
    return struct.pack(_LOST, lost.first, lost.last, lost.reason)


def decode_body(
    type: int, version: int, body: bytes
) -> "Frame | Sensor | Anchor | SensorClock | Event | Lost":
    """Return the named tuple of a body. Raises Unknown (type or version), Truncated, Corrupt."""
    decoder = _DECODERS.get(type)
    if decoder is None or version != 1:
        raise Unknown("record type %d version %d" % (type, version))
    try:
        return decoder(body)
    except _TOO_SHORT:
        raise Truncated("body of type %d ends early" % type) from None


def _decode_frame(body: bytes) -> Frame:
    sensor, flags, characteristic = struct.unpack_from(_FRAME, body)
    return Frame(sensor, flags, characteristic, body[_FRAME_BYTES:])


def _decode_sensor(body: bytes) -> Sensor:
    if len(body) < 8:
        raise Truncated("SENSOR body of %d bytes" % len(body))
    items = []
    at = 8
    while at < len(body):
        end = at + 2 + body[at + 1]
        if end > len(body):
            raise Truncated("SENSOR item runs over the end")
        items.append((body[at], body[at + 2 : end]))
        at = end
    return Sensor(body[0], body[1], body[2:8], tuple(items))


def _decode_anchor(body: bytes) -> Anchor:
    return Anchor(*struct.unpack_from(_ANCHOR, body))


def _decode_sensor_clock(body: bytes) -> SensorClock:
    sensor, kind, offset_min, characteristic = struct.unpack_from(_SENSOR_CLOCK, body)
    return SensorClock(sensor, kind, offset_min, characteristic, body[6:])


def _decode_event(body: bytes) -> Event:
    code, sensor = struct.unpack_from(_EVENT, body)
    return Event(code, sensor, body[3:])


def _decode_lost(body: bytes) -> Lost:
    lost = Lost(*struct.unpack_from(_LOST, body))
    if not 0 < lost.first <= lost.last:
        raise Corrupt("LOST range %d..%d" % (lost.first, lost.last))
    return lost


_DECODERS: "dict[int, Callable[[bytes], Frame | Sensor | Anchor | SensorClock | Event | Lost]]" = {
    FRAME: _decode_frame,
    SENSOR: _decode_sensor,
    ANCHOR: _decode_anchor,
    SENSOR_CLOCK: _decode_sensor_clock,
    EVENT: _decode_event,
    LOST: _decode_lost,
}
