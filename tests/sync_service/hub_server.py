"""The development Hub inside a test: the real server on a free port of this machine, with fault injection."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from hw.virtual.hub import Hub as Model
from hw.virtual.hub import Server
from hw.virtual.hub_store import Store


class HubServer:
    """Asks the Hub what it holds and tells it how to misbehave, over HTTP like anybody else."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url, self._session = url, session

    async def fault(self, kind: str, **more: Any) -> None:
        async with self._session.post(f"{self.url}/$faults", json={"kind": kind, **more}) as answer:
            assert answer.status < 300, await answer.text()

    async def faults_left(self) -> int:
        async with self._session.get(f"{self.url}/$faults") as answer:
            return len(await answer.json(content_type=None))

    async def patient(self, name: str) -> str:
        """A new Patient: 'Patient/<id>'."""
        resource = {"resourceType": "Patient", "identifier": [{"system": "urn:test", "value": name}]}
        async with self._session.post(
            f"{self.url}/Patient", json=resource, headers={"Content-Type": "application/fhir+json"}
        ) as answer:
            assert answer.status == 201, await answer.text()
            return f"Patient/{(await answer.json(content_type=None))['id']}"

    async def put(self, resource: dict[str, Any]) -> None:
        """Somebody at the Hub changes a resource."""
        async with self._session.put(
            f"{self.url}/{resource['resourceType']}/{resource['id']}",
            json=resource,
            headers={"Content-Type": "application/fhir+json"},
        ) as answer:
            assert answer.status == 200, await answer.text()

    async def post(self, resource: dict[str, Any]) -> None:
        """Somebody creates a resource at the Hub."""
        async with self._session.post(
            f"{self.url}/{resource['resourceType']}",
            json=resource,
            headers={"Content-Type": "application/fhir+json"},
        ) as answer:
            assert answer.status == 201, await answer.text()

    async def held(self, kind: str = "Observation", **query: str) -> list[dict[str, Any]]:
        """Every resource of the kind that matches."""
        async with self._session.get(f"{self.url}/{kind}", params={"_count": "1000", **query}) as answer:
            assert answer.status == 200, await answer.text()
            return [one["resource"] for one in (await answer.json(content_type=None)).get("entry", ())]


@asynccontextmanager
async def serve_hub(folder: Path, *, token: str | None = None) -> AsyncIterator[HubServer]:
    """The Hub with its full validation and an empty store."""
    store = Store(folder / "hub.sqlite")
    # Answers that a fault leaves hanging must not hold up the end of the test.
    runner = web.AppRunner(Server(Model(store), token=token, faults=True).app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(headers=headers) as session:
        yield HubServer(f"http://127.0.0.1:{runner.addresses[0][1]}", session)
    await runner.cleanup()
    store.close()
