"""The bench: 200,000 Readings in Batches of 50 from 50 Kits, through the real broker and service to the Hub.

Mosquitto (TLS, client certificates), the Sync Service and the development Hub (`--validate rules`) are
processes of their own. Connections are made, and each Kit's opening Batch is acked, before the clock starts.
Then every Kit sends as fast as its Acks come, and after that all Kits together send 2,000 Readings a second.

The last line of stdout is JSON:

    readings_per_s      from the first publish until the Hub holds the last Reading
    ingest_per_s        from the first publish until the last Ack: durable in the Store. Derivation and
                        delivery run meanwhile, on the same cores
    sqlite_limit_per_s  the same rows of table `record`, inserted bare (one statement per Batch) into the same
                        schema with the same PRAGMAs, as many rows per commit as the service's had on average;
                        measured after it, in this run (median of three)
    ratio               ingest_per_s / sqlite_limit_per_s
    rows_per_commit     of the service's transactions that stored Batches
    cpu_s_per_1000      user and system CPU of the service's process, from the first publish to the last
                        Reading at the Hub, per 1,000 Readings; `hub_...`, `broker_...`, `bench_...` likewise
    cpu_share           what the service's CPU is spent on, by part (`counted.py`)
    ack_p50_ms, ack_p99_ms      at 2,000 Readings a second: from when a Batch was due to its Ack

Every Reading is checked: the Hub holds each once, and the Store nothing held, parked, repeated or waiting.
Exit 1 otherwise. A Reading brings 1.16 rows: with each 50 come the clock reads and events of two sessions.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Any

from hw.demo.part import PartFailed
from sync_service.store import connect
from tests.bench.kits import Kit, KitJournal, NoAck, Sent, send_all, send_evenly
from tests.bench.parts import Parts

STEADY_PER_S = 2_000
STEADY_S = 10
LIMIT_RUNS = 3

Row = tuple[Any, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; exit 1 when a Reading is missing."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(prefix="homeward-bench-") as folder:
        try:
            found = asyncio.run(_run(options, Path(folder)))
        except (PartFailed, NoAck) as error:
            print(error, file=sys.stderr)
            _show_logs(Path(folder))
            return 1
    print(json.dumps(found))
    return 1 if found["wrong"] else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ingest")
    parser.add_argument("--readings", type=int, default=200_000)
    parser.add_argument("--kits", type=int, default=50)
    parser.add_argument("--batch", type=int, default=50, help="Readings in a Batch (at most 54)")
    options = parser.parse_args(arguments)
    if options.readings % (options.kits * options.batch):
        parser.error("the Readings must make whole Batches, as many for each Kit")
    return options


async def _run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    names = [f"HW-{number:04}" for number in range(1, options.kits + 1)]
    each = options.readings // (options.kits * options.batch)
    rounds = STEADY_PER_S * STEADY_S // (options.kits * options.batch)
    # Uptime 0 so long ago that the last Reading was taken just now.
    birth = datetime.now(UTC).replace(microsecond=0) - timedelta(
        minutes=(each + rounds) * (options.batch + 2) + 10
    )
    _say("encoding")
    journals = [KitJournal(number, birth) for number in range(1, options.kits + 1)]
    openings = [journal.opening() for journal in journals]
    backlog = [[journal.readings(options.batch) for _ in range(each)] for journal in journals]
    steady = [[journal.readings(options.batch) for _ in range(rounds)] for journal in journals]
    _say("starting")
    async with Parts(folder, names, birth) as parts, contextlib.AsyncExitStack() as connections:
        kits = [Kit(name, parts.identity(name), parts.broker_port) for name in names]
        for kit in kits:
            await connections.enter_async_context(kit)
        await asyncio.gather(*map(Kit.send, kits, openings))
        _say(f"{options.readings} Readings as fast as they go")
        found = await _flood(options, parts, kits, backlog)
        _say(f"{STEADY_PER_S} Readings a second for {STEADY_S} s")
        found |= await _steady(options, parts, kits, steady)
        expected = options.readings + options.kits * rounds * options.batch
        await parts.arrive(expected)
        found["wrong"] = await _wrong(parts, expected)
    _say("SQLite by itself")
    limit = _sqlite_limit(parts.store, folder, found["rows_per_commit"], openings, backlog)
    found["sqlite_limit_per_s"] = round(options.readings / limit)
    found["ratio"] = round(found["ingest_per_s"] / found["sqlite_limit_per_s"], 3)
    return found


async def _flood(
    options: argparse.Namespace, parts: Parts, kits: list[Kit], backlog: list[list[Sent]]
) -> dict[str, Any]:
    """Everything at once."""
    readings, counts, cpu = options.readings, await parts.counts(), parts.cpu_s()
    started = time.perf_counter()
    await asyncio.gather(*map(send_all, kits, backlog))
    acked = time.perf_counter()
    arrived = await parts.arrive(readings)
    took = {part: s - cpu[part] for part, s in parts.cpu_s().items()}
    spent = (await parts.counts()).since(counts)
    names = {"service": "cpu", **{part: f"{part}_cpu" for part in ("hub", "broker", "bench")}}
    return {
        "readings": readings,
        "readings_per_s": round(readings / (arrived - started)),
        "ingest_per_s": round(readings / (acked - started)),
        **{f"{name}_s_per_1000": round(1000 * took[part] / readings, 4) for part, name in names.items()},
        "cpu_share": spent.shares(),
        "rows_per_commit": round(spent.rows / spent.commits),
    }


async def _steady(
    options: argparse.Namespace, parts: Parts, kits: list[Kit], steady: list[list[Sent]]
) -> dict[str, Any]:
    """Batches spread evenly over time and Kits, below what the service can take."""
    every_s = options.kits * options.batch / STEADY_PER_S
    first_at = time.perf_counter() + 0.1
    waited = await asyncio.gather(
        *(
            send_evenly(kit, batches, first_at + number * every_s / options.kits, every_s)
            for number, (kit, batches) in enumerate(zip(kits, steady, strict=True))
        )
    )
    cuts = statistics.quantiles(chain(*waited), n=100)
    return {"ack_p50_ms": round(1000 * cuts[49], 1), "ack_p99_ms": round(1000 * cuts[98], 1)}


async def _wrong(parts: Parts, expected: int) -> dict[str, int]:
    """What is not as it should be: empty when all is well."""
    at_hub = await parts.at_hub()
    return parts.faults() | ({} if at_hub == expected else {"expected": expected, "at_hub": at_hub})


def _sqlite_limit(
    store: Path, folder: Path, rows_per_commit: int, openings: list[Sent], backlog: list[list[Sent]]
) -> float:
    """Seconds for the backlog's rows in a Store of their own, the median of some runs."""
    with closing(connect(store)) as db:
        batches = _batches(db, openings, backlog)
    return statistics.median(
        _insert(folder / f"limit-{n}.sqlite", batches, rows_per_commit) for n in range(LIMIT_RUNS)
    )


def _batches(db: Any, openings: list[Sent], backlog: list[list[Sent]]) -> list[list[Row]]:
    """The rows as the service stored them, by Batch, in the order in which the Batches came."""
    journals = [number for (number,) in db.execute("select journal from journal order by kit")]
    select = "select * from record where journal = ? and sequence > ? order by sequence"
    found = []
    for journal, opening, sent in zip(journals, openings, backlog, strict=True):
        rows = db.execute(select, (journal, opening.last))
        found += [list(islice(rows, batch.records)) for batch in sent]
    return sorted(found, key=lambda rows: rows[0][-1])


def _insert(path: Path, batches: list[list[Row]], rows_per_commit: int) -> float:
    values = {
        len(rows): f"insert into record values {','.join(['(?,?,?,?,?,?,?,?)'] * len(rows))}"
        for rows in batches
    }
    with closing(connect(path)) as db:
        started, pending = time.perf_counter(), 0
        db.execute("begin immediate")
        for rows in batches:
            db.execute(values[len(rows)], [*chain.from_iterable(rows)])
            pending += len(rows)
            if pending >= rows_per_commit:
                db.execute("commit")
                db.execute("begin immediate")
                pending = 0
        db.execute("commit")
        return time.perf_counter() - started


def _say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr)


def _show_logs(folder: Path) -> None:
    for path in sorted(folder.glob("*.log")):
        print(
            f"--- {path.name}",
            *path.read_text(errors="replace").splitlines()[-10:],
            sep="\n",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
