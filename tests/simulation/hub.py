"""The Hub: batch Bundles with conditional creates, kept in memory; and all that a Hub does wrong.

It knows FHIR as far as a delivery needs it, and shares nothing with the code under test.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import aiohttp
import orjson

if TYPE_CHECKING:
    from tests.simulation.world import World

Json = dict[str, Any]
SILENCE_S = 100_000.0
LATE_S = 58.0
"""What is not done within a minute is never done: `outbox.UNHEARD_MS` stands on that."""
_IDENTIFIER = re.compile(r"identifier=(.+)\|(.+)")


class Hub:
    """`races`: its conditional create looks, waits and then writes."""

    def __init__(self, world: "World", random: Random) -> None:
        self.resources: dict[str, Json] = {}  # by reference, each in its latest version
        self._versions: dict[str, int] = {}
        self.races = random.random() < 0.3
        self._world, self._random = world, random
        self._named: dict[tuple[str, str, str], list[str]] = {}  # kind, system, value -> references
        self._created = self._restored = 0
        self._backup: tuple[dict[str, Json], dict[str, int]] | None = None

    def session(self) -> "Session":
        """What stands for aiohttp's ClientSession."""
        return Session(self)

    def observations(self) -> list[Json]:
        return [one for one in self.resources.values() if one["resourceType"] == "Observation"]

    async def answer(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        """One request: its faults, and its answer, which says what time it is."""
        status, more, content = await self._answer(method, url, body, headers)
        date = datetime.fromtimestamp(self._world.now_ms // 1000, UTC)
        return status, {"Date": format_datetime(date, usegmt=True), **more}, content

    async def _answer(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        strikes, draw, restored = self._world.faults.strikes, self._random, self._restored
        await asyncio.sleep(draw.uniform(0.02, 0.6))
        if strikes("hub 5xx", 0.02):
            return draw.choice((500, 502, 503, 504)), {}, b"<html>"
        if method == "HEAD":
            return 200, {}, b""
        if strikes("hub 429", 0.01):
            return 429, {"Retry-After": str(draw.randrange(1, 90))}, b""
        if strikes("hub silent", 0.005):  # we give up after half a minute; it does it all the same
            await asyncio.sleep(draw.uniform(30.0, LATE_S))
        if restored != self._restored:
            raise aiohttp.ServerDisconnectedError
        if method == "GET":
            return 200, {}, self._search(url)
        assert body is not None
        if method == "PUT":
            status, answer = self._update(url, orjson.loads(body), headers.get("If-Match", ""))
        else:
            status, answer = 200, await self._batch(orjson.loads(body))
        if strikes("hub unheard", 0.02):
            if draw.random() < 0.5:
                raise aiohttp.ServerDisconnectedError
            await asyncio.sleep(SILENCE_S)
        if method == "POST" and strikes("hub nonsense", 0.01):
            answer["entry"].pop()
        return status, {}, orjson.dumps(answer)

    async def _batch(self, bundle: Json) -> Json:
        answered = [await self._entry(one) for one in bundle["entry"]]
        return {"resourceType": "Bundle", "type": "batch-response", "entry": answered}

    async def _entry(self, entry: Json) -> Json:
        strikes, resource, request = self._world.faults.strikes, entry["resource"], entry["request"]
        if resource["resourceType"] == "Observation" and strikes("hub 4xx", 0.003):
            return _refused(self._random.choice(("400", "422")))
        if resource["resourceType"] == "Observation" and strikes("hub 412", 0.002):
            return _refused("412")
        assert request["method"] == "POST"
        if "ifNoneExist" not in request:
            named = resource["identifier"][0]
            key = (resource["resourceType"], named["system"], named["value"])
            return {"response": {"status": "201", "location": f"{self._create(key, resource)}/_history/1"}}
        found = _IDENTIFIER.fullmatch(unquote(request["ifNoneExist"]))
        assert found is not None
        key = (resource["resourceType"], *found.groups())
        there, restored = self._named.get(key, ()), self._restored
        if self.races:
            self._world.faults.counts["hub race"] += 1
            await asyncio.sleep(self._random.uniform(0.0, 0.005))
            if restored != self._restored:
                raise aiohttp.ServerDisconnectedError
        if len(there) > 1:
            return _refused("412")
        if there:
            return {"response": {"status": "200", "location": f"{there[0]}/_history/1"}}
        return {"response": {"status": "201", "location": f"{self._create(key, resource)}/_history/1"}}

    def _create(self, key: tuple[str, str, str], resource: Json) -> str:
        self._created += 1
        reference = f"{key[0]}/{self._created}"
        self.resources[reference], self._versions[reference] = resource, 1
        self._named.setdefault(key, []).append(reference)
        return reference

    # --- Its own people -------------------------------------------------------------------------------------

    def take_backup(self) -> None:
        """Resources are replaced, never changed: the tables are enough."""
        self._backup = dict(self.resources), dict(self._versions)

    def restore(self) -> bool:
        """Go back to the last backup, if there is one. Of what was under way it knows nothing."""
        if self._backup is None:
            return False
        self._restored += 1
        self.resources, self._versions = dict(self._backup[0]), dict(self._backup[1])
        self._named = {}
        for reference, resource in self.resources.items():
            self._name(reference, resource)
        return True

    def take_out(self, key: str, patient: str) -> None:
        """Somebody marks as an error what others than the patient have of a Reading."""
        for reference, resource in self.resources.items():
            named = resource.get("identifier", [{}])[0]
            if str(named.get("value")).startswith(f"{key}-") and resource["subject"]["reference"] != patient:
                identifier = [{**named, "value": f"{named['value']}-taken-out"}]
                self._replace(reference, {**resource, "status": "entered-in-error", "identifier": identifier})

    def _replace(self, reference: str, resource: Json) -> None:
        """Put a resource in the place of a version, whose identifiers go with it."""
        before = self.resources[reference]
        for named in before["identifier"]:
            self._named[before["resourceType"], named["system"], named["value"]].remove(reference)
        self.resources[reference] = resource
        self._versions[reference] += 1
        self._name(reference, resource)

    def _name(self, reference: str, resource: Json) -> None:
        for named in resource["identifier"]:
            key = (resource["resourceType"], named["system"], named["value"])
            self._named.setdefault(key, []).append(reference)

    def _update(self, url: str, resource: Json, match: str) -> tuple[int, Json]:
        """PUT."""
        reference = "/".join(urlsplit(url).path.split("/")[-2:])
        if reference not in self.resources:
            return 404, _outcome()
        if match != f'W/"{self._versions[reference]}"':
            return 412, _outcome()
        self._replace(reference, resource)
        return 200, resource

    def _shown(self, reference: str) -> Json:
        resource = self.resources[reference]
        meta = {**resource.get("meta", {}), "versionId": str(self._versions[reference])}
        return {
            "fullUrl": reference,
            "resource": {**resource, "id": reference.partition("/")[2], "meta": meta},
        }

    def _search(self, url: str) -> bytes:
        parts = urlsplit(url)
        kind = parts.path.rpartition("/")[2]
        wanted = parse_qs(parts.query)["identifier"][0].split(",")
        references: list[str] = []
        for each in wanted:
            system, _, value = each.rpartition("|")
            references += self._named.get((kind, system, value), ())
        entries = [self._shown(one) for one in references]
        return orjson.dumps(
            {"resourceType": "Bundle", "type": "searchset", "total": len(entries), "entry": entries}
        )


def _refused(status: str) -> Json:
    return {"response": {"status": status, "outcome": _outcome()}}


def _outcome() -> Json:
    issue = {"severity": "error", "code": "processing", "diagnostics": "refused"}
    return {"resourceType": "OperationOutcome", "issue": [issue]}


class Session:
    """As much of aiohttp.ClientSession as the Hub client uses."""

    def __init__(self, hub: Hub, answer_s: float = 30.0) -> None:
        self._hub, self._answer_s = hub, answer_s

    def request(
        self, method: str, url: str, *, data: bytes | None, headers: Mapping[str, str] | None, **_: Any
    ) -> "_Request":
        return _Request(self._hub, method, url, data, headers or {}, self._answer_s)

    async def close(self) -> None:
        """There is nothing to close."""


class _Request:
    """One request, as an async context manager. The Hub works on when its client has gone."""

    def __init__(
        self,
        hub: Hub,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        answer_s: float,
    ) -> None:
        self._hub, self._asked, self._answer_s = hub, (method, url, body, headers), answer_s

    async def __aenter__(self) -> "_Response":
        loop = self._hub._world.loop
        answered: asyncio.Future[tuple[int, Mapping[str, str], bytes]] = loop.create_future()

        async def work() -> None:
            try:
                answer = await self._hub.answer(*self._asked)
            except aiohttp.ClientError as error:
                if not answered.done():
                    answered.set_exception(error)
            else:
                if not answered.done():
                    answered.set_result(answer)

        loop.spawn(None, work(), "hub")
        async with asyncio.timeout(self._answer_s):
            return _Response(*await answered)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held."""


class _Response:
    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status, self.headers, self.content = status, headers, self
        self._body = body

    async def iter_any(self) -> AsyncIterator[bytes]:
        yield self._body

    async def read(self) -> bytes:
        return self._body
