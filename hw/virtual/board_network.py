"""
The home's network as a Board has it: an access point that is there or not, a router, the world behind it.

Every connection of the board goes through the router here, on loopback. Without Wi-Fi or internet nothing is
reset: what is on its way waits, as it does at home, until somebody's patience ends; new connections are not
answered; names are not resolved. A captive network resolves every name and answers every HTTP request with a
redirect to its own page; what else is begun through it is cut off at once.
"""

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

# network.STAT_* of the ESP32.
IDLE, CONNECTING, GOT_IP = 1000, 1001, 1010
BEACON_TIMEOUT, NO_AP_FOUND, WRONG_PASSWORD = 200, 201, 202

_TO_2000_S = 946_684_800
_WPA2 = 3
_CHANNEL = 6
_BSSID = "02005e105e10"
_TIMED_OUT = 110
_NO_SUCH_NAME = -202
_WIFI_STATE = "Wifi Internal State Error"
_UNREACHABLE = "255.255.255.255"  # a connection to it fails at once, as without a route
_CHUNK_BYTES = 4096
_HTTP = 80
_POINT_ADDRESS = "192.168.4.1"
_CAPTIVE_ANSWER = (
    b"HTTP/1.1 302 Found\r\nLocation: http://welcome.example/login?to=x\r\nContent-Length: 0\r\n\r\n"
)


class AccessPoint(NamedTuple):
    """What everybody in reach sees of the board's own network, and the key that lets one in."""

    ssid: str
    key: str
    security: int
    max_clients: int


class Network:
    """The station's side (`answer`) and the world's (`change`). `show(status, rssi)` tells the board."""

    def __init__(self, show: Callable[[int, int], None]) -> None:
        self.join_s = 0.02  # association and DHCP; a real one takes 1 to 10 s
        self.status = IDLE
        self.connections = 0
        self._show = show
        self._up = False
        self._internet = True
        self._captive = False
        self._gives_address = True
        self._ssid, self._password, self._rssi = "", "", -55
        self._others: dict[str, str] = {}
        self._wanted: tuple[str, str] | None = None
        self._reconnects = 0  # 0: for ever
        self._joining: asyncio.Task[None] | None = None
        self._open = asyncio.Event()
        self._routes: dict[tuple[str, int], asyncio.Server] = {}
        self._streams: set[asyncio.Task[None]] = set()
        self.point: AccessPoint | None = None  # of the board itself, while it is on
        self.stations: list[str] = []  # addresses (hex) of who is in it
        self.ports: dict[int, int] = {}  # where on loopback the board's own ports are
        self._gates: dict[bool, asyncio.Server] = {}
        self._black_hole: list[socket.socket] = []

    # The world.

    def change(
        self,
        up: bool,
        *,
        ssid: str,
        password: str,
        internet: bool,
        rssi: int,
        captive: bool = False,
        address: bool = True,
        others: Mapping[str, str] | None = None,
    ) -> None:
        """`address`: whether its DHCP answers. `others`: passwords of other networks in reach, all of them
        with the world behind them, by name."""
        self._up, self._internet, self._rssi = up, internet and not captive, rssi
        self._captive, self._gives_address = captive, address
        self._ssid, self._password = ssid, password
        self._others = dict(others or {})
        if self.status == GOT_IP and self._refusal():
            self._lost(BEACON_TIMEOUT)
        self._let_through()

    def power_off(self) -> None:
        """The board is off: its connections end as they do when nobody answers any more."""
        self._stop_joining()
        self._wanted = self.point = None
        self.ports.clear()
        self._set(IDLE)
        for stream in self._streams:
            stream.cancel()

    async def close(self) -> None:
        self.power_off()
        for server in [*self._routes.values(), *self._gates.values()]:
            server.close()
        self._gates.clear()
        self._routes.clear()
        await asyncio.gather(*self._streams, return_exceptions=True)
        for end in self._black_hole:
            end.close()
        self._black_hole.clear()

    # The station.

    def answer(self, question: str, values: dict[str, Any]) -> Any:
        answers: dict[str, Callable[..., Any]] = {
            "active": self._active,
            "connect": self._connect,
            "disconnect": self._disconnect,
            "scan": self._scan,
            "point": self._set_point,
            "stations": lambda: self.stations,
        }
        return answers[question](**values)

    def _active(self, on: bool) -> None:
        if not on:
            self._disconnect()

    def _set_point(self, on: bool, **about: Any) -> None:
        self.point = AccessPoint(**about) if on else None
        if not on:
            self.ports.clear()

    def _connect(self, ssid: str, key: str, reconnects: int) -> None:
        if self._joining is not None and not self._joining.done():
            raise OSError(_WIFI_STATE)
        self._wanted = (ssid, key)
        self._reconnects = reconnects
        self._begin_joining()

    def _disconnect(self) -> None:
        self._stop_joining()
        self._wanted = None
        self._set(IDLE)

    def _scan(self) -> list[tuple[str, str, int, int, int]]:
        near = [self._ssid] if self._up else []
        return [(ssid, _BSSID, _CHANNEL, self._rssi, _WPA2) for ssid in [*near, *self._others]]

    def _begin_joining(self) -> None:
        self._stop_joining()
        self._set(CONNECTING)
        self._joining = asyncio.create_task(self._join(), name="wifi")

    def _stop_joining(self) -> None:
        if self._joining is not None:
            self._joining.cancel()
            self._joining = None

    async def _join(self) -> None:
        """The driver tries again by itself, for ever or `reconnects` times; only then the reason is shown."""
        tries = 0
        while True:
            await asyncio.sleep(self.join_s)
            reason = self._refusal()
            if not reason:
                if self._gives_address:  # else it is associated, and waits for one
                    self._set(GOT_IP)
                return
            tries += 1
            if 0 < self._reconnects <= tries:
                self._set(reason)
                return

    def _refusal(self) -> int:
        assert self._wanted is not None
        ssid, key = self._wanted
        near = self._others | ({self._ssid: self._password} if self._up else {})
        if ssid not in near:
            return NO_AP_FOUND
        return 0 if key == near[ssid] else WRONG_PASSWORD

    def _lost(self, reason: int) -> None:
        self._set(reason)
        if self._wanted is not None:
            self._begin_joining()

    def _set(self, status: int) -> None:
        self.status = status
        self._show(status, self._rssi if status == GOT_IP else 0)
        self._let_through()

    # The router.

    @property
    def is_open(self) -> bool:
        elsewhere = self._wanted is not None and self._wanted[0] in self._others
        return self.status == GOT_IP and (self._internet or elsewhere)

    def _let_through(self) -> None:
        if self.is_open:
            self._open.set()
        else:
            self._open.clear()

    def ntp(self) -> int:
        """Seconds since 2000."""
        if not self.is_open:
            raise OSError(_TIMED_OUT)
        return int(time.time()) - _TO_2000_S

    async def route(self, host: str, port: int) -> tuple[str, int]:
        """Where the board has to connect to, to reach an address in the world, or where its own port is."""
        if host == _POINT_ADDRESS:
            return self._own_port(port)
        if self.is_open:
            return await self._forward(host, port)
        if self.status == GOT_IP and self._captive:
            return await self._gate(is_http=port == _HTTP)
        if not _is_number(host):
            raise OSError(_NO_SUCH_NAME)
        return self._nowhere() if self.status == GOT_IP else (_UNREACHABLE, port)

    def _own_port(self, port: int) -> tuple[str, int]:
        """Loopback has no room for a board's ports 53 and 80: others stand for them, of TCP and of UDP."""
        if self.point is None:
            raise OSError(_NO_SUCH_NAME)
        if port not in self.ports:
            with socket.create_server(("127.0.0.1", 0)) as finder:
                self.ports[port] = finder.getsockname()[1]
        return "127.0.0.1", self.ports[port]

    async def _gate(self, is_http: bool) -> tuple[str, int]:
        """Where a captive network leads a connection."""
        if is_http not in self._gates:
            serve = _redirect if is_http else _cut_off
            self._gates[is_http] = await asyncio.start_server(serve, "127.0.0.1", 0)
        return "127.0.0.1", self._gates[is_http].sockets[0].getsockname()[1]

    async def _forward(self, host: str, port: int) -> tuple[str, int]:
        server = self._routes.get((host, port))
        if server is None:

            def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                stream = asyncio.create_task(self._serve(reader, writer, host, port))
                self._streams.add(stream)
                stream.add_done_callback(self._streams.discard)

            server = self._routes[host, port] = await asyncio.start_server(serve, "127.0.0.1", 0)
        return "127.0.0.1", server.sockets[0].getsockname()[1]

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int
    ) -> None:
        writers = [writer]
        try:
            await self._open.wait()
            far_reader, far_writer = await asyncio.open_connection(host, port)
            writers.append(far_writer)
            self.connections += 1
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(reader, far_writer))
                both.create_task(self._carry(far_reader, writer))
        except (OSError, ExceptionGroup):
            pass  # one end is gone; the other learns of it by the close below
        finally:
            for each in writers:
                each.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            await self._open.wait()
            writer.write(chunk)
            await writer.drain()
        await self._open.wait()
        with suppress(OSError):
            writer.write_eof()
        raise ConnectionResetError  # half an end is an end, for what speaks MQTT

    def _nowhere(self) -> tuple[str, int]:
        """An address where connections are never answered: its queue is full."""
        if not self._black_hole:
            listener = socket.create_server(("127.0.0.1", 0), backlog=0)
            self._black_hole.append(listener)
            for _ in range(2):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
                self._black_hole.append(filler)
        address, port = self._black_hole[0].getsockname()
        return address, port


async def _redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_CAPTIVE_ANSWER)
        await writer.drain()
    writer.close()


async def _cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
