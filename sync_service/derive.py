"""Derivation: Records become Readings with a time, a key and a patient; what is placed gets an Outbox row.

Each Journal has a cursor of its own, `derived_through`, that moves in the transaction that stores its
Readings and Outbox rows: kill -9 leaves both or none. Records are taken in sequence order up to what is
stored without a gap. A Frame whose time can't be told yet (its boot has no ANCHOR and has not ended) stops
its Journal until more comes.

What a Frame means depends on the Records before it (context.py). Keys depend on nothing but the Records,
however they are cut into chunks.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from gateway import record
from gateway.errors import FormatError
from gateway.record import Frame
from gateway.sensors import is_measurement
from gateway.timebase import Time
from sync_service.assignments import (
    Assignment,
    bind,
    episode_of_journal,
    of_kit,
    place,
    place_held,
    take_back,
)
from sync_service.context import Journal, Measurement, Moment, frame_of, not_emptied, own_key
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
CONTEXTS = 2_000
"""Journals kept in memory, some 10 kB each; beyond that they are built anew, in milliseconds."""
MAX_BRACKET_MS = 43_200_000
"""Default of the widest time that is delivered: half a day still says which day."""

COUNT_UNDATED = """
    select count(*) from journal join record on record.journal = journal.journal and record.type = 1
    and record.sequence > journal.derived_through and not exists (select 1 from reading
        where reading.journal = record.journal and reading.sequence = record.sequence)"""
"""Frames that are stored and have no Reading yet: their turn comes, or nothing tells when they were taken."""


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
                    self._pass(db, journal, frame_of(version, body), at, derived)
                elif not self._frame(journal, frame_of(version, body), at, found):
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
        reading, sensor, was_barred, *known = derived
        one = journal.measure(frame, at)
        if one is None:
            return
        if one.barred is not None:
            self._bar(db, journal, reading, one.barred)
            return
        if was_barred:
            if one.sensor != sensor:  # described too late: its key is that of nobody's value
                return
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
                taken = journal.time_of(sensor, frame_of(1, body), at)
                placed = placer.place(journal, taken)
                key = own_key(content, journal, at)
                queued += _release(db, reading, key, taken, placed, now_ms)
            if collapsed:
                count(db, journal.kit, "clock disproved", 1)
        return queued


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
    key = one.content if by_content else own_key(one.content, one.journal, one.at)
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
    select record.sequence, type, version, boot, uptime_ms, body, reading, sensor, barred, earliest_ms,
        latest_ms, quality
    from record left join reading using (journal, sequence)
    where journal = ? and sequence > ? and sequence <= ? order by sequence limit ?"""
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
