"""Whose Reading is it: a Kit belongs to one Episode during [start, end). Holds P5, the right patient.

`place` decides; everything else keeps its table and, when that changes, asks it again for what was held.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

WITHDRAWN = "the Assignment was ended before the Reading was taken"


class AssignmentError(Exception):
    """An Assignment that can't be: the sentence is for the operator."""


class Assignment(NamedTuple):
    """A Kit with one patient. `end_ms` None: still there."""

    assignment: int
    episode: str
    patient: str
    start_ms: int
    end_ms: int | None


class Ended(NamedTuple):
    """What an end in the past meant for Readings already placed."""

    withdrawn: int  # taken back before they were delivered; now held
    delivered: int  # at the Hub already: retracted there, and held


def place(
    assignments: Iterable[Assignment],
    bound_to: str | None,
    earliest_ms: int | None,
    latest_ms: int | None,
    *,
    max_bracket_ms: int,
) -> Assignment | str:
    """The one Assignment that the whole bound of the time lies in, or the reason to hold the Reading.

    `bound_to` is the Episode that the Journal belongs to, None while it has none.
    """
    if earliest_ms is None or latest_ms is None:
        return "when it was taken is not known"
    if latest_ms - earliest_ms > max_bracket_ms:
        return f"when it was taken is known to {(latest_ms - earliest_ms) // 60_000} minutes only"
    for one in assignments:
        if one.start_ms <= earliest_ms and (one.end_ms is None or latest_ms < one.end_ms):
            if bound_to not in (None, one.episode):
                return "the Journal belongs to another Episode: the Kit was not wiped"
            return one
    return "no Assignment of the Kit holds the whole time in which it was taken"


_OF_KIT = (
    "select assignment, episode, patient, start_ms, end_ms from assignment where kit = ? order by start_ms"
)


def of_kit(db: sqlite3.Connection, kit: str) -> list[Assignment]:
    """Every Assignment of the Kit, oldest first."""
    return [Assignment(*row) for row in db.execute(_OF_KIT, (kit,))]


_EPISODE_OF_JOURNAL = """
    select assignment.episode from journal join assignment using (assignment) where journal.journal = ?"""


def episode_of_journal(db: sqlite3.Connection, journal: int) -> str | None:
    """The Episode that the Journal belongs to, set by its first placed Reading."""
    row: tuple[str] | None = db.execute(_EPISODE_OF_JOURNAL, (journal,)).fetchone()
    return row[0] if row else None


def bind(db: sqlite3.Connection, journal: int, assignment: int) -> None:
    """The Journal belongs to this Assignment's Episode from now on, if to none before."""
    db.execute(
        "update journal set assignment = ? where journal = ? and assignment is null", (assignment, journal)
    )


def assign(
    db: sqlite3.Connection,
    kit: str,
    episode: str,
    patient: str,
    start_ms: int,
    *,
    now_ms: int,
    max_bracket_ms: int,
) -> int:
    """Give the Kit to a patient from `start_ms`; return the Assignment. Queues the held Readings it explains.

    Raises AssignmentError: Kit unknown or revoked, or with somebody at any time from then on.
    """
    state = db.execute("select state from kit where kit = ?", (kit,)).fetchone()
    if state is None:
        raise AssignmentError(f"Kit {kit} is not known: provision it first")
    if state[0] != "active":
        raise AssignmentError(f"Kit {kit} is {state[0]}: it can't be given to a patient")
    if not patient.startswith("Patient/") or patient == "Patient/":
        raise AssignmentError("the patient has to be the Hub's reference, 'Patient/<id>'")
    for other in of_kit(db, kit):
        if other.end_ms is None:
            raise AssignmentError(f"Kit {kit} is still with Episode {other.episode}: end that first")
        if other.end_ms > start_ms:
            raise AssignmentError(f"Kit {kit} was with Episode {other.episode} at that time")
    insert = (
        "insert into assignment (kit, episode, patient, start_ms) values (?, ?, ?, ?) returning assignment"
    )
    (number,) = db.execute(insert, (kit, episode, patient, start_ms)).fetchone()
    place_held(db, kit, now_ms=now_ms, max_bracket_ms=max_bracket_ms)
    return int(number)


_TO_WITHDRAW = """
    select reading.reading, outbox.state from reading join outbox using (reading)
    where reading.assignment = ? and reading.latest_ms >= ?"""
_HOLD = "update reading set state = 'held', reason = ?, assignment = null where reading = ?"
# Due before anything else of this patient.
_RETRACT = """
    update outbox set kind = 'retract', state = 'queued', attempts = 0, due_ms = 0, answer = null
    where reading = ?"""
# A Journal that belonged to the Episode only by what has just been taken back. What it still has may be of
# another Assignment of the same Episode.
_UNBIND = """
    update journal set assignment = (
        select max(reading.assignment) from reading where reading.journal = journal.journal)
    where assignment = ? and not exists (
        select 1 from reading
        where reading.journal = journal.journal and reading.assignment = journal.assignment)"""


def end(db: sqlite3.Connection, kit: str, end_ms: int) -> Ended:
    """End the Kit's open Assignment. Raises AssignmentError.

    Readings placed in it but taken later are held again (they may be the next patient's), and retracted from
    this patient at the Hub.
    """
    open_one = next((one for one in of_kit(db, kit) if one.end_ms is None), None)
    if open_one is None:
        raise AssignmentError(f"Kit {kit} is with nobody")
    if end_ms <= open_one.start_ms:
        raise AssignmentError("an Assignment can't end before it starts")
    db.execute("update assignment set end_ms = ? where assignment = ?", (end_ms, open_one.assignment))
    later = db.execute(_TO_WITHDRAW, (open_one.assignment, end_ms)).fetchall()
    take_back(db, [reading for reading, _ in later], WITHDRAWN)
    unbind(db, open_one.assignment)
    delivered = sum(state == "done" for _, state in later)
    return Ended(len(later) - delivered, delivered)


def take_back(db: sqlite3.Connection, readings: Sequence[int], reason: str) -> None:
    """Hold Readings that were placed wrongly, and have the Outbox retract them from their patient.

    Also those that the Hub has not confirmed: an answer may be lost, a Bundle under way.
    """
    for reading in readings:
        hold(db, reading, reason)
    db.executemany(_RETRACT, [(reading,) for reading in readings])


def hold(db: sqlite3.Connection, reading: int, reason: str) -> None:
    """It is nobody's for now."""
    db.execute(_HOLD, (reason, reading))


def unbind(db: sqlite3.Connection, assignment: int) -> None:
    """Free the Journals that belonged to this Assignment's Episode only by what has been taken back."""
    db.execute(_UNBIND, (assignment,))


_HELD = """
    select reading.reading, reading.journal, reading.earliest_ms, reading.latest_ms
    from reading join journal using (journal)
    where reading.state = 'held' and reading.barred = 0 and journal.kit = ?
    order by reading.reading"""
_GIVE = "update reading set state = 'queued', reason = null, assignment = ? where reading = ?"
# A row that is there retracts it from another patient first; `outbox.settle` goes on from there.
_QUEUE = """
    insert into outbox (reading, patient, state, due_ms) values (?, ?, 'queued', ?) on conflict do nothing"""


def place_held(db: sqlite3.Connection, kit: str, *, now_ms: int, max_bracket_ms: int) -> int:
    """Try again to place what is held for the Kit; return how many Readings were queued."""
    assignments = of_kit(db, kit)
    queued = 0
    for reading, journal, earliest_ms, latest_ms in db.execute(_HELD, (kit,)).fetchall():
        bound_to = episode_of_journal(db, journal)
        found = place(assignments, bound_to, earliest_ms, latest_ms, max_bracket_ms=max_bracket_ms)
        if isinstance(found, str):
            db.execute("update reading set reason = ? where reading = ?", (found, reading))
            continue
        bind(db, journal, found.assignment)
        give(db, reading, found, now_ms)
        queued += 1
    return queued


def give(db: sqlite3.Connection, reading: int, to: Assignment, now_ms: int) -> int:
    """A Reading that was held belongs there; return how many rows the Outbox got: 1, or 0 for one it had."""
    db.execute(_GIVE, (to.assignment, reading))
    return db.execute(_QUEUE, (reading, to.patient, now_ms)).rowcount
