"""Wifi: keeps the Kit in one of the home's networks."""

import asyncio
import random

import network

from gateway.port import const

_JOIN_WAIT_MS = const(20_000)
"""Association, the four-way handshake and DHCP; a busy access point takes ten seconds."""
_LOOK_MS = const(500)
_PAUSE_MAX_MS = const(60_000)
_RECONNECTS = const(2)
"""The driver tries again by itself so many times, and only then says what was wrong."""
_UNDER_WAY = (network.STAT_CONNECTING, network.STAT_IDLE)


class Wifi:
    """`run` for ever. `networks`: [[name, password], ...], the best one first."""

    def __init__(self, networks: "list[list[str]]", name: str) -> None:
        network.hostname(name)
        self._networks = networks
        self._station = network.WLAN(network.STA_IF)
        self.status = 0  # why the last try has failed: one of network.STAT_*
        self.joins = 0

    def is_online(self) -> bool:
        """Whether a network has taken us; whether the internet is behind it is another question."""
        return self._station.isconnected()

    async def run(self) -> None:
        """Join again whenever the network is gone."""
        self._station.active(True)
        self._station.config(reconnects=_RECONNECTS)
        tries = 0
        while True:
            if self.is_online():
                tries = 0
                await asyncio.sleep_ms(_LOOK_MS)
                continue
            for name, password in self._networks:
                if await self._join(name, password):
                    break
            else:
                bound = min(_PAUSE_MAX_MS, 1000 << min(tries, 16))
                tries += 1
                await asyncio.sleep_ms(random.getrandbits(16) * bound >> 16)

    async def _join(self, name: str, password: str) -> bool:
        """Try one network."""
        try:
            self._station.connect(name, password)
            for _ in range(_JOIN_WAIT_MS // _LOOK_MS):
                if self.is_online():
                    self.joins += 1
                    return True
                self.status = self._station.status()
                if self.status not in _UNDER_WAY:
                    break
                await asyncio.sleep_ms(_LOOK_MS)
            self._station.disconnect()
        except OSError as error:
            print("wifi:", error)
        return False
