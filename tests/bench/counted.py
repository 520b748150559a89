"""The Sync Service under counters: `homeward-sync`, unchanged, in a process that adds up what its parts take.

Each turn of the event loop, and each function that the Store's writer and reader run, is measured with the
thread's own CPU clock, so that waiting for the disk, the GIL or the other core counts for nobody. A turn
belongs to its task, or to whoever owns the socket that woke it; a function to the module that asked for it.
Two that run inside another part's turn are taken out of it: decoding what arrives, and making Observations.
Counting itself costs 1 to 2 % of the service's CPU, and the bench does not take it off.

    python -m tests.bench.counted COUNTS --dir DIR serve        COUNTS is written anew at each SIGUSR1
"""

import asyncio
import json
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType, MethodType
from typing import Any

from sync_service import command, ingest
from sync_service.arrival import Arrival
from sync_service.batches import keep
from sync_service.derive import Deriver
from sync_service.outbox import Outbox, claim, settle
from sync_service.store import Store

SAMPLE = 17
"""One in so many Readings is measured while its Observations are made: the clock takes 2 us, they take 20. A
prime, since Sensors take turns."""

PARTS = {
    "batches": "mqtt",
    "acks": "mqtt",
    "mqtt": "mqtt",
    "aiomqtt": "mqtt",
    "paho": "mqtt",
    "aiohttp": "http",
    "delivery": "http",
    "ingest": "ingest",
    "derive": "derive",
    "outbox": "outbox",
}
"""Task, or package of a callback -> part. What has no name here is `other`."""
WORK = {keep: "ingest", Deriver.chunk: "derive", claim: "outbox", settle: "outbox"}

cpu: defaultdict[str, float] = defaultdict(float)  # part -> seconds
commits: Counter[str] = Counter()  # of the transactions that stored Batches: how many, with how many rows


def count() -> None:
    """Put the counters around what is counted."""
    _around_loop()
    _around_store()
    _inside(ingest, "decode", "decode", "mqtt", every=1)
    _inside(Outbox, "_prepare", "observation", "http", every=SAMPLE)


def _around_loop() -> None:
    run = asyncio.Handle._run

    def counted(handle: asyncio.Handle) -> None:
        part = _part_of(handle._callback)  # type: ignore[attr-defined]
        before = time.thread_time()
        run(handle)
        cpu[part] += time.thread_time() - before

    asyncio.Handle._run = counted  # type: ignore[assignment, method-assign]


def _part_of(callback: Any) -> str:
    """Whose turn of the event loop this is."""
    while isinstance(callback, partial):
        callback = callback.func
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return PARTS.get(owner.get_name(), "other")
    protocol = getattr(owner, "get_protocol", None)
    if protocol is not None:
        owner = protocol()
    module = type(owner).__module__ if isinstance(callback, MethodType) or protocol else callback.__module__
    return PARTS.get(str(module).partition(".")[0], "other")


def _around_store() -> None:
    run, read, commit = Store._run, Store._read, Store._commit
    inside = threading.local()

    def counted_run(store: Store, write: Any) -> Any:
        before = time.thread_time()
        ended = run(store, write)
        taken = time.thread_time() - before
        cpu[_part_of_work(write.work)] += taken
        inside.s += taken
        inside.rows += _rows(write.work)
        return ended

    def counted_read(store: Store, work: Any) -> Any:
        before = time.thread_time()
        result = read(store, work)
        cpu[_part_of_work(work)] += time.thread_time() - before
        return result

    def counted_commit(store: Store, group: Any) -> Any:
        inside.s, inside.rows = 0.0, 0
        before = time.thread_time()
        ended = commit(store, group)
        cpu["commit"] += time.thread_time() - before - inside.s
        if inside.rows:
            commits["commits"] += 1
            commits["rows"] += inside.rows
        return ended

    Store._run, Store._read, Store._commit = counted_run, counted_read, counted_commit  # type: ignore


def _part_of_work(work: Any) -> str:
    function = getattr(work, "func", work)
    return WORK.get(getattr(function, "__func__", function), "other")


def _rows(work: Any) -> int:
    """How many Records the function stores."""
    if getattr(work, "func", None) is not keep:
        return 0
    return sum(len(one.records) for one in work.keywords["arrivals"] if isinstance(one, Arrival))


def _inside(owner: Any, name: str, part: str, around: str, *, every: int) -> None:
    """Take a function out of the part that calls it."""
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % every:
            return function(*arguments)
        before = time.thread_time()
        result = function(*arguments)
        taken = every * (time.thread_time() - before)
        cpu[part] += taken
        cpu[around] -= taken
        return result

    setattr(owner, name, counted)


def _tell(path: Path) -> None:
    """Write the counters, in one step so that nobody reads half of them."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"cpu_s": cpu, "process_s": time.process_time(), **commits}))
    part.replace(path)


def main() -> int:
    """Count, then be `homeward-sync`."""
    path = Path(sys.argv[1])

    def asked(number: int, frame: FrameType | None) -> None:
        _tell(path)

    signal.signal(signal.SIGUSR1, asked)
    count()
    return command.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
