"""The Hub: batch Bundles with conditional creates, kept in memory; and all that a Hub does wrong.

It knows FHIR as far as a delivery needs it, and shares nothing with the code under test.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
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
_IDENTIFIER = re.compile(r"identifier=(.+)\|(.+)")


class Hub:
    """`races`: its conditional create looks, waits and then writes."""

    def __init__(self, world: "World", random: Random) -> None:
        self.resources: dict[str, Json] = {}  # by reference, each as it stands now
        self.races = random.random() < 0.3
        self.up = True
        self._world, self._random = world, random
        self._named: dict[tuple[str, str, str], list[str]] = {}  # kind, system, value -> references

    def session(self) -> "Session":
        """What stands for aiohttp's ClientSession."""
        return Session(self)

    def observations(self) -> list[Json]:
        return [one for one in self.resources.values() if one["resourceType"] == "Observation"]

    async def answer(self, method: str, url: str, body: bytes | None) -> tuple[int, Mapping[str, str], bytes]:
        """One request: its faults, and its answer."""
        strikes, draw = self._world.faults.strikes, self._random
        await asyncio.sleep(draw.uniform(0.02, 0.6))
        if not self.up:
            raise aiohttp.ClientConnectionError("down")
        if strikes("hub 5xx", 0.02):
            return draw.choice((500, 502, 503, 504)), {}, b"<html>"
        if strikes("hub 429", 0.01):
            return 429, {"Retry-After": str(draw.randrange(1, 90))}, b""
        if strikes("hub silent", 0.005):
            await asyncio.sleep(SILENCE_S)
        if method == "GET":
            return 200, {}, self._search(url)
        assert body is not None
        answer = await self._batch(orjson.loads(body))
        if strikes("hub unheard", 0.02):
            if draw.random() < 0.5:
                raise aiohttp.ServerDisconnectedError
            await asyncio.sleep(SILENCE_S)
        if strikes("hub nonsense", 0.01):
            answer["entry"].pop()
        return 200, {}, orjson.dumps(answer)

    async def _batch(self, bundle: Json) -> Json:
        answered = [await self._entry(one) for one in bundle["entry"]]
        return {"resourceType": "Bundle", "type": "batch-response", "entry": answered}

    async def _entry(self, entry: Json) -> Json:
        strikes, resource, request = self._world.faults.strikes, entry["resource"], entry["request"]
        if resource["resourceType"] == "Observation" and strikes("hub 4xx", 0.003):
            return _refused(self._random.choice(("400", "422")))
        if resource["resourceType"] == "Observation" and strikes("hub 412", 0.002):
            return _refused("412")
        if request["method"] == "PUT":
            return self._update(request["url"], resource)
        assert request["method"] == "POST"
        if "ifNoneExist" not in request:
            named = resource["identifier"][0]
            key = (resource["resourceType"], named["system"], named["value"])
            return {"response": {"status": "201", "location": f"{self._create(key, resource)}/_history/1"}}
        found = _IDENTIFIER.fullmatch(unquote(request["ifNoneExist"]))
        assert found is not None
        key = (resource["resourceType"], *found.groups())
        there = self._named.get(key, ())
        if self.races:
            self._world.faults.counts["hub race"] += 1
            await asyncio.sleep(self._random.uniform(0.0, 0.05))
        if len(there) > 1:
            return _refused("412")
        if there:
            return {"response": {"status": "200", "location": f"{there[0]}/_history/1"}}
        return {"response": {"status": "201", "location": f"{self._create(key, resource)}/_history/1"}}

    def _create(self, key: tuple[str, str, str], resource: Json) -> str:
        reference = f"{key[0]}/{len(self.resources) + 1}"
        self.resources[reference] = resource
        self._named.setdefault(key, []).append(reference)
        return reference

    def _update(self, url: str, resource: Json) -> Json:
        """PUT on an id, or on a condition."""
        kind, _, query = url.partition("?")
        if query:
            found = _IDENTIFIER.fullmatch(unquote(query))
            assert found is not None
            there = self._named.get((kind, *found.groups()), [])
            if len(there) > 1:
                return _refused("412")
            if not there:
                self._create((kind, *found.groups()), resource)
                return {"response": {"status": "201", "location": f"{kind}/{len(self.resources)}/_history/1"}}
            url = there[0]
        if url not in self.resources:
            return _refused("404")
        self.resources[url] = resource
        return {"response": {"status": "200", "location": f"{url}/_history/2"}}

    def _search(self, url: str) -> bytes:
        parts = urlsplit(url)
        kind = parts.path.rpartition("/")[2]
        wanted = parse_qs(parts.query)["identifier"][0].split(",")
        references: list[str] = []
        for each in wanted:
            system, _, value = each.rpartition("|")
            references += self._named.get((kind, system, value), ())
        entries = [
            {"fullUrl": one, "resource": {**self.resources[one], "id": one.partition("/")[2]}}
            for one in references
        ]
        return orjson.dumps(
            {"resourceType": "Bundle", "type": "searchset", "total": len(entries), "entry": entries}
        )


def _refused(status: str) -> Json:
    issue = {"severity": "error", "code": "processing", "diagnostics": "refused"}
    return {"response": {"status": status, "outcome": {"resourceType": "OperationOutcome", "issue": [issue]}}}


class Session:
    """As much of aiohttp.ClientSession as the Hub client uses."""

    def __init__(self, hub: Hub, answer_s: float = 30.0) -> None:
        self._hub, self._answer_s = hub, answer_s

    def request(self, method: str, url: str, *, data: bytes | None = None, **_: Any) -> "_Request":
        return _Request(self._hub, method, url, data, self._answer_s)

    async def close(self) -> None:
        """There is nothing to close."""


class _Request:
    """One request, as an async context manager. The Hub works on when its client has gone."""

    def __init__(self, hub: Hub, method: str, url: str, body: bytes | None, answer_s: float) -> None:
        self._hub, self._asked, self._answer_s = hub, (method, url, body), answer_s

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
