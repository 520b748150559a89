"""Early derivation: whatever is peeked, and in whatever order, the Readings are those of the order alone.

The Kit is the Gateway's core on NOR flash in RAM, its world is made up from a seed: outages, reboots, Sensors
that repeat themselves, clocks that step and stop, bonds that change, Batches and Acks that are lost. The same
Records, taken in order by a service that never sees a peek, are the measure.
"""

import json
import random
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kit_journal import BIRTH_MS, BP, DAY, HOUR, MINUTE, SPOT, spot

from gateway import record
from gateway.gateway import Gateway
from gateway.journal import Journal
from gateway.message import ENVELOPE_BYTES, PEEK, WHOLE, Ack, decode_batch, encode_ack, up_topic
from gateway.record import Record, decode_all
from gateway.uplink import Uplink
from sync_service import derive, early
from sync_service.arrival import Arrival, decode
from sync_service.batches import keep
from sync_service.derive import Deriver
from sync_service.store import connect
from tests.gateway.nor import Lock, NorFlash

KIT, JOURNAL = "HW-0001", b"journal1"
SEEDS = 40
NOW = BIRTH_MS + 90 * DAY
CLIP, CUFF = 1, 2
FLASH = (24, 4096)
HANDED_ON_MS = (BIRTH_MS + 30 * DAY, BIRTH_MS + 2 * DAY)  # the worlds end after some days


class Bonds:
    def __init__(self) -> None:
        self.text = "[]"

    def load(self) -> list[dict[str, Any]]:
        kept: list[dict[str, Any]] = json.loads(self.text)
        return kept

    def save(self, sensors: list[dict[str, Any]]) -> None:
        self.text = json.dumps(sensors)


class Clock:
    """A Sensor's: runs, until it is stepped or stopped."""

    def __init__(self) -> None:
        self.ahead_ms = 0
        self.stopped_at: int | None = None

    def shows(self, now_ms: int) -> tuple[int, ...]:
        shown_ms = now_ms + self.ahead_ms if self.stopped_at is None else self.stopped_at
        return _date(shown_ms // 1000)

    def set(self, now_ms: int) -> None:
        self.ahead_ms = 0
        if self.stopped_at is not None:
            self.stopped_at = now_ms


class Early(NamedTuple):
    """What the Hub was told before its turn."""

    key: bytes
    earliest_ms: int
    latest_ms: int
    patient: str


EARLY = """
    select sequence, key, earliest_ms, latest_ms, patient from reading join outbox using (reading)
    where sequence > ? and reading.state = 'queued'"""


class World:
    """One Kit, its Sensors, and a service that gets what the Kit sends, or loses it."""

    def __init__(self, seed: int, folder: Path, *, faults: bool = True) -> None:
        self.seed, self.random = seed, random.Random(seed)
        self.faults = faults
        self.flash = NorFlash(*FLASH)
        Journal(self.flash, Lock()).format(JOURNAL)
        self.bonds = Bonds()
        self.now_ms = BIRTH_MS
        self.clocks = {CLIP: Clock(), CUFF: Clock()}
        self.held: list[bytes] = []  # in the cuff
        self.taken: dict[int, int] = {}  # sequence -> when it was taken
        self.made: dict[bytes, int] = {}  # value -> when it was taken first
        self.db = store(folder / "peeked.sqlite", seed)
        self.deriver = Deriver(ahead=early.measure)
        self.early: dict[int, Early] = {}  # by sequence
        self.peeks = 0
        self.boot()
        for address in (b"\xc0\xff\xee\x00\x00\x01", b"\xc0\xff\xee\x00\x00\x02"):
            self.gateway.bond(1, address, 0)
        features = struct.pack("<HH", SPOT + 2, 0x0040)
        self.gateway.describe(
            CLIP, ((record.SERIAL, b"501231"), (record.FEATURE, features)), True, self.uptime_ms
        )
        self.gateway.describe(CUFF, ((record.SERIAL, b"518071"),), True, self.uptime_ms)
        for sensor in (CLIP, CUFF):
            self.session(sensor, values=0)

    def boot(self) -> None:
        self.began_ms = self.now_ms
        self.journal = Journal(self.flash, Lock())
        self.journal.mount()
        self.uplink = Uplink(self.journal, lambda: self.random.randbytes(8))
        self.gateway = Gateway(KIT, "0", journal=self.journal, uplink=self.uplink, bonds=self.bonds)
        self.gateway.start(0)

    @property
    def uptime_ms(self) -> int:
        return self.now_ms - self.began_ms

    # --- At home

    def session(self, sensor: int, *, values: int = 1) -> None:
        """A Sensor connects, gives what it holds and its new values, is empty, and has its clock set.

        The cuff measures while nobody listens, too; and it may switch off before it is empty.
        """
        for _ in range(self.random.choice((0, 0, 1, 2)) if sensor == CUFF and values else 0):
            self.now_ms += self.random.randint(MINUTE, HOUR)
            self.held.append(self.measured(CUFF))
        self.now_ms += self.random.randint(MINUTE, 2 * HOUR)
        if self.faults and self.random.random() < 0.1:
            self.fault()
        self.read_clock(sensor, record.CLOCK_BEFORE)
        if sensor == CUFF and self.held and self.random.random() < 0.3:
            self.deliver(sensor, self.held[0])  # it may come again: it was perhaps not confirmed
            return
        for value in self.held if sensor == CUFF else []:
            self.deliver(sensor, value)
        for _ in range(values):
            self.now_ms += self.random.randint(100, 30_000)
            value = self.measured(sensor)
            for _ in range(self.random.choice((1, 1, 1, 2))):
                self.deliver(sensor, value)
        self.held = [] if sensor == CUFF else self.held
        self.now_ms += 2_000
        self.gateway.append_event(record.SENSOR_DRAINED, sensor, b"", self.uptime_ms)
        if self.random.random() < 0.8:
            clock = self.clocks[sensor]
            clock.set(self.now_ms)
            self.tell_clock(sensor, record.CLOCK_SET, _date(self.now_ms // 1000))
            self.now_ms += 300
            self.read_clock(sensor, record.CLOCK_AFTER)

    def read_clock(self, sensor: int, kind: int) -> None:
        self.tell_clock(sensor, kind, self.clocks[sensor].shows(self.now_ms))

    def tell_clock(self, sensor: int, kind: int, date: tuple[int, ...]) -> None:
        self.gateway.append_clock(sensor, kind, 0, 0x2A08, struct.pack("<HBBBBB", *date), self.uptime_ms)

    def deliver(self, sensor: int, value: bytes) -> None:
        while self.gateway.maintain():
            pass
        characteristic, uptime = SPOT if sensor == CLIP else BP, self.uptime_ms
        sequence = self.gateway.received(
            sensor, characteristic, value, record.INDICATED, uptime >> 24, uptime & 0xFFFFFF
        )
        self.taken[sequence] = self.made[value]

    def measured(self, sensor: int) -> bytes:
        date = self.clocks[sensor].shows(self.now_ms) if self.random.random() < 0.7 else None
        if sensor == CLIP:
            value = spot(self.random.randint(90, 99), len(self.made) + 30, at=date)
        else:
            value = struct.pack("<BHHH", 2 * (date is not None), 100 + len(self.made), 80, 93)
            value += b"" if date is None else struct.pack("<HBBBBB", *date)
        self.made[value] = self.now_ms  # its numbers are its own
        return value

    def fault(self) -> None:
        clock = self.clocks[self.random.choice((CLIP, CUFF))]
        what = self.random.random()
        if what < 0.4:
            clock.ahead_ms += self.random.choice((-1, 1)) * self.random.randint(HOUR, 10 * HOUR)
        elif what < 0.6:
            clock.stopped_at = self.now_ms
        elif what < 0.7:
            clock.stopped_at = None
        elif what < 0.9:
            self.now_ms += MINUTE
            self.boot()
        else:
            self.gateway.append_event(record.BOND_CHANGED, CUFF, b"bond", self.uptime_ms)

    def live(self, sessions: int) -> None:
        for _ in range(sessions):
            self.session(self.random.choice((CLIP, CUFF)), values=self.random.randint(0, 2))

    # --- On line

    def online(self, batches: int) -> None:
        """Send so many Batches, perhaps lost, perhaps with lost Acks; values are taken in between."""
        self.gateway.connected(self.uptime_ms)
        for _ in range(batches):
            self.now_ms += 50
            whole = self.uplink.next_batch(self.uptime_ms)
            if whole is None:
                if not self.journal.pending:
                    break
                self.now_ms = max(self.now_ms, self.began_ms + self.uplink.due_ms(self.uptime_ms))
                continue
            self.send(bytes(whole))
            if self.random.random() < 0.1:
                self.live(1)
            if self.random.random() < 0.5:
                self.derive()
        self.uplink.disconnected(self.uptime_ms)

    def send(self, whole: bytes) -> None:
        self.peeks += decode_batch(whole).flags == PEEK | WHOLE
        if self.random.random() < 0.1:
            return
        arrival = decode(up_topic(KIT), whole, self.now_ms)
        assert isinstance(arrival, Arrival)
        (kept,) = keep(self.db, [arrival], self.now_ms)
        assert kept is not None and kept.replay_from is None
        if self.random.random() < 0.1:
            return
        ack = Ack(JOURNAL, arrival.batch.nonce, kept.through, 0, 0, None, self.now_ms, 0)
        self.gateway.receive_ack(encode_ack(ack), self.uptime_ms)

    def derive(self) -> None:
        through = self.through()
        self.deriver.chunk(self.db, now_ms=NOW)
        for sequence, *rest in self.db.execute(EARLY, (through,)):
            self.early.setdefault(sequence, Early(*rest))
        if self.random.random() < 0.3:
            self.db.execute("update outbox set state = 'done' where kind = 'create'")
        if self.random.random() < 0.1:
            self.deriver = Deriver(ahead=early.measure)

    @property
    def disproved(self) -> bool:
        """Whether a Sensor's clock is proved not to have run, as all Records say."""
        journal = derive.Journal(1, self.through(), KIT, JOURNAL, BIRTH_MS - DAY)
        journal.rebuild(self.db)
        journal.through = journal.cursor
        journal.look_ahead(self.db)
        return any(source is not None and source.disproved for source in map(journal.source_of, (CLIP, CUFF)))

    def through(self) -> int:
        row = self.db.execute("select through from journal").fetchone()
        return int(row[0]) if row else 0

    def finish(self) -> None:
        """Until everything has come and is derived."""
        while self.journal.pending:
            self.online(40)
        while self.deriver.chunk(self.db, now_ms=NOW).records:
            pass

    def in_order(self, folder: Path) -> sqlite3.Connection:
        """The Store of a service that got the same in order, and never a peek."""
        db = store(folder / "in_order.sqlite", self.seed)
        db.execute(
            "insert into journal (journal, kit, journal_id, created_ms) values (1, ?, ?, 0)", (KIT, JOURNAL)
        )
        rows = [(1, *one, self.now_ms) for one in self.records()]
        db.executemany(
            "insert into record (journal, type, version, sequence, boot, uptime_ms, body, received_ms)"
            " values (?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        receipts = self.db.execute("select * from receipt").fetchall()
        db.executemany("insert into receipt values (?, ?, ?, ?)", receipts)
        db.execute("update journal set through = ?", (self.journal.next_sequence - 1,))
        deriver = Deriver()
        while deriver.chunk(db, now_ms=NOW).records:
            pass
        return db

    def records(self) -> list[Record]:
        records: list[Record] = []
        buffer = bytearray(4096)
        while len(records) < self.journal.next_sequence - 1:
            *_, end = self.journal.read_batch(buffer, ENVELOPE_BYTES, 4092, len(records))
            records += decode_all(memoryview(buffer)[ENVELOPE_BYTES:end])
        return records


def _date(seconds: int) -> tuple[int, ...]:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).timetuple()[:6]


def store(path: Path, seed: int) -> sqlite3.Connection:
    """A Store with the Kit, which was with one patient and then with the next, and was not wiped."""
    db = connect(path)
    db.execute("pragma synchronous = off")  # no power fails here
    db.execute("insert into kit (kit, state, created_ms) values (?, 'active', ?)", (KIT, BIRTH_MS - DAY))
    on_ms = HANDED_ON_MS[seed % 2]
    stays = [("one", "Patient/1", BIRTH_MS - HOUR, on_ms), ("two", "Patient/2", on_ms, None)]
    db.executemany(
        "insert into assignment (kit, episode, patient, start_ms, end_ms) values (?, ?, ?, ?, ?)",
        [(KIT, *stay) for stay in stays],
    )
    return db


READING = """
    select sequence, key, reading.state, sensor, trust, earliest_ms, latest_ms, patient from reading
    left join outbox on outbox.reading = reading.reading and reading.state = 'queued' order by sequence"""


class Found:
    """What a Store says in the end."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.rows = db.execute(READING).fetchall()
        self.sequences = [row[0] for row in self.rows]
        self.keys = sorted(row[1] for row in self.rows if row[2] != "repeat")
        self.delivered = sorted(row[1] for row in self.rows if row[2] == "queued")
        self.patients = {row[1]: row[7] for row in self.rows if row[2] == "queued"}
        self.disproved = db.execute("select count(*) from counter where name = 'clock disproved'").fetchone()[
            0
        ]


@pytest.fixture(params=range(SEEDS))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    world = World(request.param, tmp_path)
    yield world
    world.db.close()


def lived(world: World) -> World:
    """Days at home, of which most are off line."""
    world.online(20)
    for _ in range(3):
        world.live(world.random.randint(12, 40))
        world.online(world.random.randint(2, 14))
    world.finish()
    return world


def test_readings_keys_and_patients_are_those_of_the_order(world: World, tmp_path: Path) -> None:
    lived(world)
    reference = world.in_order(tmp_path)
    found, wanted = Found(world.db), Found(reference)
    reference.close()
    assert found.sequences == wanted.sequences
    assert len(found.keys) == len(set(found.keys)) == len(wanted.keys)
    if found.keys != wanted.keys:  # only where a clock was proved wrong, and later than it was believed
        assert wanted.disproved or found.disproved or world.disproved
    both = found.patients.keys() & wanted.patients.keys()
    assert all(found.patients[key] == wanted.patients[key] for key in both)


def test_what_the_hub_is_told_early_is_true_and_what_the_order_would_have_told(
    world: World, tmp_path: Path
) -> None:
    lived(world)
    reference = world.in_order(tmp_path)
    wanted = {row[0]: row for row in Found(reference).rows}
    reference.close()
    for sequence, one in world.early.items():
        _, key, state, *_, patient = wanted[sequence]
        assert one.earliest_ms <= world.taken[sequence] <= one.latest_ms
        assert state == "repeat" or one.patient == patient
        assert one.key == key or world.disproved


def test_every_bound_holds_the_truth_in_the_end(world: World) -> None:
    lived(world)
    for row in Found(world.db).rows:
        if row[2] == "queued":
            assert row[5] <= world.taken[row[0]] <= row[6]


def test_the_worlds_are_worth_it(tmp_path: Path, say: list[str]) -> None:
    """Peeks, early Readings and proofs against clocks are no rarities in them."""
    early = peeks = disproved = 0
    for seed in range(SEEDS):
        world = World(seed, tmp_path_of(tmp_path, seed))
        lived(world)
        early += len(world.early)
        peeks += world.peeks
        disproved += world.disproved
        world.db.close()
    say.append(f"early derivation: {SEEDS} worlds, {peeks} whole peeks, {early} early Readings")
    assert early > SEEDS and peeks > SEEDS and disproved > SEEDS / 8


def tmp_path_of(folder: Path, seed: int) -> Path:
    made = folder / str(seed)
    made.mkdir()
    return made
