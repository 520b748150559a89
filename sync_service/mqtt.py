"""The service's link to the broker: Batches and statuses in, Acks out, made again whenever it is lost.

QoS 0 both ways: the broker remembers nothing, and what counts is the Ack (DESIGN 7). The one rule: what
ingest has no room for is not read from the socket, so that it waits with the broker and the Kits, not here.
"""

import asyncio
import logging
import random
import socket
import ssl
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import aiomqtt

from sync_service.config import Broker
from sync_service.identity import SERVICE
from sync_service.ingest import Ingest

log = logging.getLogger(__name__)

SUBSCRIPTIONS = ("$share/sync/homeward/1/+/up", "homeward/1/+/status")
"""Workers share the Batches; a status is idempotent and may come to each."""
NO_DELAY = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
"""An Ack is a small packet that a Kit waits for: Nagle would hold it back for the one before."""
KEEPALIVE_S = 30
RETRY_FIRST_S = 0.5
RETRY_MAX_S = 15.0
"""Full jitter up to this: there are few workers, and Kits wait for them."""
ACKS_LIMIT = 4_096
"""Acks not yet sent. The oldest is dropped: its Kit has stopped waiting for it and sends the Batch again."""


class Link:
    """Carries messages between the broker and Ingest. `run` until cancelled."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._tls = tls_context(broker)
        self._acks: deque[tuple[str, bytes]] = deque(maxlen=ACKS_LIMIT)
        self._news = asyncio.Event()
        self._sent = asyncio.Event()
        self._sent.set()
        self._reading = True
        self._tries = 0
        self.state = "not connected yet"
        self.up = asyncio.Event()  # set while subscribed

    def send(self, topic: str, ack: bytes) -> None:
        """Send when the broker is there. Never blocks."""
        self._acks.append((topic, ack))
        self._sent.clear()
        self._news.set()

    def stop_reading(self) -> None:
        """Take nothing more from the broker."""
        self._reading = False

    async def sent(self) -> None:
        """Wait until every Ack has gone to the broker."""
        await self._sent.wait()

    async def run(self, ingest: Ingest) -> None:
        """Connect, serve, and connect again, for ever."""
        while True:
            try:
                await self._serve(ingest)
            except* aiomqtt.MqttError as errors:
                self._lost(errors.exceptions[0])
            bound = min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(self._tries, 16))
            self._tries += 1
            await asyncio.sleep(random.uniform(0, bound))

    def _lost(self, error: BaseException) -> None:
        self.up.clear()
        if self.state != (now := f"no broker: {error}"):
            log.warning("%s", now)
        self.state = now

    async def _serve(self, ingest: Ingest) -> None:
        broker = self._broker
        client = aiomqtt.Client(
            broker.host,
            broker.port,
            identifier=SERVICE,
            keepalive=KEEPALIVE_S,
            tls_context=self._tls,
            socket_options=NO_DELAY,
        )
        async with client:
            for topic in SUBSCRIPTIONS:
                await client.subscribe(topic)
            self._tries = 0
            self.state = "connected"
            self.up.set()
            log.info("connected to the broker at %s:%d", broker.host, broker.port)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._receive(client, ingest), name="batches")
                both.create_task(self._send_acks(client), name="acks")

    async def _receive(self, client: aiomqtt.Client, ingest: Ingest) -> None:
        async for message in client.messages:
            if self._reading and isinstance(message.payload, bytes):
                ingest.offer(message.topic.value, message.payload)
            if ingest.is_full:
                with _not_read(client):
                    await ingest.room()

    async def _send_acks(self, client: aiomqtt.Client) -> None:
        while True:
            await self._news.wait()
            while self._acks:
                # A commit acks many Batches. aiomqtt makes a task for each that it waits for, so it waits for
                # the last alone: when that has gone, those before it have, too.
                while len(self._acks) > 1:
                    client._client.publish(*self._acks.popleft())
                await client.publish(*self._acks.popleft())
            self._news.clear()
            self._sent.set()


@contextmanager
def _not_read(client: aiomqtt.Client) -> Iterator[None]:
    """Leave the socket alone meanwhile: what comes waits in its buffers, then at the broker."""
    loop = asyncio.get_running_loop()
    paho = client._client  # aiomqtt has no way to pause
    connection = paho.socket()
    if connection is None:
        yield
        return
    loop.remove_reader(connection.fileno())
    try:
        yield
    finally:
        if paho.socket() is connection:
            loop.add_reader(connection.fileno(), _read, client)
            _read(client)  # TLS may hold decrypted bytes that the socket will not announce again


def _read(client: aiomqtt.Client) -> None:
    paho = client._client
    while paho.loop_read() == 0:
        connection = paho.socket()
        if not isinstance(connection, ssl.SSLSocket) or not connection.pending():
            return


def tls_context(broker: Broker) -> ssl.SSLContext:
    """TLS 1.2 or newer, the project CA alone, the broker's name checked, our own certificate shown."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=broker.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(broker.certificate, broker.key)
    return context
