"""The context of a Journal: what its Records up to a cursor say about its Frames.

Which Sensor sent a Frame, what that Sensor's clock said, when it was last empty, what bars it. It is nothing
but a function of the Records, and of the operator's word on changed bonds: it is built anew from them at a
start and after a failed transaction. ANCHORs alone are looked at ahead, so that a time is interpolated.

The keys are those of DESIGN 9.2.
"""

import hashlib
import sqlite3
import struct
from collections import OrderedDict
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote

from gateway import record
from gateway.errors import FormatError, Unknown
from gateway.reading import CONTINUOUS, NEVER, Clock, Feature, Reading, Value
from gateway.record import Anchor, Event, Frame, Lost, Sensor, SensorClock, decode_body
from gateway.sensors import can_store, decode, essence, is_measurement
from gateway.timebase import SensorTimeline, Time, Timebase
from sync_service.redate import News

REMEMBERED_TIMESTAMPS = 512
"""Per Journal, to see a clock that stands still: a fortnight of 30 readings a day."""

BOND_CHANGED = "the bond with the Sensor has changed: it may be another one"
NO_SENSOR = "the Sensor's description is missing"
NOT_EMPTIED = "the Sensor could not be emptied at the bench: this may be its last patient's"
SELF_TEST = "a self-test of the bench: no Sensor has measured it"


class Moment(NamedTuple):
    """Where a Frame stands in its Journal."""

    sequence: int
    boot: int
    uptime_ms: int


class Measurement(NamedTuple):
    """A decoded Frame, before it is compared with what is there."""

    journal: "Journal"
    at: Moment
    sensor: str
    content: bytes
    stamped: bool  # by a clock that was set
    believed: bool  # nothing speaks against that clock
    streamed: bool
    after_gap: bool  # its Sensor may have sent it before, in a Record that is lost
    trust: str
    time: Time
    barred: str | None  # why no Assignment can release it


class Source:
    """A Sensor as a Journal knows it at some Record."""

    def __init__(self, identity: str, timebase: Timebase, nobody: str | None = None) -> None:
        self.identity = identity
        self.timeline = SensorTimeline(timebase)
        self.bond_changed = False
        self._nobody = nobody  # why its values are of no Sensor that is known
        self.feature: Feature | None = None  # 0x2A60
        self.stands_still = False  # one timestamp came with two different values
        self.told = False  # that the clock is disproved has been acted upon
        self.read_at = 0  # sequence of the last read of its clock
        self._seen: OrderedDict[tuple[int, tuple[int, ...]], tuple[Value, ...]] = OrderedDict()

    @property
    def barred(self) -> str | None:
        """Why no Assignment can release its values; None: it can."""
        return self._nobody or (BOND_CHANGED if self.bond_changed else None)

    @property
    def disproved(self) -> bool:
        """The Sensor's clock is proved not running (DESIGN 9.2)."""
        return self.stands_still or self.timeline.clock_disproved()

    def remember(self, characteristic: int, reading: Reading) -> None:
        """Compare with what came under the same timestamp; its status may differ (storage has a bit)."""
        if reading.timestamp is None or not reading.clock_set or reading.trust == NEVER:
            return
        before = self._seen.setdefault((characteristic, reading.timestamp), reading.values)
        self.stands_still |= before != reading.values
        if len(self._seen) > REMEMBERED_TIMESTAMPS:
            self._seen.popitem(last=False)


class Journal:
    """The context of one Journal: what the Records up to the cursor say about its Frames."""

    def __init__(self, number: int, cursor: int, kit: str, journal_id: bytes, floor_ms: int) -> None:
        self.number, self.cursor, self.kit, self.journal_id = number, cursor, kit, journal_id
        self.through = cursor
        self.episode: str | None = None  # that it belongs to
        self.ended_ms: int | None = None  # the Kit had begun another Journal by then
        self._timebase = Timebase()
        self._timebase.not_before(floor_ms)
        self._looked_through = 0
        self._receipt_boot = -1
        self._news: News | None = None
        self._anchor_at = 0  # sequence of the last ANCHOR that was looked at
        self._boots: dict[int, int] = {}  # boot -> sequence of the last ANCHOR before it
        self._sources: dict[int, Source] = {}
        self._items: dict[
            tuple[int, bytes], dict[int, bytes]
        ] = {}  # all that each address has said about itself
        self._marked: set[bytes] = set()  # addresses of Sensors that could not be emptied before
        self._full: set[int] = set()  # references of those that have not been empty here yet
        self._has_gap = False  # Records are lost that may have reached the Hub
        self._emptied: set[int] = set()  # references of the Sensors that have been empty since
        self._accepted: set[int] = set()  # sequences of BOND_CHANGED that the operator has accepted

    def mark(self, marked: dict[bytes, tuple[str, int]], created_ms: int) -> None:
        """Take the bench's marks (`not_emptied`), but not what is newer than this Journal of the same Kit.

        There the Sensor is still with the patient that it came back from.
        """
        self._marked = {
            address
            for address, (kit, since_ms) in marked.items()
            if kit != self.kit or since_ms <= created_ms
        }

    def rebuild(self, db: sqlite3.Connection) -> None:
        """Learn again what the Records up to the cursor say."""
        self._accepted = accepted(db, self.number)
        for type, version, sequence, boot, uptime_ms, body in db.execute(
            _CONTEXT, (self.number, 0, self.cursor)
        ):
            try:
                self.learn(type, version, Moment(sequence, boot, uptime_ms), body)
            except FormatError:
                continue  # quarantined when it was first read
        recent = db.execute(_RECENT_FRAMES, (self.number, self.cursor, REMEMBERED_TIMESTAMPS)).fetchall()
        for version, body in reversed(recent):
            self._remember(version, body)
        self.disproved()
        self._news = None  # what bears on Readings up to the cursor was used when the cursor passed it

    def look_ahead(self, db: sqlite3.Connection) -> None:
        """Learn what bears on times from everything stored: receipts, ANCHORs, which boots have ended."""
        self._accepted = accepted(db, self.number)
        told, since = self._timebase.changes, self._anchor_at
        anchored: set[int] = set()
        for type, version, sequence, boot, uptime_ms, body in self._beyond(db):
            self._timebase.seen(boot, uptime_ms)
            self._boots.setdefault(boot, self._anchor_at)
            if type == record.ANCHOR and version == 1:
                with suppress(FormatError):  # quarantined when it is read in its place
                    anchor = decode_body(type, version, body)
                    assert isinstance(anchor, Anchor)
                    if anchor.source == record.FROM_SNTP:
                        continue  # nobody vouches for it
                    self._timebase.add_anchor(boot, uptime_ms, anchor.utc_ms, anchor.uncertainty_ms)
                    self._anchor_at = sequence
                    if sequence <= self.cursor:  # used already: a Reading after it can't be news
                        told, since = self._timebase.changes, sequence
                    else:
                        anchored.add(boot)
        if self.ended_ms is not None:
            self._timebase.ended_before(self.ended_ms)
        for boot, uptime_ms, received_ms in db.execute(_RECEIPTS, (self.number, self._receipt_boot)):
            self._timebase.add_receipt(boot, uptime_ms, received_ms)
            self._receipt_boot = boot
        if self._timebase.changes != told:
            self._add_news(News(since, self.cursor, False))
        for boot in anchored:
            if not self._timebase.agrees(boot):
                self._add_news(News(self._boots[boot], self.cursor, True))

    def _beyond(self, db: sqlite3.Connection) -> list[Any]:
        """What is no Frame among the Records that were not looked at yet."""
        if self._looked_through == self.through:
            return []
        rows = db.execute(_CONTEXT, (self.number, self._looked_through, self.through)).fetchall()
        self._looked_through = self.through
        return rows

    def take_news(self) -> News | None:
        """What has become known of times that Readings have already."""
        news, self._news = self._news, None
        return news

    def time_again(self, identity: str, body: bytes, sequence: int, boot: int, uptime_ms: int) -> Time | None:
        """When the value of a Frame was taken, as known now; None: no more than before, or another Sensor."""
        frame = frame_of(1, body)
        source = self._sources.get(frame.sensor)
        if source is None or source.identity != identity:
            return None
        return self.time_of(source, frame, Moment(sequence, boot, uptime_ms))

    def _add_news(self, news: News) -> None:
        self._news = news if self._news is None else self._news.joined(news)

    def learn(self, type: int, version: int, at: Moment, body: bytes) -> None:
        """Take a Record that is no Frame. Raises FormatError for a known type that is broken."""
        try:
            learned = decode_body(type, version, body)
        except Unknown:
            return  # of a later release, or none of ours
        self.take(learned, at)

    def take(self, learned: object, at: Moment) -> None:
        """Take the decoded body of a Record that is no Frame."""
        if isinstance(learned, Sensor):
            self._learn_sensor(learned)
        elif isinstance(learned, SensorClock):
            self._learn_clock(learned, at)
        elif isinstance(learned, Event):
            self._learn_event(learned, at)
        elif isinstance(learned, Lost) and learned.reason != record.TORN:
            # It may have been sent once, to a Store whose backup has come back since; a Sensor's clock may
            # have been set. What was torn was never sent, and no write to a Sensor came after it.
            self._has_gap = True
            self._emptied.clear()
            for source in self._sources.values():
                source.timeline.records_lost()

    def measure(self, frame: Frame, at: Moment) -> Measurement | None:
        """The Frame as a Measurement; None while its time can't be told. Raises FormatError."""
        source = self._sources.get(frame.sensor) or self._unknown(frame.sensor)
        self._timebase.seen(at.boot, at.uptime_ms)
        reading = reading_of(frame)
        taken = self._time_of(source, frame, reading, at)
        if taken is None:
            return None
        source.remember(frame.characteristic, reading)
        streamed = reading.kind == CONTINUOUS
        return Measurement(
            self,
            at,
            source.identity,
            content_of(source.identity, frame.characteristic, frame.value),
            bool(reading.timestamp and reading.clock_set),
            not source.disproved,
            streamed,
            self._has_gap and not streamed and frame.sensor not in self._emptied,
            reading.trust,
            taken,
            source.barred or self._why_barred(source, frame),
        )

    def is_anchored(self, boot: int) -> bool:
        """Whether the service has told the time in this boot."""
        return bool(self._timebase.is_anchored(boot))

    def source_of(self, reference: int) -> Source | None:
        """The Sensor as described so far, None when it is not."""
        return self._sources.get(reference)

    def time_of(self, source: Source, frame: Frame, at: Moment) -> Time | None:
        """When the Frame's value was taken, as known now."""
        return self._time_of(source, frame, reading_of(frame), at)

    def disproved(self) -> list[Source]:
        """The Sensors whose clock has been disproved since this was last asked."""
        news = [source for source in self._sources.values() if source.disproved and not source.told]
        for source in news:
            source.told = True
        return news

    def _time_of(self, source: Source, frame: Frame, reading: Reading, at: Moment) -> Time | None:
        stores = can_store(frame.characteristic, source.feature)
        return source.timeline.time_of(reading, at.boot, at.uptime_ms, can_store=stores)

    def _why_barred(self, source: Source, frame: Frame) -> str | None:
        """A Sensor that was full when it came sends its last patient's values first, until it is empty."""
        is_full = frame.sensor in self._full and can_store(frame.characteristic, source.feature)
        return NOT_EMPTIED if is_full else None

    def _learn_sensor(self, sensor: Sensor) -> None:
        if sensor.address in self._marked and (sensor.sensor, sensor.address) not in self._items:
            self._full.add(sensor.sensor)
        # A session that could not ask again sends less: what the address has once said of itself stays.
        items = self._items.setdefault((sensor.sensor, sensor.address), {})
        items.update((tag, value) for tag, value in sensor.items if tag != record.FEATURE)
        identity = sensor_identity(sensor.address, items)
        source = self._sources.get(sensor.sensor)
        if source is None or source.identity != identity:
            source = self._sources[sensor.sensor] = self._renamed(source, identity)
        for tag, value in sensor.items:
            if tag == record.FEATURE and len(value) > 2:
                feature = decode(struct.unpack_from("<H", value)[0], value[2:])
                if isinstance(feature, Feature) and feature.kind == "plx_features":
                    source.feature = feature

    def _renamed(self, source: Source | None, identity: str) -> Source:
        """An address that learns its serial is the same Sensor; any other change is another one."""
        if source and source.identity.startswith("address:"):
            source.identity = identity
            return source
        other = Source(identity, self._timebase)
        # Who has broken the bond describes itself as it likes, and only then sends.
        other.bond_changed = source is not None and source.bond_changed
        return other

    def _learn_clock(self, clock: SensorClock, at: Moment) -> None:
        # Empty: the write got no answer. Nobody knows which time the clock has since.
        read = decode(clock.characteristic, clock.value) if clock.value else None
        source = self._sources.get(clock.sensor)
        if source and (read is None or isinstance(read, Clock)):
            source.timeline.clock_read(clock.kind, at.boot, at.uptime_ms, read.date_time if read else None)
            if source.read_at:
                self._add_news(News(source.read_at, at.sequence, False))
            source.read_at = at.sequence

    def _learn_event(self, event: Event, at: Moment) -> None:
        source = self._sources.get(event.sensor)
        if event.code == record.BOND_CHANGED and at.sequence not in self._accepted:
            # Its SENSOR may be lost: what follows is barred all the same.
            (source or self._unknown(event.sensor)).bond_changed = True
        elif source and event.code in (record.BOND_MADE, record.BOND_CHANGED):
            source.bond_changed = False
        elif source and event.code == record.SENSOR_DRAINED:
            source.timeline.drained(at.boot, at.uptime_ms)
            self._full.discard(event.sensor)
            self._emptied.add(event.sensor)

    def _unknown(self, reference: int) -> Source:
        name = f"unknown:{self.kit}/{self.journal_id.hex()}/{reference}"
        # No Sensor has reference 0: such a Frame never becomes anybody's.
        barred = NO_SENSOR if reference else SELF_TEST
        return self._sources.setdefault(reference, Source(name, self._timebase, barred))

    def _remember(self, version: int, body: bytes) -> None:
        try:
            frame = frame_of(version, body)
            if is_measurement(frame.characteristic) and frame.sensor in self._sources:
                self._sources[frame.sensor].remember(frame.characteristic, reading_of(frame))
        except FormatError:
            return


def frame_of(version: int, body: bytes) -> Frame:
    frame = decode_body(record.FRAME, version, body)
    assert isinstance(frame, Frame)
    return frame


def reading_of(frame: Frame) -> Reading:
    reading = decode(frame.characteristic, frame.value)
    assert isinstance(reading, Reading)
    return reading


def accepted(db: sqlite3.Connection, journal: int) -> set[int]:
    """Sequences of the BOND_CHANGED Records of a Journal that the operator has accepted."""
    return {sequence for (sequence,) in db.execute(_ACCEPTED, (journal,))}


def not_emptied(db: sqlite3.Connection) -> dict[bytes, tuple[str, int]]:
    """Address of each Sensor that could not be emptied: the Kit that it came back with, and since when."""
    rows = db.execute("select sensor, kit, since_ms from not_emptied").fetchall()
    return {bytes.fromhex(sensor.replace(":", "")): (kit, since_ms) for sensor, kit, since_ms in rows}


# --- Keys ---------------------------------------------------------------------------------------------------


def sensor_identity(address: bytes, items: dict[int, bytes]) -> str:
    """What a Sensor is known by: its serial, else its System ID, else its identity address.

    The serial goes with maker and model: two makers count alike. '000000' and the like are no serial.
    """
    serial = _text(items.get(record.SERIAL, b""))
    if len(set(serial)) > 1:
        names = _text(items.get(record.MANUFACTURER, b"")), _text(items.get(record.MODEL, b"")), serial
        return "serial:" + "/".join(quote(name, safe=" ") for name in names)
    system_id = items.get(record.SYSTEM_ID, b"")
    if len(set(system_id)) > 1:
        return f"system-id:{system_id.hex('-').upper()}"
    return f"address:{address.hex(':').upper()}"


def content_of(identity: str, characteristic: int, value: bytes) -> bytes:
    """Hash of a measurement's content (DESIGN 9.2): 16 bytes. Whether it comes from storage is none of it."""
    text = f"homeward-reading-1|{identity}|{characteristic:04x}|{essence(characteristic, value).hex()}"
    return hashlib.sha256(text.encode()).digest()[:16]


def own_key(content: bytes, journal: Journal, at: Moment) -> bytes:
    """The key of a value whose content can't tell it from another: with the place of its Frame."""
    return hashlib.sha256(content + journal.journal_id + struct.pack("<I", at.sequence)).digest()[:16]


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").strip("\0 \t\r\n")


# --- Statements ---------------------------------------------------------------------------------------------

# What is no Frame: few, and in an index of their own.
_CONTEXT = """
    select type, version, sequence, boot, uptime_ms, body from record
    where journal = ? and sequence > ? and sequence <= ? and type <> 1 order by sequence"""
_RECENT_FRAMES = """
    select version, body from record
    where journal = ? and sequence <= ? and type = 1 order by sequence desc limit ?"""
_ACCEPTED = "select sequence from accepted_bond where journal = ?"
_RECEIPTS = "select boot, uptime_ms, received_ms from receipt where journal = ? and boot > ? order by boot"
