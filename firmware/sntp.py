"""SNTP: asks the one server that the Station has written into NVS, if any. Decides nothing.

Not `ntptime`: that blocks for a second, believes whoever answers, and sets the wall clock by it.
"""

import asyncio
import errno
import os
import socket

from firmware import clock
from gateway.port import const
from gateway.sntp import MAX_ROUND_TRIP_MS, NONCE_BYTES, PACKET_BYTES, question

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from firmware.clock import Clock
    from gateway.gateway import Gateway

_PORT = const(123)
_LOOK_MS = const(10_000)
_POLL_MS = const(10)
"""Adds to the round trip, and so to the bound, no more than a Wi-Fi access point does."""


class Sntp:
    """`host`: the server's name, empty for none."""

    def __init__(
        self, gateway: "Gateway", clock: "Clock", host: str, online: "Callable[[], bool]", port: int = _PORT
    ) -> None:
        self._gateway, self._clock = gateway, clock
        self._host, self._online, self._port = host, online, port

    async def run(self) -> None:
        """Ask whenever the Gateway wants to know."""
        while not self._host:
            await asyncio.Event().wait()
        while True:
            if self._online() and self._gateway.wants_sntp(self._clock.now_ms()):
                try:
                    await self.ask()
                except OSError:
                    pass  # no such name, no route: asked again later
            await asyncio.sleep_ms(_LOOK_MS)

    async def ask(self) -> None:
        """One question; nothing happens when it has no answer. Raises OSError."""
        self._gateway.sntp.asked(self._clock.now_ms())
        address = socket.getaddrinfo(self._host, self._port, 0, socket.SOCK_DGRAM)[0][-1]
        nonce = os.urandom(NONCE_BYTES)
        wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            wire.setblocking(False)
            floor_ms = clock.utc_s() * 1000
            sent_ms = self._clock.now_ms()
            wire.sendto(question(nonce), address)
            packet = await self._packet(wire, sent_ms + MAX_ROUND_TRIP_MS)
        finally:
            wire.close()
        if packet is not None:
            now_ms = self._clock.now_ms()
            self._gateway.receive_sntp(packet, nonce, sent_ms=sent_ms, now_ms=now_ms, floor_ms=floor_ms)

    async def _packet(self, wire: socket.socket, until_ms: int) -> "bytes | None":
        while self._clock.now_ms() <= until_ms:
            try:
                return wire.recv(PACKET_BYTES)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
            await asyncio.sleep_ms(_POLL_MS)
        return None
