"""Re-dating: what becomes known of a time after its Reading was derived. Holds P5 and P6 for what is there.

An ANCHOR, the end of a boot or a read of a Sensor's clock bears on Readings before it. What such news can
concern is dated again: a Reading that the Hub does not have yet simply gets the better time, and is placed
anew. The key never changes.

A Reading that the Hub has is left alone while what it was told holds: a bound that has become narrower is no
reason to change a clinical record. The rule:

    the new bound lies inside the delivered one      nothing
    it reaches outside, in the same Assignment       the Observations are sent again, amended; one that waits
                                                     still may be there by an answer that was lost
    it lies in another Assignment, or in none        they are retracted from the patient (entered-in-error);
                                                     then the Reading goes to the right one, or is held

Whatever may have been sent to a patient is retracted by asking the Hub for it, since an answer that was lost,
or a Bundle under way, tells nothing. Only after that is the Reading created anew.
"""

import sqlite3
from collections.abc import Callable
from typing import NamedTuple, Protocol

from gateway.timebase import Time
from sync_service.assignments import Assignment, episode_of_journal, give, hold, take_back, unbind
from sync_service.store import count

ROUNDING_MS = 50
"""Each ANCHOR that comes between two others may round a bound outwards by 2 ms; a handful come late."""
MOVED = "its time has been corrected: it is not of the patient it was taken for"


class News(NamedTuple):
    """Which Readings of a Journal may have another time now."""

    first: int  # sequences
    last: int
    all: bool  # ANCHORs exclude each other: no time is sure. Else only those that were known badly

    def joined(self, other: "News") -> "News":
        """Both."""
        return News(min(self.first, other.first), max(self.last, other.last), self.all or other.all)


class Journal(Protocol):
    """What re-dating needs of the context of a Journal (`derive.Journal`)."""

    number: int
    kit: str
    episode: str | None

    def time_again(
        self, identity: str, body: bytes, sequence: int, boot: int, uptime_ms: int
    ) -> Time | None: ...


Place = Callable[[Time], Assignment | str]
"""Whose a Reading of the Journal is, or the reason to hold it."""


class Dated(NamedTuple):
    """A Reading and the time that it has had so far."""

    reading: int
    sensor: str
    earliest_ms: int | None
    latest_ms: int | None
    quality: str | None
    assignment: int | None
    body: bytes
    sequence: int
    boot: int
    uptime_ms: int
    delivery: str | None  # state of its Outbox row
    barred: int

    def taken_again(self, journal: Journal) -> Time | None:
        """Its time as it is known now; None when that changes nothing."""
        taken = journal.time_again(self.sensor, self.body, self.sequence, self.boot, self.uptime_ms)
        if taken is None or taken == (self.earliest_ms, self.latest_ms, self.quality):
            return None
        return None if self.delivery == "done" and self.holds(taken) else taken

    def holds(self, taken: Time) -> bool:
        """Whether the time that it has had so far is still true."""
        if self.earliest_ms is None or self.latest_ms is None:
            return False
        return bool(
            self.earliest_ms - ROUNDING_MS <= taken.earliest_ms
            and taken.latest_ms <= self.latest_ms + ROUNDING_MS
        )


def redate(db: sqlite3.Connection, journal: Journal, news: News, place: Place, now_ms: int) -> int:
    """Date again what the news can concern; return for how many Readings the Outbox has something to do."""
    rows = db.execute(_DATED, (journal.number, news.first, news.last, news.all)).fetchall()
    again = [(one, taken) for one in map(Dated._make, rows) if (taken := one.taken_again(journal))]
    if not again:
        return 0
    count(db, journal.kit, "dated again", len(again))
    db.executemany(_DATE, [(*taken, one.reading) for one, taken in again])
    again = [(one, taken) for one, taken in again if not one.barred]  # whose those are no time can tell
    moved = [(one, taken) for one, taken in again if not _stays(one, place(taken))]
    stayed = {one.reading for one, _ in again} - {one.reading for one, _ in moved}
    amended = [(now_ms, one.reading) for one, _ in again if one.reading in stayed and one.delivery == "done"]
    db.executemany(_AMEND, amended)
    doubtful = [(one.reading,) for one, taken in again if one.reading in stayed and not one.holds(taken)]
    db.executemany(_LOOK_FIRST, doubtful)
    return len(amended) + _move(db, journal, moved, place, now_ms)


def _stays(one: Dated, placed: Assignment | str) -> bool:
    return isinstance(placed, Assignment) and placed.assignment == one.assignment


def _move(
    db: sqlite3.Connection, journal: Journal, moved: list[tuple[Dated, Time]], place: Place, now_ms: int
) -> int:
    """Place anew what was held, and what can't stay where it is once it has been taken from there."""
    taken_back = [one.reading for one, _ in moved if one.assignment is not None]
    if taken_back:
        count(db, journal.kit, "moved by its time", len(taken_back))
        take_back(db, taken_back, MOVED)
        for assignment in {one.assignment for one, _ in moved if one.assignment is not None}:
            unbind(db, assignment)
        journal.episode = episode_of_journal(db, journal.number)
    queued = len(taken_back)
    for one, taken in moved:
        placed = place(taken)
        if isinstance(placed, str):
            hold(db, one.reading, placed)
        else:
            queued += give(db, one.reading, placed, now_ms)
    return queued


# Not a repeat: its time says nothing. What is held for its Sensor's sake is shown with its time.
_DATED = """
    select reading.reading, reading.sensor, reading.earliest_ms, reading.latest_ms, reading.quality,
        reading.assignment, record.body, record.sequence, record.boot, record.uptime_ms, outbox.state,
        reading.barred
    from reading
    join record on record.journal = reading.journal and record.sequence = reading.sequence
    left join outbox using (reading)
    where reading.journal = ? and reading.sequence between ? and ?
        and reading.state <> 'repeat'
        and (? or reading.state = 'held' or reading.quality in ('bracketed', 'extrapolated'))
    order by reading.sequence"""
_DATE = "update reading set earliest_ms = ?, latest_ms = ?, quality = ? where reading = ?"
_AMEND = """
    update outbox set kind = 'amend', state = 'queued', attempts = 0, due_ms = ?, answer = null
    where reading = ?"""
# Its answer may be lost: a conditional create would find what was sent with the time before, and leave it so.
_LOOK_FIRST = """
    update outbox set kind = 'amend' where reading = ? and kind = 'create' and state <> 'done'"""
