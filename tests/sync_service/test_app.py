"""The real process: `homeward-sync serve`, with the real broker, ended in both ways."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate
from pathlib import Path

import aiomqtt
import pytest
from aiohttp import web
from wire import batch, frames

from gateway.message import Ack, decode_ack
from sync_service.store import connect
from tests.broker import Broker, eventually, next_message

KIT = "HW-0001"
READY_S = 20.0


class Service:
    """One process of the service."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""

    async def ready(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(READY_S):
            return (await self.process.stdout.readline()).decode()

    async def end(self, number: signal.Signals) -> int:
        """Send the signal; return the exit code."""
        self.process.send_signal(number)
        _, err = await asyncio.wait_for(self.process.communicate(), READY_S)
        self.said = err.decode()
        return await self.process.wait()


Start = Callable[[], Awaitable[Service]]


@pytest.fixture
async def start(folder: Path) -> AsyncIterator[Start]:
    started: list[Service] = []

    async def start() -> Service:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sync_service.command", "--dir", str(folder), "serve"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(Service(process))
        return started[-1]

    yield start
    for service in started:
        if service.process.returncode is None:
            await service.end(signal.SIGKILL)


async def send(kit: aiomqtt.Client, whole: bytes) -> Ack:
    await kit.publish(f"homeward/1/{KIT}/up", whole)
    message = await next_message(kit)
    assert isinstance(message.payload, bytes)
    return decode_ack(message.payload)


def stored(folder: Path) -> int:
    db = connect(folder / "store.sqlite")
    (highest,) = db.execute("select coalesce(max(sequence), 0) from record").fetchone()
    (n,) = db.execute("select count(*) from record").fetchone()
    db.close()
    assert n == highest
    return int(n)


async def test_kill_9_between_batches_loses_nothing_acked(start: Start, broker: Broker, folder: Path) -> None:
    """Killed while a Batch is on its way, three times: what was acked is there, without a gap."""
    first = 1
    async with broker.kit(KIT) as kit:
        await kit.subscribe(f"homeward/1/{KIT}/down/ack")
        for _ in range(3):
            service = await start()
            await service.ready()
            for _ in range(20):
                ack = await send(kit, batch(frames(first, first + 4), first=first, acked_through=first - 1))
                assert ack.through == first + 4
                first = ack.through + 1
            await kit.publish(f"homeward/1/{KIT}/up", batch(frames(first, first + 4), first=first))
            await service.end(signal.SIGKILL)
            assert first - 1 <= stored(folder) <= first + 4
            while len(kit.messages):
                await next_message(kit)


async def test_sigterm_is_an_orderly_end(start: Start, broker: Broker, folder: Path) -> None:
    service = await start()
    line = await service.ready()
    assert line.startswith("homeward-sync: ready, console at http://127.0.0.1:")
    state = json.loads((folder / "service.json").read_text())
    assert (state["pid"], state["broker"], state["store"]) == (service.process.pid, "connected", "ok")
    async with broker.kit(KIT) as kit:
        await kit.subscribe(f"homeward/1/{KIT}/down/ack")
        ack = await send(kit, batch(frames(1, 5), first=1))
        assert ack.utc_ms is None, "there is no Hub to confirm the service's clock"
        assert await service.end(signal.SIGTERM) == 0
    assert "Traceback" not in service.said
    assert stored(folder) == 5
    assert not (folder / "service.json").exists()
    assert not (folder / "store.sqlite-wal").exists()


async def test_status_shows_a_running_service(start: Start, broker: Broker, folder: Path) -> None:
    service = await start()
    await service.ready()
    command = [sys.executable, "-m", "sync_service.command", "--dir", str(folder), "status", "--json"]
    told = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
    status = json.loads(told.stdout)
    assert status["running"] is True
    assert status["service"]["pid"] == service.process.pid
    assert await service.end(signal.SIGINT) == 0


async def test_a_second_service_on_the_same_store_is_refused(
    start: Start, broker: Broker, folder: Path
) -> None:
    await (await start()).ready()
    second = await start()
    _, err = await asyncio.wait_for(second.process.communicate(), READY_S)
    assert second.process.returncode == 1
    assert b"another service has" in err


async def test_a_console_whose_port_is_taken_leaves_the_rest_running(
    start: Start, broker: Broker, folder: Path
) -> None:
    port = json.loads(f"[{(folder / 'sync.toml').read_text().rsplit('port = ', 1)[1]}]")[0]
    taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", port)
    service = await start()
    await service.ready()
    async with broker.kit(KIT) as kit:
        await kit.subscribe(f"homeward/1/{KIT}/down/ack")
        assert (await send(kit, batch(frames(1, 5), first=1))).through == 5
    taken.close()
    assert await service.end(signal.SIGTERM) == 0
    assert "console: " in service.said


async def test_a_service_whose_clock_the_hub_contradicts_gives_no_time_until_they_agree(
    start: Start, broker: Broker, folder: Path
) -> None:
    ahead_s = 3600

    async def answer(request: web.Request) -> web.Response:
        return web.Response(headers={"Date": formatdate(time.time() + ahead_s, usegmt=True)})

    hub = web.Application()
    hub.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(hub)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    config = folder / "sync.toml"
    url = re.sub(r'url = ".*"', f'url = "http://127.0.0.1:{runner.addresses[0][1]}"', config.read_text())
    config.write_text(url)

    def told() -> str:
        return str(json.loads((folder / "service.json").read_text())["clock"])

    service = await start()
    await service.ready()
    async with broker.kit(KIT) as kit:
        await kit.subscribe(f"homeward/1/{KIT}/down/ack")
        ack = await send(kit, batch(frames(1, 5), first=1))
        assert (ack.through, ack.utc_ms) == (5, None)
        await eventually(lambda: "behind the Hub's" in told())
        ahead_s = 0
        await eventually(lambda: told() == "ok")
        ack = await send(kit, batch(acked_through=5))
        assert ack.utc_ms is not None and abs(ack.utc_ms - time.time() * 1000) < 10_000
    assert await service.end(signal.SIGTERM) == 0
    await runner.cleanup()
    assert "Kits get no time" in service.said
    db = connect(folder / "store.sqlite")
    assert db.execute("select n from counter where name = 'clock doubted'").fetchone() == (1,)
    db.close()


async def test_a_service_without_a_broker_waits_for_it(start: Start, folder: Path) -> None:
    service = await start()
    state = folder / "service.json"
    await eventually(lambda: state.exists() and "no broker" in json.loads(state.read_text())["broker"])
    broker = Broker(folder)
    broker.start()
    try:
        await service.ready()
    finally:
        broker.stop()
    assert await service.end(signal.SIGTERM) == 0
