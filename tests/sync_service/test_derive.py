"""Records become Readings: each with its key, its time and its patient, or held with the reason."""

import asyncio
import sqlite3
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit_journal import BIRTH_MS, BP, CONTINUOUS, CUFF, DAY, HOUR, MINUTE, OXIMETER, SPOT, KitJournal, spot

from gateway import record
from sync_service import derive, life
from sync_service.assignments import assign
from sync_service.context import BOND_CHANGED, NO_SENSOR, NOT_EMPTIED, content_of, sensor_identity
from sync_service.derive import Deriver
from sync_service.life import LifeError
from sync_service.sensor_bonds import accept
from sync_service.store import Store, connect

NOW = BIRTH_MS + 30 * DAY
FAILED_BP = bytes.fromhex("16FF07FF07FF07E80706170E230AFF070000")
GOOD_BP = bytes.fromhex("04780050006000" + "4800")
NOON = (2026, 7, 10, 12, 0, 0)
READING = "reading, state, possible_repeat, repeat_of"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    db = connect(tmp_path / "store.sqlite")
    yield db
    db.close()


@pytest.fixture
def kit(db: sqlite3.Connection) -> KitJournal:
    """A Kit with two Sensors that is with Patient/1 from its first boot on."""
    kit = KitJournal()
    kit.create(db)
    given(db, kit.kit)
    kit.begin()
    return kit


def given(
    db: sqlite3.Connection, kit: str, start_ms: int = BIRTH_MS - HOUR, patient: str = "Patient/1"
) -> None:
    assign(db, kit, f"episode of {patient}", patient, start_ms, now_ms=NOW, max_bracket_ms=DAY)


def derived(db: sqlite3.Connection, kit: KitJournal, deriver: Deriver | None = None) -> Deriver:
    """Store what the Kit has and derive until nothing is left."""
    kit.store(db)
    deriver = deriver or Deriver()
    while deriver.chunk(db, now_ms=NOW).records:
        pass
    return deriver


def readings(db: sqlite3.Connection, columns: str) -> list[tuple[Any, ...]]:
    return db.execute(f"select {columns} from reading order by reading").fetchall()


def queued(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return db.execute("select reading, patient from outbox order by reading").fetchall()


def cursor(db: sqlite3.Connection) -> tuple[int, int]:
    row: tuple[int, int] = db.execute("select derived_through, through from journal").fetchone()
    return row


def test_a_frame_becomes_a_reading_with_its_outbox_row(db: sqlite3.Connection, kit: KitJournal) -> None:
    kit.frame(OXIMETER, SPOT, spot())
    derived(db, kit)
    ((sensor, trust, earliest, latest, state),) = readings(db, "sensor, trust, earliest_ms, latest_ms, state")
    assert (sensor, trust, state) == ("serial://501231", "good", "queued")
    assert earliest <= BIRTH_MS + MINUTE <= latest
    assert queued(db) == [(1, "Patient/1")]
    assert cursor(db) == (kit.sequence, kit.sequence)


def test_the_same_value_with_the_same_timestamp_is_a_repeat(db: sqlite3.Connection, kit: KitJournal) -> None:
    deriver = Deriver()
    for _ in range(2):  # in one chunk, then against what is stored
        kit.frame(OXIMETER, SPOT, spot(at=NOON))
        kit.frame(OXIMETER, SPOT, spot(at=NOON))
        derived(db, kit, deriver)
    assert readings(db, READING) == [
        (1, "queued", 0, None),
        (2, "repeat", 0, 1),
        (3, "repeat", 0, 1),
        (4, "repeat", 0, 1),
    ]
    assert queued(db) == [(1, "Patient/1")]


def test_a_new_value_that_comes_again_from_storage_is_a_repeat(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    # Its confirmation was lost: it was stored and came with another bit (found by the simulation).
    new = spot(at=NOON)
    kit.frame(OXIMETER, SPOT, new)
    kit.frame(OXIMETER, SPOT, new[:-1] + b"\x03")
    derived(db, kit)
    assert readings(db, READING) == [(1, "queued", 0, None), (2, "repeat", 0, 1)]


def test_the_same_value_without_a_time_is_two_readings_the_second_a_possible_repeat(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    deriver = Deriver()
    kit.frame(OXIMETER, SPOT, spot())
    derived(db, kit, deriver)
    kit.frame(OXIMETER, SPOT, spot())
    kit.frame(OXIMETER, SPOT, spot(98))
    derived(db, kit, deriver)
    assert readings(db, READING) == [
        (1, "queued", 0, None),
        (2, "queued", 1, None),
        (3, "queued", 0, None),
    ]
    assert len(set(readings(db, "key"))) == 3


def test_the_same_value_a_day_later_is_no_possible_repeat(db: sqlite3.Connection, kit: KitJournal) -> None:
    kit.frame(OXIMETER, SPOT, spot())
    kit.uptime_ms += DAY + 3 * MINUTE
    kit.anchor()
    kit.frame(OXIMETER, SPOT, spot())
    derived(db, kit)
    assert readings(db, "possible_repeat") == [(0,), (0,)]


def test_a_value_after_lost_records_is_a_possible_repeat_until_its_sensor_has_been_empty(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    # It was sent and not confirmed, delivered, forgotten by a Store that came back from its backup, and had
    # rotted in flash before it was sent again (found by the simulation).
    kit.lost(record.TORN)
    kit.frame(OXIMETER, SPOT, spot(90))
    kit.lost(record.ROTTEN)
    kit.frame(OXIMETER, SPOT, spot(91))
    kit.frame(OXIMETER, SPOT, spot(91, at=NOON))  # its key tells a repeat
    kit.frame(OXIMETER, CONTINUOUS, bytes.fromhex("0061004800"), record.NOTIFIED)
    kit.event(record.SENSOR_DRAINED, OXIMETER)
    kit.frame(OXIMETER, SPOT, spot(92))
    derived(db, kit)
    assert readings(db, "possible_repeat") == [(0,), (1,), (0,), (0,), (0,)]


def test_streamed_values_are_never_possible_repeats(db: sqlite3.Connection, kit: KitJournal) -> None:
    for _ in range(3):
        kit.frame(OXIMETER, CONTINUOUS, bytes.fromhex("0061004800"), record.NOTIFIED)
    derived(db, kit)
    assert readings(db, READING) == [(n, "queued", 0, None) for n in (1, 2, 3)]


def test_a_value_of_a_clock_that_is_not_set_is_kept_apart_by_its_place(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    for _ in range(2):
        kit.frame(OXIMETER, SPOT, spot(at=(2010, 1, 1, 0, 0, 5)))
    derived(db, kit)
    assert [state for state, _ in readings(db, "state, key")] == ["queued", "queued"]


def test_equal_values_of_two_sensors_are_two_readings(db: sqlite3.Connection, kit: KitJournal) -> None:
    kit.sensor(3, (record.MANUFACTURER, b"Other"), (record.SERIAL, b"501231"))
    kit.frame(OXIMETER, SPOT, spot(at=NOON))
    kit.frame(3, SPOT, spot(at=NOON))
    derived(db, kit)
    assert readings(db, "repeat_of") == [(None,), (None,)]


def test_one_timestamp_with_two_values_disproves_the_clock_and_frees_what_was_collapsed(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    deriver = Deriver()
    kit.frame(OXIMETER, SPOT, spot(97, at=NOON))
    kit.frame(OXIMETER, SPOT, spot(97, at=NOON))
    derived(db, kit, deriver)
    assert readings(db, "state") == [("queued",), ("repeat",)]
    kit.frame(OXIMETER, SPOT, spot(91, at=NOON))
    derived(db, kit, deriver)
    assert readings(db, READING) == [
        (1, "queued", 0, None),
        (2, "queued", 1, None),
        (3, "queued", 0, None),
    ]
    kit.frame(OXIMETER, SPOT, spot(97, at=NOON))
    derived(db, kit, deriver)
    assert readings(db, READING)[3] == (4, "queued", 1, None), "such a clock tells nothing apart any more"
    assert [reading for reading, _ in queued(db)] == [1, 2, 3, 4]


def test_two_reads_of_a_clock_that_stands_still_free_what_was_collapsed(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    deriver = Deriver()
    for _ in range(2):
        kit.clock(OXIMETER, record.CLOCK_BEFORE, NOON)
        kit.frame(OXIMETER, SPOT, spot(97, at=NOON))
        derived(db, kit, deriver)
        kit.uptime_ms += HOUR
        kit.anchor()
    assert readings(db, READING) == [(1, "queued", 0, None), (2, "queued", 1, None)]
    assert db.execute("select n from counter where name = 'clock disproved'").fetchone() is None
    kit.frame(OXIMETER, SPOT, spot(97, at=NOON))
    derived(db, kit, Deriver())
    assert readings(db, READING)[2] == (3, "queued", 1, None)


def test_a_timestamp_is_corrected_by_the_reads_around_it(db: sqlite3.Connection, kit: KitJournal) -> None:
    kit.clock(CUFF, record.CLOCK_BEFORE, (2026, 7, 9, 23, 0, 0))  # 61 minutes slow
    kit.uptime_ms += 2 * HOUR
    kit.anchor()
    kit.clock(CUFF, record.CLOCK_BEFORE, (2026, 7, 10, 1, 0, 0))
    kit.uptime_ms += 5_000
    stamped = GOOD_BP[:7] + struct.pack("<HBBBBB", 2026, 7, 10, 0, 30, 0) + GOOD_BP[7:]
    kit.frame(CUFF, BP, bytes([GOOD_BP[0] | 2]) + stamped[1:])
    derived(db, kit)
    ((earliest, latest, quality),) = readings(db, "earliest_ms, latest_ms, quality")
    assert quality == "sensor_corrected"
    assert earliest <= BIRTH_MS + 91 * MINUTE <= latest and latest - earliest < 10_000


@pytest.mark.parametrize(
    ("reason", "quality"), [(record.ROTTEN, "bracketed"), (record.TORN, "sensor_corrected")]
)
def test_where_records_are_lost_a_clock_may_have_been_set(
    db: sqlite3.Connection, kit: KitJournal, reason: int, quality: str
) -> None:
    kit.clock(CUFF, record.CLOCK_BEFORE, (2026, 7, 9, 23, 0, 0))
    kit.lost(reason)
    kit.uptime_ms += 2 * HOUR
    kit.anchor()
    kit.clock(CUFF, record.CLOCK_BEFORE, (2026, 7, 10, 1, 0, 0))
    stamped = GOOD_BP[:7] + struct.pack("<HBBBBB", 2026, 7, 10, 0, 30, 0) + GOOD_BP[7:]
    kit.frame(CUFF, BP, bytes([GOOD_BP[0] | 2]) + stamped[1:])
    derived(db, kit)
    assert readings(db, "quality") == [(quality,)]


def test_the_disproof_is_known_again_after_a_restart(db: sqlite3.Connection, kit: KitJournal) -> None:
    kit.frame(OXIMETER, SPOT, spot(97, at=NOON))
    kit.frame(OXIMETER, SPOT, spot(91, at=NOON))
    derived(db, kit)
    kit.frame(OXIMETER, SPOT, spot(97, at=NOON))
    derived(db, kit, Deriver())
    assert readings(db, READING)[2] == (3, "queued", 1, None)


def test_a_value_has_the_same_key_when_later_records_disprove_its_clock(
    db: sqlite3.Connection, kit: KitJournal, tmp_path: Path
) -> None:
    # A service that comes back from a backup derives again what it has sent, and knows more (simulation).
    kit.clock(OXIMETER, record.CLOCK_BEFORE, NOON)
    kit.boot, kit.uptime_ms = 2, 0
    kit.clock(OXIMETER, record.CLOCK_BEFORE, (2026, 7, 10, 20, 0, 0))
    kit.frame(OXIMETER, SPOT, spot(97, at=(2026, 7, 10, 20, 0, 0)))
    kit.boot = 3
    kit.event(record.BOOTED, 0)
    receipt = "insert into receipt (journal, boot, uptime_ms, received_ms) values (1, 3, 0, ?)"
    db.execute(receipt, (BIRTH_MS + 10 * HOUR,))
    derived(db, kit)
    assert db.execute("select n from counter where name = 'clock disproved'").fetchone() is None
    ((key, content),) = readings(db, "key, content")
    assert key == content
    kit.anchor(BIRTH_MS + HOUR)  # the clock went on by 8 hours in less than one
    derived(db, kit)
    kit.uptime_ms += MINUTE
    kit.frame(OXIMETER, SPOT, spot(97, at=(2026, 7, 10, 20, 0, 0)))
    derived(db, kit)
    assert readings(db, "repeat_of, possible_repeat") == [(None, 0), (None, 1)], "not believed any more"
    live = readings(db, "key, possible_repeat")
    db.execute("delete from outbox")
    db.execute("delete from reading")
    db.execute("update journal set derived_through = 0")
    derived(db, kit)
    assert readings(db, "key, possible_repeat") == live


def test_a_disproof_without_a_frame_is_acted_upon_before_a_restart_forgets_it(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    deriver = Deriver()
    kit.clock(OXIMETER, record.CLOCK_BEFORE, NOON)
    kit.frame(OXIMETER, SPOT, spot(97, at=NOON))
    kit.frame(OXIMETER, SPOT, spot(97, at=NOON))
    derived(db, kit, deriver)
    assert readings(db, "state") == [("queued",), ("repeat",)]
    kit.uptime_ms += HOUR
    kit.anchor()
    kit.clock(OXIMETER, record.CLOCK_BEFORE, NOON)  # it stands still, and nothing is sent
    derived(db, kit, deriver)
    kit.frame(OXIMETER, SPOT, spot(93))
    derived(db, kit, Deriver())
    assert readings(db, "state") == [("queued",), ("queued",), ("queued",)]


def test_a_failed_measurement_goes_to_the_hub_as_what_it_is(db: sqlite3.Connection, kit: KitJournal) -> None:
    kit.frame(CUFF, BP, FAILED_BP)
    derived(db, kit)
    assert readings(db, "trust, state") == [("never", "queued")]


def test_the_pressure_in_the_cuff_and_unknown_characteristics_are_no_readings(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    kit.frame(CUFF, 0x2A36, bytes.fromhex("007800FF07FF07"), record.NOTIFIED)
    kit.frame(CUFF, 0x2AFF, b"\x01")
    kit.frame(CUFF, 0, GOOD_BP, record.INDICATED | record.UUID_INDEX)
    derived(db, kit)
    assert readings(db, "reading") == []
    assert cursor(db)[0] == kit.sequence


def test_what_cannot_be_decoded_is_quarantined_and_stops_nothing(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    kit.frame(CUFF, BP, GOOD_BP[:3])
    kit.add(record.FRAME, b"\x01")
    kit.add(record.FRAME, b"?", version=9)
    kit.add(record.SENSOR_CLOCK, b"\x02")
    kit.frame(CUFF, BP, GOOD_BP)
    derived(db, kit)
    assert len(readings(db, "reading")) == 1
    assert db.execute("select count(*) from quarantine").fetchone() == (4,)
    assert db.execute("select n from counter where name = 'not derived'").fetchone() == (4,)


def test_a_frame_without_its_sensor_is_held_and_never_guessed(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    kit.frame(7, SPOT, spot())
    derived(db, kit)
    assert readings(db, "state, reason, barred") == [("held", NO_SENSOR, 1)]
    assert queued(db) == []


def test_readings_after_a_changed_bond_are_held_until_a_bond_is_made(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    kit.event(record.BOND_CHANGED, OXIMETER)
    kit.frame(OXIMETER, SPOT, spot(97))
    kit.frame(CUFF, BP, GOOD_BP)
    kit.event(record.BOND_MADE, OXIMETER)
    kit.frame(OXIMETER, SPOT, spot(98))
    derived(db, kit)
    assert readings(db, "state, reason") == [("held", BOND_CHANGED), ("queued", None), ("queued", None)]


def test_a_description_that_comes_late_releases_no_value_of_nobody(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    gap = kit.lost(record.ROTTEN)
    kit.frame(7, SPOT, spot(97))
    derived(db, kit)
    described = KitJournal()
    described.sensor(7, (record.SERIAL, b"777777"))
    ((*_, body, _),) = described._rows
    db.execute("update record set type = ?, body = ? where sequence = ?", (record.SENSOR, body, gap))
    db.execute("update journal set derived_through = ?", (gap - 1,))
    kit.frame(7, SPOT, spot(98))
    derived(db, kit)
    assert readings(db, "sensor like 'unknown%', barred") == [(1, 1), (0, 0)]


def test_a_changed_bond_that_is_accepted_releases_what_was_held_for_it(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    kit.event(record.BOND_CHANGED, OXIMETER)
    kit.frame(OXIMETER, SPOT, spot(97))
    kit.event(record.BOND_CHANGED, CUFF)
    kit.frame(CUFF, BP, GOOD_BP)
    kit.boot += 1
    kit.frame(OXIMETER, SPOT, spot(98))  # its boot has no time yet: derivation waits here
    running = derived(db, kit)
    assert readings(db, "state, barred") == [("held", 1)] * 2
    keys = readings(db, "key")
    kit.event(record.BOND_CHANGED, OXIMETER)  # and nothing is held for it yet that somebody could see
    kit.store(db)
    assert accept(db, kit.kit, "serial://501231", NOW) == 1
    derived(db, kit, running)
    assert queued(db) == [(1, "Patient/1")]
    kit.anchor()
    kit.frame(OXIMETER, SPOT, spot(99))
    derived(db, kit, running)
    assert readings(db, "state, reason, barred") == [
        ("queued", None, 0),
        ("held", BOND_CHANGED, 1),
        ("queued", None, 0),
        ("held", BOND_CHANGED, 1),  # it has changed once more
    ]
    assert readings(db, "key")[:2] == keys
    assert queued(db) == [(1, "Patient/1"), (3, "Patient/1")]
    with pytest.raises(LifeError, match="nothing of serial://1 is held"):
        accept(db, kit.kit, "serial://1", NOW)


def test_an_accepted_bond_moves_nothing_that_its_time_holds(db: sqlite3.Connection) -> None:
    kit = KitJournal()
    kit.create(db)
    given(db, kit.kit, start_ms=BIRTH_MS + 3 * DAY)
    kit.begin()
    kit.event(record.BOND_CHANGED, OXIMETER)
    kit.frame(OXIMETER, SPOT, spot(97))
    derived(db, kit)
    accept(db, kit.kit, "serial://501231", NOW)
    derived(db, kit, Deriver())
    ((state, reason, barred),) = readings(db, "state, reason, barred")
    assert (state, barred) == ("held", 0) and "no Assignment" in reason


@pytest.mark.parametrize("described_before", [True, False])
def test_who_has_changed_the_bond_stays_barred_whatever_it_says_of_itself(
    db: sqlite3.Connection, described_before: bool
) -> None:
    features = struct.pack("<HH", SPOT + 2, 0x0040)  # it stores nothing
    kit = KitJournal()
    kit.create(db)
    given(db, kit.kit)
    kit.anchor()
    if described_before:
        kit.sensor(OXIMETER, (record.SERIAL, b"501231"), (record.FEATURE, features))
    kit.event(record.BOND_CHANGED, OXIMETER)
    kit.sensor(OXIMETER, (record.SERIAL, b"999999"), (record.FEATURE, features))
    kit.frame(OXIMETER, SPOT, spot(97))
    kit.event(record.BOND_MADE, OXIMETER)
    kit.frame(OXIMETER, SPOT, spot(98))
    derived(db, kit)
    assert readings(db, "state, reason") == [("held", BOND_CHANGED), ("queued", None)]


def test_a_bond_makes_no_sensor_known(db: sqlite3.Connection, kit: KitJournal) -> None:
    kit.frame(7, SPOT, spot(97))
    kit.event(record.BOND_MADE, 7)
    kit.frame(7, SPOT, spot(98))
    derived(db, kit)
    assert readings(db, "state, reason, barred") == [("held", NO_SENSOR, 1)] * 2


MARKED = "C0:FF:EE:00:00:02"
"""The cuff's address (kit_journal.py)."""


def marked(db: sqlite3.Connection, word: str, at_ms: int, kit: str = "HW-0009") -> None:
    """What the bench has said of the cuff, that came back with this Kit."""
    db.execute(
        "insert into kit (kit, state, created_ms) values (?, 'active', 1) on conflict do nothing", (kit,)
    )
    life.mark(db, kit, MARKED, word, "", who="bench/ann", now_ms=at_ms)


def first_session(kit: KitJournal) -> None:
    """The Sensors come to a Kit; each sends what it holds, is empty, and measures once more."""
    kit.anchor()
    features = struct.pack("<HH", SPOT + 2, 0x0040)
    kit.sensor(OXIMETER, (record.SERIAL, b"501231"), (record.FEATURE, features))
    kit.sensor(CUFF, (record.SERIAL, b"518071"))
    for value in (GOOD_BP, FAILED_BP):
        kit.frame(CUFF, BP, value)
    kit.frame(OXIMETER, SPOT, spot(97))
    kit.event(record.SENSOR_DRAINED, CUFF)
    kit.uptime_ms += MINUTE
    kit.frame(CUFF, BP, bytes.fromhex("04790051006100" + "4800"))


@pytest.fixture
def new_kit(db: sqlite3.Connection) -> KitJournal:
    kit = KitJournal()
    kit.create(db)
    given(db, kit.kit)
    return kit


def test_the_first_session_of_a_sensor_that_was_not_emptied_is_held(
    db: sqlite3.Connection, new_kit: KitJournal
) -> None:
    marked(db, "cannot be emptied", BIRTH_MS - DAY)
    marked(db, "bonded", BIRTH_MS - HOUR)  # which empties nothing
    first_session(new_kit)
    derived(db, new_kit)
    assert readings(db, "state, reason, barred") == [
        ("held", NOT_EMPTIED, 1),
        ("held", NOT_EMPTIED, 1),
        ("queued", None, 0),  # another Sensor
        ("queued", None, 0),  # measured after it was empty
    ]
    given_again = db.execute("select count(*) from outbox").fetchone()
    assert given_again == (2,)


def test_a_restart_in_the_first_session_goes_on_holding(db: sqlite3.Connection, new_kit: KitJournal) -> None:
    marked(db, "cannot be emptied", BIRTH_MS - DAY)
    new_kit.anchor()
    new_kit.sensor(CUFF, (record.SERIAL, b"518071"))
    derived(db, new_kit, Deriver())
    new_kit.frame(CUFF, BP, GOOD_BP)
    derived(db, new_kit, Deriver())
    new_kit.event(record.SENSOR_DRAINED, CUFF)
    derived(db, new_kit, Deriver())
    new_kit.sensor(CUFF, (record.SERIAL, b"518071"))
    new_kit.uptime_ms += MINUTE
    new_kit.frame(CUFF, BP, bytes.fromhex("04790051006100" + "4800"))
    derived(db, new_kit, Deriver())
    assert readings(db, "state") == [("held",), ("queued",)]


def test_a_sensor_that_was_emptied_after_all_is_believed(db: sqlite3.Connection, new_kit: KitJournal) -> None:
    marked(db, "cannot be emptied", BIRTH_MS - DAY)
    marked(db, "emptied", BIRTH_MS - HOUR)
    first_session(new_kit)
    derived(db, new_kit)
    assert {barred for (barred,) in readings(db, "barred")} == {0}


def test_what_the_kit_still_sends_of_the_patient_it_came_back_from_is_not_held(
    db: sqlite3.Connection, new_kit: KitJournal
) -> None:
    marked(db, "cannot be emptied", BIRTH_MS + DAY, new_kit.kit)
    first_session(new_kit)
    derived(db, new_kit)
    assert {barred for (barred,) in readings(db, "barred")} == {0}


def test_a_reading_before_the_assignment_is_held_with_the_reason(db: sqlite3.Connection) -> None:
    kit = KitJournal()
    kit.create(db)
    kit.begin()
    kit.frame(OXIMETER, SPOT, spot(97))
    kit.uptime_ms += HOUR
    kit.anchor()
    given(db, kit.kit, BIRTH_MS + HOUR // 2)
    kit.frame(OXIMETER, SPOT, spot(98))
    derived(db, kit)
    assert [state for (state,) in readings(db, "state")] == ["held", "queued"]
    assert "no Assignment" in readings(db, "reason")[0][0]
    assert queued(db) == [(2, "Patient/1")]


def test_held_readings_are_queued_when_the_kit_is_assigned(db: sqlite3.Connection) -> None:
    kit = KitJournal()
    kit.create(db)
    kit.begin()
    kit.frame(OXIMETER, SPOT, spot())
    derived(db, kit)
    assert queued(db) == []
    given(db, kit.kit)
    assert queued(db) == [(1, "Patient/1")]


def test_a_journal_that_belongs_to_one_episode_gives_nothing_to_another(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    deriver = Deriver()
    kit.frame(OXIMETER, SPOT, spot(97))
    derived(db, kit, deriver)
    db.execute("update assignment set end_ms = ?", (BIRTH_MS + HOUR,))
    given(db, kit.kit, BIRTH_MS + HOUR, "Patient/2")
    kit.uptime_ms += 2 * HOUR
    kit.anchor()
    kit.frame(OXIMETER, SPOT, spot(98))
    derived(db, kit, deriver)
    assert queued(db) == [(1, "Patient/1")]
    assert "another Episode" in readings(db, "reason")[1][0]
    wiped = KitJournal(journal_id=b"journal2", number=2)
    wiped.create(db)
    wiped.uptime_ms = kit.uptime_ms
    wiped.begin()
    wiped.frame(OXIMETER, SPOT, spot(99))
    derived(db, wiped, deriver)
    assert queued(db)[1] == (3, "Patient/2")


def test_a_frame_whose_time_is_not_known_yet_stops_its_journal_and_no_other(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    deriver = Deriver()
    other = KitJournal("HW-0002", b"journal2", number=2)
    other.create(db)
    given(db, other.kit, patient="Patient/2")
    other.begin()
    other.frame(OXIMETER, SPOT, spot())
    kit.boot, kit.uptime_ms = 2, 5_000
    stopped_at = kit.frame(OXIMETER, SPOT, spot())
    other.store(db)
    derived(db, kit, deriver)
    assert cursor(db) == (stopped_at - 1, stopped_at)
    assert [patient for _, patient in queued(db)] == ["Patient/2"]
    kit.anchor(BIRTH_MS + DAY)
    derived(db, kit, deriver)
    assert cursor(db) == (kit.sequence, kit.sequence)
    assert sorted(patient for _, patient in queued(db)) == ["Patient/1", "Patient/2"]


def test_a_kit_with_little_to_derive_goes_before_one_with_a_backlog(
    db: sqlite3.Connection, kit: KitJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derive, "CHUNK_RECORDS", 8)
    for _ in range(20):
        kit.frame(OXIMETER, SPOT, spot())
    kit.store(db)
    other = KitJournal("HW-0002", b"journal2", number=2)
    other.create(db)
    given(db, other.kit, patient="Patient/2")
    other.begin()
    other.frame(OXIMETER, SPOT, spot())
    other.store(db)
    Deriver().chunk(db, now_ms=NOW)
    assert queued(db)[0] == (1, "Patient/2")


def test_a_setting_without_an_answer_makes_a_sensors_clock_unknown(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    kit.clock(CUFF, record.CLOCK_BEFORE, (2026, 7, 10, 1, 0, 0))  # hours slow
    unanswered = record.SensorClock(CUFF, record.CLOCK_SET, 60, 0x2A08, b"")
    kit.add(record.SENSOR_CLOCK, record.encode_sensor_clock(unanswered))
    kit.uptime_ms += MINUTE
    kit.clock(CUFF, record.CLOCK_BEFORE, (2026, 7, 10, 13, 0, 0))  # right, so it was set after all
    derived(db, kit)
    disproved = db.execute("select n from counter where name = 'clock disproved'").fetchone()
    assert disproved is None
    assert db.execute("select count(*) from quarantine").fetchone() == (0,)


def test_sequences_known_to_be_lost_do_not_stop_the_cursor(db: sqlite3.Connection, kit: KitJournal) -> None:
    lost = record.Lost(kit.sequence + 1, kit.sequence + 50, record.OVERWRITTEN)
    kit.add(record.LOST, record.encode_lost(lost))
    kit.sequence += 49
    derived(db, kit)
    assert cursor(db) == (kit.sequence, kit.sequence)


@pytest.mark.parametrize("chunk", [1, 2, 7, 500])
def test_the_cut_into_chunks_changes_nothing(
    db: sqlite3.Connection, kit: KitJournal, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derive, "CHUNK_RECORDS", chunk)
    for n in range(12):
        kit.frame(OXIMETER, SPOT, spot(95 + n % 3, at=(2026, 7, 10, 12, n // 2, 0)))
        kit.frame(CUFF, BP, GOOD_BP)
        kit.uptime_ms += MINUTE
    derived(db, kit, None if chunk > 2 else Restarting())
    found = readings(db, f"{READING}, hex(key)")
    assert len(found) == 24
    assert hash_of(found) == GOLDEN, "the keys of what hospitals hold must never change"


class Restarting(Deriver):
    """Forgets everything after each chunk, as a service does that is killed there."""

    def chunk(self, db: sqlite3.Connection, *, now_ms: int) -> derive.Derived:
        self._journals.clear()
        return super().chunk(db, now_ms=now_ms)


def hash_of(rows: list[tuple[Any, ...]]) -> str:
    return content_of(repr(rows), 0, b"").hex()


GOLDEN = "b89020b2074fa1b0c0e72022be60d2d7"


def test_the_content_is_the_documented_hash() -> None:
    assert content_of("serial:A/B/1", SPOT, b"\x00\x61").hex() == "04a432ffe820401d0a2c2038e2a94d04"


@pytest.mark.parametrize(
    ("items", "identity"),
    [
        ({record.SERIAL: b"501234\0"}, "serial://501234"),
        (
            {record.MANUFACTURER: b"A&D", record.MODEL: b"UA/651", record.SERIAL: b"12"},
            "serial:A%26D/UA%2F651/12",
        ),
        (
            {record.SERIAL: b"00000000", record.SYSTEM_ID: bytes(range(8))},
            "system-id:00-01-02-03-04-05-06-07",
        ),
        ({record.SERIAL: b"", record.SYSTEM_ID: bytes(8)}, "address:C0:FF:EE:00:00:01"),
        ({}, "address:C0:FF:EE:00:00:01"),
    ],
)
def test_a_sensor_is_known_by_its_serial_else_system_id_else_address(
    items: dict[int, bytes], identity: str
) -> None:
    assert sensor_identity(bytes.fromhex("c0ffee000001"), items) == identity


def test_a_session_that_could_not_read_the_serial_changes_no_identity(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    kit.frame(OXIMETER, SPOT, spot(at=NOON))
    kit.sensor(OXIMETER)
    kit.frame(OXIMETER, SPOT, spot(at=NOON))
    derived(db, kit)
    assert readings(db, "state") == [("queued",), ("repeat",)]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store.open(tmp_path / "store.sqlite") as store:
        yield store


async def with_patient(store: Store) -> KitJournal:
    """A Kit with a Reading, not yet derived."""
    kit = KitJournal()
    await store.write(kit.create)
    await store.write(lambda db: given(db, kit.kit))
    kit.begin()
    kit.frame(OXIMETER, SPOT, spot(97))
    await store.write(kit.store)
    return kit


async def test_a_transaction_that_fails_leaves_nothing_behind(store: Store) -> None:
    kit = await with_patient(store)
    kit.boot += 1
    kit.frame(OXIMETER, SPOT, spot(98))  # has no time yet: the Journal stops here, not before
    await store.write(kit.store)
    full = "create trigger full before insert on outbox begin select raise(abort, 'full'); end"
    await store.write(lambda db: db.execute(full) and None)
    deriver = Deriver()
    with pytest.raises(sqlite3.IntegrityError):
        await deriver.step(store, NOW)
    assert await store.read(lambda db: (cursor(db)[0], readings(db, "reading"))) == (0, [])
    await store.write(lambda db: db.execute("drop trigger full") and None)
    await deriver.step(store, NOW)
    assert await store.read(queued) == [(1, "Patient/1")]


async def test_run_derives_when_it_is_woken_and_wakes_the_outbox(store: Store) -> None:
    wake, outbox_wake = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(derive.run(store, wake, outbox_wake, clock_ms=lambda: NOW))
        await with_patient(store)
        wake.set()
        await outbox_wake.wait()
        running.cancel()
    assert await store.read(queued) == [(1, "Patient/1")]


async def test_derivation_gives_way_to_ingest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derive, "GIVE_WAY_S", 1e9)
    outbox_wake, asked, quiet = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def busy() -> None:
        asked.set()
        await quiet.wait()

    await with_patient(store)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        run = derive.run(store, asyncio.Event(), outbox_wake, quiet=busy, clock_ms=lambda: NOW)
        running = tasks.create_task(run)
        await asked.wait()
        assert await store.read(queued) == []
        quiet.set()
        await outbox_wake.wait()
        running.cancel()


async def test_derivation_gives_way_for_so_long_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derive, "GIVE_WAY_S", 0.01)
    outbox_wake, never = asyncio.Event(), asyncio.Event()

    async def busy() -> None:
        await never.wait()

    await with_patient(store)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        run = derive.run(store, asyncio.Event(), outbox_wake, quiet=busy, clock_ms=lambda: NOW)
        running = tasks.create_task(run)
        await outbox_wake.wait()
        running.cancel()


def test_a_boot_without_an_anchor_has_ended_when_the_kit_has_begun_another_journal(
    db: sqlite3.Connection, kit: KitJournal
) -> None:
    # Else its Readings would be neither delivered nor held, for ever (found by the simulation).
    deriver = Deriver()
    kit.boot, kit.uptime_ms = 2, 5 * MINUTE
    kit.frame(OXIMETER, SPOT, spot())
    derived(db, kit, deriver)
    assert readings(db, READING) == []
    wiped = KitJournal(kit.kit, b"journal2", number=2)
    wiped.create(db)
    derived(db, wiped, deriver)
    assert readings(db, READING) == []
    first_heard = BIRTH_MS + HOUR
    db.execute("insert into receipt values (2, 1, ?, ?)", (10 * MINUTE, first_heard))
    derived(db, wiped, deriver)
    ((earliest, latest),) = readings(db, "earliest_ms, latest_ms")
    assert earliest <= BIRTH_MS + 6 * MINUTE <= latest <= first_heard - 10 * MINUTE + 1_000
