"""The real parts under the bench, each a process of its own: Mosquitto, Sync Service, development Hub."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from hw.demo.part import Part, PartFailed, free_port, listening, python
from hw.virtual.programs import mosquitto
from sync_service import identity
from sync_service.app import STATE_FILE
from sync_service.assignments import assign
from sync_service.codes import BLOOD_PRESSURE, SPO2
from sync_service.config import load
from sync_service.store import connect

PRIMARY = (SPO2, BLOOD_PRESSURE)
"""Every Reading of the bench has exactly one Observation of one of these."""
LOOK_S = 0.1
"""How often the Hub is asked whether all is there: what `readings_per_s` may be wrong by."""
QUIET_S = 30.0
"""The Hub's count grows several times a second; when it stands still this long the bench has failed."""
COUNTS_EVERY_S, COUNTS_LOOKS = 0.01, 1_000
DAY_MS = 86_400_000


@dataclass(frozen=True)
class Counts:
    """What `counted.py` tells."""

    cpu_s: dict[str, float]  # by part, without what no part was seen to take
    process_s: float
    commits: int  # transactions that stored Batches
    rows: int  # Records in them

    def since(self, before: Self) -> Self:
        """What came after `before`."""
        return type(self)(
            {part: s - before.cpu_s.get(part, 0.0) for part, s in self.cpu_s.items()},
            self.process_s - before.process_s,
            self.commits - before.commits,
            self.rows - before.rows,
        )

    def shares(self) -> dict[str, float]:
        """Each part's share, largest first; `loop`: of the interpreter and the event loop themselves."""
        cpu_s = self.cpu_s | {"loop": self.process_s - sum(self.cpu_s.values())}
        by_size = sorted(cpu_s.items(), key=lambda item: -item[1])
        return {part: round(s / self.process_s, 3) for part, s in by_size}


class Parts:
    """A project made in `folder`, with its Kits and a patient for each. `async with` runs its processes."""

    def __init__(self, folder: Path, kits: Sequence[str], birth: datetime) -> None:
        self._kits, self._birth = kits, birth
        self._sync, self._counts = folder / "sync", folder / "counts.json"
        hub_port = free_port()
        self._hub_url = f"http://127.0.0.1:{hub_port}"
        self._http: aiohttp.ClientSession
        identity.init(self._sync, hub=self._hub_url)
        for kit in kits:
            identity.add_kit(self._sync, kit)
        config = load(self._sync)
        self.store, self.broker_port = config.store, config.broker.port
        self._broker = Part(
            "broker",
            [*mosquitto(), "-c", str(self._sync / "broker" / "mosquitto.conf")],
            log=folder / "broker.log",
            ready=lambda: listening(self.broker_port),
        )
        store = str(folder / "hub.sqlite")
        self._hub = Part(
            "hub",
            python("hw.virtual.hub", "--port", str(hub_port), "--store", store, "--validate", "rules"),
            log=folder / "hub.log",
            ready=lambda: listening(hub_port),
        )
        self._service = Part(
            "service",
            python("tests.bench.counted", str(self._counts), "--dir", str(self._sync), "serve"),
            log=folder / "service.log",
            ready=self._is_serving,
        )

    def identity(self, kit: str) -> Path:
        """The folder of a Kit's certificate."""
        return self._sync / "kits" / kit

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))
        try:
            await asyncio.gather(self._hub.start(), self._broker.start())
            self._assign(await self._admit())
            await self._service.start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def at_hub(self) -> int:
        """How many primary Observations the Hub holds."""
        return sum([await self._held(f"{one.loinc.system}|{one.loinc.code}") for one in PRIMARY])

    async def arrive(self, expected: int) -> float:
        """Wait until the Hub holds so many Readings; return when (perf_counter). Raises PartFailed."""
        seen, since = -1, time.perf_counter()
        while (held := await self.at_hub()) < expected:
            now = time.perf_counter()
            if held > seen:
                seen, since = held, now
            elif now - since > QUIET_S:
                raise PartFailed(f"the Hub holds {held} of {expected} Readings, and no more come")
            await asyncio.sleep(LOOK_S)
        return time.perf_counter()

    def cpu_s(self) -> dict[str, float]:
        """User and system CPU that each process has taken so far, all its threads."""
        parts = {"service": self._service, "hub": self._hub, "broker": self._broker}
        found = {name: _cpu_s(part.process.pid) for name, part in parts.items()}
        return found | {"bench": time.process_time()}

    async def counts(self) -> Counts:
        """What the service has counted so far. Raises PartFailed."""
        self._counts.unlink(missing_ok=True)
        self._service.process.send_signal(signal.SIGUSR1)
        for _ in range(COUNTS_LOOKS):
            await asyncio.sleep(COUNTS_EVERY_S)
            if self._counts.exists():
                return Counts(**json.loads(self._counts.read_text()))
        raise PartFailed("the service does not tell its counts")

    def faults(self) -> dict[str, int]:
        """What there should be none of in the Store."""
        with closing(connect(self.store)) as db:
            return {name: n for name, query in _FAULTS.items() if (n := db.execute(query).fetchone()[0])}

    async def _stop(self) -> None:
        for part in (self._service, self._broker, self._hub):
            await part.stop()
        await self._http.close()

    async def _is_serving(self) -> bool:
        state = self._sync / STATE_FILE
        return state.exists() and bool(json.loads(state.read_text())["ready"])

    def _assign(self, patients: list[str]) -> None:
        """Give each Kit to a patient, since a day before its first Reading."""
        since_ms = round(self._birth.timestamp() * 1000) - DAY_MS
        with closing(connect(self.store)) as db:
            for kit, patient in zip(self._kits, patients, strict=True):
                db.execute(
                    "insert into kit (kit, state, created_ms) values (?, 'active', ?)", (kit, since_ms)
                )
                assign(db, kit, f"of-{kit}", patient, since_ms, now_ms=since_ms, max_bracket_ms=DAY_MS)

    async def _admit(self) -> list[str]:
        """A new patient at the Hub for each Kit: 'Patient/<id>'."""
        request = {"method": "POST", "url": "Patient"}
        system = "https://homeward.example/bench"
        patients = [
            {"resourceType": "Patient", "identifier": [{"system": system, "value": kit}]}
            for kit in self._kits
        ]
        entries = [{"request": request, "resource": patient} for patient in patients]
        answer = await self._ask(
            "POST", "/", {"resourceType": "Bundle", "type": "transaction", "entry": entries}
        )
        return [entry["response"]["location"].partition("/_history")[0] for entry in answer["entry"]]

    async def _held(self, code: str) -> int:
        return int((await self._ask("GET", f"/Observation?code={code}&_summary=count"))["total"])

    async def _ask(self, method: str, path: str, resource: Any = None) -> Any:
        async with self._http.request(method, self._hub_url + path, json=resource) as answer:
            answer.raise_for_status()
            return await answer.json(content_type=None)


def _cpu_s(pid: int) -> float:
    """utime and stime, fields 14 and 15 of /proc/PID/stat; the name in field 2 may hold spaces."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


_FAULTS = {
    "held": "select count(*) from reading where state = 'held'",
    "repeats": "select count(*) from reading where repeat_of is not null or possible_repeat",
    "parked": "select count(*) from outbox where state = 'parked'",
    "waiting": "select count(*) from outbox where state = 'queued'",
    "quarantined": "select count(*) from quarantine",
    "conflicts": "select count(*) from conflict",
}
