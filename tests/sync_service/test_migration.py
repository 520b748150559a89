"""A Store of an earlier release is brought to this one's schema, with all that is in it, or not touched."""

import sqlite3
import threading
from pathlib import Path

import pytest

from sync_service import life
from sync_service import store as module
from sync_service.store import SCHEMA_VERSION, StoreUnavailable, connect

V1 = Path(__file__).with_name("store_v1.sql")
"""The schema of the first release, as it was."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A Store of version 1 with three Kits: one with a patient, one on the shelf, one revoked."""
    path = tmp_path / "store.sqlite"
    db = sqlite3.connect(path)
    db.executescript(V1.read_text())
    db.executescript("""
        insert into kit (kit, state, created_ms) values
            ('HW-0001', 'active', 1), ('HW-0002', 'active', 2), ('HW-0003', 'revoked', 3);
        insert into assignment (kit, episode, patient, start_ms) values ('HW-0001', 'E-1', 'Patient/7', 5);
        insert into audit (at_ms, who, action, detail) values
            (1, 'bob', 'kit add', 'HW-0001'), (4, 'bob', 'assign', 'HW-0001 E-1 Patient/7 from now'),
            (5, 'bob', 'replay', 'all'), (6, 'bob', 'kit revoke', 'HW-0003');
        pragma user_version = 1;""")
    db.close()
    return path


def shape(db: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """Every column of every table, and every index."""
    tables = [row[0] for row in db.execute("select name from sqlite_master where type = 'table'")]
    columns = {
        (table, row[1], row[2]) for table in tables for row in db.execute(f"pragma table_info({table})")
    }
    indexes = db.execute("select name, tbl_name from sqlite_master where type = 'index'").fetchall()
    return columns | {("index", *row) for row in indexes}


def test_a_migrated_store_has_the_shape_of_a_new_one(old: Path, tmp_path: Path) -> None:
    migrated, new = connect(old), connect(tmp_path / "new.sqlite")
    assert shape(migrated) == shape(new)
    assert migrated.execute("pragma user_version").fetchone() == (SCHEMA_VERSION,)
    migrated.close()
    new.close()


def test_what_was_in_it_is_there_and_has_its_place_in_life(old: Path) -> None:
    db = connect(old)
    lives = db.execute("select kit, state, life from kit order by kit").fetchall()
    assert lives == [
        ("HW-0001", "active", "shipped"),
        ("HW-0002", "active", "provisioned"),
        ("HW-0003", "revoked", "revoked"),
    ]
    assert [row["action"] for row in life.history(db, "HW-0001")] == ["kit add", "assign"]
    assert [row["action"] for row in life.history(db, "HW-0003")] == ["kit revoke"]
    assert db.execute("select count(*) from audit").fetchone() == (4,)
    assert db.execute("select patient from assignment").fetchone() == ("Patient/7",)
    db.close()


def test_a_migration_that_fails_leaves_the_store_as_it_was(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = (*module.MIGRATIONS[1], "alter table nowhere add column x text")
    monkeypatch.setitem(module.MIGRATIONS, 1, broken)
    with pytest.raises(StoreUnavailable, match="nowhere"):
        connect(old)
    monkeypatch.undo()
    db = sqlite3.connect(old)
    assert db.execute("pragma user_version").fetchone() == (1,)
    assert "life" not in {row[1] for row in db.execute("pragma table_info(kit)")}
    db.close()
    connect(old).close()


def test_two_processes_that_open_it_at_once_migrate_it_once(old: Path) -> None:
    failed: list[Exception] = []
    gate = threading.Barrier(4)

    def open_it() -> None:
        gate.wait()
        try:
            connect(old).close()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
