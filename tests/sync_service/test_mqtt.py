"""The service's link over the real Mosquitto with TLS."""

import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from pathlib import Path
from zoneinfo import ZoneInfo

import aiomqtt
import pytest
from wire import batch, frame, frames

from gateway.message import Ack, decode_ack
from sync_service import ingest as ingest_module
from sync_service import mqtt
from sync_service.config import load
from sync_service.ingest import Ingest
from sync_service.mqtt import Link
from sync_service.store import Store
from tests.broker import Broker, eventually, next_message

KIT, OTHER = "HW-0001", "HW-0002"


class Running:
    """A Link and an Ingest, running over one Store."""

    def __init__(self, store: Store, broker: Broker) -> None:
        self.store = store
        self.link = Link(load(broker.folder).broker)
        self.ingest = Ingest(store, self.link.send, asyncio.Event(), zone=ZoneInfo("Europe/London"))


@pytest.fixture
async def service(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(mqtt, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(mqtt, "RETRY_MAX_S", 0.05)
    async with Store.open(load(broker.folder).store) as store:
        made = Running(store, broker)
        tasks = [
            asyncio.create_task(made.link.run(made.ingest)),
            asyncio.create_task(made.ingest.run()),
        ]
        await made.link.up.wait()
        yield made
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def send(kit: aiomqtt.Client, whole: bytes, name: str = KIT) -> Ack:
    await kit.publish(f"homeward/1/{name}/up", whole)
    message = await next_message(kit)
    assert isinstance(message.payload, bytes)
    return decode_ack(message.payload)


async def test_a_batch_over_the_broker_is_acked(service: Running, broker: Broker) -> None:
    async with broker.kit(KIT) as kit:
        await kit.subscribe(f"homeward/1/{KIT}/down/ack")
        ack = await send(kit, batch(frames(1, 60), first=1))
    assert (ack.through, ack.stored_first, ack.stored_last) == (60, 1, 60)


async def test_a_status_over_the_broker_is_kept(service: Running, broker: Broker) -> None:
    query = "select status from kit where kit = ?"
    async with broker.kit(KIT) as kit:
        await kit.subscribe(f"homeward/1/{KIT}/down/ack")
        await kit.publish(f"homeward/1/{KIT}/status", b'{"online": true}', retain=True)
        await send(kit, batch())
    found = await service.store.read(lambda db: db.execute(query, (KIT,)).fetchone())
    assert found == ('{"online": true}',)


async def test_a_batch_on_another_kits_topic_is_never_stored(service: Running, broker: Broker) -> None:
    """The broker drops it (P8); what the service sees of the other Kit is the other Kit's."""
    async with broker.kit(OTHER) as other, broker.kit(KIT) as kit:
        await kit.subscribe(f"homeward/1/{KIT}/down/ack")
        await other.subscribe(f"homeward/1/{OTHER}/down/ack")
        await other.publish(f"homeward/1/{KIT}/up", batch(frames(1, 9), first=1))
        await send(other, batch(), OTHER)
        assert (await send(kit, batch())).through == 0
    assert await service.store.read(lambda db: db.execute("select count(*) from record").fetchone()) == (0,)


async def test_a_broker_killed_and_started_again_is_found_again(service: Running, broker: Broker) -> None:
    broker.stop(signal.SIGKILL)
    await eventually(lambda: not service.link.up.is_set())
    assert service.link.state.startswith("no broker: ")
    broker.start()
    await service.link.up.wait()
    async with broker.kit(KIT) as kit:
        await kit.subscribe(f"homeward/1/{KIT}/down/ack")
        assert (await send(kit, batch([frame(1)], first=1))).through == 1


async def test_what_ingest_has_no_room_for_waits_unread(
    service: Running, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Store is held: what waits in this process stays bounded, and all is acked afterwards."""
    monkeypatch.setattr(ingest_module, "QUEUE_LIMIT", 16)
    pauses = spied(monkeypatch)
    held = sqlite3.connect(service.store.path, isolation_level=None)
    held.execute("begin immediate")
    sent = 300
    async with broker.kit(KIT) as kit:
        await kit.subscribe(f"homeward/1/{KIT}/down/ack")
        for sequence in range(1, sent + 1):
            await kit.publish(f"homeward/1/{KIT}/up", batch([frame(sequence, bytes(400))], first=sequence))
        await eventually(lambda: bool(pauses))
        for _ in range(50):
            await asyncio.sleep(0.001)
            # Besides the limit: what one TLS record (16 kB) brought has been read already.
            assert len(pauses[0].messages) <= 40
        held.execute("rollback")
        held.close()
        acks = [await next_message(kit) for _ in range(sent)]
    assert decode_ack(bytes(acks[-1].payload)).through == sent  # type: ignore[arg-type]


def spied(monkeypatch: pytest.MonkeyPatch) -> list[aiomqtt.Client]:
    """The clients whose socket was left unread."""
    pauses: list[aiomqtt.Client] = []
    real = mqtt._not_read

    def spy(client: aiomqtt.Client) -> AbstractContextManager[None]:
        pauses.append(client)
        return real(client)

    monkeypatch.setattr(mqtt, "_not_read", spy)
    return pauses


def test_a_link_without_its_certificate_says_which_file(folder: Path) -> None:
    config = load(folder).broker
    config.key.write_text("no key")
    with pytest.raises(OSError):
        Link(config)
