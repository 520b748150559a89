"""Radio: Bluetooth as the central of every Sensor. Scans without end; each bonded Sensor gets its visit.

The one rule (P1): a value is in flash before this file's `_on_event` returns, because NimBLE confirms an
indication right after that, whatever has happened, and the Sensor then forgets it. So that path allocates
nothing, is at most 6 frames deep, and no exception leaves it: one that did would switch the handler off for
good. What can't be kept ends the link, so that the Sensor keeps the rest.

    NimBLE's task                                       main loop
    indication, notification --> Journal --> flag  -->  `_attend`: tells the visit, wakes the uplink
    connected, disconnected  --> `_links`    flag  -->  `_attend`: tells the visit
    adverts, answers         --> two queues, flag  -->  `_attend`: begins visits, ends operations
    keys                     <-> Bonds
"""

import asyncio
import errno
import sys
from collections import deque

from micropython import heap_lock, heap_unlock

from firmware.bonds import PEER_KEY
from firmware.visit import Link, RadioError, Visit, number
from firmware.wait import for_event
from gateway.errors import FormatError, SensorError
from gateway.port import const
from gateway.reading import NEVER, Reading
from gateway.record import HANDLER_RESTARTED, INDICATED, NOTIFIED, RADIO_MISSING
from gateway.sensors import decode
from gateway.sensors.racp import RECORD_ACCESS_CONTROL_POINT

try:
    from bluetooth import BLE, UUID
except ImportError:  # an image without Bluetooth: the Kit says so, and still sends what it has
    BLE = UUID = None

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from firmware.bonds import Bonds
    from firmware.clock import Clock
    from gateway.gateway import Gateway

# Events of bluetooth.BLE.irq.
_SCAN_RESULT = const(5)
_SCAN_DONE = const(6)
_CONNECTED = const(7)
_DISCONNECTED = const(8)
_NOTIFY = const(18)
_INDICATE = const(19)
_GET_SECRET = const(29)
_SET_SECRET = const(30)

_NO_DISPLAY_NO_KEYS = const(3)
_NOBODY = const(0xFF)  # address type of a connection that was not made
_DIRECTED = const(1)  # type of advert: up to this one it can be connected to

_SCAN_INTERVAL_US = const(100_000)
_SCAN_WINDOW_US = const(50_000)
"""One antenna serves Wi-Fi too: a radio that scans all the time never joins a network (ESPHome #1503)."""
_CONNECT_WAIT_MS = const(10_000)
_AGAIN_FIRST_MS = const(500)
_AGAIN_MAX_MS = const(60_000)
"""After a failed connection a Sensor is left alone, up to a minute: a cuff advertises for 30 s to 3 min."""
_DEAF_MS = const(300_000)
"""Something nearby advertises every few seconds; after five minutes of nothing the radio itself is deaf."""
_TICK_MS = const(1_000)
_MISSING_MS = const(60_000)
_UNAVAILABLE = (OSError, RuntimeError, MemoryError)
"""The controller does not start, or has no memory left: what `active` raises then."""
_MAX_LINKS = const(3)
"""NimBLE has four connections in the stock image; one stays free for a Sensor that comes and goes."""
_MAX_ADVERTS = const(16)
_MAX_EVENTS = const(96)
"""Answers that wait for the main loop: a Sensor with forty characteristics and a busy second."""

COUNTERS = ("handler_failures", "strays", "radio_restarts")
"""Values that could not be kept, values of no bonded Sensor, radios begun again. They go into the status."""


class Radio:
    """`run` for ever. `wake` is called after an append, `alive` when something was heard on the air.

    `heard` is told of each measurement that a Sensor has indicated: whether it is one, or failed.
    """

    def __init__(
        self,
        gateway: "Gateway",
        clock: "Clock",
        bonds: "Bonds",
        *,
        wake: "Callable[[], None]",
        alive: "Callable[[], None]",
        heard: "Callable[[bool], None]",
    ) -> None:
        self.works = self._told_works = True
        self.counters = gateway.counters
        self.counters.update(dict.fromkeys(COUNTERS, 0))
        self._gateway = gateway
        self._clock = clock
        self._bonds = bonds
        self._wake = wake
        self._alive = alive
        self._heard = heard
        self._ble: Any = BLE and BLE()
        self._flag = asyncio.ThreadSafeFlag()
        self._calling = asyncio.Lock()  # NimBLE connects to one at a time
        self._peers: dict[bytes, _Peer] = {}
        self._scanning = False
        self._heard_ms = 0
        # Shared with the handler.
        self._links: dict[int, Link] = {}  # by connection
        self._called: Link | None = None  # who is being connected
        self._adverts: deque[tuple[int, int, bytes, bytes]] = deque((), _MAX_ADVERTS)
        self._events: deque[tuple[int, tuple[Any, ...]]] = deque((), _MAX_EVENTS, 1)
        self._failed = 0  # handler failures that no EVENT has told yet

    async def run(self) -> None:
        """Scan, and attend to what the handler leaves, for ever."""
        await self._begin()
        while True:
            await for_event(self._flag, _TICK_MS)
            self._attend()

    # --- The handler: NimBLE's task -------------------------------------------------------------------------

    def _on_event(self, event: int, data: "tuple[Any, ...]") -> object:
        """`BLE.irq`: keep values at once, copy everything else for the main loop."""
        try:
            if event != _INDICATE and event != _NOTIFY:
                return self._take(event, data)
            heap_lock()
            try:
                connection, handle, value = data
                link = self._links.get(connection)
                if link is None or not link.sensor:
                    self.counters["strays"] += 1
                elif link.handles.get(handle) == RECORD_ACCESS_CONTROL_POINT:
                    link.indicated_flags = INDICATED  # what comes now is new
                    link.racp_length = 0
                    for i in range(min(len(value), len(link.racp))):
                        link.racp[i] = value[i]
                        link.racp_length = i + 1
                elif event == _INDICATE or not self._thins(link, handle, value):
                    self._clock.mark()
                    self._gateway.received(
                        link.sensor,
                        # A Sensor whose table has changed may be early: its value is kept all the same.
                        link.handles.get(handle, 0),
                        value,
                        link.indicated_flags if event == _INDICATE else NOTIFIED,
                        self._clock.hi,
                        self._clock.lo,
                    )
                    link.values += 1
                    if event == _INDICATE:
                        link.indicated = link.value_handle = handle
                        link.value_length = 0
                        for i in range(min(len(value), len(link.value))):
                            link.value[i] = value[i]
                            link.value_length = i + 1
            finally:
                heap_unlock()
            self._flag.set()
        except Exception:
            self._fail(data)
        return None

    def _thins(self, link: Link, handle: int, value: memoryview) -> bool:
        """Whether a notified value is left out. Runs with the heap locked."""
        self._clock.mark()
        return self._gateway.thins(
            link.sensor, link.handles.get(handle, 0), value, self._clock.hi, self._clock.lo
        )

    def _fail(self, data: "tuple[Any, ...]") -> None:
        """Something could not be kept or copied: end the link at once, before the Sensor sends more."""
        self._failed += 1
        self.counters["handler_failures"] += 1
        self._flag.set()
        try:
            self._ble.gap_disconnect(data[0])
        except Exception:
            pass  # there is no such connection (any more)

    def _take(self, event: int, data: "tuple[Any, ...]") -> object:
        """Copy an event: its memory is only ours until we return."""
        if event == _GET_SECRET:
            return self._bonds.secret(data[0], data[1], _copy(data[2]))
        if event == _SET_SECRET:
            return self._keep_secret(data[0], bytes(data[1]), _copy(data[2]))
        if event == _SCAN_RESULT:
            if len(self._adverts) < _MAX_ADVERTS:
                address_type, address, kind, _, advert = data
                self._adverts.append((address_type, kind, bytes(address), bytes(advert)))
        else:
            if event == _CONNECTED:
                self._connected(data[0], bytes(data[2]))
            elif event == _DISCONNECTED:
                self._disconnected(data[0], data[1])
            self._events.append((event, tuple([_copy(each) for each in data])))
        self._flag.set()
        return None

    def _connected(self, connection: int, address: bytes) -> None:
        """From now on its values may come."""
        link = self._called
        if link is None or link.address != address:
            self._ble.gap_disconnect(connection)
            return
        link.connection = connection
        link.up = True
        self._links[connection] = link

    def _disconnected(self, connection: int, address_type: int) -> None:
        link = self._called if address_type == _NOBODY else self._links.pop(connection, None)
        if link is not None:
            link.up = False
            link.over = True

    def _keep_secret(self, type: int, key: bytes, value: "bytes | None") -> bool:
        self._bonds.set_secret(type, key, value)
        for link in self._links.values():
            if type == PEER_KEY and value is not None and link.air_address in key:
                link.rebonded = True
        self._flag.set()
        return True

    # --- The main loop --------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Until Bluetooth can be had: without it the Kit still sends what it has, and says what is wrong."""
        while True:
            try:
                self._start()
                break
            except _UNAVAILABLE as error:
                print("radio:", error)
                self.works = False
                self._alive()  # a reset every hour would cure nothing, and costs the link
                await asyncio.sleep_ms(_MISSING_MS)
        self.works = True

    def settle(self, now_ms: int) -> None:
        """Tell whether there is a radio, where that has changed and may be told."""
        if self.works != self._told_works and self._gateway.may_speak(now_ms):
            self._told_works = self.works
            self._gateway.append_event(RADIO_MISSING, 0, bytes([not self.works]), now_ms)
            self._wake()

    def _start(self) -> None:
        if BLE is None:
            raise OSError(errno.ENODEV)
        self._ble.active(True)
        self._ble.config(gap_name="Homeward", bond=True, le_secure=True, mitm=False, io=_NO_DISPLAY_NO_KEYS)
        self._ble.irq(self._on_event)
        self._scanning = False
        self._heard_ms = self._clock.now_ms()
        self._scan()

    def _scan(self) -> None:
        """Scan for ever, unless a connection is being made: NimBLE does one or the other."""
        if self._scanning or self._called is not None:
            return
        try:
            self._ble.gap_scan(0, _SCAN_INTERVAL_US, _SCAN_WINDOW_US, True)
            self._scanning = True
        except OSError:
            self.counters["scan_failures"] += 1

    def _restart(self) -> None:
        """Radios go deaf and look healthy."""
        self.counters["radio_restarts"] += 1
        self._ble.active(False)
        self._start()

    def _attend(self) -> None:
        now_ms = self._clock.now_ms()
        self._tell_failure(now_ms)
        while self._events:
            event, data = self._events.popleft()
            if event == _SCAN_DONE:
                self._scanning = False
            else:
                self._tell_link(event, data)
        for link in list(self._links.values()):
            self._tell_values(link, now_ms)
        while self._adverts:
            self._hear(now_ms)
            self._on_advert(*self._adverts.popleft(), now_ms=now_ms)
        if now_ms - self._heard_ms > _DEAF_MS and not self._links:
            self._restart()
        self._scan()

    def _hear(self, now_ms: int) -> None:
        self._heard_ms = now_ms
        self._alive()

    def _tell_failure(self, now_ms: int) -> None:
        """The handler has caught what must not leave it; in case something did, it is registered again."""
        failed, self._failed = self._failed, 0
        if failed:
            self._ble.irq(self._on_event)
            self._gateway.append_event(HANDLER_RESTARTED, 0, bytes([min(failed, 255)]), now_ms)

    def _tell_link(self, event: int, data: "tuple[Any, ...]") -> None:
        link = self._links.get(data[0])
        if link is not None:
            link.take(event, data)
        elif event == _DISCONNECTED:
            for peer in self._peers.values():
                if peer.link is not None and peer.link.over:
                    peer.link.news.set()

    def _tell_values(self, link: Link, now_ms: int) -> None:
        if link.values == link.told and not link.racp_length and not link.rebonded:
            return
        self._judge(link)
        link.told = link.values
        link.news.set()
        self._hear(now_ms)
        self._wake()

    def _judge(self, link: Link) -> None:
        """What the person who has just measured shall hear. One that the handler replaces now is late."""
        length, link.value_length = link.value_length, 0
        if length:
            try:
                found = decode(link.handles.get(link.value_handle, 0), bytes(memoryview(link.value)[:length]))
            except FormatError:
                return
            if isinstance(found, Reading):
                self._heard(found.trust != NEVER)

    # --- Sensors --------------------------------------------------------------------------------------------

    def _on_advert(self, address_type: int, kind: int, address: bytes, advert: bytes, *, now_ms: int) -> None:
        services, name = _parse(advert)
        peer = self._peers.get(address)
        if peer is not None and name:
            peer.name = name
        if kind > _DIRECTED or not self._gateway.wants(address, services, now_ms):
            return
        if peer is None:
            peer = self._peers[address] = _Peer(name)
        if peer.link is None and now_ms >= peer.rest_until_ms and len(self._links) < _MAX_LINKS:
            sensor = self._gateway.reference_of(address)
            peer.link = Link(address, sensor, self._bonds.handles(address), self._clock)
            asyncio.create_task(self._supervise(peer, peer.link, address_type))

    async def _supervise(self, peer: "_Peer", link: Link, address_type: int) -> None:
        """One visit, whose failure stays its own: the other Sensors must not notice."""
        fruitful = False
        visit = Visit(self._gateway, self._clock, self._bonds, self._ble, link, self._wake)
        try:
            fruitful = await self._visit(visit, peer, link, address_type)
        except (RadioError, SensorError, OSError) as error:
            print("visit:", error)
        except Exception as error:
            self.counters["failures"] += 1
            sys.print_exception(error)
        finally:
            await visit.leave()
            self._bonds.keep()
            peer.link = None
            peer.bond_lost = visit.bond_lost
            peer.failures = 0 if fruitful else peer.failures + 1
            peer.rest_until_ms = self._clock.now_ms() + self._rest_ms(peer)

    def _rest_ms(self, peer: "_Peer") -> int:
        """How long to leave it alone. In a pairing window somebody stands beside it and waits."""
        if self._gateway.pairing(self._clock.now_ms()):
            return _AGAIN_FIRST_MS
        return min(_AGAIN_MAX_MS, _AGAIN_FIRST_MS << min(peer.failures, 16))

    async def _visit(self, visit: Visit, peer: "_Peer", link: Link, address_type: int) -> bool:
        """Connect, bond where that is asked for, and serve; return whether it was worth it."""
        again = peer.bond_lost and self._gateway.pairing(self._clock.now_ms())
        if again:
            self._bonds.forget(link.address)
        await self._connect(link, address_type)
        await visit.encrypt()
        if again or not link.sensor:
            await visit.bond(address_type)
        return await visit.serve(peer.name)

    async def _connect(self, link: Link, address_type: int) -> None:
        async with self._calling:
            self._called = link
            self._scanning = False  # the call ends the scan
            try:
                self._ble.gap_connect(address_type, link.address, _CONNECT_WAIT_MS)
                await link.until(lambda: link.up or link.over, _CONNECT_WAIT_MS + _TICK_MS)
                if not link.up and not link.over:
                    self._ble.gap_connect(None)
            finally:
                self._called = None
                self._flag.set()
        if not link.up:
            raise RadioError("not connected")


class _Peer:
    """What the radio remembers of one address."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.link: Link | None = None  # of the visit under way
        self.failures = 0  # visits in a row that brought nothing
        self.rest_until_ms = 0
        self.bond_lost = False  # it did not know our key any more, or we not its


def _parse(advert: bytes) -> "tuple[list[int], str]":
    """Return the 16-bit services and the name of an advert. One that is broken ends where it breaks."""
    services: list[int] = []
    name = ""
    at = 0
    while at + 1 < len(advert) and advert[at]:
        kind, value = advert[at + 1], advert[at + 2 : at + 1 + advert[at]]
        if kind in (0x02, 0x03):
            services += [number(value[i : i + 2]) for i in range(0, len(value) - 1, 2)]
        elif kind in (0x08, 0x09):
            try:
                name = value.decode()
            except UnicodeError:
                pass
        at += 1 + advert[at]
    return services, name


def _copy(field: "Any") -> "Any":
    """Buffers and UUIDs are NimBLE's and change when the handler has returned."""
    return bytes(field) if isinstance(field, (memoryview, UUID)) else field
