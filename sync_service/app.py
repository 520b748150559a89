"""The Sync Service's process: a few named tasks around one Store. Begin reading here.

    mqtt ---> ingest ---> Store ---> derive ---> Store ---> outbox ---> Hub
      ^---- Acks ----'                 console ---reads--> Store

Each task is kept running: what it raises is counted, logged with the task's name, and it starts again after a
pause with full jitter, so that a fault in one leaves the others alone. The one rule of the end: SIGTERM lets
the commit under way finish and its Acks go out; kill -9 needs no such kindness.
"""

import asyncio
import fcntl
import gc
import json
import logging
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sync_service import console, derive, early, station_api
from sync_service.clock import UNCONFIRMED, Clock, Look
from sync_service.config import Config
from sync_service.hub import Hub
from sync_service.ingest import Ingest
from sync_service.mqtt import Link
from sync_service.outbox import Outbox
from sync_service.store import Store, StoreError, StoreUnavailable, count, utc_ms

log = logging.getLogger(__name__)

STATE_FILE = "service.json"
STATE_EVERY_S = 0.5
LOOK_EVERY_S = 60.0
LOOK_AGAIN_S = 2.0
"""Between looks at the clocks of Store and Hub, while ours is sure and while it is not."""
FIRST_LOOK_S = 3.0
"""A Hub that is there answers within a second; the Kits don't wait for one that is not."""
STOP_S = 5.0
"""A commit takes milliseconds; what hangs for longer is left to the Kits, who send it again."""
PAUSE_FIRST_S = 0.2
PAUSE_MAX_S = 30.0
STEADY_S = 60.0
"""A task that ran for so long has recovered: its next pause is short again."""

COLLECT_EVERY = 50_000
"""Objects made between two looks for garbage in cycles: of Readings there is none, and looking after every
700 took a tenth of the time."""


class App:
    """One service over one configuration."""

    def __init__(self, config: Config, store: Store, hub: Hub, clock: Clock) -> None:
        self._config, self._store = config, store
        self._hub, self._clock = hub, clock
        self._looked = asyncio.Event()  # at the clock, for the first time
        self._derive_wake, self._outbox_wake = asyncio.Event(), asyncio.Event()
        self._link = Link(config.broker)
        self._ingest = Ingest(
            store,
            self._link.send,
            self._derive_wake,
            zone=config.zone,
            clock_ms=clock.now_ms,
            clock_sure=lambda: clock.doubt is None,
        )
        self._outbox = Outbox(
            store,
            hub,
            self._outbox_wake,
            zone=config.zone,
            conditional_create_races=config.hub.conditional_create_races,
        )
        self._restarts: dict[str, int] = {}
        self._since_ms = time.time_ns() // 1_000_000
        self._ready = False

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set."""
        config = self._config
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self._keep(name, task), name=name)
                for name, task in (
                    ("clock", self._watch_clock),
                    ("mqtt", self._listen),
                    ("ingest", self._ingest.run),
                    ("derive", self._derive),
                    ("outbox", self._outbox.run),
                    ("console", self._console),
                    ("station", self._serve_station),
                    ("state", self._write_state),
                    ("ready", self._say_ready),
                )
            ]
            await stop.wait()
            await self._finish()
            for task in running:
                task.cancel()
        with suppress(OSError):
            (config.folder / STATE_FILE).unlink(missing_ok=True)

    async def _finish(self) -> None:
        """Take nothing more; store and ack what was taken."""
        self._link.stop_reading()
        try:
            async with asyncio.timeout(STOP_S):
                await self._ingest.idle()
                if self._link.up.is_set():
                    await self._link.sent()
        except TimeoutError:
            log.warning("stopped with Batches that could not be stored: their Kits will send them again")

    async def _keep(self, name: str, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task, and again when it fails."""
        self._restarts[name] = failures = 0
        while True:
            started = time.monotonic()
            try:
                await task()
                return
            except (StoreUnavailable, OSError) as error:
                log.error("%s: %s", name, error)
            except Exception:
                log.exception("%s failed", name)
            failures = 1 if time.monotonic() - started > STEADY_S else failures + 1
            self._restarts[name] += 1
            await asyncio.sleep(random.uniform(0, min(PAUSE_MAX_S, PAUSE_FIRST_S * 2 ** min(failures, 16))))

    async def _listen(self) -> None:
        with suppress(TimeoutError):  # a Kit that greets us in the first second shall have the time
            async with asyncio.timeout(FIRST_LOOK_S):
                await self._looked.wait()
        await self._link.run(self._ingest)

    async def _watch_clock(self) -> None:
        """Have the clock confirmed, and say when that changes."""
        doubt: str | None = UNCONFIRMED
        while True:
            await self._look_at_clock()
            self._looked.set()
            before, doubt = doubt, self._clock.doubt
            if doubt != before and doubt:
                log.error("Kits get no time: %s", doubt)
                await self._store.write(lambda db: count(db, "", "clock doubted"))
            elif doubt != before:
                log.warning("the service's clock is confirmed")
            await asyncio.sleep(LOOK_AGAIN_S if doubt else LOOK_EVERY_S)

    async def _look_at_clock(self) -> None:
        before_ms = self._clock.now_ms()
        shown_ms = await self._store.read(utc_ms)
        look = Look(before_ms, self._clock.now_ms(), shown_ms, 1)
        self._clock.heard("the Store", look, confirms=False)
        await self._hub.ask_time()

    async def _derive(self) -> None:
        await derive.run(
            self._store,
            self._derive_wake,
            self._outbox_wake,
            ahead=early.measure,
            quiet=self._ingest.quiet,
            max_bracket_ms=self._config.max_bracket_ms,
        )

    async def _console(self) -> None:
        config = self._config
        host, port = config.console_host, config.console_port
        await console.run(self._store, host=host, port=port, clock=self._clock)

    async def _serve_station(self) -> None:
        if self._config.station is not None:
            await station_api.run(self._store, self._config, self._config.station)

    # --- What others see of it ------------------------------------------------------------------------------

    async def _say_ready(self) -> None:
        await self._link.up.wait()
        self._ready = True
        _write(self._config.folder / STATE_FILE, self._state())
        print(f"homeward-sync: ready, console at {self._address}", flush=True)

    async def _write_state(self) -> None:
        """Keep the state file true, for `homeward-sync status`."""
        before: dict[str, Any] = {}
        while True:
            if (now := self._state()) != before:
                with suppress(OSError):  # a full disk: the log has it
                    _write(self._config.folder / STATE_FILE, now)
                    before = now
            await asyncio.sleep(STATE_EVERY_S)

    def _state(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "since_ms": self._since_ms,
            "ready": self._ready,
            "console": self._address,
            "broker": self._link.state,
            "store": self._store.trouble or "ok",
            "clock": self._clock.doubt or "ok",
            "dropped": self._ingest.dropped,
            "restarts": {name: n for name, n in self._restarts.items() if n},
        }

    @property
    def _address(self) -> str:
        return f"http://{self._config.console_host}:{self._config.console_port}/"


async def serve(config: Config) -> None:
    """Run the service until SIGTERM or SIGINT. Raises StoreError, ConfigError, OSError."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    gc.freeze()  # what was imported stays
    gc.set_threshold(COLLECT_EVERY)
    with only_one(config.store):
        clock = Clock()
        hub = Hub(config.hub.url, token=config.hub.token(), clock=clock)
        async with Store.open(config.store) as store, hub:
            await App(config, store, hub, clock).run(stop)


def is_running(store: Path) -> bool:
    """Whether a service has the Store open."""
    try:
        with only_one(store):
            return False
    except StoreError:
        return True


@contextmanager
def only_one(store: Path) -> Iterator[None]:
    """Keep a second service off the same Store: each would take some of the Batches. Raises StoreError."""
    with open(store.with_name(store.name + ".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"another service has {store} open") from None
        yield


def _write(path: Path, state: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(state) + "\n")
    part.replace(path)
