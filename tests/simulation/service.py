"""The service: workers that run the real ingest, derivation and Outbox over one database.

The database is SQLite in memory on one connection, shared by all workers. That is faithful at the level of
transactions, which is what the service relies on: each runs to its commit or its rollback within one step of
the loop, so no reader sees half of one, and a worker that is killed has committed a transaction or not begun
it. What a killed process leaves inside a transaction is SQLite's own promise (tests/sync_service/test_store);
here it is drawn as a statement that fails in the middle, which rolls back by the Store's own code. A backup
is the serialised image between two transactions.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from importlib import resources
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from sync_service import derive, early
from sync_service.clock import Clock, Look
from sync_service.hub import Hub as HubClient
from sync_service.ingest import Ingest
from sync_service.outbox import Outbox
from sync_service.store import Store, StoreUnavailable, Work, _Ended, _tell, _Write
from tests.simulation.broker import Connection
from tests.simulation.engine import Process

if TYPE_CHECKING:
    from tests.simulation.world import World

T = TypeVar("T")
POLL_S = 600.0
"""Of derivation and Outbox, for what others have stored; two seconds would be most of what a run does."""
LOOK_EVERY_S, LOOK_AGAIN_S = 900.0, 30.0
"""At the clock; the App does it 15 times as often."""
MAX_BRACKET_MS = 43_200_000


class Database:
    """One SQLite. `transaction` is for the operator's commands, who wait until it works."""

    def __init__(self, world: "World", random: Random) -> None:
        self.world, self.random = world, random
        self.up = True
        self.backup = b""
        self.backup_s = 0.0
        self.restores = 0
        self.connection = self._open()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(":memory:", isolation_level=None, cached_statements=512)
        db.execute("pragma foreign_keys = on")
        db.executescript(resources.files("sync_service").joinpath("schema.sql").read_text())
        return db

    def take_backup(self) -> None:
        self.backup, self.backup_s = self.connection.serialize(), self.world.loop.time()

    def restore(self) -> None:
        """Go back to the last backup. No worker runs meanwhile."""
        self.connection.close()
        self.connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=512)
        self.connection.deserialize(self.backup)
        self.connection.execute("pragma foreign_keys = on")
        self.restores += 1

    def transaction(self, work: Work[T]) -> T:
        db = self.connection
        db.execute("begin immediate")
        try:
            result = work(db)
        except BaseException:
            db.rollback()
            raise
        db.commit()
        return result

    def rows(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        return self.connection.execute(query, values).fetchall()

    def break_next(self) -> None:
        """Let the next statements fail in their middle."""
        self.connection.set_progress_handler(lambda: 1, self.random.randrange(5, 400))

    def mend(self) -> None:
        self.connection.set_progress_handler(None, 0)


class OneThreadStore(Store):
    """The Store with the loop's timers for its threads; commit, savepoints and errors are its own."""

    def __init__(self, database: Database) -> None:
        self.path, self.trouble = Path("memory"), None
        self._database = database
        self._writer = self._reader = database.connection
        self._closed = False
        self._waiting: list[_Write] = []

    async def write(self, work: Work[T]) -> T:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        if not self._waiting:
            loop.call_later(self._database.random.uniform(0.0005, 0.02), self._commit_waiting)
        self._waiting.append(_Write(work, done))
        return await done

    async def read(self, work: Work[T]) -> T:
        await asyncio.sleep(self._database.random.uniform(0.0, 0.005))
        if not self._database.up:
            raise StoreUnavailable("down")
        return self._read(work)

    def _commit_waiting(self) -> None:
        group, self._waiting = self._waiting, []
        ended = self._try_commit(group)
        delay_s = self._database.random.uniform(0.0, 0.01)
        asyncio.get_running_loop().call_later(delay_s, _tell, ended)

    def _try_commit(self, group: list[_Write]) -> list[_Ended]:
        database, strikes = self._database, self._database.world.faults.strikes
        failed = [_Ended(write.done, None, StoreUnavailable("down")) for write in group]
        if not database.up:
            return failed
        broken = strikes("transaction broken", 0.003)
        if broken:
            database.break_next()
        ended = self._commit(group)
        if broken:
            database.mend()
        return failed if strikes("commit unheard", 0.003) else ended


class Worker:
    """One process of the service. Its link to the broker is made again whenever it is lost."""

    def __init__(self, world: "World", number: int, on_end: Callable[["Worker"], None]) -> None:
        self.world = world
        self.process = Process(f"worker {number}", lambda: self._ended(on_end))
        self.random = Random(world.random.randrange(1 << 60))
        self._link: Connection | None = None
        self._derive_wake = self._outbox_wake = asyncio.Event()
        self.ingest: Ingest
        world.loop.after(0.0, self.process, self._start)

    def _start(self) -> None:
        world = self.world
        self._derive_wake, self._outbox_wake = asyncio.Event(), asyncio.Event()
        store = OneThreadStore(world.database)
        clock_ms = world.service_clock_ms
        self._clock = clock = Clock(wall_ms=clock_ms, steady_ms=lambda: int(world.loop.time() * 1000))
        self._hub = hub = HubClient("http://hub", session=world.hub.session(), clock=clock)
        self.ingest = Ingest(
            store,
            self._send,
            self._derive_wake,
            zone=world.zone,
            clock_ms=clock_ms,
            clock_sure=lambda: clock.doubt is None,
        )
        outbox = Outbox(
            store,
            hub,
            self._outbox_wake,
            zone=world.zone,
            conditional_create_races=world.hub.races,
            clock_ms=clock_ms,
            random=self.random.random,
            poll_s=POLL_S,
        )
        for name, task in (
            ("clock", self._watch_clock),
            ("link", self._keep_link),
            ("ingest", self.ingest.run),
            ("derive", lambda: self._derive(store)),
            ("outbox", outbox.run),
        ):
            world.loop.spawn(self.process, self._keep(name, task), f"{self.process.name} {name}")

    def _ended(self, on_end: Callable[["Worker"], None]) -> None:
        if self._link is not None:
            self._link.lose()
        on_end(self)

    def wake(self) -> None:
        """What another process has queued would be seen at the next poll."""
        self._outbox_wake.set()

    async def _keep(self, name: str, task: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """As the App keeps its tasks; what is no error of the world is one of the code."""
        while True:
            try:
                await task()
            except (StoreUnavailable, OSError):
                pass
            except Exception as error:
                self.world.checks.crashed(f"{name}: {error!r}", error)
            await asyncio.sleep(self.random.uniform(0.1, 5.0))

    async def _watch_clock(self) -> None:
        """As the App does; SQLite's clock is the service's own and says nothing against it."""
        while True:
            now_ms = self.world.service_clock_ms()
            self._clock.heard("the Store", Look(now_ms, now_ms, now_ms, 1), confirms=False)
            await self._hub.ask_time()
            await asyncio.sleep(LOOK_AGAIN_S if self._clock.doubt else LOOK_EVERY_S)

    async def _derive(self, store: Store) -> None:
        await derive.run(
            store,
            self._derive_wake,
            self._outbox_wake,
            ahead=early.measure,
            quiet=self.ingest.quiet,
            max_bracket_ms=MAX_BRACKET_MS,
            clock_ms=self.world.service_clock_ms,
            poll_s=POLL_S,
        )

    async def _keep_link(self) -> None:
        while True:
            await asyncio.sleep(self.random.uniform(0.1, 20.0))
            if self.world.broker.up and not self.world.cut_off:
                self._link = self.world.broker.connect_worker(self.process, self._received)
                await self._link.ended.wait()

    def _received(self, topic: str, whole: bytes) -> None:
        if not self.ingest.is_full:
            self.ingest.offer(topic, whole)

    def _send(self, topic: str, ack: bytes) -> None:
        self.world.checks.acked(topic, ack)
        if self._link is not None:
            self._link.publish(topic, ack)
