"""The right patient (P5): whose a Reading is, and what happens when that is not certain."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from sync_service.assignments import (
    WITHDRAWN,
    Assignment,
    AssignmentError,
    Ended,
    assign,
    end,
    of_kit,
    place,
    place_held,
)
from sync_service.store import connect

HOUR = 3_600_000
KIT = "HW-0001"
FIRST = Assignment(1, "episode-1", "Patient/1", 10 * HOUR, 20 * HOUR)
SECOND = Assignment(2, "episode-2", "Patient/2", 20 * HOUR, None)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A Store with one Kit and one Journal."""
    db = connect(tmp_path / "store.sqlite")
    db.execute("insert into kit (kit, state, created_ms) values (?, 'active', 0)", (KIT,))
    db.execute("insert into journal (journal, kit, journal_id, created_ms) values (1, ?, x'01', 0)", (KIT,))
    yield db
    db.close()


def placed(
    earliest_ms: int | None, latest_ms: int | None, *, bound_to: str | None = None
) -> Assignment | str:
    return place((FIRST, SECOND), bound_to, earliest_ms, latest_ms, max_bracket_ms=6 * HOUR)


def hold(
    db: sqlite3.Connection, reading: int, earliest_ms: int, latest_ms: int, *, barred: bool = False
) -> None:
    """Put a held Reading into the Store."""
    db.execute(
        """insert into reading (reading, journal, sequence, key, content, sensor, trust, earliest_ms,
               latest_ms, quality, state, reason, barred, derived_ms)
           values (?, 1, ?, ?, x'00', 's', 'good', ?, ?, 'synced', 'held', 'why', ?, 0)""",
        (reading, reading, bytes([reading]), earliest_ms, latest_ms, barred),
    )


def given(db: sqlite3.Connection, episode: str, patient: str, start_ms: int) -> int:
    return assign(db, KIT, episode, patient, start_ms, now_ms=99 * HOUR, max_bracket_ms=6 * HOUR)


def rows(db: sqlite3.Connection, table: str, columns: str) -> list[tuple[object, ...]]:
    return db.execute(f"select {columns} from {table} order by 1").fetchall()


@pytest.mark.parametrize(
    ("earliest", "latest", "expected"),
    [
        (10 * HOUR, 10 * HOUR, FIRST),  # the start is inside
        (10 * HOUR - 1, 10 * HOUR + 1, None),  # begins before
        (20 * HOUR - 2, 20 * HOUR - 1, FIRST),
        (20 * HOUR - 1, 20 * HOUR, None),  # the end is outside: over the hand-over
        (20 * HOUR, 20 * HOUR, SECOND),
        (99 * HOUR, 99 * HOUR, SECOND),  # no end yet
        (9 * HOUR, 9 * HOUR, None),
    ],
)
def test_only_an_assignment_that_holds_the_whole_bound_gets_the_reading(
    earliest: int, latest: int, expected: Assignment | None
) -> None:
    found = placed(earliest, latest)
    assert found == expected if expected else isinstance(found, str)


def test_a_bracket_too_wide_is_held_even_inside_one_assignment() -> None:
    assert placed(20 * HOUR, 26 * HOUR) == SECOND
    assert placed(20 * HOUR, 26 * HOUR + 1) == "when it was taken is known to 360 minutes only"


@pytest.mark.parametrize(("earliest", "latest"), [(None, None), (None, 1), (1, None)])
def test_an_unknown_time_is_held(earliest: int | None, latest: int | None) -> None:
    assert placed(earliest, latest) == "when it was taken is not known"


def test_a_journal_of_another_episode_is_held() -> None:
    assert placed(11 * HOUR, 11 * HOUR, bound_to="episode-1") == FIRST
    assert isinstance(placed(21 * HOUR, 21 * HOUR, bound_to="episode-1"), str)


def test_a_kit_that_came_back_to_the_same_episode_is_still_its_own() -> None:
    again = SECOND._replace(episode="episode-1")
    assert place((FIRST, again), "episode-1", 21 * HOUR, 21 * HOUR, max_bracket_ms=HOUR) == again


def test_assignments_follow_one_another(db: sqlite3.Connection) -> None:
    assert given(db, "episode-1", "Patient/1", 10 * HOUR) == 1
    assert end(db, KIT, 20 * HOUR) == Ended(0, 0)
    assert given(db, "episode-2", "Patient/2", 20 * HOUR) == 2
    assert of_kit(db, KIT) == [FIRST, SECOND]


def test_a_kit_that_is_with_somebody_cannot_be_given_away(db: sqlite3.Connection) -> None:
    given(db, "episode-1", "Patient/1", 10 * HOUR)
    with pytest.raises(AssignmentError, match="still with Episode episode-1"):
        given(db, "episode-2", "Patient/2", 30 * HOUR)
    end(db, KIT, 20 * HOUR)
    with pytest.raises(AssignmentError, match="was with Episode episode-1 at that time"):
        given(db, "episode-2", "Patient/2", 20 * HOUR - 1)


def test_an_unknown_or_revoked_kit_cannot_be_given(db: sqlite3.Connection) -> None:
    with pytest.raises(AssignmentError, match="not known"):
        assign(db, "HW-9999", "e", "Patient/1", 0, now_ms=0, max_bracket_ms=0)
    db.execute("update kit set state = 'revoked'")
    with pytest.raises(AssignmentError, match="is revoked"):
        given(db, "e", "Patient/1", 0)


@pytest.mark.parametrize("patient", ["1", "Patient/", "Device/1", ""])
def test_the_patient_is_a_reference_of_the_hub(db: sqlite3.Connection, patient: str) -> None:
    with pytest.raises(AssignmentError, match="Patient/<id>"):
        given(db, "e", patient, 0)


def test_an_end_needs_an_assignment_and_comes_after_its_start(db: sqlite3.Connection) -> None:
    with pytest.raises(AssignmentError, match="with nobody"):
        end(db, KIT, HOUR)
    given(db, "episode-1", "Patient/1", 10 * HOUR)
    with pytest.raises(AssignmentError, match="before it starts"):
        end(db, KIT, 10 * HOUR)


def test_a_new_assignment_releases_what_was_held_for_want_of_it(db: sqlite3.Connection) -> None:
    hold(db, 1, 9 * HOUR, 9 * HOUR)
    hold(db, 2, 11 * HOUR, 12 * HOUR)
    hold(db, 3, 11 * HOUR, 12 * HOUR, barred=True)
    given(db, "episode-1", "Patient/1", 10 * HOUR)
    assert rows(db, "reading", "reading, state, assignment") == [
        (1, "held", None),
        (2, "queued", 1),
        (3, "held", None),
    ]
    assert rows(db, "outbox", "reading, patient, state, due_ms") == [(2, "Patient/1", "queued", 99 * HOUR)]
    assert rows(db, "journal", "assignment") == [(1,)]


def test_the_first_placed_reading_binds_its_journal(db: sqlite3.Connection) -> None:
    given(db, "episode-1", "Patient/1", 10 * HOUR)
    end(db, KIT, 20 * HOUR)
    given(db, "episode-2", "Patient/2", 20 * HOUR)
    hold(db, 1, 11 * HOUR, 11 * HOUR)
    hold(db, 2, 21 * HOUR, 21 * HOUR)
    assert place_held(db, KIT, now_ms=0, max_bracket_ms=HOUR) == 1
    assert rows(db, "outbox", "reading, patient") == [(1, "Patient/1")]
    assert "another Episode" in str(rows(db, "reading", "reading, reason")[1][1])


def test_an_end_in_the_past_takes_back_what_was_taken_later_delivered_or_not(
    db: sqlite3.Connection,
) -> None:
    for reading, hour in ((1, 11), (2, 15), (3, 16)):
        hold(db, reading, hour * HOUR, hour * HOUR)
    given(db, "episode-1", "Patient/1", 10 * HOUR)
    db.execute("update outbox set state = 'done' where reading = 3")
    assert end(db, KIT, 15 * HOUR) == Ended(withdrawn=1, delivered=1)
    assert rows(db, "outbox", "reading, kind, state, patient") == [
        (1, "create", "queued", "Patient/1"),
        (2, "retract", "queued", "Patient/1"),
        (3, "retract", "queued", "Patient/1"),
    ]
    assert rows(db, "reading", "reading, state, reason")[1:] == [
        (2, "held", WITHDRAWN),
        (3, "held", WITHDRAWN),
    ]


def test_a_journal_is_free_again_when_all_that_bound_it_was_taken_back(db: sqlite3.Connection) -> None:
    given(db, "episode-1", "Patient/1", 10 * HOUR)
    hold(db, 1, 15 * HOUR, 15 * HOUR)
    place_held(db, KIT, now_ms=0, max_bracket_ms=HOUR)
    end(db, KIT, 12 * HOUR)
    given(db, "episode-2", "Patient/2", 12 * HOUR)
    assert rows(db, "reading", "state, assignment") == [("queued", 2)]
    assert rows(db, "outbox", "kind, patient") == [("retract", "Patient/1")], "first taken from the one"
