"""Which Sensors a Kit has bonded, as its own Records tell."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit_journal import BIRTH_MS, CUFF, DAY, OXIMETER, KitJournal

from gateway import record
from sync_service.life import LifeError
from sync_service.sensor_bonds import told
from sync_service.store import connect

NOON = (2026, 7, 10, 12, 0, 0)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    db = connect(tmp_path / "store.sqlite")
    yield db
    db.close()


@pytest.fixture
def kit(db: sqlite3.Connection) -> KitJournal:
    kit = KitJournal()
    kit.create(db)
    return kit


def session(kit: KitJournal, sensor: int) -> None:
    """What one visit leaves in the Journal."""
    kit.clock(sensor, record.CLOCK_BEFORE, NOON)
    kit.event(record.SENSOR_DRAINED, sensor)
    kit.clock(sensor, record.CLOCK_SET, NOON)
    kit.clock(sensor, record.CLOCK_AFTER, NOON)
    kit.event(record.SENSOR_DRAINED, sensor)  # a value came while it stayed


def sessions(db: sqlite3.Connection, kit: KitJournal) -> dict[str, tuple[bool, bool, int]]:
    kit.store(db)
    return {one["sensor"]: (one["bonded"], one["changed"], one["sessions"]) for one in told(db, kit.kit)}


def test_a_session_counts_once_and_only_after_the_bond(db: sqlite3.Connection, kit: KitJournal) -> None:
    kit.sensor(CUFF, (record.SERIAL, b"518071"))
    assert sessions(db, kit) == {"C0:FF:EE:00:00:02": (False, False, 0)}
    kit.event(record.BOND_MADE, CUFF)
    session(kit, CUFF)
    assert sessions(db, kit) == {"C0:FF:EE:00:00:02": (True, False, 1)}
    session(kit, CUFF)
    assert sessions(db, kit) == {"C0:FF:EE:00:00:02": (True, False, 2)}
    assert told(db, kit.kit)[0]["serial"] == "518071"
    kit.event(record.BOND_CHANGED, CUFF)
    assert sessions(db, kit) == {"C0:FF:EE:00:00:02": (True, True, 0)}


def test_a_sensor_without_a_clock_is_known_by_its_quiet(db: sqlite3.Connection, kit: KitJournal) -> None:
    kit.sensor(OXIMETER)
    kit.event(record.BOND_MADE, OXIMETER)
    kit.event(record.SENSOR_DRAINED, OXIMETER)
    kit.add(record.EVENT, b"\x02")  # broken: quarantined elsewhere
    assert sessions(db, kit) == {"C0:FF:EE:00:00:01": (True, False, 1)}


def test_what_was_bonded_before_the_wipe_is_not_told(db: sqlite3.Connection, kit: KitJournal) -> None:
    kit.sensor(CUFF)
    kit.event(record.BOND_MADE, CUFF)
    assert sessions(db, kit)
    db.execute("update kit set wiped_ms = ?", (BIRTH_MS + DAY,))
    assert told(db, kit.kit) == []
    with pytest.raises(LifeError, match="is not known"):
        told(db, "HW-0404")
