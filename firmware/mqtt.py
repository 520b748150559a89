"""Link: carries the Gateway's Batches to the broker and brings its Acks, by umqtt.simple over TLS.

QoS 0 both ways: what counts is the Ack of the service, which Uplink waits for (DESIGN 7). The same calls fit
umqtt 1.3 and its later versions, since TLS is the Wire's matter and not umqtt's.
"""

import asyncio
import errno
import random
import ssl

import umqtt.simple

from firmware import reach
from firmware.wait import for_event
from firmware.wire import Absent
from gateway.message import ack_topic, status_topic, up_topic
from gateway.port import const
from gateway.record import NET_ONLINE
from gateway.status import STATUS_EVERY_MS, encode_offline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from firmware.clock import Clock
    from firmware.wire import Wire
    from gateway.gateway import Gateway

_CONNECT_WAIT_MS = const(15_000)
_ANSWER_WAIT_MS = const(20_000)
"""CONNACK and SUBACK; the handshake before takes an ESP32 two seconds."""
_KEEPALIVE_S = const(60)
"""Through a home router's NAT, which forgets an idle connection after minutes."""
_PING_EVERY_MS = 25_000
_SILENCE_MS = 60_000
"""Two pings without an answer: the broker is not there any more. No const: tests have less patience."""
_TICK_MS = const(1_000)
_RETRY_FIRST_MS = const(1_000)
_RETRY_MAX_MS = const(60_000)
"""Full jitter up to a minute: ten thousand Kits come back from a broker restart at under 200 a second."""
_OTHER_PORT = const(443)
"""Some homes let nothing else out; every fourth try goes there."""

_LOST = (OSError, ValueError, AssertionError, Absent, umqtt.simple.MQTTException)
"""The world, mbedTLS, and umqtt's ways to say that a packet makes no sense."""

_CONNACK = const(0x20)
_SUBACK = const(0x90)
_REFUSED = const(0x80)

COUNTERS = ("connections", "lost_links")
"""Connections that the broker has accepted; tries and connections that ended. They go into the status."""


class Link:
    """`run` for ever. `online`: whether there is a network; `joins`: how many there were since the boot, this
    one with them; `alive` is called as long as this runs.

    `reached` is told how far each try came: one of NET_*.
    """

    def __init__(
        self,
        gateway: "Gateway",
        clock: "Clock",
        wire: "Wire",
        *,
        host: str,
        port: int,
        tls: ssl.SSLContext,
        online: "Callable[[], bool]",
        joins: "Callable[[], int]",
        reached: "Callable[[int], None]",
        alive: "Callable[[], None]",
    ) -> None:
        self.counters = gateway.counters
        self.counters.update(dict.fromkeys(COUNTERS, 0))
        self.is_connected = False
        self._stood = False  # the last connection, before it ended
        self._gateway = gateway
        self._clock = clock
        self._host = host
        self._port = port
        self._tls = tls
        self._online = online
        self._joins = joins
        self._joined = 0  # `joins` at the present try
        self._reached = reached
        self._alive = alive
        self._wire = umqtt.simple.socket = wire
        self._news = asyncio.Event()
        self._up = up_topic(gateway.kit).encode()
        self._ack = ack_topic(gateway.kit).encode()
        self._status = status_topic(gateway.kit).encode()
        self._tries = 0
        self._sent_ms = 0  # uptime of the last packet
        self._told_ms = 0  # and of the last status

    def wake(self) -> None:
        """Something was appended to the Journal."""
        self._news.set()

    async def run(self) -> None:
        """Connect, serve, and connect again, for ever."""
        while True:
            if self._online():
                try:
                    await self._serve()
                except _LOST as error:
                    self.counters["lost_links"] += 1
                    print("broker:", error)
                    await self._explain(error)
                await self._pause()
            else:
                await self._tick(_TICK_MS)

    async def _explain(self, error: Exception) -> None:
        """Why this try came to nothing. A connection that stood says nothing: the next try will.

        Nor does the other port, for homes that let nothing else out: few services listen there.
        """
        if self._stood or self._is_other_port or not self._online():
            return
        self._alive()
        state = await reach.why(error, self._wire, self._host)
        if self._online():
            self._reached(state)

    @property
    def _is_other_port(self) -> bool:
        return self._tries % 4 == 3

    async def _pause(self) -> None:
        """Full jitter: a random part of a bound that doubles until an Ack or another network has come."""
        bound = min(_RETRY_MAX_MS, _RETRY_FIRST_MS << min(self._tries, 16))
        self._tries += 1
        left = random.getrandbits(16) * bound >> 16
        while left > 0 and self._joined == self._joins():
            await self._tick(min(left, _TICK_MS))
            left -= _TICK_MS

    async def _tick(self, wait_ms: int) -> None:
        self._alive()
        await asyncio.sleep_ms(wait_ms)

    async def _serve(self) -> None:
        self._stood = False
        if self._joined != self._joins():
            self._joined = self._joins()
            self._tries = 0
        port = _OTHER_PORT if self._is_other_port else self._port
        try:
            await self._wire.open(self._host, port, self._tls, _CONNECT_WAIT_MS)
            client = self._client()
            await self._connect(client)
            await self._subscribe(client)
            self.counters["connections"] += 1
            self.is_connected = self._stood = True
            self._told_ms = -STATUS_EVERY_MS
            self._gateway.connected(self._clock.now_ms())
            self._reached(NET_ONLINE)
            await self._carry(client)
        finally:
            self.is_connected = False
            await self._wire.end()
            self._gateway.uplink.disconnected(self._clock.now_ms())

    def _client(self) -> "umqtt.simple.MQTTClient":
        """Names of the same length as their bytes, and bytes: umqtt counts characters."""
        kit = self._gateway.kit
        client = umqtt.simple.MQTTClient(kit.encode(), self._host, port=self._port, keepalive=_KEEPALIVE_S)
        client.set_last_will(self._status, encode_offline(kit, self._gateway.release), True)
        client.set_callback(self._on_message)
        return client

    async def _connect(self, client: "umqtt.simple.MQTTClient") -> None:
        try:
            client.connect()
        except Absent:  # it has written CONNECT and would wait for the answer
            await self._send()
        await self._answer(client, _CONNACK)

    async def _subscribe(self, client: "umqtt.simple.MQTTClient") -> None:
        try:
            client.subscribe(self._ack)
        except Absent:
            await self._send()
        await self._answer(client, _SUBACK)

    async def _answer(self, client: "umqtt.simple.MQTTClient", wanted: int) -> None:
        """Wait for CONNACK or SUBACK; the last of their bytes says no where it is not 0 to 2."""
        while await self._wire.packet(_ANSWER_WAIT_MS) != wanted:
            client.wait_msg()
        code = self._wire.read(4 if wanted == _CONNACK else 5)[-1]
        if code and (wanted == _CONNACK or code >= _REFUSED):
            raise umqtt.simple.MQTTException(code)

    async def _carry(self, client: "umqtt.simple.MQTTClient") -> None:
        """Send what is due and receive what comes, until the first of them fails."""
        receiving = asyncio.create_task(self._receive(client))
        try:
            while not receiving.done():
                if not self._online() or self._joined != self._joins():  # a network may come within a tick
                    raise OSError(errno.ENOTCONN)
                if self._gateway.uplink.is_stuck(self._clock.now_ms()):
                    raise OSError(errno.ETIMEDOUT)
                self._news.clear()
                if not await self._send_due(client):
                    await self._wait()
                self._alive()  # not before: one that fails at its first Batch for ever shows none
            await receiving  # raises what has ended it
        finally:
            receiving.cancel()

    async def _wait(self) -> None:
        now_ms = self._clock.now_ms()
        wait_ms = min(_TICK_MS, self._gateway.uplink.due_ms(now_ms) - now_ms)
        await for_event(self._news, wait_ms)

    async def _send_due(self, client: "umqtt.simple.MQTTClient") -> bool:
        """Send one packet that is due; False: none is."""
        now_ms = self._clock.now_ms()
        batch = self._gateway.uplink.next_batch(now_ms)
        if batch is not None:
            client.publish(self._up, batch)
        elif now_ms - self._told_ms >= STATUS_EVERY_MS:
            self._told_ms = now_ms
            client.publish(self._status, self._gateway.status(now_ms), True)
        elif now_ms - self._sent_ms >= _PING_EVERY_MS:
            client.ping()
        else:
            return False
        await self._send()
        return True

    async def _send(self) -> None:
        await self._wire.flush()
        self._sent_ms = self._clock.now_ms()

    async def _receive(self, client: "umqtt.simple.MQTTClient") -> None:
        while True:
            await self._wire.packet(_SILENCE_MS)
            client.wait_msg()

    def _on_message(self, topic: bytes, whole: bytes) -> None:
        if topic == self._ack:
            self._gateway.receive_ack(whole, self._clock.now_ms())
            self._tries = 0
            self._news.set()


def tls_context(ca: bytes, certificate: bytes, key: bytes) -> ssl.SSLContext:
    """The project CA alone, the server's name checked, the Kit's own certificate shown. All are DER.

    TLS 1.2 or newer: mbedTLS 3 has nothing older. Raises OSError and ValueError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=ca)
    context.load_cert_chain(certificate, key)
    return context
