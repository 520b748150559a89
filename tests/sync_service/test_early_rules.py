"""Early derivation, rule by rule: what has to be in a peek, and what a gap may hide."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit_journal import BIRTH_MS, BP, CONTINUOUS, CUFF, DAY, HOUR, MINUTE, OXIMETER, SPOT, KitJournal, spot

from gateway import record
from gateway.timebase import HELD_MS
from sync_service import early
from sync_service.assignments import assign
from sync_service.context import BOND_CHANGED
from sync_service.derive import Deriver
from sync_service.store import connect

NOW = BIRTH_MS + 30 * DAY
PLAIN_BP = bytes.fromhex("00780050006000")


def timed_bp(date: tuple[int, ...]) -> bytes:
    year, *rest = date
    return b"\x02" + PLAIN_BP[1:] + year.to_bytes(2, "little") + bytes(rest)


class Outage:
    """A Kit whose Journal has reached the service up to a gap; then a peek of what stands behind it."""

    def __init__(self, db: sqlite3.Connection, *, bound: bool = True) -> None:
        self.db, self.kit = db, KitJournal()
        self.kit.create(db)
        assign(db, self.kit.kit, "episode", "Patient/1", BIRTH_MS - HOUR, now_ms=NOW, max_bracket_ms=DAY)
        self.kit.begin()
        if bound:
            self.kit.frame(OXIMETER, SPOT, spot(95))
        self.deriver = Deriver(ahead=early.measure)
        self.kit.store(db)
        self.derive()
        self.through = self.kit.sequence
        self._hidden: list[tuple[object, ...]] = []

    def begin_window(self) -> None:
        """What was added since the outage began is in the gap, and has not come."""
        self.kit.store(self.db)
        gap = "from record where sequence > ?"
        self._hidden = self.db.execute(f"select * {gap}", (self.through,)).fetchall()
        self.db.execute(f"delete {gap}", (self.through,))
        self.first = self.kit.sequence + 1
        self.kit.anchor()
        self.later(HELD_MS)

    def peek(self, *apart: int, after: int | None = None) -> None:
        """The peek comes: the window, and Records of the gap."""
        self.kit.store(self.db)
        self.insert([row for row in self._hidden if row[1] in apart])
        self.db.execute("update journal set through = ?", (self.through,))
        after = self.through if after is None else after
        self.db.execute("insert into peek values (1, ?, ?, ?)", (self.first, self.kit.sequence, after))
        self.derive()

    def gap_comes(self) -> None:
        """The backlog has come in order."""
        self.insert(self._hidden)
        self.db.execute("update journal set through = ?", (self.kit.sequence,))
        self.derive()

    def insert(self, rows: list[tuple[object, ...]]) -> None:
        self.db.executemany("insert or ignore into record values (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def derive(self) -> None:
        while self.deriver.chunk(self.db, now_ms=NOW).records:
            pass

    def readings(self, columns: str = "sequence") -> list[tuple[object, ...]]:
        """Those of what came after the gap began."""
        query = f"select {columns} from reading where sequence > ? order by sequence"
        return self.db.execute(query, (self.through,)).fetchall()

    def later(self, ms: int = HOUR) -> None:
        self.kit.uptime_ms += ms

    def session(self, value: bytes, *, hour: int, minute: int = 0) -> int:
        """A visit of the cuff: its clock is read, it gives a value, and is empty."""
        self.later()
        self.kit.clock(CUFF, record.CLOCK_BEFORE, (2026, 7, 10, hour, minute, 0))
        self.later(MINUTE)
        sequence = self.kit.frame(CUFF, BP, value)
        self.later(2_000)
        self.kit.event(record.SENSOR_DRAINED, CUFF)
        return sequence


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    db = connect(tmp_path / "store.sqlite")
    db.execute("pragma synchronous = off")
    yield db
    db.close()


@pytest.fixture
def outage(db: sqlite3.Connection) -> Outage:
    return Outage(db)


def test_the_newest_reading_goes_out_before_the_backlog_and_once(outage: Outage) -> None:
    outage.later()
    outage.kit.frame(OXIMETER, SPOT, spot(96))
    outage.begin_window()
    outage.later()
    newest = outage.kit.frame(OXIMETER, SPOT, spot(97))
    outage.peek()
    assert outage.readings("sequence, state") == [(newest, "queued")]
    before = outage.readings("reading, key, earliest_ms, latest_ms")
    outage.gap_comes()
    assert outage.readings("state") == [("queued",), ("queued",)]
    assert outage.readings("reading, key, earliest_ms, latest_ms")[1:] == before


def test_a_value_that_may_have_waited_since_before_the_window_waits_for_its_turn(outage: Outage) -> None:
    outage.later()
    outage.begin_window()
    outage.later()
    outage.kit.frame(CUFF, BP, PLAIN_BP)
    outage.peek()
    assert outage.readings() == []
    outage.gap_comes()
    assert len(outage.readings()) == 1


def test_a_value_since_its_sensor_was_seen_empty_goes_early(outage: Outage) -> None:
    outage.session(PLAIN_BP, hour=2)
    outage.begin_window()
    outage.session(PLAIN_BP, hour=3)
    newest = outage.session(PLAIN_BP, hour=4)
    outage.peek()
    assert outage.readings() == [(newest,)]


def test_a_set_timestamp_waits_for_what_the_gap_says_of_its_clock(outage: Outage) -> None:
    outage.session(PLAIN_BP, hour=2)
    outage.begin_window()
    outage.session(PLAIN_BP, hour=3)
    timed = outage.session(timed_bp((2026, 7, 10, 4, 0, 30)), hour=4)
    untimed = outage.session(PLAIN_BP, hour=5)
    outage.peek()
    assert outage.readings() == [(untimed,)]
    outage.gap_comes()
    assert (timed,) in outage.readings()


def test_a_boot_that_an_sntp_server_alone_has_told_of_waits(outage: Outage) -> None:
    outage.kit.hint(BIRTH_MS + outage.kit.uptime_ms)
    outage.gap_comes()
    outage.through = outage.kit.sequence
    outage.later()
    outage.kit.hint(BIRTH_MS + 9 * HOUR)
    outage.begin_window()
    outage.kit.boot, outage.kit.uptime_ms = 2, HOUR
    outage.kit.hint(BIRTH_MS + 12 * HOUR)
    outage.kit.frame(OXIMETER, SPOT, spot(97))
    outage.peek()
    assert outage.readings() == []


def test_a_value_that_may_have_come_before_the_window_as_well_waits(outage: Outage) -> None:
    """An oximeter that stores nothing holds a value for a minute: its first try may be in the gap."""
    outage.begin_window()
    outage.later(-1)
    outage.kit.frame(OXIMETER, SPOT, spot(96))
    outage.later(1)
    newest = outage.kit.frame(OXIMETER, SPOT, spot(97))
    outage.peek()
    assert outage.readings() == [(newest,)]


def test_what_an_earlier_peek_has_shown_of_the_gap_says_nothing_of_the_rest(outage: Outage) -> None:
    outage.kit.event(record.SENSOR_DRAINED, CUFF)
    shown = outage.kit.sequence
    outage.later(5 * HOUR)
    outage.begin_window()
    outage.kit.frame(CUFF, BP, PLAIN_BP)
    outage.peek(shown)
    assert outage.readings() == []


def test_a_changed_bond_in_the_gap_bars_what_is_peeked(outage: Outage) -> None:
    changed = outage.kit.event(record.BOND_CHANGED, OXIMETER)
    outage.begin_window()
    outage.kit.frame(OXIMETER, SPOT, spot(97))
    outage.peek(changed)
    assert outage.readings() == []
    outage.gap_comes()
    assert outage.readings("state, reason") == [("held", BOND_CHANGED)]


def test_a_bond_behind_a_frame_hides_what_was_there_before_it(outage: Outage) -> None:
    outage.kit.event(record.BOND_CHANGED, OXIMETER)
    outage.begin_window()
    hidden = outage.kit.frame(OXIMETER, SPOT, spot(96))
    outage.kit.event(record.BOND_MADE, OXIMETER)
    shown = outage.kit.frame(OXIMETER, SPOT, spot(97))
    outage.peek()
    assert outage.readings() == [(shown,)]
    outage.gap_comes()
    assert outage.readings("sequence, state") == [(hidden, "held"), (shown, "queued")]


def test_a_bond_that_a_kit_has_hidden_takes_the_reading_back_and_is_counted(outage: Outage) -> None:
    outage.kit.event(record.BOND_CHANGED, OXIMETER)
    outage.begin_window()
    outage.kit.frame(OXIMETER, SPOT, spot(97))
    outage.peek()  # whole, it says
    assert outage.readings("state") == [("queued",)]
    outage.gap_comes()
    assert outage.readings("state, reason, barred") == [("held", BOND_CHANGED, 1)]
    assert outage.db.execute("select kind from outbox order by reading").fetchall()[-1:] == [("retract",)]
    counted = "select n from counter where name = 'early Readings taken back'"
    assert outage.db.execute(counted).fetchone() == (1,)


def test_a_boot_without_an_anchor_a_stream_and_what_is_no_vital_sign_wait(outage: Outage) -> None:
    outage.begin_window()
    outage.kit.frame(OXIMETER, CONTINUOUS, b"\x00\x61\x00\x48\x00", record.NOTIFIED)
    outage.kit.frame(OXIMETER, SPOT, spot()[:-2] + b"\x00\x04")  # for demonstration
    outage.kit.frame(OXIMETER, SPOT, b"\x01")  # broken
    outage.kit.boot, outage.kit.uptime_ms = 2, MINUTE
    outage.kit.frame(OXIMETER, SPOT, spot(97))
    outage.kit.boot, outage.kit.uptime_ms = 3, MINUTE
    outage.kit.anchor(BIRTH_MS + 2 * HOUR)
    outage.peek()
    assert outage.readings() == []


def test_a_journal_that_belongs_to_nobody_yet_gives_nothing_early(db: sqlite3.Connection) -> None:
    outage = Outage(db, bound=False)
    outage.begin_window()
    outage.kit.frame(OXIMETER, SPOT, spot(97))
    outage.peek()
    assert outage.readings() == []


def test_a_kit_that_takes_more_for_stored_than_is_gives_nothing_early(outage: Outage) -> None:
    """The Store came back from a backup: between the two, anything may stand."""
    outage.begin_window()
    outage.kit.frame(OXIMETER, SPOT, spot(97))
    outage.peek(after=outage.through + 1)
    assert outage.readings() == []


def test_a_peek_is_looked_at_once(outage: Outage) -> None:
    outage.begin_window()
    outage.kit.frame(OXIMETER, SPOT, spot(97))
    outage.peek()
    assert outage.db.execute("select count(*) from peek").fetchone() == (0,)
    outage.db.execute("insert into peek values (1, ?, ?, 0)", (outage.first, outage.kit.sequence))
    outage.derive()
    assert len(outage.readings()) == 1
