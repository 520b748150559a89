"""Derivation: Records become Readings with a time, a key and a patient; what is placed gets an Outbox row.

Each Journal has a cursor of its own, `derived_through`, that moves in the transaction that stores its
Readings and Outbox rows: kill -9 leaves both or none. Records are taken in sequence order up to what is
stored without a gap. A Frame whose time can't be told yet (its boot has no ANCHOR and has not ended) stops
its Journal until more comes.

What a Frame means depends on the Records before it: which Sensor sent it, what that Sensor's clock said, when
it was last empty. This context is kept in memory per Journal and is nothing but a function of the Records: it
is built anew from them at a start and after a failed transaction. ANCHORs alone are looked at ahead, so that
a time is interpolated.

The keys are those of DESIGN 9.2 and depend on nothing but the Records: however they are cut into chunks.
"""

import asyncio
import hashlib
import logging
import sqlite3
import struct
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote

from gateway import record
from gateway.errors import FormatError, Unknown
from gateway.reading import CONTINUOUS, NEVER, Clock, Feature, Reading, Value
from gateway.record import Anchor, Event, Frame, Lost, Sensor, SensorClock, decode_body
from gateway.sensors import can_store, decode, essence, is_measurement
from gateway.timebase import SensorTimeline, Time, Timebase
from sync_service.assignments import (
    Assignment,
    bind,
    episode_of_journal,
    of_kit,
    place,
    place_held,
    take_back,
)
from sync_service.redate import News, redate
from sync_service.store import Store, StoreUnavailable, count

log = logging.getLogger(__name__)

CHUNK_RECORDS = 1_000
"""Records per transaction: 20 ms of work, so that an Ack waiting for its commit hardly notices."""
GIVE_WAY_S = 0.25
"""How long a chunk waits at most for ingest to be quiet. What is not stored yet comes first, and a flood of
it still leaves 4,000 Records a second to derivation: about what a Hub takes."""
POLL_S = 2.0
"""How soon Journals are looked at again without a word from ingest (another process may have stored)."""
REPEAT_WITHIN_MS = 86_400_000
"""DESIGN 9.2: the same value of a Sensor without a time within a day may be a repeat; later it hardly is."""
REMEMBERED_TIMESTAMPS = 512
"""Per Journal, to see a clock that stands still: a fortnight of 30 readings a day."""
CONTEXTS = 2_000
"""Journals kept in memory, some 10 kB each; beyond that they are built anew, in milliseconds."""
MAX_BRACKET_MS = 43_200_000
"""Default of the widest time that is delivered: half a day still says which day."""

BOND_CHANGED = "the bond with the Sensor has changed: it may be another one"
NO_SENSOR = "the Sensor's description is missing"
NOT_EMPTIED = "the Sensor could not be emptied at the bench: this may be its last patient's"
SELF_TEST = "a self-test of the bench: no Sensor has measured it"
COUNT_UNDATED = """
    select count(*) from journal join record on record.journal = journal.journal and record.type = 1
    and record.sequence > journal.derived_through and not exists (select 1 from reading
        where reading.journal = record.journal and reading.sequence = record.sequence)"""
"""Frames that are stored and have no Reading yet: their turn comes, or nothing tells when they were taken."""


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


class Known(NamedTuple):
    """Of a content: the Reading that it is the key of; the newest one that has it and when that was taken."""

    first: int | None
    newest: int
    newest_ms: int


class Derived(NamedTuple):
    """What one chunk has done."""

    records: int
    queued: int


Ahead = Callable[[sqlite3.Connection], list[Measurement]]
"""Finds what can be derived ahead of its Journal's cursor (early.py)."""


def nothing_ahead(db: sqlite3.Connection) -> list[Measurement]:
    """Everything waits for its turn."""
    return []


async def run(
    store: Store,
    wake: asyncio.Event,
    outbox_wake: asyncio.Event,
    *,
    ahead: Ahead = nothing_ahead,
    quiet: Callable[[], Awaitable[None]] | None = None,
    max_bracket_ms: int = MAX_BRACKET_MS,
    clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    poll_s: float = POLL_S,
) -> None:
    """Derive until cancelled. Ingest sets `wake` after a commit; this sets `outbox_wake` after a row.

    `quiet` returns when ingest has nothing to do: derivation gives way to it.
    """
    deriver = Deriver(ahead=ahead, max_bracket_ms=max_bracket_ms)
    while True:
        wake.clear()
        try:
            await _give_way(quiet)
            while (derived := await deriver.step(store, clock_ms())).records:
                if derived.queued:
                    outbox_wake.set()
                await _give_way(quiet)
        except StoreUnavailable as error:
            log.warning("derivation waits: %s", error)  # the disk is full or locked; nothing is lost
            await asyncio.sleep(POLL_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(poll_s):
                await wake.wait()


async def _give_way(quiet: Callable[[], Awaitable[None]] | None) -> None:
    if quiet is None:
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(GIVE_WAY_S):
            await quiet()


class Deriver:
    """Derivation of all Journals, a chunk at a time."""

    def __init__(self, *, ahead: Ahead = nothing_ahead, max_bracket_ms: int = MAX_BRACKET_MS) -> None:
        self._ahead = ahead
        self._max_bracket_ms = max_bracket_ms
        self._journals: dict[int, Journal] = {}
        self._passed: list[tuple[Journal, int]] = []  # sequences of Readings that have another time now
        self._freed: set[Journal] = set()  # with Readings that nothing bars any more
        # Journal -> `through`, cursor and `ended_ms` with which its next Frame had no time yet.
        self._stopped: dict[int, tuple[int, int, int | None]] = {}

    async def step(self, store: Store, now_ms: int) -> Derived:
        """Derive one chunk in one transaction."""
        try:
            return await store.write(partial(self.chunk, now_ms=now_ms))
        except BaseException:
            # The contexts are ahead of the cursors now; they are built anew from the Records.
            self._journals.clear()
            self._stopped.clear()
            self._passed.clear()
            self._freed.clear()
            raise

    def chunk(self, db: sqlite3.Connection, *, now_ms: int) -> Derived:
        """Derive at most CHUNK_RECORDS in the caller's transaction, and what can be derived ahead."""
        early = self._ahead(db)
        queued = self._store(db, early, now_ms, early=True)
        records = len(early)
        found: list[Measurement] = []
        moved: list[tuple[int, int]] = []
        looked_at: list[Journal] = []
        for journal in self._with_work(db):
            looked_at.append(journal)
            before = journal.cursor
            records += self._advance(db, journal, CHUNK_RECORDS - records, found, now_ms)
            if journal.cursor > before:
                moved.append((journal.cursor, journal.number))
            if records >= CHUNK_RECORDS:
                break
        queued += self._store(db, found, now_ms)
        db.executemany("update journal set derived_through = ? where journal = ?", moved)
        for journal in looked_at:  # also without a Frame: after a restart it would be taken for done
            queued += self._disprove(db, journal, now_ms)
        passed, self._passed = self._passed, []
        for journal, sequence in passed:
            queued += self._redate(db, journal, News(sequence, sequence, True), now_ms)
        freed, self._freed = self._freed, set()
        for journal in freed:
            queued += place_held(db, journal.kit, now_ms=now_ms, max_bracket_ms=self._max_bracket_ms)
            journal.episode = episode_of_journal(db, journal.number)
        for journal in looked_at:
            if (news := journal.take_news()) is not None:
                queued += self._redate(db, journal, news, now_ms)
        return Derived(records, queued)

    def _redate(self, db: sqlite3.Connection, journal: "Journal", news: News, now_ms: int) -> int:
        return redate(db, journal, news, partial(_Placer(db, self._max_bracket_ms).place, journal), now_ms)

    def _with_work(self, db: sqlite3.Connection) -> "Iterable[Journal]":
        marked = not_emptied(db)
        for row in db.execute(_WITH_WORK).fetchall():
            number, through, cursor, kit, journal_id, floor_ms, created_ms, episode, ended_ms = row
            if self._stopped.get(number) == (through, cursor, ended_ms):
                continue
            journal = self._journals.get(number)
            if journal is None or journal.cursor != cursor:
                if len(self._journals) >= CONTEXTS:
                    self._journals.clear()
                journal = self._journals[number] = Journal(number, cursor, kit, journal_id, floor_ms)
                journal.mark(marked, created_ms)
                journal.rebuild(db)
            journal.mark(marked, created_ms)
            journal.through, journal.episode, journal.ended_ms = through, episode, ended_ms
            yield journal

    def _advance(
        self, db: sqlite3.Connection, journal: "Journal", limit: int, found: list[Measurement], now_ms: int
    ) -> int:
        """Take the Journal's next Records; return how many were taken."""
        journal.look_ahead(db)
        rows = db.execute(_RECORDS, (journal.number, journal.cursor, journal.through, limit)).fetchall()
        for taken, (sequence, type, version, boot, uptime_ms, body, *derived) in enumerate(rows):
            at = Moment(sequence, boot, uptime_ms)
            try:
                if type != record.FRAME:
                    journal.learn(type, version, at, body)
                elif derived[0] is not None:
                    self._pass(db, journal, _frame(version, body), at, derived)
                elif not self._frame(journal, _frame(version, body), at, found):
                    self._stopped[journal.number] = (journal.through, journal.cursor, journal.ended_ms)
                    return taken
            except FormatError as error:
                _quarantine(db, journal.kit, type, body, error, now_ms)
            journal.cursor = sequence
        self._stopped.pop(journal.number, None)
        if len(rows) < limit:
            journal.cursor = journal.through  # what is missing in between is known to be lost
        return len(rows)

    def _frame(self, journal: "Journal", frame: Frame, at: Moment, found: list[Measurement]) -> bool:
        if not is_measurement(frame.characteristic) or frame.flags & record.UUID_INDEX:
            return True
        measurement = journal.measure(frame, at)
        if measurement is None:
            return False
        found.append(measurement)
        return True

    def _pass(
        self, db: sqlite3.Connection, journal: "Journal", frame: Frame, at: Moment, derived: Sequence[Any]
    ) -> None:
        """Pass a Frame that has its Reading: derived early, before a Record came late or a bond was accepted.

        Its key stays. Its time is that of all others now, and a bond that had changed takes it back.
        """
        reading, was_barred, *known = derived
        one = journal.measure(frame, at)
        if one is None:
            return
        if one.barred is not None:
            self._bar(db, journal, reading, one.barred)
            return
        if was_barred:
            db.execute(_FREE, (reading,))
            self._freed.add(journal)
        if one.time != tuple(known):
            self._passed.append((journal, at.sequence))

    def _bar(self, db: sqlite3.Connection, journal: "Journal", reading: int, reason: str) -> None:
        if db.execute(_BAR, (reading,)).rowcount:
            take_back(db, [reading], reason)
            count(db, journal.kit, "early Readings taken back", 1)
            log.error("Kit %s: a Reading was derived before a Record that speaks against it", journal.kit)

    def _store(
        self, db: sqlite3.Connection, found: list[Measurement], now_ms: int, *, early: bool = False
    ) -> int:
        """Write the Readings and Outbox rows; return how many were queued. `early`: those alone."""
        if not found:
            return 0
        known = _known(db, {one.content for one in found if not one.streamed})
        (reading,) = db.execute("select coalesce(max(reading), 0) from reading").fetchone()
        placer = _Placer(db, self._max_bracket_ms)
        readings, outbox = [], []
        for one in found:
            row, patient = _row(reading + 1, one, known, placer, now_ms)
            if early and patient is None:
                continue  # held, or a repeat: that is for its turn
            reading += 1
            readings.append(row)
            if patient:
                outbox.append((reading, patient, now_ms))
        db.executemany(_INSERT_READING, readings)
        db.executemany(_INSERT_OUTBOX, outbox)
        return len(outbox)

    def _disprove(self, db: sqlite3.Connection, journal: "Journal", now_ms: int) -> int:
        """Deliver what was collapsed while a clock, now proved not running, was believed; return how many."""
        queued = 0
        placer = _Placer(db, self._max_bracket_ms)
        for sensor in journal.disproved():
            collapsed = db.execute(_COLLAPSED, (journal.number, sensor.identity)).fetchall()
            for reading, content, *moment, body in collapsed:
                at = Moment(*moment)
                taken = journal.time_of(sensor, _frame(1, body), at)
                placed = placer.place(journal, taken)
                key = _own_key(content, journal, at)
                queued += _release(db, reading, key, taken, placed, now_ms)
            if collapsed:
                count(db, journal.kit, "clock disproved", 1)
        return queued


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
        self._hints_held: bool | None = None  # None: not looked at since this start
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
                    self._add_anchor(boot, uptime_ms, anchor)
                    if anchor.source != record.FROM_SNTP:
                        self._anchor_at = sequence
                    if sequence <= self.cursor:  # used already: a Reading after it can't be news
                        told, since = self._timebase.changes, self._anchor_at
                    else:
                        anchored.add(boot)
        if self.ended_ms is not None:
            self._timebase.ended_before(self.ended_ms)
        for boot, uptime_ms, received_ms in db.execute(_RECEIPTS, (self.number, self._receipt_boot)):
            self._timebase.add_receipt(boot, uptime_ms, received_ms)
            self._receipt_boot = boot
        if self._timebase.changes != told:
            self._add_news(News(since, self.cursor, False))
        if self._timebase.has_hints and self._hints_held != (hold := self._timebase.hints_hold()):
            self._hints_held = hold
            self._add_news(News(0, self.cursor, not hold))
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

    def _add_anchor(self, boot: int, uptime_ms: int, anchor: Anchor) -> None:
        is_hint = anchor.source == record.FROM_SNTP
        add = self._timebase.add_hint if is_hint else self._timebase.add_anchor
        add(boot, uptime_ms, anchor.utc_ms, anchor.uncertainty_ms)

    def take_news(self) -> News | None:
        """What has become known of times that Readings have already."""
        news, self._news = self._news, None
        return news

    def time_again(self, identity: str, body: bytes, sequence: int, boot: int, uptime_ms: int) -> Time | None:
        """When the value of a Frame was taken, as known now; None: no more than before, or another Sensor."""
        frame = _frame(1, body)
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
        elif isinstance(learned, Lost) and learned.reason != record.TORN:  # what was torn was never sent
            # It may have been sent once: to a Store that was lost since, as its backup came back.
            self._has_gap = True
            self._emptied.clear()

    def measure(self, frame: Frame, at: Moment) -> Measurement | None:
        """The Frame as a Measurement; None while its time can't be told. Raises FormatError."""
        source = self._sources.get(frame.sensor) or self._unknown(frame.sensor)
        self._timebase.seen(at.boot, at.uptime_ms)
        reading = _reading(frame)
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
        """Whether the service has told the time in this boot, and not a server that nobody vouches for."""
        return bool(self._timebase.is_anchored(boot))

    def source_of(self, reference: int) -> Source | None:
        """The Sensor as described so far, None when it is not."""
        return self._sources.get(reference)

    def time_of(self, source: Source, frame: Frame, at: Moment) -> Time | None:
        """When the Frame's value was taken, as known now."""
        return self._time_of(source, frame, _reading(frame), at)

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
            frame = _frame(version, body)
            if is_measurement(frame.characteristic) and frame.sensor in self._sources:
                self._sources[frame.sensor].remember(frame.characteristic, _reading(frame))
        except FormatError:
            return


def _frame(version: int, body: bytes) -> Frame:
    frame = decode_body(record.FRAME, version, body)
    assert isinstance(frame, Frame)
    return frame


def _reading(frame: Frame) -> Reading:
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


def _own_key(content: bytes, journal: Journal, at: Moment) -> bytes:
    """The key of a value whose content can't tell it from another: with the place of its Frame."""
    return hashlib.sha256(content + journal.journal_id + struct.pack("<I", at.sequence)).digest()[:16]


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").strip("\0 \t\r\n")


# --- Rows ---------------------------------------------------------------------------------------------------


class _Placer:
    """`assignments.place` with the tables of one transaction."""

    def __init__(self, db: sqlite3.Connection, max_bracket_ms: int) -> None:
        self._db, self._max_bracket_ms = db, max_bracket_ms
        self._of_kit: dict[str, list[Assignment]] = {}

    def place(self, journal: Journal, taken: Time | None) -> Assignment | str:
        """The Assignment, which the Journal now belongs to, or the reason to hold."""
        assignments = self._of_kit.get(journal.kit)
        if assignments is None:
            assignments = self._of_kit[journal.kit] = of_kit(self._db, journal.kit)
        earliest_ms, latest_ms, _ = taken or (None, None, None)
        found = place(
            assignments, journal.episode, earliest_ms, latest_ms, max_bracket_ms=self._max_bracket_ms
        )
        if isinstance(found, Assignment) and journal.episode is None:
            bind(self._db, journal.number, found.assignment)
            journal.episode = found.episode
        return found


def _row(
    reading: int, one: Measurement, known: dict[bytes, Known], placer: _Placer, now_ms: int
) -> tuple[tuple[object, ...], str | None]:
    """The row of table `reading`, and the patient to queue it for."""
    before = known.get(one.content)
    first = before.first if before else None
    # The first of a content has it as its key whatever is known of the clock: that may be less, or more, when
    # the Store comes back from a backup.
    by_content = one.stamped and (one.believed or before is None)
    repeat_of = first if by_content else None
    key = one.content if by_content else _own_key(one.content, one.journal, one.at)
    recent = before is not None and one.time.earliest_ms - before.newest_ms <= REPEAT_WITHIN_MS
    possible = not by_content and (recent or one.after_gap)
    if not one.streamed:
        is_first = by_content and first is None
        known[one.content] = Known(reading if is_first else first, reading, one.time.latest_ms)
    state, reason, assignment, patient = "repeat", one.barred, None, None
    if repeat_of is None:
        placed = one.barred or placer.place(one.journal, one.time)
        if isinstance(placed, Assignment):
            state, assignment, patient = "queued", placed.assignment, placed.patient
        else:
            state, reason = "held", placed
    row = (
        reading, one.journal.number, one.at.sequence, key, one.content, repeat_of, possible, one.sensor,
        one.trust, *one.time, state, reason, bool(one.barred), assignment, now_ms,
    )  # fmt: skip
    return row, patient


def _known(db: sqlite3.Connection, contents: set[bytes]) -> dict[bytes, Known]:
    if not contents:
        return {}
    # Numbered, since the query has them twice.
    numbered = ",".join([f"?{number}" for number in range(1, len(contents) + 1)])
    rows = db.execute(_KNOWN.format(numbered), tuple(contents))
    return {content: Known(*rest) for content, *rest in rows}


def _release(
    db: sqlite3.Connection,
    reading: int,
    key: bytes,
    taken: Time | None,
    placed: Assignment | str,
    now_ms: int,
) -> int:
    times = taken or (None, None, None)
    if isinstance(placed, str):
        db.execute(_RELEASE, (key, *times, "held", placed, None, reading))
        return 0
    db.execute(_RELEASE, (key, *times, "queued", None, placed.assignment, reading))
    db.execute(_INSERT_OUTBOX, (reading, placed.patient, now_ms))
    return 1


def _quarantine(
    db: sqlite3.Connection, kit: str, type: int, body: bytes, error: FormatError, now_ms: int
) -> None:
    db.execute(_INSERT_QUARANTINE, (kit, f"record type {type}: {error}", body, now_ms))
    count(db, kit, "not derived", 1)


# Journals whose cursor is behind what is stored; the shortest backlog first, so that what a Kit measures now
# does not wait for what another one brings from weeks. No Reading is older than its Kit: its floor. None is
# younger than the begin of the Kit's next Journal: a Batch tells its uptime, give or take 100 ppm.
_WITH_WORK = """
    select journal.journal, journal.through, journal.derived_through, journal.kit, journal.journal_id,
        kit.created_ms, journal.created_ms, assignment.episode, (
            select min(received_ms - uptime_ms + uptime_ms / 10000 + 1)
            from journal as later join receipt on receipt.journal = later.journal
            where later.kit = journal.kit and later.journal > journal.journal)
    from journal join kit on kit.kit = journal.kit
    left join assignment on assignment.assignment = journal.assignment
    where journal.derived_through < journal.through
    order by journal.through - journal.derived_through"""
# The next Records of a Journal. Some have their Reading: derived early, or before a Record came late.
_RECORDS = """
    select record.sequence, type, version, boot, uptime_ms, body, reading, barred, earliest_ms, latest_ms,
        quality
    from record left join reading using (journal, sequence)
    where journal = ? and sequence > ? and sequence <= ? order by sequence limit ?"""
# What is no Frame: few, and in an index of their own.
_CONTEXT = """
    select type, version, sequence, boot, uptime_ms, body from record
    where journal = ? and sequence > ? and sequence <= ? and type <> 1 order by sequence"""
_RECENT_FRAMES = """
    select version, body from record
    where journal = ? and sequence <= ? and type = 1 order by sequence desc limit ?"""
_ACCEPTED = "select sequence from accepted_bond where journal = ?"
_RECEIPTS = "select boot, uptime_ms, received_ms from receipt where journal = ? and boot > ? order by boot"
# Of each content: the Reading that stands for it, the newest one that has it and when that was taken. What
# stands for its content has it as its key; the others are in an index of their own.
_KNOWN = """
    with same (content, first, reading, latest_ms) as (
        select content, reading, reading, latest_ms from reading
        where key in ({0}) and repeat_of is null and key = content
        union all
        select content, null, reading, latest_ms from reading
        where content in ({0}) and (key <> content or repeat_of is not null))
    select content, min(first), max(reading), max(latest_ms) from same group by content"""
_INSERT_READING = """
    insert into reading (reading, journal, sequence, key, content, repeat_of, possible_repeat, sensor, trust,
        earliest_ms, latest_ms, quality, state, reason, barred, assignment, derived_ms)
    values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_INSERT_OUTBOX = "insert into outbox (reading, patient, state, due_ms) values (?, ?, 'queued', ?)"
_BAR = "update reading set barred = 1 where reading = ? and barred = 0 and state <> 'repeat'"
_FREE = "update reading set barred = 0, reason = null where reading = ?"
_INSERT_QUARANTINE = """
    insert into quarantine (kit, reason, content, received_ms) values (?, ?, ?, ?) on conflict do nothing"""
# What a Sensor sent in this Journal and was taken for a repeat.
_COLLAPSED = """
    select reading.reading, reading.content, record.sequence, record.boot, record.uptime_ms, record.body
    from reading join record on record.journal = reading.journal and record.sequence = reading.sequence
    where reading.journal = ? and reading.sensor = ? and reading.state = 'repeat' and reading.barred = 0
    order by reading.reading"""
_RELEASE = """
    update reading set key = ?, repeat_of = null, possible_repeat = 1, earliest_ms = ?, latest_ms = ?,
        quality = ?, state = ?, reason = ?, assignment = ?
    where reading = ?"""
