"""A ward: Kits with patients, the Store, the development Hub, and an Outbox between them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from zoneinfo import ZoneInfo

from hub_server import HubServer
from kit_journal import BIRTH_MS, DAY, HOUR, KitJournal

from sync_service.assignments import assign
from sync_service.codes import READING_ID
from sync_service.derive import Deriver
from sync_service.hub import Hub
from sync_service.outbox import Outbox
from sync_service.store import Store

LONDON = ZoneInfo("Europe/London")
NOW = BIRTH_MS + 30 * DAY


class Ward:
    """A Store with Kits, the Hub, and an Outbox between them. A low draw keeps the back-offs short."""

    def __init__(self, store: Store, server: HubServer, hub: Hub) -> None:
        self.store, self.server, self.hub = store, server, hub
        self.wake = asyncio.Event()
        self.kits: dict[str, KitJournal] = {}
        self.races = False
        self.deriver = Deriver()

    async def kit(self, name: str, start_ms: int = BIRTH_MS - HOUR) -> KitJournal:
        """A Kit with a patient of its own at the Hub, from `start_ms` on."""
        patient = await self.server.patient(name)
        kit = self.kits[name] = KitJournal(name, name.encode().ljust(8)[:8], number=len(self.kits) + 1)
        await self.store.write(kit.create)
        await self.store.write(
            lambda db: assign(db, name, name, patient, start_ms, now_ms=NOW, max_bracket_ms=DAY)
        )
        kit.begin()
        return kit

    async def taken(self) -> None:
        """Derive what the Kits have."""
        for kit in self.kits.values():
            await self.store.write(kit.store)
        while (await self.deriver.step(self.store, NOW)).records:
            pass

    @asynccontextmanager
    async def delivering(self, *, unheard_ms: int = 1) -> AsyncIterator[Outbox]:
        running = Outbox(
            self.store,
            self.hub,
            self.wake,
            zone=LONDON,
            conditional_create_races=self.races,
            random=lambda: 0.01,
            unheard_ms=unheard_ms,
        )
        task = asyncio.create_task(running.run())
        try:
            yield running
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def settled(self) -> None:
        """Derive, deliver until nothing is queued, and stop."""
        await self.taken()
        async with self.delivering():
            await self.until(lambda: self.queued())

    async def until(self, left: Callable[[], Awaitable[int]]) -> None:
        """Wait for what another task or process does, which no event of ours tells."""
        async with asyncio.timeout(10):
            while await left():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def still(self, status: str) -> int:
        """How many Observations at the Hub have this status."""
        return sum(one["status"] == status for one in await self.server.held())

    async def queued(self) -> int:
        return len(await self.rows("reading", "where state = 'queued'"))

    async def rows(self, columns: str, where: str = "") -> list[tuple[Any, ...]]:
        return await self.store.read(
            lambda db: db.execute(f"select {columns} from outbox {where} order by reading").fetchall()
        )

    async def counter(self, name: str) -> int:
        found = await self.store.read(
            lambda db: db.execute("select sum(n) from counter where name = ?", (name,)).fetchone()
        )
        return found[0] or 0

    async def at_hub(self) -> list[str]:
        """Identifier values of all Observations, sorted. The Hub must hold none twice."""
        found = await self.server.held()
        values = [one["value"] for resource in found for one in resource["identifier"]]
        assert len(set(values)) == len(values), "the Hub holds a measurement twice"
        assert all(one["system"] == READING_ID for resource in found for one in resource["identifier"])
        return sorted(values)
