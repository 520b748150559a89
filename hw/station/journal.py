"""`homeward-station journal`: what a dump of a Kit's Journal holds, for people or as JSON for programs.

It reads as the Gateway's own Journal does, and shows what that would send: each Record on a line, LOST where
something is gone. A dump is only read; nothing in it can be changed from here.
"""

import argparse
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway import record
from gateway.block import (
    AFTER_TEAR,
    HEADER_BYTES,
    WORD_BYTES,
    Header,
    is_erased,
    padded,
    read_header,
    read_record,
)
from gateway.errors import FormatError, JournalError
from gateway.journal import Journal
from gateway.limits import BLOCK_BYTES, MAX_BODY_BYTES, RESERVE_BLOCKS
from gateway.record import OVERHEAD_BYTES, Record, decode_all, decode_body
from hw.station import StationError
from hw.station.decode import describe, value_line

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_MAX_DUMP_BYTES = 64 << 20
"""No ESP32 module has more flash; whatever is larger is another file."""
_BATCH_BYTES = 1 << 16
_MAGIC = b"HJ\x01"

_TYPES = {
    record.FRAME: "FRAME",
    record.SENSOR: "SENSOR",
    record.ANCHOR: "ANCHOR",
    record.SENSOR_CLOCK: "CLOCK",
    record.EVENT: "EVENT",
    record.LOST: "LOST",
}
_EVENTS = {
    record.BOOTED: "booted",
    record.BOND_MADE: "bond made",
    record.BOND_CHANGED: "bond changed",
    record.SENSOR_CONNECTED: "connected",
    record.SENSOR_DRAINED: "has sent all it held",
    record.SENSOR_DISCONNECTED: "disconnected",
    record.SENSOR_FAILED: "failed",
    record.RACP_ENDED: "stored values asked for",
    record.BATTERY: "battery",
    record.BUTTON: "button",
    record.HANDLER_RESTARTED: "handler restarted",
    record.ERASED_LATE: "the handler had to erase",
    record.REPLAYED: "sent again at the service's request",
    record.UPDATE_ENDED: "update ended",
    record.SNTP_REFUSED: "time from SNTP refused",
    record.NETWORK: "network",
    record.RADIO_MISSING: "Bluetooth",
    record.PORTAL: "set-up page",
}
_NETWORKS = {
    record.NET_UNTRIED: "not tried",
    record.NET_ONLINE: "on line",
    record.NET_ABSENT: "not in reach",
    record.NET_WRONG_PASSWORD: "wrong password",
    record.NET_NOT_JOINED: "the router did not let it in",
    record.NET_NO_ADDRESS: "no address",
    record.NET_NO_INTERNET: "no internet",
    record.NET_CAPTIVE: "somebody else's page stands in the way",
    record.NET_FOREIGN: "who answers is not the project's",
    record.NET_AWAY: "the service does not answer",
}
_PORTAL = {
    record.PORTAL_OPENED: "opened",
    record.PORTAL_LEARNED: "has learned a network",
    record.PORTAL_CLOSED: "closed",
}
_REASONS = {
    record.OVERWRITTEN: "overwritten",
    record.TORN: "skipped after a power cut",
    record.BAD_BLOCK: "in a bad block",
    record.ROTTEN: "rotten",
}
_CLOCKS = {record.CLOCK_BEFORE: "read", record.CLOCK_SET: "set", record.CLOCK_AFTER: "read again"}
_SOURCES = {record.FROM_ACK: "an Ack", record.FROM_HOST: "the host", record.FROM_SNTP: "SNTP"}
_ITEMS = {
    record.NAME: "name",
    record.MANUFACTURER: "manufacturer",
    record.MODEL: "model",
    record.SERIAL: "serial",
    record.FIRMWARE: "firmware",
}
_FLAGS = (
    (record.INDICATED, "indicated"),
    (record.NOTIFIED, "notified"),
    (record.READ, "read"),
    (record.FROM_STORAGE, "from storage"),
    (record.HOST_CONFIRMED, "confirmed by the host"),
)


class Dump:
    """The bytes of a partition, as flash that takes nothing."""

    def __init__(self, cells: bytes, block_bytes: int = BLOCK_BYTES) -> None:
        self.cells = memoryview(cells)
        self.size = len(cells)
        self.block_bytes = block_bytes

    def read(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill the whole buffer."""
        buffer[:] = self.cells[offset : offset + len(buffer)]

    def program(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Refuse."""
        raise OSError("a dump is only read")

    def erase(self, position: int) -> None:
        """Refuse."""
        raise OSError("a dump is only read")


class NoLock:
    """Nobody else is here."""

    def acquire(self) -> None: ...
    def release(self) -> None: ...


def add(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-command `journal`."""
    parser = commands.add_parser("journal", help="what a dump of a Kit's Journal holds")
    parser.add_argument(
        "dump", type=Path, metavar="DUMP", help="file of the partition, or of the whole flash"
    )
    parser.add_argument("--offset", type=_number, default=0, help="where the partition begins, e.g. 0x200000")
    parser.add_argument("--size", type=_number, help="of the partition in bytes; without it: to the end")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print what the dump holds. Raises StationError."""
    dump = Dump(read_part(options.dump, options.offset, options.size))
    found = inspect(dump)
    print(json.dumps(found, indent=2) if options.json else "\n".join(lines(found)))


def read_part(path: Path, offset: int, size: int | None) -> bytes:
    """Return the partition's bytes. Raises StationError."""
    try:
        whole = path.stat().st_size
        if whole > _MAX_DUMP_BYTES:
            raise StationError(f"{path} has {whole} bytes: no Kit has so much flash")
        with path.open("rb") as file:
            file.seek(offset)
            part = file.read() if size is None else file.read(size)
    except OSError as problem:
        raise StationError(f"{path} can't be read: {problem.strerror}") from problem
    if size is not None and len(part) < size:
        raise StationError(f"{path} has {whole} bytes: it ends before {offset:#x} + {size:#x}")
    if not part or len(part) % BLOCK_BYTES or offset % BLOCK_BYTES:
        raise StationError(
            f"{len(part)} bytes at {offset:#x} of {path} are no partition: "
            f"that begins at and is made of blocks of {BLOCK_BYTES}"
        )
    return part


def inspect(dump: Dump) -> dict[str, Any]:
    """Return all that the dump holds, ready for JSON. Raises StationError when it holds no Journal."""
    try:
        journal = Journal(dump, NoLock())
        journal.mount()
    except JournalError as problem:
        raise StationError(_no_journal(dump, str(problem))) from problem
    blocks, places = _blocks(dump, journal.journal_id)
    records = [about(each) for each in _sent(journal)]
    return {
        "journal_id": journal.journal_id.hex(),
        "block_bytes": dump.block_bytes,
        "block_count": dump.size // dump.block_bytes,
        "boots": sorted({each["boot"] for each in records if each["type"] != "LOST"}),
        "next_boot": journal.boot,
        "first_sequence": journal.first_sequence,
        "next_sequence": journal.next_sequence,
        "acked": journal.acked,
        "pending": journal.pending,
        "blocks": blocks,
        "broken": places,
        "records": records,
    }


def about(found: Record) -> dict[str, Any]:
    """Return one Record and what it means, ready for JSON."""
    return {
        "sequence": found.sequence,
        "type": _TYPES.get(found.type, f"type {found.type}"),
        "version": found.version,
        "boot": found.boot,
        "uptime_ms": found.uptime_ms,
        "meaning": _meaning(found),
        "body": found.body.hex(),
    }


def lines(found: dict[str, Any]) -> Iterator[str]:
    """What people read: the Journal, its blocks, what is broken, and each Record on a line."""
    yield f"Journal {found['journal_id']}, {found['block_count']} blocks of {found['block_bytes']} bytes"
    boots = f"boots {found['boots'][0]} to {found['boots'][-1]}" if found["boots"] else "no boot yet"
    sequences = f"sequences {found['first_sequence']} to {found['next_sequence'] - 1}"
    yield f"{boots}, the next is {found['next_boot']}; {sequences}"
    yield f"acked through {found['acked']}, {found['pending']} wait"
    yield ""
    yield " block  place  first sequence   boot   acked  Records  filled"
    for block in found["blocks"]:
        tear = "  after a tear" if block["after_tear"] else ""
        yield (
            f"{block['number']:6} {block['place']:6} {block['first_sequence']:15} {block['boot']:6} "
            f"{block['acked']:7} {block['records']:8} {block['filled_percent']:5} %{tear}"
        )
    for place in found["broken"]:
        yield f"place {place['place']}, {place['bytes']} bytes at {place['offset']:#x}: {place['what']}"
    yield ""
    yield "sequence  type    boot  uptime          meaning"
    for each in found["records"]:
        waits = "" if each["sequence"] <= found["acked"] else " *"
        yield (
            f"{each['sequence']:8}  {each['type']:7} {each['boot']:4}  {_uptime(each['uptime_ms']):14}  "
            f"{each['meaning']}{waits}"
        )
    if found["pending"]:
        yield ""
        yield "* not acked yet"


def _number(written: str) -> int:
    """A number as people write it; argparse makes a usage error of a ValueError."""
    number = int(written, 0)
    if number < 0:
        raise ValueError(written)
    return number


def _no_journal(dump: Dump, problem: str) -> str:
    """Why this is no Journal, and what to do."""
    if dump.size < (RESERVE_BLOCKS + 2) * dump.block_bytes:
        return f"{problem}; these are {dump.size} bytes"
    if not bytes(dump.cells).strip(b"\xff"):
        return "the flash is erased: this Kit was never provisioned, or it was wiped"
    for at in range(0, dump.size, dump.block_bytes):
        if dump.cells[at : at + len(_MAGIC)] == _MAGIC:
            return f"no Journal begins here, but one has a block at {at:#x}: give --offset and --size"
    return f"{problem}: no block of it has a header that can be read"


def _blocks(dump: Dump, journal_id: bytes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the blocks in the order of their numbers, and the places in them that can't be read."""
    scratch = memoryview(bytearray(OVERHEAD_BYTES + MAX_BODY_BYTES))
    blocks, places = [], []
    for position in range(dump.size // dump.block_bytes):
        header = read_header(dump, position, scratch)
        start = position * dump.block_bytes
        if header is not None and header.journal_id == journal_id:
            block, broken = _block(dump, position, header, scratch)
            blocks.append(block)
            places += broken
        elif not is_erased(dump, start, start + dump.block_bytes, scratch):
            what = "no header that can be read" if header is None else "of another Journal"
            places.append(_place(dump, start, start + dump.block_bytes, what))
    blocks.sort(key=lambda block: block["number"])
    return blocks, places


def _block(
    dump: Dump, position: int, header: Header, scratch: memoryview
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Walk one block."""
    offset = filled = position * dump.block_bytes + HEADER_BYTES
    stop = (position + 1) * dump.block_bytes
    records, places, broken = 0, [], -1
    while offset < stop and not is_erased(dump, offset, stop, scratch):
        found = read_record(dump, offset, stop, scratch)
        if found is None:
            broken = offset if broken < 0 else broken
            offset += WORD_BYTES
            continue
        if broken >= 0:
            places.append(_place(dump, broken, offset, "rotten"))
            broken = -1
        records += 1
        offset = filled = offset + padded(OVERHEAD_BYTES + len(found.body))
    if broken >= 0:
        places.append(_place(dump, broken, offset, "torn, or the last Record is rotten"))
    return {
        "number": header.number,
        "place": position,
        "first_sequence": header.first_sequence,
        "boot": header.boot,
        "acked": header.acked,
        "after_tear": bool(header.flags & AFTER_TEAR),
        "records": records,
        "filled_percent": 100 - 100 * (stop - filled) // dump.block_bytes,
    }, places


def _place(dump: Dump, offset: int, stop: int, what: str) -> dict[str, Any]:
    return {"place": offset // dump.block_bytes, "offset": offset, "bytes": stop - offset, "what": what}


def _sent(journal: Journal) -> Iterator[Record]:
    """Every Record that the Journal would send if nothing had been acked."""
    buffer = bytearray(_BATCH_BYTES)
    after, count = 0, 1
    while count and after < journal.next_sequence - 1:
        _, count, end = journal.read_batch(buffer, 0, len(buffer), after)
        for each in decode_all(memoryview(buffer)[:end]):
            yield each
            after = _last(each)


def _last(found: Record) -> int:
    """The last sequence that a Record stands for."""
    try:
        body = decode_body(found.type, found.version, found.body)
    except FormatError:
        return int(found.sequence)
    return int(max(found.sequence, body.last)) if isinstance(body, record.Lost) else int(found.sequence)


def _meaning(found: Record) -> str:
    """One line for people. What can't be decoded is shown as it is: a newer Gateway may have written it."""
    try:
        body = decode_body(found.type, found.version, found.body)
    except FormatError as problem:
        return f"{problem}: {found.body.hex()}"
    return str(_MEANINGS[found.type](body))


def _frame(frame: record.Frame) -> str:
    flags = ", ".join(word for flag, word in _FLAGS if frame.flags & flag) or "no flags"
    if frame.flags & record.UUID_INDEX:
        return (
            f"Sensor {frame.sensor}: its characteristic {frame.characteristic}: {frame.value.hex()} ({flags})"
        )
    return f"Sensor {frame.sensor}: {_value(frame.characteristic, frame.value)} ({flags})"


def _value(characteristic: int, value: bytes) -> str:
    try:
        meaning = describe(characteristic, value)
    except (StationError, KeyError):  # a characteristic or a form that this release does not know
        return f"{characteristic:04X} {value.hex() or 'without a value'}"
    said = [f"{each['name'].replace('_', ' ')} {value_line(each)}" for each in meaning.get("values", ())]
    said += [meaning[key] for key in ("timestamp", "date_time") if meaning.get(key)]
    if meaning.get("failed"):
        said.append("the measurement failed")
    return ", ".join(said) or f"{meaning['name']} {value.hex()}"


def _sensor(sensor: record.Sensor) -> str:
    said = [f"{_ITEMS[tag]} {_words(value)}" for tag, value in sensor.items if tag in _ITEMS]
    return f"Sensor {sensor.sensor}: " + ", ".join([sensor.address.hex(":"), *said])


def _anchor(anchor: record.Anchor) -> str:
    source = _SOURCES.get(anchor.source, f"source {anchor.source}")
    return f"{_utc(anchor.utc_ms)} UTC +-{anchor.uncertainty_ms} ms from {source}{_offset(anchor.offset_min)}"


def _clock(clock: record.SensorClock) -> str:
    kind = _CLOCKS.get(clock.kind, f"kind {clock.kind}")
    shown = _value(clock.characteristic, clock.value) if clock.value else "nobody knows to what"
    return f"Sensor {clock.sensor}: clock {kind}: {shown}{_offset(clock.offset_min)}"


def _event(event: record.Event) -> str:
    name = _EVENTS.get(event.code, f"event {event.code}")
    whose = f"Sensor {event.sensor}: " if event.sensor else ""
    detail = _detail(event.code, event.detail)
    return f"{whose}{name}: {detail}" if detail else whose + name


def _detail(code: int, detail: bytes) -> str:
    """What the bytes after an EVENT's code say."""
    if code == record.NETWORK and len(detail) == 2:
        return f"{detail[0]}, {_NETWORKS.get(detail[1], f'state {detail[1]}')}"
    if code == record.REPLAYED:
        return f"from {int.from_bytes(detail, 'little')}"
    if len(detail) != 1:
        return _words(detail)
    if code == record.PORTAL:
        return _PORTAL.get(detail[0], str(detail[0]))
    if code == record.RADIO_MISSING:
        return "can't be had" if detail[0] else "is there again"
    return str(detail[0])


def _lost(lost: record.Lost) -> str:
    count = lost.last - lost.first + 1
    reason = _REASONS.get(lost.reason, f"reason {lost.reason}")
    return f"{lost.first} to {lost.last} ({count}) are gone: {reason}"


_MEANINGS: dict[int, Any] = {
    record.FRAME: _frame,
    record.SENSOR: _sensor,
    record.ANCHOR: _anchor,
    record.SENSOR_CLOCK: _clock,
    record.EVENT: _event,
    record.LOST: _lost,
}


def _words(value: bytes) -> str:
    """Text that a Sensor has sent, with nothing in it that a terminal would obey; else as hexadecimal."""
    try:
        words = value.decode().rstrip("\0")
    except UnicodeDecodeError:
        return value.hex()
    return words if words.isprintable() else value.hex()


def _offset(minutes: int) -> str:
    if minutes == record.NO_OFFSET:
        return ""
    return f", home {'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


def _utc(utc_ms: int) -> str:
    try:
        moment = datetime.fromtimestamp(utc_ms // 1000, UTC)
    except (OverflowError, ValueError, OSError):  # no calendar has it
        return f"{utc_ms} ms"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{utc_ms % 1000:03}"


def _uptime(uptime_ms: int) -> str:
    seconds, ms = divmod(uptime_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}.{ms:03}"
