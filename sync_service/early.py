"""Early derivation: a peeked Frame becomes a Reading before the backlog in front of it has come.

Between what a Journal has stored without a gap (`through`) and the window of a peek lies a gap of which the
Store knows little. A peek that is WHOLE (gateway/message.py) says what can't be in it: a newer SENSOR or bond
EVENT than the peek holds itself. What may be in it: other Frames, reads of the Sensors' clocks, boots. So a
Frame of the window is derived early only where none of that can make a difference to whose it is, nor make
its bound false:

    its boot has an ANCHOR in the Store               a time by anchors, which the gap could only narrow
    its Sensor is known, and barred by no bond        no SENSOR or bond EVENT of it stands behind the Frame in
                                                      the peek: what was there before it would be hidden
    it has no timestamp of a clock that was set       that makes its key, if the clock is believed; and what
                                                      the gap says of the clock decides whether it is
    it was taken since the window began               then whatever repeats it lies in the window too: the
                                                      Sensor was empty at a moment in it, or stores nothing
    it is a value of a patient, not streamed          all else is in no hurry
    the Journal belongs to an Episode already, and    whose a Journal is, its first Reading in order decides
    the whole bound lies in an Assignment of that

So its key is the one that the order would give, also to a service that comes back from a backup and has
forgotten what it has sent. All other Frames stay what they were: kept early, delivered in order. The cursor
passes an early Reading and leaves it, but for its time (`derive.Deriver`). A changed bond the gap can't bring
unless a Kit has said what is not true: then the Reading is taken back.
"""

import sqlite3
from collections.abc import Iterable
from typing import NamedTuple

from gateway import record
from gateway.errors import FormatError
from gateway.reading import CONTINUOUS, NEVER, Reading
from gateway.record import Event, Frame, Sensor, decode_body
from gateway.sensors import can_store, decode, is_measurement
from gateway.timebase import HELD_MS
from sync_service.context import Journal, Measurement, Moment, Source

PEEKS_AT_ONCE = 16
"""In one transaction: each reads the context of its Journal anew, some 10 ms for an old one."""

_BOND_EVENTS = (record.BOND_MADE, record.BOND_CHANGED)


class Peek(NamedTuple):
    """A peek that is WHOLE, and its Journal."""

    journal: int
    first: int  # of the window
    last: int
    after: int  # what came up to here the Kit took for stored
    through: int
    kit: str
    journal_id: bytes
    floor_ms: int
    episode: str | None


class _Row(NamedTuple):
    at: Moment
    body: object  # decoded
    derived: bool  # has its Reading


def measure(db: sqlite3.Connection) -> list[Measurement]:
    """What of the newest peeks can be derived early, in the caller's transaction. Each is looked at once."""
    found: dict[tuple[int, int], Measurement] = {}
    peeks = [Peek(*row) for row in db.execute(_PEEKS, (PEEKS_AT_ONCE,)).fetchall()]
    for peek in peeks:
        if peek.episode is not None and peek.after <= peek.through < peek.last:
            found.update(((peek.journal, one.at.sequence), one) for one in _Window(db, peek).measured())
    db.executemany(_LOOKED_AT, [peek[:3] for peek in peeks])
    return list(found.values())


class _Window:
    """One peek with what the Store knows from before the gap."""

    def __init__(self, db: sqlite3.Connection, peek: Peek) -> None:
        self._first = peek.first
        self._journal = _context(db, peek)
        self._rows = list(_rows(db, peek))
        self._described = _newest_descriptions(self._rows)
        self._began = next(row.at for row in self._rows if row.at.sequence >= peek.first)
        self._emptied: set[int] = set()  # Sensors that were empty at a moment in the window

    def measured(self) -> list[Measurement]:
        """The Frames that can be derived now."""
        found = []
        for row in self._rows:
            if isinstance(row.body, Frame):
                if (one := self._measured(row.body, row)) is not None:
                    found.append(one)
            elif row.at.sequence >= self._first or _describes(row.body):
                self._learn(row)
        return found

    def _learn(self, row: _Row) -> None:
        if isinstance(row.body, Event) and row.body.code == record.SENSOR_DRAINED:
            self._emptied.add(row.body.sensor)
        self._journal.take(row.body, row.at)

    def _measured(self, frame: Frame, row: _Row) -> Measurement | None:
        """The Frame as a Measurement, None where the gap could matter.

        One whose Sensor is barred is not stored early: it would be held.
        """
        source = self._journal.source_of(frame.sensor)
        if source is None or row.derived or row.at.sequence < self._first:
            return None
        if not is_measurement(frame.characteristic) or frame.flags & record.UUID_INDEX:
            return None
        if not self._journal.is_anchored(row.at.boot):
            return None
        if self._described.get(frame.sensor, 0) > row.at.sequence:
            return None
        try:
            reading = decode(frame.characteristic, frame.value)
            assert isinstance(reading, Reading)
            if self._is_sure(source, frame, reading, row.at):
                return self._journal.measure(frame, row.at)
        except FormatError:
            pass  # quarantined when its turn comes
        return None

    def _is_sure(self, source: Source, frame: Frame, reading: Reading, at: Moment) -> bool:
        if reading.trust == NEVER or reading.kind == CONTINUOUS or (reading.timestamp and reading.clock_set):
            return False
        if can_store(frame.characteristic, source.feature):
            return frame.sensor in self._emptied
        began = self._began
        return began.boot < at.boot or at.uptime_ms - began.uptime_ms >= HELD_MS


def _context(db: sqlite3.Connection, peek: Peek) -> Journal:
    """What the Store knows up to the gap; of times also what the peek says. It is used once."""
    journal = Journal(peek.journal, peek.through, peek.kit, peek.journal_id, peek.floor_ms)
    journal.rebuild(db)
    journal.through, journal.episode = peek.last, peek.episode
    journal.look_ahead(db)
    return journal


def _rows(db: sqlite3.Connection, peek: Peek) -> Iterable[_Row]:
    """The Records after the gap's begin, decoded, in order."""
    for type, version, body, derived, *at in db.execute(_BEYOND, (peek.journal, peek.through, peek.last)):
        try:
            yield _Row(Moment(*at), decode_body(type, version, body), bool(derived))
        except FormatError:
            continue  # of a later release, or broken: its turn comes


def _describes(body: object) -> bool:
    """Whether a Record says which Sensor it is that sends."""
    return isinstance(body, Sensor) or (isinstance(body, Event) and body.code in _BOND_EVENTS)


def _newest_descriptions(rows: list[_Row]) -> dict[int, int]:
    """Sensor -> sequence of the newest Record that describes it."""
    return {row.body.sensor: row.at.sequence for row in rows if _describes(row.body)}  # type: ignore[attr-defined]


_PEEKS = """
    select peek.journal, peek.first, peek.last, peek.after_sequence, journal.through, journal.kit,
        journal.journal_id, kit.created_ms, assignment.episode
    from peek join journal using (journal) join kit on kit.kit = journal.kit
    left join assignment on assignment.assignment = journal.assignment
    order by peek.journal, peek.last limit ?"""
_LOOKED_AT = "delete from peek where journal = ? and first = ? and last = ?"
_BEYOND = """
    select record.type, record.version, record.body, reading.reading is not null, record.sequence,
        record.boot, record.uptime_ms
    from record left join reading using (journal, sequence)
    where record.journal = ? and record.sequence > ? and record.sequence <= ? order by record.sequence"""
