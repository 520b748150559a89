"""LinuxGateway: a home with a virtual Sensor, the real Mosquitto with certificates, a small service."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from gateway import record
from gateway.errors import JournalError
from gateway.linux.config import Config
from gateway.linux.link import tls_context
from gateway.linux.run import LinuxGateway, wipe
from gateway.message import Ack, Batch, ack_topic, decode_batch, encode_ack, status_topic, up_topic
from hw.virtual.bleak_backend import BumbleAdapter
from hw.virtual.cuff import Cuff
from hw.virtual.radio import Room
from hw.virtual.sensor import Habits, Label
from sync_service.identity import add_kit, init
from tests.broker import Broker, running

KIT = "HW-0001"
CUFF, GATEWAY = "C0:00:00:00:00:01", "C0:00:00:00:00:02"
BRIEF = Habits(window_s=5.0, linger_s=0.3, advertising_ms=20)
ACK_WAIT_MS = 300
UTC_MS = 1_764_000_000_000


class Service:
    """Acks every Batch while `acks`; keeps all that came."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.batches: list[Batch] = []
        self.statuses: list[dict[str, Any]] = []
        self.acks = True
        self._news = asyncio.Event()

    async def run(self) -> None:
        while True:
            try:
                async with self._broker.service() as client:
                    await client.subscribe([(up_topic("+"), 0), (status_topic("+"), 0)])
                    self._news.set()
                    async for message in client.messages:
                        await self._take(client, message)
            except aiomqtt.MqttError:
                await asyncio.sleep(0.05)

    async def _take(self, client: aiomqtt.Client, message: aiomqtt.Message) -> None:
        assert isinstance(message.payload, bytes)
        self._news.set()
        if message.topic.matches(status_topic("+")):
            self.statuses.append(json.loads(message.payload))
            return
        batch = decode_batch(message.payload)
        self.batches.append(batch)
        through = batch.first + batch.count - 1 if batch.count else batch.acked_through
        if self.acks:
            ack = Ack(batch.journal_id, batch.nonce, through, batch.first, through, None, UTC_MS, 0)
            await client.publish(ack_topic(KIT), encode_ack(ack))

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(15):
            while not holds():
                self._news.clear()
                with suppress(TimeoutError):  # not all that is waited for goes through the broker
                    await asyncio.wait_for(self._news.wait(), 0.05)

    @property
    def frames(self) -> dict[int, record.Frame]:
        """By sequence."""
        found = {}
        for batch in self.batches:
            for each in record.decode_all(batch.records):
                body = record.decode_body(each.type, each.version, each.body)
                if isinstance(body, record.Frame):
                    found[each.sequence] = body
        return found


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    init(tmp_path / "sync")
    add_kit(tmp_path / "sync", KIT)
    with running(tmp_path / "sync") as broker:
        yield broker


@pytest.fixture
def config(tmp_path: Path, broker: Broker) -> Config:
    files = broker.folder / "kits" / KIT
    return Config(
        kit=KIT,
        journal=tmp_path / "journal.flash",
        journal_kib=64,
        sensors=tmp_path / "sensors.json",
        host="127.0.0.1",
        port=broker.port,
        ca=files / "ca.pem",
        certificate=files / "kit.pem",
        key=files / "kit.key",
    )


@pytest.fixture
async def service(broker: Broker) -> AsyncIterator[Service]:
    service = Service(broker)
    task = asyncio.create_task(service.run())
    await service.until(lambda: True)
    yield service
    task.cancel()
    await asyncio.wait({task})


@pytest.fixture
async def adapter() -> AsyncIterator[BumbleAdapter]:
    async with BumbleAdapter(Room(), GATEWAY) as adapter:
        yield adapter


@contextmanager
def built(
    config: Config, adapter: BumbleAdapter, *, ack_wait_ms: int = ACK_WAIT_MS
) -> Iterator[LinuxGateway]:
    gateway = LinuxGateway(
        config,
        scanner_backend=adapter.scanner_backend,
        client_backend=adapter.client_backend,
        ack_wait_ms=ack_wait_ms,
    )
    try:
        yield gateway
    finally:
        gateway.close()


@asynccontextmanager
async def powered(config: Config, adapter: BumbleAdapter) -> AsyncIterator[LinuxGateway]:
    with built(config, adapter) as gateway:
        task = asyncio.create_task(gateway.run())
        try:
            yield gateway
        finally:
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()


def cuff(adapter: BumbleAdapter) -> Cuff:
    return Cuff(adapter.room, CUFF, label=Label("Cuff", serial="CU-1"), habits=BRIEF)


async def test_a_reading_goes_from_the_cuff_into_the_journal_and_out_as_a_batch(
    config: Config, adapter: BumbleAdapter, service: Service
) -> None:
    async with cuff(adapter) as sensor, powered(config, adapter) as gateway:
        gateway.open_pairing(10)
        sensor.measure(120, 80, 93, 61)
        await service.until(lambda: service.frames and not gateway.pending)
        (frame,) = service.frames.values()
        assert frame.value[1:3] == b"\x78\x00"
        assert frame.flags & record.HOST_CONFIRMED
        assert service.batches[0].count == 0
        assert service.statuses[-1]["online"] and service.statuses[-1]["host_confirmed"]


async def test_what_comes_while_the_home_is_offline_is_kept_and_sent_later(
    config: Config, adapter: BumbleAdapter, service: Service
) -> None:
    async with cuff(adapter) as sensor, powered(config, adapter) as gateway:
        gateway.open_pairing(10)
        await service.until(lambda: gateway.link.is_connected and not gateway.pending)
        gateway.link.set_online(False)
        await service.until(lambda: not service.statuses[-1]["online"])
        sensor.measure(120, 80, 93, 61)
        await service.until(lambda: not sensor.ledger.held)
        await sensor.dark()
        assert gateway.pending and not service.frames and not gateway.link.is_connected
        gateway.link.set_online(True)
        await service.until(lambda: service.frames and not gateway.pending)
    assert len(service.frames) == 1


async def test_what_was_kept_survives_a_restart_and_nothing_acked_is_sent_again(
    config: Config, adapter: BumbleAdapter, service: Service
) -> None:
    async with cuff(adapter) as sensor:
        async with powered(config, adapter) as gateway:
            gateway.open_pairing(10)
            await service.until(lambda: gateway.link.is_connected and not gateway.pending)
            gateway.link.set_online(False)
            sensor.measure(120, 80, 93, 61)
            await service.until(lambda: not sensor.ledger.held)
        sent = {each.sequence for batch in service.batches for each in record.decode_all(batch.records)}
        service.batches.clear()
        async with powered(config, adapter) as gateway:
            await service.until(lambda: service.frames and not gateway.pending)
            assert gateway.journal.boot == 2
        again = {each.sequence for batch in service.batches for each in record.decode_all(batch.records)}
        assert sent and not sent & again


async def test_a_killed_broker_and_a_silent_service_cost_time_only(
    config: Config, adapter: BumbleAdapter, service: Service, broker: Broker
) -> None:
    async with cuff(adapter) as sensor, powered(config, adapter) as gateway:
        gateway.open_pairing(10)
        await service.until(lambda: gateway.link.is_connected and not gateway.pending)
        broker.stop()
        sensor.measure(120, 80, 93, 61)
        await service.until(lambda: not sensor.ledger.held)
        service.acks = False
        broker.start()
        await service.until(lambda: gateway.gateway.uplink.counters["resent"] >= 2)
        service.acks = True
        await service.until(lambda: service.frames and not gateway.pending)
    assert len(service.frames) == 1


async def test_an_orderly_end_says_offline_and_leaves_nothing_to_a_wipe(
    config: Config, adapter: BumbleAdapter, service: Service
) -> None:
    async with powered(config, adapter) as gateway:
        await service.until(lambda: gateway.link.is_connected and not gateway.pending)
        journal_id = gateway.journal.journal_id
    await service.until(lambda: not service.statuses[-1]["online"])
    wipe(config)
    with built(config, adapter) as gateway:
        assert gateway.journal.journal_id != journal_id


async def test_a_wipe_is_refused_while_records_wait_unless_they_are_given_up(
    config: Config, adapter: BumbleAdapter
) -> None:
    with built(config, adapter) as gateway:
        gateway.gateway.start(0)
        gateway.gateway.bond(1, bytes(6), 0)
        journal_id = gateway.journal.journal_id
    with pytest.raises(JournalError, match="3 Records have not been sent"):
        wipe(config)
    wipe(config, force_unsent=True)
    with built(config, adapter) as gateway:
        assert gateway.journal.journal_id != journal_id
        assert gateway.gateway.reference_of(bytes(6)) == 0


# paho leaves a socket whose handshake has failed to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
async def test_a_broker_that_the_project_has_not_signed_gets_nothing(
    config: Config, adapter: BumbleAdapter, service: Service, tmp_path: Path
) -> None:
    init(tmp_path / "other")
    strict = replace(config, ca=tmp_path / "other/ca/ca.pem")
    async with powered(strict, adapter) as gateway:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                await service.until(lambda: gateway.link.is_connected)
    assert not service.batches


def test_tls_is_never_older_than_1_2_and_always_checks_the_name(config: Config, broker: Broker) -> None:
    context = tls_context(config)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname


async def test_a_broker_that_hangs_half_open_is_left_and_called_again_after_a_bound(
    config: Config, adapter: BumbleAdapter, service: Service, broker: Broker
) -> None:
    with built(config, adapter, ack_wait_ms=20) as gateway:
        task = asyncio.create_task(gateway.run())
        await service.until(lambda: gateway.link.is_connected and not gateway.pending)
        broker.hang()  # nothing is reset, and nothing comes back
        gateway.gateway.append_event(record.BUTTON, 0, b"", gateway.clock.now_ms())
        gateway.link.wake()
        await service.until(lambda: not gateway.link.is_connected)
        assert gateway.gateway.uplink.counters["resent"] > 2
        broker.wake()
        await service.until(lambda: gateway.link.is_connected and not gateway.pending)
        task.cancel()
        await asyncio.wait({task})


async def test_a_link_on_which_nobody_answers_is_made_anew(
    config: Config, adapter: BumbleAdapter, service: Service
) -> None:
    service.acks = False
    with built(config, adapter, ack_wait_ms=20) as gateway:
        task = asyncio.create_task(gateway.run())
        await service.until(lambda: gateway.link.connections >= 2)
        service.acks = True
        await service.until(lambda: gateway.link.is_connected and not gateway.pending)
        task.cancel()
        await asyncio.wait({task})
