"""The operator's command line, over a real project and Store."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kit_journal import BIRTH_MS, BP, CUFF, KitJournal

from gateway import record
from sync_service import command
from sync_service.derive import Deriver
from sync_service.store import connect, count

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = command.main(["--dir", str(folder), *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def db(folder: Path) -> Iterator[sqlite3.Connection]:
    opened = connect(folder / "store.sqlite")
    yield opened
    opened.close()


def said(run: Run, *arguments: str) -> Any:
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def audit(db: sqlite3.Connection) -> list[tuple[str, str]]:
    return db.execute("select action, detail from audit order by id").fetchall()


def measured(db: sqlite3.Connection) -> None:
    """One blood pressure of HW-0001, derived and held: the Kit is with nobody."""
    kit = KitJournal()
    kit.create(db)
    kit.begin()
    kit.frame(CUFF, BP, b"\x00" + b"\x78\x00\x50\x00\x5d\x00")
    kit.store(db)
    Deriver().chunk(db, now_ms=BIRTH_MS)


def test_kits_are_added_listed_and_revoked(run: Run, folder: Path, db: sqlite3.Connection) -> None:
    assert run("kit", "add", "HW-0003")[0] == 0
    assert {path.name for path in (folder / "kits/HW-0003").iterdir()} == {"kit.pem", "kit.key", "ca.pem"}
    code, out, _ = run("kit", "revoke", "HW-0003")
    assert code == 0 and "SIGHUP" in out
    assert [(one["kit"], one["state"]) for one in said(run, "kit", "list")] == [
        ("HW-0001", "active"),
        ("HW-0002", "active"),
        ("HW-0003", "revoked"),
    ]
    assert audit(db)[-2:] == [("kit add", "HW-0003"), ("kit revoke", "provisioned -> revoked")]


def test_a_kit_is_given_and_taken_back(run: Run, db: sqlite3.Connection) -> None:
    given = said(
        run, "assign", "HW-0001", "--patient", "Patient/7", "--episode", "E-1", "--from", "2026-07-10T09:00"
    )
    assert given == [{"assignment": 1, "kit": "HW-0001", "episode": "E-1", "start": "2026-07-10T08:00:00Z"}]
    back = said(run, "return", "HW-0001", "--at", "2026-07-11T10:00:00Z")
    assert back == [{"kit": "HW-0001", "end": "2026-07-11T10:00:00Z", "withdrawn": 0, "delivered": 0}]
    rows = db.execute("select kit, episode, patient, end_ms - start_ms from assignment").fetchall()
    assert rows == [("HW-0001", "E-1", "Patient/7", 26 * 3_600_000)]
    assert [action for action, _ in audit(db)[-2:]] == ["assign", "return"]


def test_what_is_held_is_shown_and_released_by_its_assignment(run: Run, db: sqlite3.Connection) -> None:
    measured(db)
    (held,) = said(run, "held")
    assert held["kit"] == "HW-0001" and held["reason"]
    said(run, "assign", "HW-0001", "--patient", "Patient/7", "--from", "2026-07-01T00:00Z")
    assert said(run, "held") == []
    (reading,) = said(run, "readings", "--kit", "HW-0001")
    assert (reading["state"], reading["trust"]) == ("queued", "good")
    assert said(run, "readings", "--kit", "HW-0002") == []


def test_what_is_parked_is_shown_and_replayed(run: Run, db: sqlite3.Connection) -> None:
    measured(db)
    said(run, "assign", "HW-0001", "--patient", "Patient/7", "--from", "2026-07-01T00:00Z")
    db.execute("update outbox set state = 'parked', attempts = 3, answer = '400 no such code'")
    assert said(run, "parked") == [
        {"reading": 1, "kit": "HW-0001", "attempts": 3, "answer": "400 no such code"}
    ]
    assert said(run, "replay", "99") == [{"replayed": 0}]
    assert said(run, "replay") == [{"replayed": 1}]
    assert said(run, "parked") == []
    assert audit(db)[-1] == ("replay", "all")


def test_a_changed_bond_is_accepted(run: Run, db: sqlite3.Connection) -> None:
    measured(db)
    said(run, "assign", "HW-0001", "--patient", "Patient/7", "--from", "2026-07-01T00:00Z")
    code, _, error = run("accept-bond", "HW-0001", "serial://1")
    assert code == 1 and "nothing of serial://1 is held" in error
    kit = KitJournal("HW-0002", b"journal2", number=2)
    kit.create(db)
    kit.begin()
    kit.event(record.BOND_CHANGED, CUFF)
    kit.frame(CUFF, BP, b"\x00" + b"\x78\x00\x50\x00\x5d\x00")
    kit.store(db)
    while Deriver().chunk(db, now_ms=BIRTH_MS).records:
        pass
    (held,) = said(run, "held")
    assert said(run, "accept-bond", "HW-0002", held["sensor"]) == [{"released": 1}]
    assert audit(db)[-1] == ("accept-bond", f"HW-0002 {held['sensor']}")


def test_a_backup_is_restored_and_what_was_delivered_looked_at_again(
    run: Run, db: sqlite3.Connection, tmp_path: Path
) -> None:
    measured(db)
    said(run, "assign", "HW-0001", "--patient", "Patient/7", "--from", "2026-07-01T00:00Z")
    db.execute("update outbox set state = 'done'")
    copied = tmp_path / "copy.sqlite"
    assert run("backup", str(copied))[0] == 0
    assert copied.stat().st_mode & 0o77 == 0, "the vital signs in it are for nobody else"
    assert "is there already" in run("backup", str(copied))[2]
    said(run, "return", "HW-0001", "--at", "2026-07-11T10:00:00Z")
    db.close()
    code, out, error = run("restore", str(copied))
    assert (code, error) == (0, "") and "recheck" in out
    (kit, _) = said(run, "kit", "list")
    assert kit["episode"], "the return is forgotten: it has to be entered again"
    assert said(run, "recheck") == [{"looked_at": 1}]
    (reading,) = said(run, "readings")
    assert reading["state"] == "queued"
    (before,) = tmp_path.glob("**/*.before-*[0-9]")
    with closing(connect(before)) as replaced:
        assert replaced.execute("select count(*) from assignment where end_ms is not null").fetchone() == (1,)


def test_after_a_restore_kits_and_revocations_are_known_by_their_certificates(
    run: Run, db: sqlite3.Connection, tmp_path: Path
) -> None:
    # Else what a Kit of since has measured would be refused, and a stolen one heard again.
    db.close()
    copied = str(tmp_path / "copy.sqlite")
    run("backup", copied)
    for arguments in (("add", "HW-0003"), ("add", "HW-0004"), ("revoke", "HW-0004"), ("revoke", "HW-0002")):
        assert run("kit", *arguments)[0] == 0
    _, out, _ = run("restore", copied)
    assert "Kit HW-0003 is there again" in out and "Kit HW-0002 is revoked again" in out
    kits = said(run, "kit", "list")
    assert [(one["kit"], one["state"]) for one in kits] == [
        ("HW-0001", "active"),
        ("HW-0002", "revoked"),
        ("HW-0003", "active"),
        ("HW-0004", "revoked"),
    ]
    born = {one["kit"]: one["created_ms"] for one in kits}
    assert born["HW-0003"] < born["HW-0001"], "what it has measured before the restore is not younger"


def test_a_restore_of_what_is_no_store_changes_nothing(
    run: Run, db: sqlite3.Connection, tmp_path: Path
) -> None:
    measured(db)
    broken, other, later = (tmp_path / name for name in ("broken.sqlite", "other.sqlite", "later.sqlite"))
    broken.write_bytes(b"SQLite format 3\0" + bytes(4_000))
    for path, version in ((other, 0), (later, 99)):
        with closing(sqlite3.connect(path)) as made:
            made.execute("create table something (n)")
            made.execute(f"pragma user_version = {version}")
    for path, sentence in (
        (broken, "broken.sqlite"),
        (other, "other.sqlite: this is no Store"),
        (later, "version 99"),
        (tmp_path / "none", "is not there"),
    ):
        code, _, error = run("restore", str(path))
        assert code == 1 and sentence in error
    assert said(run, "status")["readings"] == 1
    assert not list(tmp_path.glob("**/*.new")) and not list(tmp_path.glob("**/*.before-*"))


def test_a_backup_of_an_earlier_release_is_restored_and_stays_as_it_was(
    run: Run, db: sqlite3.Connection, tmp_path: Path
) -> None:
    measured(db)
    db.close()
    copied = tmp_path / "kept" / "copy.sqlite"
    copied.parent.mkdir()
    assert run("backup", str(copied))[0] == 0
    with closing(sqlite3.connect(copied)) as earlier:
        earlier.execute("drop table accepted_bond")
        earlier.execute("pragma user_version = 3")
    before = copied.read_bytes()
    assert run("restore", str(copied))[0] == 0
    assert said(run, "status")["readings"] == 1
    assert copied.read_bytes() == before and [path.name for path in copied.parent.iterdir()] == [
        "copy.sqlite"
    ]


def test_counters_and_status_are_shown(run: Run, db: sqlite3.Connection) -> None:
    count(db, "HW-0001", "batch truncated", 2)
    assert said(run, "counters") == [{"kit": "HW-0001", "name": "batch truncated", "n": 2}]
    status = said(run, "status")
    assert (status["running"], status["kits"], status["records"]) == (False, 2, 0)
    assert "not running" in run("status")[1]


def test_people_get_a_table_with_times(run: Run) -> None:
    _, out, _ = run("kit", "list")
    assert out.splitlines()[0].split() == ["kit", "state", "life", "created", "seen", "status", "episode"]
    assert out.splitlines()[1].startswith("HW-0001  active  provisioned  20")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["kit", "add", "HW-0001"], "Kit HW-0001 is there already"),
        (["kit", "add", "hw"], "a Kit's name looks like HW-0001"),
        (["kit", "revoke", "HW-0009"], "Kit HW-0009 is not known"),
        (["assign", "HW-0009", "--patient", "Patient/7"], "Kit HW-0009 is not known"),
        (["assign", "HW-0001", "--patient", "Jane Doe"], "the patient has to be the Hub's reference"),
        (["assign", "HW-0001", "--patient", "Patient/7", "--from", "soon"], "'soon' is not a time"),
        (
            ["assign", "HW-0001", "--patient", "Patient/7", "--from", "2026-10-25T01:30"],
            "the clocks change",
        ),
        (["return", "HW-0001"], "Kit HW-0001 is with nobody"),
    ],
)
def test_what_can_not_be_done_is_one_sentence_and_changes_nothing(
    run: Run, db: sqlite3.Connection, arguments: list[str], sentence: str
) -> None:
    before = audit(db)
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"homeward-sync: {sentence}")
    assert err.count("\n") == 1
    assert audit(db) == before


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["assign", "HW-0001"], ["replay", "x"], ["kit"]])
def test_a_wrong_usage_ends_with_2(run: Run, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2


def test_a_folder_that_is_none_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--dir", str(tmp_path), "status"]) == 1
    assert "homeward-sync init" in capsys.readouterr().err


def test_the_folder_may_stand_before_or_after_the_command(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--dir", str(folder), "status"], ["status", "--dir", str(folder)]):
        assert command.main(arguments) == 0
