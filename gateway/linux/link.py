"""The link to the broker: MQTT over TLS with the Kit's certificate, made again whenever it is lost.

QoS 0 both ways: what counts is the Ack of the service, which Uplink waits for (DESIGN 7). `set_online(False)`
is the home's Wi-Fi going down: the socket is cut without a word and no connection is tried until it is back.
"""

import asyncio
import logging
import random
import socket
import ssl
from contextlib import suppress

import aiomqtt

from gateway.gateway import Gateway
from gateway.linux.clock import Clock
from gateway.linux.config import Config, ConfigError
from gateway.message import ack_topic, status_topic, up_topic
from gateway.status import STATUS_EVERY_MS, encode_offline

_KEEPALIVE_S = 60
"""Through a home router's NAT, which forgets an idle connection after minutes."""
_RETRY_FIRST_S = 1.0
_RETRY_MAX_S = 60.0
"""Full jitter up to a minute: ten thousand Kits come back from a broker restart at under 200 a second."""
_ACKS_WAITING = 16
"""One Batch is in flight, so more Acks than this are not answers to us."""

_log = logging.getLogger(__name__)


class Link:
    """Carries the Gateway's Batches and brings it its Acks. `run` until cancelled."""

    def __init__(self, gateway: Gateway, clock: Clock, *, host: str, port: int, tls: ssl.SSLContext) -> None:
        self._gateway = gateway
        self._clock = clock
        self._host = host
        self._port = port
        self._tls = tls
        self._client: aiomqtt.Client | None = None
        self._news = asyncio.Event()
        self._online = asyncio.Event()
        self._online.set()
        self._tries = 0
        self.connections = 0

    @property
    def is_connected(self) -> bool:
        """Whether the broker has accepted us and the link has not been lost."""
        return self._client is not None

    def wake(self) -> None:
        """Something was appended to the Journal."""
        self._news.set()

    def set_online(self, online: bool) -> None:
        """Have or have not a network. Going offline ends the connection as a lost Wi-Fi does."""
        if online:
            self._online.set()
            return
        self._online.clear()
        if self._client is not None:
            _cut(self._client)

    async def run(self) -> None:
        """Connect, serve, and connect again, for ever."""
        while True:
            await self._online.wait()
            try:
                await self._serve()
            except aiomqtt.MqttError as error:
                _log.info("broker: %s", error)
            await self._pause()

    async def _pause(self) -> None:
        """Full jitter: a random part of a bound that doubles until an Ack has come."""
        bound = min(_RETRY_MAX_S, _RETRY_FIRST_S * 2 ** min(self._tries, 16))
        self._tries += 1
        await asyncio.sleep(random.uniform(0, bound))

    async def _serve(self) -> None:
        kit, release = self._gateway.kit, self._gateway.release
        will = aiomqtt.Will(status_topic(kit), encode_offline(kit, release), retain=True)
        client = aiomqtt.Client(
            self._host,
            self._port,
            identifier=kit,
            will=will,
            keepalive=_KEEPALIVE_S,
            tls_context=self._tls,
            max_queued_incoming_messages=_ACKS_WAITING,
        )
        async with client:
            await client.subscribe(ack_topic(kit))
            if not self._online.is_set():  # went offline while connecting
                _cut(client)
            self._client = client
            self.connections += 1
            self._gateway.connected(self._clock.now_ms())
            try:
                await self._carry(client)
            finally:
                self._client = None
                self._gateway.uplink.disconnected(self._clock.now_ms())
                with suppress(aiomqtt.MqttError):
                    await client.publish(will.topic, will.payload, retain=True)

    async def _carry(self, client: aiomqtt.Client) -> None:
        """Both ways at once, until the first of them fails."""
        tasks = [
            asyncio.create_task(self._send(client), name="link send"),
            asyncio.create_task(self._receive(client), name="link receive"),
            asyncio.create_task(self._tell(client), name="link status"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, client: aiomqtt.Client) -> None:
        topic = up_topic(self._gateway.kit)
        while True:
            self._news.clear()
            now_ms = self._clock.now_ms()
            if self._gateway.uplink.is_stuck(now_ms):
                raise aiomqtt.MqttError("no Ack has come for long")
            batch = self._gateway.uplink.next_batch(now_ms)
            if batch is not None:
                await client.publish(topic, bytes(batch))
                continue
            wait_ms = self._gateway.uplink.due_ms(now_ms) - now_ms
            with suppress(TimeoutError):
                async with asyncio.timeout(max(wait_ms, 1) / 1000):
                    await self._news.wait()

    async def _receive(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            if isinstance(message.payload, bytes):
                self._gateway.receive_ack(message.payload, self._clock.now_ms())
                self._tries = 0
                self.wake()

    async def _tell(self, client: aiomqtt.Client) -> None:
        while True:
            status = self._gateway.status(self._clock.now_ms())
            await client.publish(status_topic(self._gateway.kit), status, retain=True)
            await asyncio.sleep(STATUS_EVERY_MS / 1000)


def tls_context(config: Config) -> ssl.SSLContext:
    """TLS 1.2 or newer, the project CA alone, the server's name checked, the Kit's own certificate shown.

    Raises ConfigError when a file holds something else.
    """
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=config.ca)
        context.load_cert_chain(config.certificate, config.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca, certificate or key can't be used: {error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _cut(client: aiomqtt.Client) -> None:
    """Cut the TCP connection under MQTT and TLS, so that neither says goodbye."""
    connection = client._client.socket()  # aiomqtt offers no way to lose a connection
    if isinstance(connection, socket.socket):
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
