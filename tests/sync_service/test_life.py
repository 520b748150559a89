"""The life of a Kit: every step has its place, a refusal is one sentence and changes nothing."""

import itertools
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit_journal import BIRTH_MS, CUFF, DAY, OXIMETER, SPOT, KitJournal, spot

from sync_service import life
from sync_service.assignments import assign, end
from sync_service.context import SELF_TEST
from sync_service.derive import Deriver
from sync_service.life import ACTIVE, STEPS, LifeError, Step
from sync_service.store import connect

KIT, WHO = "HW-0001-Z", "ann"
LIVES = {to for _, to in STEPS.values()} | {life.MADE}


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = connect(tmp_path / "store.sqlite")
    yield opened
    opened.close()


def take(db: sqlite3.Connection, name: str, now_ms: int = BIRTH_MS, note: str = "") -> str:
    return life.take(db, Step(KIT, name, WHO, now_ms, note))


def prepared(db: sqlite3.Connection, now_ms: int = BIRTH_MS) -> None:
    """A Kit that may leave."""
    assert life.make(db, "HW", 1, who=WHO, now_ms=now_ms) == [KIT]
    take(db, "provision", now_ms)
    take(db, "flash", now_ms)
    life.record_test(db, Step(KIT, "pass", WHO, now_ms), [])
    life.label(db, KIT, who=WHO, now_ms=now_ms)
    life.mark(db, KIT, "C0:FF:EE:00:00:01", "bonded", "", who=WHO, now_ms=now_ms)


def state(db: sqlite3.Connection) -> tuple[str, str]:
    row: tuple[str, str] = db.execute("select life, state from kit where kit = ?", (KIT,)).fetchone()
    return row


def test_a_kit_goes_round_and_every_step_is_one_row_of_the_audit_log(db: sqlite3.Connection) -> None:
    prepared(db)
    for name in ("ready", "ship", "receive", "wipe", "provision"):
        take(db, name)
    assert [(row["who"], row["action"], row["detail"]) for row in life.history(db, KIT)] == [
        (WHO, "kit add", KIT),
        (WHO, "kit provision", "made -> provisioned"),
        (WHO, "kit flash", "provisioned -> flashed"),
        (WHO, "kit pass", "flashed -> tested"),
        (WHO, "kit label", ""),
        (WHO, "sensor mark", "C0:FF:EE:00:00:01 bonded"),
        (WHO, "kit ready", "tested -> ready"),
        (WHO, "kit ship", "ready -> shipped"),
        (WHO, "kit receive", "shipped -> returned"),
        (WHO, "kit wipe", "returned -> wiped"),
        (WHO, "kit provision", "wiped -> provisioned"),
    ]


@pytest.mark.parametrize(("name", "before"), [*itertools.product(STEPS, sorted(LIVES))])
def test_a_step_from_the_wrong_place_is_refused_and_changes_nothing(
    db: sqlite3.Connection, name: str, before: str
) -> None:
    prepared(db)
    db.execute("update kit set life = ?", (before,))
    rows = len(life.history(db, KIT))
    if before in STEPS[name][0]:
        assert take(db, name) == STEPS[name][1] == state(db)[0]
        assert state(db)[1] == ("active" if STEPS[name][1] in ACTIVE else "revoked")
        assert len(life.history(db, KIT)) == rows + 1
        return
    with pytest.raises(LifeError, match=f"^Kit {KIT} is {before}: "):
        take(db, name)
    assert state(db)[0] == before and len(life.history(db, KIT)) == rows


def test_every_life_says_what_to_do_next() -> None:
    assert life._NEXT.keys() == LIVES


def test_numbers_follow_one_another_in_each_series(db: sqlite3.Connection) -> None:
    assert life.make(db, "HW", 2, who=WHO, now_ms=0) == ["HW-0001-Z", "HW-0002-X"]
    assert [kit[:7] for kit in life.make(db, "HW", 1, who=WHO, now_ms=0)] == ["HW-0003"]
    assert [kit[:7] for kit in life.make(db, "AB", 1, who=WHO, now_ms=0)] == ["AB-0001"]
    with pytest.raises(LifeError, match="1 to 100 Kits"):
        life.make(db, "HW", 101, who=WHO, now_ms=0)


def test_an_old_or_failed_self_test_does_not_let_a_kit_leave(db: sqlite3.Connection) -> None:
    prepared(db)
    with pytest.raises(LifeError, match="was tested 30 days ago"):
        take(db, "ready", BIRTH_MS + 30 * DAY)
    assert take(db, "ready", BIRTH_MS + 30 * DAY - 1) == "ready"
    with pytest.raises(LifeError, match="was tested 31 days ago"):
        take(db, "ship", BIRTH_MS + 31 * DAY)
    life.record_test(db, Step(KIT, "fail", WHO, BIRTH_MS), [])
    assert state(db)[0] == "flashed"


def test_a_kit_without_label_or_sensors_does_not_leave(db: sqlite3.Connection) -> None:
    prepared(db)
    db.execute("update kit set labelled_ms = null")
    with pytest.raises(LifeError, match="has no label"):
        take(db, "ready")
    life.label(db, KIT, who=WHO, now_ms=1)
    db.execute("delete from sensor_mark")
    with pytest.raises(LifeError, match="has no bonded Sensor"):
        take(db, "ready")
    assert take(db, "ready", note="a router only") == "ready"


def test_a_kit_that_is_with_a_patient_is_not_wiped_tested_or_provisioned(db: sqlite3.Connection) -> None:
    prepared(db)
    assign(db, KIT, "E-1", "Patient/7", BIRTH_MS, now_ms=BIRTH_MS, max_bracket_ms=DAY)
    for name in ("wipe", "provision", "pass"):
        with pytest.raises(LifeError, match="is still with a patient"):
            take(db, name)
    end(db, KIT, BIRTH_MS + DAY)
    assert take(db, "wipe") == "wiped"


def test_a_self_tests_reading_becomes_nobodys_whatever_is_assigned(db: sqlite3.Connection) -> None:
    kit = KitJournal(KIT)
    kit.create(db)
    kit.anchor()
    kit.frame(0, SPOT, spot())  # a value that would be a vital sign
    kit.uptime_ms += DAY
    kit.anchor()
    kit.store(db)
    Deriver().chunk(db, now_ms=BIRTH_MS)
    assign(db, KIT, "E-1", "Patient/7", BIRTH_MS - DAY, now_ms=BIRTH_MS, max_bracket_ms=DAY)
    assert db.execute("select state, reason from reading").fetchall() == [("held", SELF_TEST)]
    assert db.execute("select count(*) from outbox").fetchone() == (0,)


def test_unsent_is_what_the_last_status_tells_and_the_store_has_not(db: sqlite3.Connection) -> None:
    prepared(db)
    kit = KitJournal(KIT)
    kit.create(db)
    kit.begin()
    kit.store(db)  # six Records
    said = {"online": True, "journal": b"journal1".hex(), "acked": 4, "pending": 5}
    db.execute("update kit set status = ?, status_ms = ?", (json.dumps(said), BIRTH_MS))
    assert life.unsent(db, KIT) == 9 - kit.sequence
    kit.frame(CUFF, SPOT, spot())
    for _ in range(9):
        kit.frame(OXIMETER, SPOT, spot())
    kit.store(db)
    assert life.unsent(db, KIT) == 0
    db.execute("update kit set status = ?", ('{"online": true, "pending": "many", "journal": 7}',))
    assert life.unsent(db, KIT) == 0


def test_a_kit_that_nobody_knows_is_said(db: sqlite3.Connection) -> None:
    for ask in (life.of, life.history, life.describe, life.unsent):
        with pytest.raises(LifeError, match="Kit HW-9 is not known"):
            ask(db, "HW-9")


def test_what_the_bench_is_told_names_no_patient(db: sqlite3.Connection) -> None:
    prepared(db)
    assign(db, KIT, "E-1", "Patient/7", BIRTH_MS, now_ms=BIRTH_MS, max_bracket_ms=DAY)
    told = life.describe(db, KIT)
    assert told["assigned"] is True
    assert "Patient" not in json.dumps(told) and "E-1" not in json.dumps(told)
