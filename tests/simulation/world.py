"""The world of one seed: Kits in their homes, Sensors, a broker, workers, a database, a Hub and people.

First the safety phase, in which faults happen; then the liveness phase, in which none do and everything has
to arrive. One seed gives one run, to the byte.
"""

import asyncio
import hashlib
import random as global_random
import struct
from collections import Counter
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import orjson

from tests.simulation.broker import Broker
from tests.simulation.checkers import LIVE, Checks
from tests.simulation.clinicians import THIEF, Clinicians
from tests.simulation.engine import Loop
from tests.simulation.faults import Faults
from tests.simulation.home import DAY_S, HOUR_S, Home
from tests.simulation.hub import Hub
from tests.simulation.kit import Kit
from tests.simulation.sensor import CUFF, OXIMETER, PLAIN_OXIMETER, Measurement, Sensor
from tests.simulation.service import Database, Worker

EPOCH_MS = 1_774_166_400_000
"""2026-03-22 08:00 UTC: the clocks of London change a week later."""
REST_S = 2 * DAY_S
"""Liveness: the longest wait is a resend of two minutes, a poll of ten, a Retry-After of fifteen."""
SETTLE_S = 4 * HOUR_S
MOST_STEPS_A_DAY = 150_000
"""Seven times what a day with five Kits takes."""
CALM_MIN = 30
"""Each Kit asks for the time once an hour and has a Record to send then."""


class World:
    """`run` once. `days` of faults, then rest."""

    def __init__(self, seed: int, *, days: int = 14, kits: int = 5) -> None:
        self.seed, self.days = seed, days
        self.random = Random(seed)
        global_random.seed(seed)  # jitter of the service's pauses
        self.epoch_ms = EPOCH_MS
        self.zone = ZoneInfo("Europe/London")
        self.safety_s = days * DAY_S
        self.loop = Loop()
        self.ledger: list[Measurement] = []
        self.faults = Faults(Random(self._draw()))
        self.checks = Checks(self)
        self.broker = Broker(self, Random(self._draw()))
        self.database = Database(self, Random(self._draw()))
        self.hub = Hub(self, Random(self._draw()))
        self.people = Clinicians(self, Random(self._draw()))
        self.cut_off = False
        self.wrong_by_ms = 0
        self.wrong_until_ms = 0  # of the service's clock, or of what it has given out
        self.workers: list[Worker] = []
        self._worker_number = 0
        self.kits = [self._make_kit(number) for number in range(1, kits + 1)]
        self.homes = [Home(self, kit, Random(self._draw())) for kit in self.kits]

    def _draw(self) -> int:
        return self.random.randrange(1 << 60)

    @property
    def now_ms(self) -> int:
        """True time."""
        return EPOCH_MS + round(self.loop.time() * 1000)

    def local_ms(self) -> int:
        """Wall time of the homes, as if it were UTC."""
        return self.now_ms + self.offset_min() * 60_000

    def offset_min(self) -> int:
        return 60 if self.now_ms >= 1_774_746_000_000 else 0  # 2026-03-29 01:00 UTC

    def service_clock_ms(self) -> int:
        """What the service's machine shows."""
        return self.now_ms + self.wrong_by_ms

    def sntp_answer(self, nonce: bytes, wrong_ms: int) -> bytes:
        """What an SNTP server answers now (RFC 5905, mode 4, stratum 2)."""
        seconds, ms = divmod(self.now_ms + wrong_ms, 1000)
        time = struct.pack(">II", seconds + 2_208_988_800, (ms << 32) // 1000)
        return bytes([0x24, 2]) + bytes(22) + nonce + time + time

    async def _trouble_the_clock(self) -> None:
        """A machine that has come up with a wrong clock, until somebody sees it."""
        while True:
            await asyncio.sleep(self.random.expovariate(1 / DAY_S))
            if self.faults.strikes("service clock wrong", 0.08):
                self.wrong_by_ms = self.random.choice((-1, 1)) * self.random.randrange(5_000, 7_200_000)
                self.wrong_until_ms = 1 << 60
                await asyncio.sleep(self.random.uniform(1, 10) * HOUR_S)
                self.wrong_by_ms = 0
                self.wrong_until_ms = self.now_ms + 600_000

    def kit_named(self, name: str) -> Kit | None:
        return next((kit for kit in self.kits if kit.name == name), None)

    def _make_kit(self, number: int) -> Kit:
        blocks, block_bytes = self.random.choice(((24, 1024), (8, 4096), (24, 4096), (64, 1024)))
        kit = Kit(self, f"K-{number}", Random(self._draw()), blocks=blocks, block_bytes=block_bytes)
        oximeter = self.random.choice((OXIMETER, OXIMETER, PLAIN_OXIMETER))
        kit.sensors = [
            Sensor(self, f"S{number}{kind[0]}{self.random.randrange(1000, 9999)}", kind, Random(self._draw()))
            for kind in (CUFF, oximeter)
        ]
        return kit

    # --- The service ----------------------------------------------------------------------------------------

    def start_worker(self) -> None:
        self._worker_number += 1
        self.workers.append(Worker(self, self._worker_number, self._worker_ended))

    def _worker_ended(self, worker: Worker) -> None:
        self.workers.remove(worker)
        if not self.workers:
            self.loop.after(self.random.choice((0.5, 5.0, 60.0, HOUR_S)), None, self._ensure_worker)

    def _ensure_worker(self) -> None:
        if not self.workers:
            self.start_worker()

    def wake_workers(self) -> None:
        for worker in self.workers:
            worker.wake()

    async def _trouble_the_service(self) -> None:
        """Kills, restarts, backups, outages."""
        while True:
            await asyncio.sleep(self.random.expovariate(1 / (3 * HOUR_S)))
            strikes = self.faults.strikes
            if self.workers and strikes("worker killed", 0.1):
                self.random.choice(self.workers).process.kill_after(self.random.randrange(400))
            if len(self.workers) == 1 and not self.hub.races and strikes("two workers", 0.04):
                self.start_worker()
                self.loop.after(self.random.uniform(60, 12 * HOUR_S), None, self._end_one_worker)
            if strikes("database down", 0.03):
                self._database_down(self.random.uniform(1, HOUR_S))
            if strikes("broker restarted", 0.04):
                self.broker.restart(self.random.uniform(1, 600))
            if strikes("worker cut off", 0.04):
                self.cut_off = True
                self.broker.cut_workers()
                self.loop.after(self.random.uniform(10, 2 * HOUR_S), None, self._join)

    def _end_one_worker(self) -> None:
        if len(self.workers) > 1:
            self.workers[0].process.kill()

    def _join(self) -> None:
        self.cut_off = False

    def _database_down(self, for_s: float) -> None:
        self.database.up = False
        self.loop.after(for_s, None, self._database_up)

    def _database_up(self) -> None:
        self.database.up = True

    async def _back_up(self) -> None:
        """Each night; and once in a while the last one is all that is left."""
        while True:
            await asyncio.sleep(DAY_S * self.random.uniform(0.9, 1.1))
            wiped_since = self.database.backup_s < 0
            old = self.database.backup and not wiped_since and self.database.up
            if old and self.faults.strikes("backup restored", 0.06):
                for worker in self.workers[:]:
                    worker.process.kill()
                self.database.restore()
                self.people.enter_again()
                self.people.recheck()
            elif self.faults.active:
                self.database.take_backup()
            if self.database.up and self.faults.strikes("hub restored", 0.06) and self.hub.restore():
                for worker in self.workers[:]:
                    worker.process.kill()
                self.people.recheck(hub_restored=True)
            elif self.faults.active:
                self.hub.take_backup()

    async def _look_after(self) -> None:
        """Somebody looks at what is parked, twice a day."""
        while True:
            await asyncio.sleep(12 * HOUR_S)
            if self.database.up:
                self.people.replay_parked()
                self.people.accept_bonds()

    # --- The run --------------------------------------------------------------------------------------------

    def run(self, *, first_only: bool = False) -> dict[str, Any]:
        """Both phases; return the figures. `first_only`: end on a day on which a promise was broken."""
        loop = self.loop
        loop.spawn(None, self._begin(), "begin")
        for day in range(1, self.days + 1):
            loop.most_steps = loop.steps + MOST_STEPS_A_DAY
            loop.run_until(day * DAY_S)
            if loop.steps >= loop.most_steps:
                self.checks.found(LIVE, f"the world runs in circles on day {day}")
            if self.checks.violations and (first_only or loop.steps >= loop.most_steps):
                return self._figures()
        loop.most_steps = loop.steps + 3 * MOST_STEPS_A_DAY
        self._stop_faults()
        loop.run_until(self.safety_s + REST_S - SETTLE_S)
        self.people.replay_parked()
        self.people.accept_bonds()
        for minute in range(CALM_MIN):  # a moment in which nothing is on its way
            loop.run_until(self.safety_s + REST_S + 60.0 * minute)
            if all(kit.pending == 0 for kit in self.kits):
                break
        self.checks.finish()
        return self._figures()

    async def _begin(self) -> None:
        for kit in self.kits:
            self.people.add_kit(kit.name)
        self.start_worker()
        spawn = self.loop.spawn
        for kit, home in zip(self.kits, self.homes, strict=True):
            kit.boot()
            spawn(None, self.people.course(kit, home), f"{kit.name} course")
        spawn(None, self.people.steal(), THIEF)
        spawn(None, self._trouble_the_service(), "trouble")
        spawn(None, self._back_up(), "backup")
        spawn(None, self._trouble_the_clock(), "clock")
        spawn(None, self._look_after(), "look after")

    def _stop_faults(self) -> None:
        self.faults.active = False
        self.wrong_by_ms, self.wrong_until_ms = 0, min(self.wrong_until_ms, self.now_ms + 600_000)
        self._database_up()
        self._join()
        for home in self.homes:
            home.go(online=True)
            home.kit.calm()

    def _digest(self) -> str:
        """Of the whole run: equal when two runs were."""
        said = repr((self.loop.steps, sorted(self.faults.counts.items()), self.checks.violations))
        return hashlib.sha256(said.encode() + orjson.dumps(self.hub.resources)).hexdigest()[:16]

    def _figures(self) -> dict[str, Any]:
        return {
            "kit_days": self.days * len(self.kits),
            "readings": len(self.ledger),
            "observations": len(self.hub.observations()),
            "power_cuts": sum(kit.cuts for kit in self.kits),
            "digest": self._digest(),
            "faults": Counter(self.faults.counts),
        }
