"""Life: where a Kit is between the bench, a patient, and the bench again.

    made -> provisioned -> flashed -> tested -> ready -> shipped -> returned -> wiped -> provisioned -> ...

A Kit that is with a patient is `shipped`, and its Assignment says with whom and for how long. Beside this
circle stand `revoked` (nothing more of it is stored), `lost` (the same, and nobody knows where it is) and
`retired` (for good). Every step is one row of the dict below; what must hold besides stands in CONDITIONS.
The rule: a step that is refused changes nothing and is one sentence, one that is taken is one row of `audit`.

`kit.state`, which ingest reads at every Batch, follows from `kit.life`: a Kit in ACTIVE is heard.
"""

import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gateway.record import FRAME
from sync_service.identity import Certified
from sync_service.kit_id import kit_id, number_of
from sync_service.store import audit

MADE, PROVISIONED, FLASHED, TESTED, READY = "made", "provisioned", "flashed", "tested", "ready"
SHIPPED, RETURNED, WIPED = "shipped", "returned", "wiped"
REVOKED, LOST, RETIRED = "revoked", "lost", "retired"

ACTIVE = frozenset((PROVISIONED, FLASHED, TESTED, READY, SHIPPED, RETURNED))
"""A returned Kit is heard: what it has not sent yet is its patient's."""
_BENCH = (PROVISIONED, FLASHED, TESTED, READY)

#          step         from                                                         to
# fmt: off
STEPS: dict[str, tuple[tuple[str, ...], str]] = {
    "provision": ((MADE, WIPED, *_BENCH),                                            PROVISIONED),
    "flash":     (_BENCH,                                                            FLASHED),
    "pass":      ((FLASHED, TESTED, READY),                                          TESTED),
    "fail":      ((FLASHED, TESTED, READY),                                          FLASHED),
    "ready":     ((TESTED, READY),                                                   READY),
    "ship":      ((READY,),                                                          SHIPPED),
    "receive":   ((SHIPPED, LOST),                                                   RETURNED),
    "wipe":      ((*_BENCH, RETURNED, WIPED, REVOKED),                               WIPED),
    "revoke":    ((MADE, *_BENCH, SHIPPED, RETURNED, WIPED, LOST),                   REVOKED),
    "lose":      ((*_BENCH, SHIPPED, RETURNED, REVOKED),                             LOST),
    "retire":    ((MADE, WIPED, REVOKED, LOST),                                      RETIRED),
}
# fmt: on
_NEXT = {
    MADE: "provision it first",
    PROVISIONED: "flash it first",
    FLASHED: "run its self-test first",
    TESTED: "make it ready first (label and Sensors)",
    READY: "ship it first",
    SHIPPED: "receive it first",
    RETURNED: "wipe it first",
    WIPED: "provision it first",
    REVOKED: "wipe it first, then provision it again",
    LOST: "receive it first",
    RETIRED: "take another Kit",
}
EMPTIED, NOT_EMPTIED = "emptied", "cannot be emptied"
MARKS = ("bonded", EMPTIED, NOT_EMPTIED)
DAY_MS = 86_400_000
MAX_BATCH = 100
"""Kits made at once: a day's work of a bench."""


class LifeError(Exception):
    """A step that can't be taken: the sentence is for the technician or operator."""


class Step(NamedTuple):
    """A step that somebody wants to take."""

    kit: str
    name: str
    who: str
    now_ms: int
    note: str = ""
    self_test_days: int = 30


# --- Steps --------------------------------------------------------------------------------------------------


def make(db: sqlite3.Connection, series: str, count: int, *, who: str, now_ms: int) -> list[str]:
    """Take the next numbers of a series; return the new Kits' ids. Raises LifeError."""
    if not 0 < count <= MAX_BATCH:
        raise LifeError(f"1 to {MAX_BATCH} Kits are made at once, not {count}")
    last = max((number_of(kit, series) for (kit,) in db.execute("select kit from kit")), default=0)
    try:
        made = [kit_id(series, last + n) for n in range(1, count + 1)]
    except ValueError as problem:
        raise LifeError(str(problem)) from None
    for kit in made:
        add(db, kit, MADE, who=who, now_ms=now_ms)
    return made


def add(db: sqlite3.Connection, kit: str, life: str, *, who: str, now_ms: int) -> None:
    """A new Kit begins its life. Raises LifeError."""
    if db.execute("select 1 from kit where kit = ?", (kit,)).fetchone():
        raise LifeError(f"Kit {kit} is there already")
    db.execute(
        "insert into kit (kit, state, created_ms, life, life_ms) values (?, ?, ?, ?, ?)",
        (kit, _access(life), now_ms, life, now_ms),
    )
    audit(db, now_ms, who, "kit add", kit, kit)


def recall(db: sqlite3.Connection, issued: dict[str, Certified], *, who: str, now_ms: int) -> list[str]:
    """Take Kits that a restored Store lacks, and revocations, from the certificates; return the names."""
    found = []
    known = dict(db.execute("select kit, state from kit"))
    for kit, certificate in issued.items():
        if kit not in known:
            add(db, kit, PROVISIONED, who=who, now_ms=now_ms)
            db.execute("update kit set created_ms = ? where kit = ?", (certificate.born_ms, kit))
        elif known[kit] != "active" or not certificate.revoked:
            continue
        if certificate.revoked:
            take(db, Step(kit, "revoke", who, now_ms))
        found.append(kit)
    return found


def take(db: sqlite3.Connection, step: Step) -> str:
    """Take a step; return where the Kit's life is now. Raises LifeError, and then nothing has changed."""
    life = of(db, step.kit)
    allowed, to = STEPS[step.name]
    if life not in allowed:
        raise LifeError(f"Kit {step.kit} is {life}: {_NEXT[life]}")
    for condition in CONDITIONS.get(step.name, ()):
        if problem := condition(db, step):
            raise LifeError(f"Kit {step.kit} {problem}")
    db.execute(_MOVE, (to, _access(to), step.now_ms, step.kit))
    if effect := _EFFECTS.get(step.name):
        db.execute(effect, (step.now_ms, step.kit))
    audit(db, step.now_ms, step.who, f"kit {step.name}", f"{life} -> {to} {step.note}".strip(), step.kit)
    return to


def of(db: sqlite3.Connection, kit: str) -> str:
    """Where the Kit's life is. Raises LifeError."""
    row: tuple[str] | None = db.execute("select life from kit where kit = ?", (kit,)).fetchone()
    if row is None:
        raise LifeError(f"Kit {kit} is not known")
    return row[0]


def _access(life: str) -> str:
    return "active" if life in ACTIVE else "revoked"


_MOVE = "update kit set life = ?, state = ?, life_ms = ? where kit = ?"
_EFFECTS = {"wipe": "update kit set wiped_ms = ?, labelled_ms = null where kit = ?"}


# --- What must hold besides ---------------------------------------------------------------------------------


def _nobody(db: sqlite3.Connection, step: Step) -> str | None:
    query = "select 1 from assignment where kit = ? and end_ms is null"
    assigned = db.execute(query, (step.kit,)).fetchone()
    return assigned and "is still with a patient: the operator ends that with `homeward-sync return`"


def _tested(db: sqlite3.Connection, step: Step) -> str | None:
    row = db.execute(_LAST_TEST, (step.kit,)).fetchone()
    if row is None or not row[1]:
        return "has not passed its self-test: run `homeward-station selftest`"
    days = (step.now_ms - row[0]) // DAY_MS
    if days >= step.self_test_days:
        return f"was tested {days} days ago: run `homeward-station selftest` again"
    return None


def _labelled(db: sqlite3.Connection, step: Step) -> str | None:
    (labelled_ms,) = db.execute("select labelled_ms from kit where kit = ?", (step.kit,)).fetchone()
    return None if labelled_ms else "has no label: run `homeward-station label`"


def _bonded(db: sqlite3.Connection, step: Step) -> str | None:
    query = "select 1 from sensor_mark where kit = ? and mark = 'bonded'"
    if db.execute(query, (step.kit,)).fetchone() or step.note:
        return None
    return "has no bonded Sensor: bond its Sensors, or say why it goes without (a note)"


CONDITIONS: dict[str, Sequence[Callable[[sqlite3.Connection, Step], str | None]]] = {
    "provision": (_nobody,),
    "pass": (_nobody,),
    "ready": (_tested, _labelled, _bonded),
    "ship": (_tested, _labelled),
    "wipe": (_nobody,),
    "retire": (_nobody,),
}
_LAST_TEST = "select at_ms, passed, content from self_test where kit = ? order by id desc limit 1"


# --- What is noted on the way -------------------------------------------------------------------------------


def label(db: sqlite3.Connection, kit: str, *, who: str, now_ms: int) -> None:
    """Its label was printed. Raises LifeError."""
    life = of(db, kit)
    if life not in ACTIVE:
        raise LifeError(f"Kit {kit} is {life}: {_NEXT[life]}")
    db.execute("update kit set labelled_ms = ? where kit = ?", (now_ms, kit))
    audit(db, now_ms, who, "kit label", "", kit)


def record_test(db: sqlite3.Connection, step: Step, checks: list[dict[str, Any]]) -> str:
    """Record a self-test and take its step. `step.name`: "pass" or "fail". Raises LifeError."""
    life = take(db, step)
    row = (step.kit, step.now_ms, step.who, step.name == "pass", json.dumps(checks))
    db.execute("insert into self_test (kit, at_ms, who, passed, content) values (?, ?, ?, ?, ?)", row)
    return life


def holds_frame(db: sqlite3.Connection, kit: str, journal_id: bytes, sequence: int) -> bool:
    """Whether this FRAME of the Kit is stored: that it was acked is not taken on the Station's word."""
    return db.execute(_HOLDS, (kit, journal_id, sequence, FRAME)).fetchone() is not None


def mark(
    db: sqlite3.Connection, kit: str, sensor: str, word: str, note: str, *, who: str, now_ms: int
) -> None:
    """What the bench has done with a Sensor of the Kit. Raises LifeError.

    One that could not be emptied stays so when it is bonded: derivation holds its first session.
    """
    of(db, kit)
    if word not in MARKS:
        raise LifeError(f"a Sensor is marked {', '.join(MARKS)}; not {word!r}")
    db.execute(_MARK, (kit, sensor, word, note, now_ms, who))
    if word == NOT_EMPTIED:
        db.execute("insert or replace into not_emptied values (?, ?, ?)", (sensor, kit, now_ms))
    elif word == EMPTIED:
        db.execute("delete from not_emptied where sensor = ?", (sensor,))
    audit(db, now_ms, who, "sensor mark", f"{sensor} {word} {note}".strip(), kit)


def wipe(db: sqlite3.Connection, step: Step, receipt: dict[str, Any]) -> int:
    """Take the step and keep the receipt; return its number. Raises LifeError."""
    take(db, step)
    insert = "insert into wipe (kit, at_ms, who, receipt) values (?, ?, ?, ?) returning id"
    (number,) = db.execute(insert, (step.kit, step.now_ms, step.who, json.dumps(receipt))).fetchone()
    db.execute("delete from sensor_mark where kit = ? and mark = 'emptied'", (step.kit,))
    return int(number)


_HOLDS = """
    select 1 from journal join record on record.journal = journal.journal
    where journal.kit = ? and journal.journal_id = ? and record.sequence = ? and record.type = ?"""
_MARK = """
    insert into sensor_mark (kit, sensor, mark, note, at_ms, who) values (?, ?, ?, ?, ?, ?)
    on conflict do update set mark = excluded.mark, note = excluded.note, at_ms = excluded.at_ms,
        who = excluded.who"""


# --- What the bench is told ---------------------------------------------------------------------------------


def describe(db: sqlite3.Connection, kit: str) -> dict[str, Any]:
    """What the bench may know of a Kit: that it is with a patient, never with whom. Raises LifeError."""
    life = of(db, kit)
    state, status, status_ms, seen_ms, labelled_ms = db.execute(_KIT, (kit,)).fetchone()
    said = json.loads(status) if status else {}
    tested = db.execute(_LAST_TEST, (kit,)).fetchone()
    sensors = db.execute(_SENSORS, (kit,)).fetchall()
    return {
        "kit": kit,
        "life": life,
        "state": state,
        "assigned": db.execute(_ASSIGNED, (kit,)).fetchone() is not None,
        "online": said.get("online"),
        "release": said.get("release"),
        "pending": said.get("pending") if isinstance(said.get("pending"), int) else None,
        "status_ms": status_ms,
        "seen_ms": seen_ms,
        "labelled_ms": labelled_ms,
        "tested_ms": tested and tested[0],
        "passed": tested and bool(tested[1]),
        "sensors": [dict(zip(("sensor", "mark", "note", "at_ms"), row, strict=True)) for row in sensors],
        "journals": {
            journal_id.hex(): through for journal_id, through in db.execute(_JOURNALS, (kit, kit)).fetchall()
        },
        "unsent": unsent(db, kit),
    }


def unsent(db: sqlite3.Connection, kit: str) -> int:
    """Records that the Kit's last status tells of and the Store does not have; of its Journal since the wipe.

    A status is five minutes old at most while the Kit is on line, so 0 says only that nothing is known to be
    missing: the Kit's own flash has the last word.
    """
    of(db, kit)
    status, status_ms, wiped_ms = db.execute(_STATUS, (kit,)).fetchone()
    said = json.loads(status) if status and status_ms > (wiped_ms or 0) else {}
    journal, acked, pending = said.get("journal"), said.get("acked"), said.get("pending")
    if not isinstance(journal, str) or not isinstance(acked, int) or not isinstance(pending, int):
        return 0
    row = db.execute(_THROUGH, (kit, journal.lower())).fetchone()
    return max(0, acked + pending - (row[0] if row else 0))


def history(db: sqlite3.Connection, kit: str, *, of_patients: bool = True) -> list[dict[str, Any]]:
    """All that was done with the Kit, oldest first. Raises LifeError.

    Without `of_patients` what concerns one is left out: the bench sees the Kit, not with whom it was.
    """
    of(db, kit)
    rows = db.execute("select at_ms, who, action, detail from audit where kit = ? order by id", (kit,))
    found = [dict(zip(("at_ms", "who", "action", "detail"), row, strict=True)) for row in rows]
    return [row for row in found if of_patients or row["action"].startswith(_OF_THE_BENCH)]


_OF_THE_BENCH = ("kit ", "sensor ")
"""How the actions begin that name no Episode and no patient."""
_KIT = "select state, status, status_ms, seen_ms, labelled_ms from kit where kit = ?"
_STATUS = "select status, status_ms, wiped_ms from kit where kit = ?"
_ASSIGNED = "select 1 from assignment where kit = ? and end_ms is null"
_SENSORS = "select sensor, mark, note, at_ms from sensor_mark where kit = ? order by sensor"
_JOURNALS = """
    select journal_id, through from journal
    where kit = ? and created_ms >= coalesce((select wiped_ms from kit where kit = ?), 0)"""
_THROUGH = "select through from journal where kit = ? and lower(hex(journal_id)) = ?"
