"""Wifi: keeps the Kit in one of the networks that it knows, the best one that leads to the service."""

import asyncio
import random

import network

from gateway.port import const
from gateway.record import (
    NET_ABSENT,
    NET_CAPTIVE,
    NET_FOREIGN,
    NET_NO_ADDRESS,
    NET_NOT_JOINED,
    NET_ONLINE,
    NET_WRONG_PASSWORD,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_JOIN_WAIT_MS = const(20_000)
"""Association, the four-way handshake and DHCP; a busy access point takes ten seconds."""
_LOOK_MS = const(500)
_PAUSE_MAX_MS = const(60_000)
_RECONNECTS = const(2)
"""The driver tries again by itself so many times, and only then says what was wrong."""
_FRUITLESS = const(6)
"""Tries for the service, of which one goes to port 443: some two minutes, then the next network is tried."""
_HOPELESS = (NET_CAPTIVE, NET_FOREIGN)
"""These do not pass by waiting: two such answers are enough."""
_WPA2 = const(3)
_MAX_CLIENTS = const(2)
"""One phone, and the one that it replaces."""
_MAX_NEAR = const(12)
"""More are a block of flats, and names behind these walls are too weak to serve."""
_UNDER_WAY = (network.STAT_CONNECTING, network.STAT_IDLE)
_WRONG_PASSWORD = (network.STAT_WRONG_PASSWORD, network.STAT_HANDSHAKE_TIMEOUT, 15)
"""Routers differ in how they say it; 15 is the four-way handshake's time-out (IEEE 802.11)."""
_ABSENT = (network.STAT_NO_AP_FOUND, network.STAT_BEACON_TIMEOUT)


class Wifi:
    """`run` for ever. `networks`: [[name, password], ...], the best one first; a list that may change.

    `see` is told how a network stands: its place in the list, one of NET_*.
    """

    def __init__(self, networks: "list[list[str]]", name: str, see: "Callable[[int, int], None]") -> None:
        network.hostname(name)
        self._networks = networks
        self._see = see
        self._station = network.WLAN(network.STA_IF)
        self._place = -1  # of the network that we are in
        self.joins = 0  # networks that have taken us since the boot
        self._fruitless = 0  # tries for the service in a row, in this network
        self._trying = asyncio.Lock()  # the set-up page tries networks too

    def is_online(self) -> bool:
        """Whether a network has taken us; whether the internet is behind it is another question."""
        return self._place >= 0 and self._station.isconnected()

    def reached(self, state: int) -> None:
        """How far the link to the service came through the network that we are in."""
        more = _FRUITLESS // 2 if state in _HOPELESS else 1
        self._fruitless = 0 if state == NET_ONLINE else self._fruitless + more
        if self._place >= 0:
            self._see(self._place, state)

    async def run(self) -> None:
        """Join again whenever the network is gone."""
        self._station.active(True)
        self._station.config(reconnects=_RECONNECTS)
        first = tries = 0
        while True:
            for step in range(len(self._networks)):
                place = (first + step) % len(self._networks)
                if await self._join(place):
                    first = await self._stay()
                    tries = 0
                    break
            else:
                first = 0
                bound = min(_PAUSE_MAX_MS, 1000 << min(tries, 16))
                tries += 1
                await asyncio.sleep_ms(random.getrandbits(16) * bound >> 16)

    async def _join(self, place: int) -> bool:
        """Try one of the list."""
        async with self._trying:
            if self.is_online():  # the set-up page has just found one
                return True
            state = await self._try(*self._networks[place])
        if state is None:
            self._place = place
            return True
        self._see(place, state)
        return False

    async def _stay(self) -> int:
        """Until the network is gone or leads nowhere; return the place at which to go on."""
        self._fruitless = 0
        alone = len(self._networks) < 2
        while self.is_online() and (alone or self._fruitless < _FRUITLESS):
            await asyncio.sleep_ms(_LOOK_MS)
        fruitless, place = self.is_online(), self._place
        self._place = -1
        if not fruitless:
            return 0
        self._station.disconnect()
        return place + 1

    async def learn(self, name: str, password: str) -> "int | None":
        """Try a network that somebody has named; one that takes us is in the list from then on.

        Return None then, else how it stands.
        """
        async with self._trying:
            state = await self._try(name, password)
            if state is None:
                self._place = self._put(name, password)
                self._fruitless = 0
            return state

    def _put(self, name: str, password: str) -> int:
        """Return its place: its own from before, or the last."""
        for place, known in enumerate(self._networks):
            if known[0] == name:
                known[1] = password
                return place
        self._networks.append([name, password])
        return len(self._networks) - 1

    async def _try(self, name: str, password: str) -> "int | None":
        """Try a network; return None when it has taken us, else how it stands."""
        status = network.STAT_IDLE
        self._place = -1
        try:
            self._station.connect(name, password)
            for _ in range(_JOIN_WAIT_MS // _LOOK_MS):
                if self._station.isconnected():
                    self.joins += 1
                    return None
                status = self._station.status()
                if status not in _UNDER_WAY:
                    break
                await asyncio.sleep_ms(_LOOK_MS)
            self._station.disconnect()
        except OSError as error:
            print("wifi:", error)
            return NET_NOT_JOINED
        return _state(status)


class AccessPoint:
    """The Kit's own network, for the set-up page alone. `address`: of the Kit in it."""

    def __init__(self) -> None:
        self._point = network.WLAN(network.AP_IF)
        self._station = network.WLAN(network.STA_IF)

    def open(self, name: str, key: str) -> str:
        """Open it, encrypted with WPA2; return the Kit's address. Raises OSError."""
        self._point.config(ssid=name, key=key, security=_WPA2, max_clients=_MAX_CLIENTS)
        self._point.active(True)
        return str(self._point.ifconfig()[0])

    def close(self) -> None:
        self._point.active(False)

    def near(self) -> "list[str]":
        """Names of the networks in reach, the strongest first. Takes seconds; nothing else runs meanwhile."""
        try:
            rows = sorted(self._station.scan(), key=lambda row: -row[3])
        except OSError:  # a try to join is under way
            return []
        names: list[str] = []
        for row in rows:
            name = _text(row[0])
            if name and name not in names and len(names) < _MAX_NEAR:
                names.append(name)
        return names


def _text(name: bytes) -> str:
    """A network's name; one that is no text can't be shown nor typed."""
    try:
        return name.decode()
    except (UnicodeError, ValueError):
        return ""


def _state(status: int) -> int:
    """What the driver's last word about a try means."""
    if status in _WRONG_PASSWORD:
        return NET_WRONG_PASSWORD
    if status in _ABSENT:
        return NET_ABSENT
    return NET_NO_ADDRESS if status in _UNDER_WAY else NET_NOT_JOINED
