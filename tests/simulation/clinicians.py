"""The people: a technician at the bench, clinicians who assign and return Kits, and a thief.

They tell the truth about when a Kit was handed over, if late. What they have said is kept on paper: after a
restored backup they say it again.
"""

import asyncio
import struct
from functools import partial
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from gateway import record
from gateway.limits import MAX_BATCH_BYTES
from gateway.message import ENVELOPE_BYTES, begin_batch, seal_batch, up_topic
from sync_service import assignments, outbox, sensor_bonds
from sync_service.context import BOND_CHANGED
from tests.simulation.home import DAY_S, HOUR_S, MINUTE_S, Home
from tests.simulation.service import MAX_BRACKET_MS

if TYPE_CHECKING:
    import sqlite3

    from tests.simulation.kit import Kit
    from tests.simulation.world import World

THIEF = "K-99"


class Said(NamedTuple):
    """An entry on paper: of a Kit, its beginning with a patient or (patient '') its end."""

    kit: str
    patient: str
    at_ms: int


class Clinicians:
    """Everything that people do."""

    def __init__(self, world: "World", random: Random) -> None:
        self.world, self.random = world, random
        self.paper: list[Said] = []
        self.revoked = False
        self._patients = 0
        self._entering: dict[str, asyncio.Task[None]] = {}  # the last entry of each Kit

    # --- What they enter ------------------------------------------------------------------------------------

    async def enter(self, said: Said) -> None:
        """Enter it as soon as the database works."""
        while not self.world.database.up:
            await asyncio.sleep(60.0)
        self._enter(said)
        self.paper.append(said)

    def _enter(self, said: Said) -> None:
        def work(db: "sqlite3.Connection") -> None:
            if not said.patient:
                assignments.end(db, said.kit, said.at_ms)
                return
            now_ms = self.world.service_clock_ms()
            episode = f"E {said.patient}"
            assignments.assign(
                db, said.kit, episode, said.patient, said.at_ms, now_ms=now_ms, max_bracket_ms=MAX_BRACKET_MS
            )

        self.world.database.transaction(work)
        self.world.wake_workers()

    def enter_again(self) -> None:
        """After a restored backup: compare with the paper."""
        rows = self.world.database.rows("select kit, patient, start_ms, end_ms from assignment")
        there = {Said(kit, patient, start) for kit, patient, start, _ in rows}
        there |= {Said(kit, "", end) for kit, _, _, end in rows if end is not None}
        for said in self.paper:
            if said not in there:
                self._enter(said)
        if self.revoked:
            self._revoke()

    def recheck(self, *, hub_restored: bool = False) -> None:
        """What the operator does after a restored backup, when the paper has been entered."""
        now_ms = self.world.service_clock_ms()
        self.world.database.transaction(lambda db: outbox.look_again(db, now_ms, hub_restored=hub_restored))

    def add_kit(self, name: str) -> None:
        row = (name, self.world.now_ms)
        query = "insert into kit (kit, state, created_ms) values (?, 'active', ?)"
        self.world.database.transaction(lambda db: db.execute(query, row))

    def replay_parked(self) -> None:
        """Somebody has read why the Hub has refused them, and has mended that.

        What came back with the Hub's backup under another patient is taken out there by hand.
        """
        rows = self.world.database.rows(
            """select reading, lower(hex(key)), patient, answer like '412%somebody else%'
            from outbox join reading using (reading) where outbox.state = 'parked'"""
        )
        for _, key, patient, is_anothers in rows:
            if is_anothers:
                self.world.hub.take_out(key, patient)
        readings, now_ms = [row[0] for row in rows], self.world.service_clock_ms()
        if readings:
            self.world.database.transaction(lambda db: outbox.replay(db, readings, now_ms))
            self.world.wake_workers()

    def accept_bonds(self) -> None:
        """Somebody has asked: the Sensor is still that patient's."""
        database, now_ms = self.world.database, self.world.service_clock_ms()
        query = """select distinct kit, sensor from reading join journal using (journal)
            where reading.state = 'held' and reason = ?"""
        for kit, sensor in database.rows(query, (BOND_CHANGED,)):
            database.transaction(partial(sensor_bonds.accept, kit=kit, sensor=sensor, now_ms=now_ms))

    # --- A Kit's course -------------------------------------------------------------------------------------

    async def course(self, kit: "Kit", home: Home) -> None:
        """Bench, a patient, perhaps the next one, until the world ends."""
        await self._bench(kit, home)
        while True:
            patient = self._next_patient()
            end_s = self._end_of_stay()
            await self._stay(kit, home, patient, end_s)
            if end_s is None:
                return
            await self._return(kit, home)

    def _next_patient(self) -> str:
        self._patients += 1
        return f"Patient/{self._patients}"

    def _end_of_stay(self) -> float | None:
        """Seldom a Kit stays with one patient to the end."""
        now_s, last_s = self.world.loop.time(), self.world.safety_s
        end_s = now_s + self.random.uniform(1.5 * DAY_S, 9 * DAY_S)
        return end_s if end_s < last_s - 1.5 * DAY_S else None

    async def _stay(self, kit: "Kit", home: Home, patient: str, end_s: float | None) -> None:
        self._enter_soon(Said(kit.name, patient, self.world.now_ms), "assigned late")
        await asyncio.sleep(10 * MINUTE_S)
        await home.live(patient, (end_s or self.world.safety_s) - 20 * MINUTE_S)
        if end_s is not None:
            await asyncio.sleep(20 * MINUTE_S)
            self._enter_soon(Said(kit.name, "", self.world.now_ms), "returned late")

    def _enter_soon(self, said: Said, late: str) -> None:
        """Entries of one Kit are made in their order."""
        late_s = 0.0
        if self.world.faults.strikes(late, 0.3):
            late_s = self.random.uniform(HOUR_S, 14 * HOUR_S)
        before = self._entering.get(said.kit)
        self._entering[said.kit] = self.world.loop.spawn(
            None, self._enter_late(said, late_s, before), "enter"
        )

    async def _enter_late(self, said: Said, late_s: float, before: "asyncio.Task[None] | None") -> None:
        await asyncio.sleep(late_s)
        if before is not None:
            await before
        await self.enter(said)

    async def _return(self, kit: "Kit", home: Home) -> None:
        """Before it comes back the last values may stay where they are."""
        if any(sensor.held for sensor in kit.sensors):
            self.world.faults.happened("Sensor not emptied")
        if self.random.random() < 0.5:
            if kit.pending:
                self.world.faults.happened("unsent at hand-on")
            await asyncio.sleep(self.random.uniform(0.5, 12) * HOUR_S)
            return
        home.go(online=True)
        while not self._is_emptied(kit):
            if not kit.online:
                home.go(online=True)
            await asyncio.sleep(10 * MINUTE_S)
        if self.random.random() < 0.5:  # emptied, as the rule has it
            for sensor in kit.sensors:
                kit.call(sensor)
            await asyncio.sleep(5 * MINUTE_S)
            while not self._is_emptied(kit):
                await asyncio.sleep(10 * MINUTE_S)
        kit.wipe()
        self.world.database.backup_s = -1.0  # what was acked and wiped is nowhere else
        await asyncio.sleep(MINUTE_S)
        await self._bench(kit, home)

    def _is_emptied(self, kit: "Kit") -> bool:
        """As the bench asks before a wipe: whether the Store has what the flash holds, whatever was acked."""
        if kit.process is None or kit.pending:
            return False
        query = "select through from journal where kit = ? and journal_id = ?"
        rows = self.world.database.rows(query, (kit.name, kit.journal.journal_id))
        return bool(rows) and rows[0][0] == kit.journal.next_sequence - 1

    async def _bench(self, kit: "Kit", home: Home) -> None:
        """Bond the Sensors, one after the other; perhaps try them."""
        while kit.process is None:
            await asyncio.sleep(MINUTE_S)
        while not all(kit.process and kit.gateway.reference_of(sensor.address) for sensor in kit.sensors):
            kit.open_pairing()
            for sensor in kit.sensors:
                kit.call(sensor)
                await asyncio.sleep(90.0)
        if self.world.faults.strikes("measured at the bench", 0.3):
            await asyncio.sleep(5 * MINUTE_S)
            for sensor in kit.sensors:
                sensor.measure(None)
                kit.call(sensor)
                sensor.wake()
                await asyncio.sleep(4 * MINUTE_S)
        await asyncio.sleep(self.random.uniform(0.5, 6) * HOUR_S)

    # --- The thief ------------------------------------------------------------------------------------------

    async def steal(self) -> None:
        """A Kit of ours in wrong hands: it sends under another Kit's Journal id, and on after its end."""
        world = self.world
        self.add_kit(THIEF)
        link = world.broker.connect(THIEF, None, lambda topic, whole: None)
        end_s = world.safety_s * self.random.uniform(0.4, 0.8)
        sequence = 1
        while world.faults.active:
            await asyncio.sleep(self.random.uniform(2, 12) * HOUR_S)
            if world.loop.time() > end_s and not self.revoked and world.database.up:
                self._revoke()
            victim = self.random.choice(world.kits)
            if victim.journals and world.faults.strikes("stolen Kit", 0.5):
                if not link.up:
                    link = world.broker.connect(THIEF, None, lambda topic, whole: None)
                link.publish(up_topic(THIEF), _forged(victim.journals[-1], sequence, self.random))
                sequence += 2

    def _revoke(self) -> None:
        self.revoked = True
        query = "update kit set state = 'revoked' where kit = ?"
        self.world.database.transaction(lambda db: db.execute(query, (THIEF,)))
        self.world.checks.was_revoked(THIEF)


def _forged(journal_id: bytes, first: int, random: Random) -> bytes:
    """A Batch of two Frames that nobody has measured."""
    buffer = bytearray(MAX_BATCH_BYTES)
    end = ENVELOPE_BYTES
    for sequence in (first, first + 1):
        value = struct.pack("<BHH", 0, 80, random.randrange(150, 200))
        body = record.encode_frame(record.Frame(1, 1, 0x2A5E, value))
        whole = record.encode(record.FRAME, 1, sequence, 1, 60_000 * sequence, body)
        buffer[end : end + len(whole)] = whole
        end += len(whole)
    begin_batch(
        buffer,
        flags=0,
        journal_id=journal_id,
        boot=1,
        uptime_ms=60_000 * (first + 2),
        nonce=random.randbytes(8),
        acked_through=first - 1,
        first=first,
        count=2,
    )
    return bytes(buffer[: seal_batch(buffer, end)])
