"""The Outbox: what still has to reach the Hub, and the attempts to bring it there.

A row is written in the transaction of its Reading, so that a Reading can't be forgotten between the two; it
is marked done in a transaction after the Hub's answer. kill -9 between the answer and that transaction
repeats the delivery, and the Hub's conditional create on the Reading's key makes the repetition free: no
loss, no duplicate, no lease to expire.

For one patient at most one Bundle is under way: two creates on the same condition at the same time make two
resources at most servers. Several patients are served at once. A Bundle that is refused as a whole is halved
until the entry at fault stands alone; only that one is parked.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import tzinfo
from functools import partial
from random import random as uniform
from typing import NamedTuple

from gateway.reading import Reading
from gateway.record import FRAME, HOST_CONFIRMED, Frame, decode_body
from gateway.sensors import decode
from sync_service.amend import AMEND, CREATE, NOT_HELD, RETRACT, amend, retract
from sync_service.hub import Hub
from sync_service.observation import About, entries, identifiers, observations
from sync_service.redate import ROUNDING_MS
from sync_service.retry import (
    CONFIGURATION,
    Answer,
    Breaker,
    Decision,
    Done,
    Parked,
    Random,
    RetryAt,
    decide,
    is_transient,
    worst,
)
from sync_service.store import Store, StoreUnavailable, count

log = logging.getLogger(__name__)

BUNDLE_READINGS = 50
"""100 to 150 entries: answered in well under a second, and little is repeated when the answer is lost."""
PARALLEL_PATIENTS = 8
"""Bundles under way at once. More does not help one Hub, and a Hub that comes back is not met by a herd."""
UNHEARD_MS = 60_000
"""We give up a request after ANSWER_S; after twice that it is in the Hub, or never will be."""
UNMAPPED = 422
"""Status of a Reading that we could not even map: parked like one that the Hub refuses."""
POLL_S = 2.0
"""How soon rows are seen that another process has queued (`homeward-sync assign`, `replay`)."""


class Row(NamedTuple):
    """A claimed row with all that its Observations need."""

    reading: int
    kind: str  # create, amend, retract
    attempts: int
    key: bytes
    possible_repeat: int
    sensor: str
    earliest_ms: int
    latest_ms: int
    quality: str
    sequence: int
    frame: bytes
    kit: str
    journal_id: bytes
    patient: str  # whose record it goes into; retract: perhaps went into
    owner: str | None  # whose Reading it is, as known now
    answer: str | None  # to the last attempt


class Devices(NamedTuple):
    """The Hub's references."""

    gateway: str
    sensor: str


class Claimed(NamedTuple):
    """What may be delivered now."""

    rows: dict[str, list[Row]]  # by patient, at most one Bundle's each
    line: list[str]  # patients who have something due as well, longest due first
    due_ms: int | None  # when the next row after these is due; None: there is none, or nobody has looked


class Delivery(NamedTuple):
    """One Reading on its way: identifier value -> Bundle entry."""

    row: Row
    entries: dict[str, bytes]


class Outbox:
    """Brings queued Readings to the Hub until it is cancelled."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        wake: asyncio.Event,
        *,
        zone: tzinfo,
        conditional_create_races: bool = False,
        parallel: int = PARALLEL_PATIENTS,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        random: Random = uniform,
        poll_s: float = POLL_S,
        unheard_ms: int = UNHEARD_MS,
    ) -> None:
        self._store, self._hub, self._wake, self._poll_s = store, hub, wake, poll_s
        self._zone, self._races, self._parallel = zone, conditional_create_races, parallel
        self._clock_ms, self._random, self._unheard_ms = clock_ms, random, unheard_ms
        self._before = (
            0  # Readings up to here were queued before this start: an attempt may have been cut off
        )
        self._busy: set[str] = set()  # patients with a Bundle under way
        self._line: list[str] = []  # who else waited when somebody last looked
        self.breaker = Breaker(random)
        self.trouble: str | None = None  # why the last request failed as a whole; None: it went well

    async def run(self) -> None:
        """Deliver until cancelled. What is under way then stays queued and is repeated at the next start."""
        self._before = await self._store.read(_newest)
        self.breaker = Breaker(self._random)  # the one before may wait for a probe that was cut off
        async with asyncio.TaskGroup() as deliveries:
            while True:
                self._wake.clear()
                wait_s = POLL_S  # also where the Store can't be read now
                with suppress(StoreUnavailable):
                    wait_s = await self._start_due(deliveries)
                # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the wake.
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()

    async def _start_due(self, deliveries: asyncio.TaskGroup) -> float:
        """Start what may start now; return after how many seconds to look again."""
        now_ms = self._clock_ms()
        free = min(self._parallel - len(self._busy), self.breaker.allows(now_ms))
        if free <= 0:
            return self._seconds(self.breaker.open_until_ms - now_ms)  # or a delivery that ends wakes us
        free_now = partial(
            claim, now_ms=now_ms, busy=frozenset(self._busy), patients=free, line=tuple(self._line)
        )
        claimed, self._line, due_ms = await self._store.read(free_now)
        for patient, rows in claimed.items():
            self._busy.add(patient)
            self.breaker.started()
            deliveries.create_task(self._deliver(patient, rows), name="delivery")
        return self._seconds((due_ms or 0) - now_ms)

    def _seconds(self, wait_ms: int) -> float:
        """How long to sleep: what is due in the past is for somebody else to wake us for."""
        return min(self._poll_s, wait_ms / 1000) if wait_ms > 0 else self._poll_s

    async def _deliver(self, patient: str, rows: list[Row]) -> None:
        try:
            answered = await self._attempt(patient, rows)
            failure = next((answer for _, answer in answered if answer.whole and is_transient(answer)), None)
            self._tell_breaker(failure)
            decisions = self._decide(answered)
            if any(isinstance(decision, Parked) for _, decision in decisions):
                self._hub.forget_devices()
            now_ms = self._clock_ms()
            await self._store.write(partial(settle, decisions=decisions, failure=failure, now_ms=now_ms))
        except StoreUnavailable as error:
            # What the Hub has answered is not written down: the rows stay queued and the repetition is free.
            log.warning("the Outbox waits: %s", error)
            await asyncio.sleep(POLL_S)
        finally:
            self._busy.discard(patient)
            self._wake.set()

    async def _attempt(self, patient: str, rows: list[Row]) -> list[tuple[Row, Answer]]:
        """One attempt for each row."""
        answered: list[tuple[Row, Answer]] = []
        deliveries: list[Delivery] = []
        creates = [row for row in rows if row.kind == CREATE]
        for row, devices in zip(creates, await self._make_devices(creates), strict=True):
            ready = devices if isinstance(devices, Answer) else self._prepare(patient, row, devices)
            if isinstance(ready, Delivery):
                deliveries.append(ready)
            else:
                answered.append((row, ready))
        if self._races:
            deliveries, found = await self._search(deliveries)
            answered += found
        answered += await self._send(deliveries)
        return answered + await self._correct(patient, [row for row in rows if row.kind != CREATE])

    async def _correct(self, patient: str, rows: list[Row]) -> list[tuple[Row, Answer]]:
        """Amend or retract, one after the other: there are few."""
        answered: list[tuple[Row, Answer]] = []
        for at, row in enumerate(rows):
            answer = await self._correct_one(patient, row)
            if answer.whole and is_transient(answer):
                return answered + [(left, answer) for left in rows[at:]]  # the Hub is away
            answered.append((row, answer))
        return answered

    async def _correct_one(self, patient: str, row: Row) -> Answer:
        try:
            return await (self._retract if row.kind == RETRACT else self._amend)(patient, row)
        except Exception as error:  # by what the Hub holds under our identifier: this row alone is parked
            log.error("Reading %d can't be corrected: %s", row.reading, type(error).__name__)
            return Answer(UNMAPPED, f"this release can't correct it: {type(error).__name__}")

    async def _retract(self, patient: str, row: Row) -> Answer:
        values = identifiers(_frame(row).characteristic, row.key.hex())
        return await retract(self._hub, values, row.owner)

    async def _amend(self, patient: str, row: Row) -> Answer:
        (devices,) = await self._make_devices([row])
        if isinstance(devices, Answer):
            return devices
        ready = self._prepare(patient, row, devices)
        if isinstance(ready, Answer):
            return ready
        characteristic, reading, about = _mapped(row, patient, devices)
        wanted = observations(characteristic, reading, about._replace(amended=True), self._zone)
        return await amend(self._hub, wanted, ready.entries, patient)

    async def _make_devices(self, rows: list[Row]) -> list[Devices | Answer]:
        """Each row's Gateway and Sensor at the Hub, made if need be; or the answer that stands in the way."""
        known: dict[tuple[str, str], Devices | Answer] = {}
        for row in rows:
            if (row.kit, row.sensor) not in known:
                made = known[row.kit, row.sensor] = await self._make_pair(row)
                if isinstance(made, Answer) and made.whole and is_transient(made):
                    return [made] * len(rows)  # the Hub is away: asking for the others changes nothing
        return [known[row.kit, row.sensor] for row in rows]

    async def _make_pair(self, row: Row) -> Devices | Answer:
        gateway = await self._hub.gateway(row.kit)
        if not gateway.reference:
            return gateway
        sensor = await self._hub.sensor(row.sensor, _frame(row).characteristic)
        return Devices(gateway.reference, sensor.reference) if sensor.reference else sensor

    def _prepare(self, patient: str, row: Row, devices: Devices) -> Delivery | Answer:
        try:
            return Delivery(row, entries(*_mapped(row, patient, devices), self._zone))
        except Exception as error:  # a fault of our mapping: this row alone is parked, the others go on
            log.error("Reading %d can't be mapped: %s", row.reading, type(error).__name__)
            return Answer(UNMAPPED, f"this release can't map it: {type(error).__name__}")

    async def _search(self, deliveries: list[Delivery]) -> tuple[list[Delivery], list[tuple[Row, Answer]]]:
        """Take out what an earlier attempt has left at the Hub."""
        doubtful = [one for one in deliveries if one.row.attempts or one.row.reading <= self._before]
        held = await self._hub.find([value for one in doubtful for value in one.entries])
        if isinstance(held, Answer):
            return [one for one in deliveries if one not in doubtful], [(one.row, held) for one in doubtful]
        left: list[Delivery] = []
        found: list[tuple[Row, Answer]] = []
        for row, wanted in deliveries:
            missing = {value: entry for value, entry in wanted.items() if not held.get(value)}
            if any(held.get(value, 0) > 1 for value in wanted):
                found.append((row, Answer(412, "the Hub holds it more than once")))
            elif missing:
                left.append(Delivery(row, missing))
            else:
                found.append((row, Answer(200, "found at the Hub")))
        return left, found

    async def _send(self, deliveries: Sequence[Delivery]) -> list[tuple[Row, Answer]]:
        """The Hub's answer for each; what is refused as a whole is halved until one Reading is left."""
        if not deliveries:
            return []
        answers = await self._hub.deliver([entry for one in deliveries for entry in one.entries.values()])
        if isinstance(answers, list):
            each = iter(answers)
            return [(row, worst(next(each) for _ in entries)) for row, entries in deliveries]
        if is_transient(answers) or len(deliveries) == 1:
            return [(one.row, answers) for one in deliveries]
        half = len(deliveries) // 2
        return await self._send(deliveries[:half]) + await self._send(deliveries[half:])

    def _tell_breaker(self, failure: Answer | None) -> None:
        was_open = self.breaker.is_open
        self.breaker.ended(failure or Answer(200), self._clock_ms())
        self.trouble = str(failure) if failure else None
        if self.breaker.is_open and not was_open:
            log.warning("the Hub is left alone for a while (%s)", failure)
        elif was_open and not self.breaker.is_open:
            log.warning("the Hub answers again")

    def _decide(self, answered: list[tuple[Row, Answer]]) -> list[tuple[Row, Decision]]:
        # One draw for all: what failed together comes back as one Bundle, not as fifty.
        draw, now_ms = self._random(), self._clock_ms()
        return [
            (row, self._look_again(row, answer, now_ms))
            if row.kind == RETRACT and answer.ok
            else (row, decide(answer, attempts=row.attempts, now_ms=now_ms, random=lambda: draw))
            for row, answer in answered
        ]

    def _look_again(self, row: Row, answer: Answer, now_ms: int) -> Decision:
        """A retraction ends with a look that finds nothing, a minute after another look.

        What another worker, or one that was killed, has sent may have been on its way into the Hub.
        """
        looked = (row.answer or "").startswith("200")
        if looked and answer == NOT_HELD:
            return Done(str(answer))
        return RetryAt(str(answer), now_ms + self._unheard_ms)


# --- The table ----------------------------------------------------------------------------------------------

# Patients with something queued and when the first of it is due. It steps from patient to patient through the
# index, so that it costs the number of patients, not the length of the backlog.
_WAITING = """
    with recursive waiting (patient) as (
        select min(patient) from outbox where state = 'queued'
        union all
        select (select min(patient) from outbox where state = 'queued' and patient > waiting.patient)
        from waiting where patient is not null)
    select patient,
        (select min(due_ms) from outbox where state = 'queued' and patient = waiting.patient) as due_ms
    from waiting where patient is not null order by due_ms"""

# One patient's due rows with all that their Observations need.
_CLAIM = """
    select reading, outbox.kind, outbox.attempts, reading.key, reading.possible_repeat, reading.sensor,
        reading.earliest_ms, reading.latest_ms, reading.quality, reading.sequence, record.body, journal.kit,
        journal.journal_id, outbox.patient, assignment.patient, outbox.answer
    from outbox
    join reading using (reading)
    left join assignment on assignment.assignment = reading.assignment
    join journal on journal.journal = reading.journal
    join record on record.journal = reading.journal and record.sequence = reading.sequence
    where outbox.state = 'queued' and outbox.patient = ? and outbox.due_ms <= ?
    order by outbox.due_ms limit ?"""


def claim(
    db: sqlite3.Connection,
    *,
    now_ms: int,
    busy: frozenset[str],
    patients: int,
    line: Sequence[str] = (),
) -> Claimed:
    """Claim for at most `patients` patients who are not busy: of each one Bundle's rows, longest due first.

    `line` is who was due by an earlier look: all of them have their turn before everybody is looked at again.
    """
    due, next_ms = [patient for patient in line if patient not in busy], None
    if not due:
        waiting = [(patient, due_ms) for patient, due_ms in db.execute(_WAITING) if patient not in busy]
        due = [patient for patient, due_ms in waiting if due_ms <= now_ms]
        next_ms = min((due_ms for patient, due_ms in waiting if due_ms > now_ms), default=None)
    rows = {
        patient: [Row(*row) for row in db.execute(_CLAIM, (patient, now_ms, BUNDLE_READINGS))]
        for patient in due[:patients]
    }
    claimed = {patient: found for patient, found in rows.items() if found}
    if line and not claimed:  # what they had has been withdrawn
        return claim(db, now_ms=now_ms, busy=busy, patients=patients)
    return Claimed(claimed, due[patients:], next_ms)


def _newest(db: sqlite3.Connection) -> int:
    (reading,) = db.execute("select coalesce(max(reading), 0) from outbox").fetchone()
    return int(reading)


# A row that has another kind than what was attempted has been taken back while it was under way.
_DONE = """
    update outbox set state = 'done', attempts = attempts + 1, answer = ?, done_ms = ?
    where reading = ? and state = 'queued' and kind = ? and patient = ?"""
_RETRY = """
    update outbox set attempts = attempts + 1, answer = ?, due_ms = ?
    where reading = ? and state = 'queued' and kind = ? and patient = ?"""
_PARK = """
    update outbox set state = 'parked', attempts = attempts + 1, answer = ?
    where reading = ? and state = 'queued' and kind = ? and patient = ?"""
_TIMES = "select reading, earliest_ms, latest_ms from reading where reading in ({})"
_AMEND = f"""
    update outbox set kind = '{AMEND}', state = 'queued', attempts = 0, due_ms = ?
    where reading = ? and state = 'done'"""
# Retracted: now it can go to whom it belongs to, if that is known. That may be whom it was with: then it is
# there still, perhaps with another time.
_RELEASE = f"""
    update outbox set kind = '{AMEND}', state = 'queued', attempts = 0, due_ms = ?, answer = null,
        done_ms = null, patient = (
            select assignment.patient from reading join assignment using (assignment)
            where reading.reading = outbox.reading)
    where reading = ? and kind = '{RETRACT}' and state = 'done' and exists (
        select 1 from reading where reading.reading = outbox.reading and state = 'queued')"""
# Delivered, and meanwhile no more this patient's: its row is gone, or another patient's by now.
_TAKE_OUT = f"""
    insert into outbox (reading, patient, kind, state, due_ms) values (?, ?, '{RETRACT}', 'queued', 0)
    on conflict do update set kind = excluded.kind, patient = excluded.patient, state = excluded.state,
        attempts = 0, due_ms = 0, answer = null, done_ms = null
    where outbox.patient <> excluded.patient"""
_END = f"delete from outbox where reading = ? and kind = '{RETRACT}' and state = 'done'"


def settle(
    db: sqlite3.Connection,
    *,
    decisions: Sequence[tuple[Row, Decision]],
    failure: Answer | None = None,
    now_ms: int,
) -> None:
    """Write what comes after the attempts of one Bundle, each `(row, decision)`.

    `failure` is of the request as a whole: counted apart, since it says something about the Hub.
    """
    rows = [row for row, one in decisions if isinstance(one, Done)]
    done = [(one.answer, now_ms, *_named(row)) for row, one in decisions if isinstance(one, Done)]
    retry = [(one.answer, one.due_ms, *_named(row)) for row, one in decisions if isinstance(one, RetryAt)]
    parked = [(one.answer, *_named(row)) for row, one in decisions if isinstance(one, Parked)]
    gone = len(done) - db.executemany(_DONE, done).rowcount if done else 0
    db.executemany(_RETRY, retry)
    db.executemany(_PARK, parked)
    redated = _redated(db, [row for row in rows if row.kind != RETRACT])
    db.executemany(_AMEND, [(now_ms, reading) for reading in redated])
    if gone:
        db.executemany(_TAKE_OUT, [(row.reading, row.patient) for row in rows if row.kind != RETRACT])
    retracted = [row.reading for row in rows if row.kind == RETRACT]
    db.executemany(_RELEASE, [(now_ms, reading) for reading in retracted])
    db.executemany(_END, [(reading,) for reading in retracted])
    for name, n in (
        ("delivered", sum(row.kind == CREATE for row in rows)),
        ("amended", sum(row.kind == AMEND for row in rows)),
        ("retracted", len(retracted)),
        ("delivery retried", len(retry)),
        ("delivery parked", len(parked)),
    ):
        if n:
            count(db, "", name, n)
    if failure:
        count(db, "", "hub refuses us" if failure.status in CONFIGURATION else "hub failed")
    if gone:
        # The Hub has Readings that were taken back meanwhile: their rows retract them now.
        count(db, "", "delivered after withdrawal", gone)


def _redated(db: sqlite3.Connection, rows: Sequence[Row]) -> list[int]:
    """The Readings that were dated again while they were under way, so that what was sent does not hold."""
    query = _TIMES.format(",".join("?" * len(rows)))
    times = {reading: bound for reading, *bound in db.execute(query, [row.reading for row in rows])}
    return [row.reading for row in rows if not _holds(row, *times[row.reading])]


def _holds(row: Row, earliest_ms: int | None, latest_ms: int | None) -> bool:
    if earliest_ms is None or latest_ms is None:
        return True
    return row.earliest_ms - ROUNDING_MS <= earliest_ms and latest_ms <= row.latest_ms + ROUNDING_MS


def _named(row: Row) -> tuple[int, str, str]:
    return row.reading, row.kind, row.patient


_REPLAY = """
    update outbox set state = 'queued', attempts = 0, due_ms = ?, answer = null
    where reading = ? and state = 'parked'"""


def replay(db: sqlite3.Connection, readings: Iterable[int], now_ms: int) -> int:
    """Put parked Readings back; return how many."""
    return sum(db.execute(_REPLAY, (now_ms, reading)).rowcount for reading in readings)


# A Hub that came back from a backup may have lost any Observation, and have again what was retracted. What is
# held now may have been with any patient of its Kit: `retract` asks for its identifiers, not for the patient.
_LOOK_AGAIN = f"""
    update outbox set kind = '{AMEND}', state = 'queued', attempts = 0, due_ms = ?, answer = null,
        done_ms = null
    where state = 'done' and kind <> '{RETRACT}'"""
_RETRACT_HELD = f"""
    insert into outbox (reading, patient, kind, state, due_ms)
    select reading.reading, (
            select patient from assignment where assignment.kit = journal.kit order by start_ms limit 1),
        '{RETRACT}', 'queued', ?
    from reading join journal using (journal)
    where reading.state = 'held' and exists (select 1 from assignment where assignment.kit = journal.kit)
    on conflict do nothing"""


def look_again(db: sqlite3.Connection, now_ms: int, *, hub_restored: bool) -> int:
    """Compare everything delivered with what the Hub holds; return how many Readings are looked at.

    After a backup of the Store was restored, which may call done what was retracted since. `hub_restored`:
    after one of the Hub, which may hold what was retracted from it.
    """
    looked_at = db.execute(_LOOK_AGAIN, (now_ms,)).rowcount
    if hub_restored:
        looked_at += db.execute(_RETRACT_HELD, (now_ms,)).rowcount
    return looked_at


def _frame(row: Row) -> Frame:
    frame = decode_body(FRAME, 1, row.frame)
    assert isinstance(frame, Frame)
    return frame


def _mapped(row: Row, patient: str, devices: Devices) -> tuple[int, Reading, About]:
    """The characteristic, the Reading, and what it does not know itself."""
    frame = _frame(row)
    reading = decode(frame.characteristic, frame.value)
    assert isinstance(reading, Reading)
    about = About(
        key=row.key.hex(),
        patient=patient,
        sensor=devices.sensor,
        gateway=devices.gateway,
        kit=row.kit,
        journal=row.journal_id.hex(),
        sequence=row.sequence,
        earliest_ms=row.earliest_ms,
        latest_ms=row.latest_ms,
        quality=row.quality,
        host_confirmed=bool(frame.flags & HOST_CONFIRMED),
        possible_repeat=bool(row.possible_repeat),
    )
    return frame.characteristic, reading, about
