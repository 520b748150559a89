"""Radio: Bluetooth as the central of every Sensor. Scans without end; each bonded Sensor gets its session.

The one rule (P1): a value is in flash before this file's `_on_event` returns, because NimBLE confirms an
indication right after that, whatever has happened, and the Sensor then forgets it. So that path allocates
nothing, is at most 6 frames deep, and no exception leaves it: one that did would switch the handler off for
good. What can't be kept ends the link, so that the Sensor keeps the rest.

    NimBLE's task                                       main loop
    indication, notification --> Journal --> flag  -->  `_attend`: tells the session, wakes the uplink
    connected, disconnected  --> `_links`    flag  -->  `_attend`: tells the visit
    adverts, answers         --> two queues, flag  -->  `_attend`: begins visits, ends operations
    keys                     <-> Bonds
"""

import asyncio
import sys
from collections import deque

from bluetooth import BLE, UUID
from micropython import heap_lock, heap_unlock

from firmware.bonds import reverse
from firmware.wait import for_event
from gateway.errors import SensorError
from gateway.limits import STEP_WAIT_MS
from gateway.port import const
from gateway.record import HANDLER_RESTARTED, INDICATED, NOTIFIED
from gateway.sensor_session import CAN_INDICATE, CAN_NOTIFY, DISCONNECT, INDICATE, READ, WRITE
from gateway.sensors.racp import RECORD_ACCESS_CONTROL_POINT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from firmware.bonds import Bonds
    from firmware.clock import Clock
    from gateway.gateway import Gateway
    from gateway.sensor_session import SensorSession, Step

# Events of bluetooth.BLE.irq.
_SCAN_RESULT = const(5)
_SCAN_DONE = const(6)
_CONNECTED = const(7)
_DISCONNECTED = const(8)
_SERVICE_RESULT = const(9)
_SERVICE_DONE = const(10)
_CHARACTERISTIC_RESULT = const(11)
_CHARACTERISTIC_DONE = const(12)
_DESCRIPTOR_RESULT = const(13)
_DESCRIPTOR_DONE = const(14)
_READ_RESULT = const(15)
_READ_DONE = const(16)
_WRITE_DONE = const(17)
_NOTIFY = const(18)
_INDICATE = const(19)
_ENCRYPTED = const(28)
_GET_SECRET = const(29)
_SET_SECRET = const(30)
_RESULTS = (_SERVICE_RESULT, _CHARACTERISTIC_RESULT, _DESCRIPTOR_RESULT, _READ_RESULT)

_SCAN_INTERVAL_US = const(100_000)
_SCAN_WINDOW_US = const(50_000)
"""One antenna serves Wi-Fi too: a radio that scans all the time never joins a network (ESPHome #1503)."""
_CONNECT_WAIT_MS = const(10_000)
_PAIR_WAIT_MS = const(20_000)
"""Somebody may have to press a button on the Sensor; SMP itself gives up after 30 s."""
_KEY_WAIT_MS = const(1_000)
"""NimBLE says that the link is encrypted just before it hands over the keys."""
_LEAVE_WAIT_MS = const(2_000)
_AGAIN_FIRST_MS = const(500)
_AGAIN_MAX_MS = const(60_000)
"""After a failed connection a Sensor is left alone, up to a minute: a cuff advertises for 30 s to 3 min."""
_DEAF_MS = const(300_000)
"""Something nearby advertises every few seconds; after five minutes of nothing the radio itself is deaf."""
_TICK_MS = const(1_000)
_MAX_LINKS = const(3)
"""NimBLE has four connections in the stock image; one stays free for a Sensor that comes and goes."""
_MAX_ADVERTS = const(16)
_MAX_EVENTS = const(96)
"""Answers that wait for the main loop: a Sensor with forty characteristics and a busy second."""
_RACP_BYTES = const(20)

_NOBODY = const(0xFF)  # address type of a connection that was not made
_GENERIC_ACCESS = const(0x1800)
_GENERIC_ATTRIBUTE = const(0x1801)
_SENDS = CAN_NOTIFY | CAN_INDICATE
_CCCD = const(0x2902)
_ON_NOTIFY = b"\x01\x00"
_ON_INDICATE = b"\x02\x00"
_ATT_ERROR = const(0x100)  # a status from here on is an ATT error
_NOT_FOR_GOOD = (0x05, 0x08, 0x0E, 0x0F, 0x11)
"""Insufficient authentication, authorization, encryption, resources; unlikely: pairing or patience helps."""

COUNTERS = ("handler_failures", "strays", "rescans", "restarts")
"""Values that could not be kept, values of no bonded Sensor, scans begun again, radios begun again."""


class RadioError(Exception):
    """An operation was not done. `status`: what the Sensor answered, 0 when it did not."""

    def __init__(self, what: str, status: int = 0) -> None:
        super().__init__(what)
        self.status = status


class Radio:
    """`run` for ever. `wake` is called after an append, `alive` when something was heard on the air."""

    def __init__(
        self,
        gateway: "Gateway",
        clock: "Clock",
        bonds: "Bonds",
        *,
        wake: "Callable[[], None]",
        alive: "Callable[[], None]",
    ) -> None:
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.kept = 0  # values
        self._gateway = gateway
        self._clock = clock
        self._bonds = bonds
        self._wake = wake
        self._alive = alive
        self._ble = BLE()
        self._flag = asyncio.ThreadSafeFlag()
        self._calling = asyncio.Lock()  # NimBLE connects to one at a time
        self._peers: dict[bytes, _Peer] = {}
        self._scanning = False
        self._heard_ms = 0
        # Shared with the handler.
        self._links: dict[int, _Link] = {}  # by connection
        self._called: _Link | None = None  # who is being connected
        self._adverts: deque[tuple[int, int, bytes, bytes]] = deque((), _MAX_ADVERTS)
        self._events: deque[tuple[int, tuple[Any, ...]]] = deque((), _MAX_EVENTS, 1)
        self._failed = 0  # handler failures that no EVENT has told yet

    async def run(self) -> None:
        """Scan, and attend to what the handler leaves, for ever."""
        self._start()
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
                    link.flags = 0  # the procedure has ended
                    link.racp_length = 0
                    for i in range(min(len(value), _RACP_BYTES)):
                        link.racp[i] = value[i]
                        link.racp_length = i + 1
                else:
                    self._clock.mark()
                    self._gateway.received(
                        link.sensor,
                        # A Sensor whose table has changed may be early: its value is kept all the same.
                        link.handles.get(handle, 0),
                        value,
                        link.flags | (INDICATED if event == _INDICATE else NOTIFIED),
                        self._clock.hi,
                        self._clock.lo,
                    )
                    link.values += 1
                    if event == _INDICATE:
                        link.indicated = handle
            finally:
                heap_unlock()
            self._flag.set()
        except Exception:
            self._fail(data)
        return None

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
        if event == _SCAN_RESULT:
            if len(self._adverts) < _MAX_ADVERTS:
                address_type, address, kind, _, advert = data
                self._adverts.append((address_type, kind, bytes(address), bytes(advert)))
        elif event == _GET_SECRET:
            return self._bonds.secret(data[0], data[1], None if data[2] is None else bytes(data[2]))
        elif event == _SET_SECRET:
            return self._keep_secret(data[0], bytes(data[1]), None if data[2] is None else bytes(data[2]))
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
            if value is not None and link.air_address in key:
                link.rebonded = True
        self._flag.set()
        return True

    # --- The main loop --------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._ble.active(True)
        self._ble.config(gap_name="Homeward", bond=True, le_secure=True, mitm=False, io=3)
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
            self.counters["rescans"] += 1

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
            if link.values != link.told or link.racp_length or link.rebonded:
                self.kept += link.values - link.told
                link.told = link.values
                link.news.set()
                self._hear(now_ms)
                self._wake()
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
        if event == _DISCONNECTED:
            for peer in self._peers.values():
                if peer.link is not None and peer.link.over:
                    peer.link.news.set()
            return
        link = self._links.get(data[0])
        if link is not None:
            link.take(event, data)

    def _restart(self) -> None:
        """Radios go deaf and look healthy."""
        self.counters["restarts"] += 1
        self._ble.active(False)
        self._start()

    def _on_advert(self, address_type: int, kind: int, address: bytes, advert: bytes, *, now_ms: int) -> None:
        services, name = _parse(advert)
        peer = self._peers.get(address)
        if peer is not None and name:
            peer.name = name
        if kind > 1 or not self._gateway.wants(address, services, now_ms):  # 0 and 1 can be connected
            return
        if peer is None:
            peer = self._peers[address] = _Peer(name)
        if peer.link is None and now_ms >= peer.rest_until_ms and len(self._links) < _MAX_LINKS:
            sensor = self._gateway.reference_of(address)
            peer.link = _Link(address, sensor, self._bonds.handles(address), self._clock)
            asyncio.create_task(self._supervise(peer, peer.link, address_type))

    async def _supervise(self, peer: "_Peer", link: "_Link", address_type: int) -> None:
        """One visit, whose failure stays its own: the other Sensors must not notice."""
        fruitful = False
        try:
            fruitful = await self._visit(peer, link, address_type)
        except (RadioError, SensorError, OSError) as error:
            print("visit:", error)
        except Exception as error:
            sys.print_exception(error)
        finally:
            await self._leave(link)
            self._bonds.keep()
            peer.link = None
            peer.failures = 0 if fruitful else peer.failures + 1
            peer.rest_until_ms = self._clock.now_ms() + self._rest_ms(peer)

    def _rest_ms(self, peer: "_Peer") -> int:
        """How long to leave it alone. In a pairing window somebody stands beside it and waits."""
        if self._gateway.pairing(self._clock.now_ms()):
            return _AGAIN_FIRST_MS
        return min(_AGAIN_MAX_MS, _AGAIN_FIRST_MS << min(peer.failures, 16))

    # --- A visit --------------------------------------------------------------------------------------------

    async def _visit(self, peer: "_Peer", link: "_Link", address_type: int) -> bool:
        """Connect, bond where that is asked for, and serve; return whether it was worth it."""
        again = peer.bond_lost and self._gateway.pairing(self._clock.now_ms())
        if again:
            self._bonds.forget(link.address)
        await self._connect(link, address_type)
        await self._encrypt(peer, link)
        if not link.sensor or again:
            await self._bond(link, address_type)
        return await self._serve(peer, link)

    async def _connect(self, link: "_Link", address_type: int) -> None:
        async with self._calling:
            self._called = link
            self._scanning = False
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

    async def _encrypt(self, peer: "_Peer", link: "_Link") -> None:
        """With the key of a bond, or pairing when there is none: NimBLE knows which."""
        self._ble.gap_pair(link.connection)
        await link.until(lambda: link.encrypted is not None or link.over, _PAIR_WAIT_MS)
        peer.bond_lost = link.encrypted is False
        if not link.encrypted:
            raise RadioError("not encrypted")

    async def _bond(self, link: "_Link", address_type: int) -> None:
        """A bond that is not in flash is none: the Sensor would be a stranger after a power cut."""
        await link.until(lambda: link.rebonded or link.over, _KEY_WAIT_MS)
        if not self._bonds.is_bonded(link.address):
            raise RadioError("not bonded")
        self._bonds.keep()
        link.rebonded = False
        link.sensor = self._gateway.bond(address_type, link.address, self._clock.now_ms())

    async def _discover(self, link: "_Link") -> "tuple[list[int], dict[int, _Place]]":
        """Return the Sensor's services, and where its characteristics stand; in two services: the first."""
        services: list[int] = []
        table: dict[int, _Place] = {}
        for _, start, end, service in await self._ask(link, _SERVICE_DONE, self._ble.gattc_discover_services):
            if len(service) == 2 and _number(service) not in (_GENERIC_ACCESS, _GENERIC_ATTRIBUTE):
                services.append(_number(service))
                for _, last, handle, properties, uuid in await self._ask(
                    link, _CHARACTERISTIC_DONE, self._ble.gattc_discover_characteristics, start, end
                ):
                    if len(uuid) == 2 and _number(uuid) not in table:
                        table[_number(uuid)] = _Place(handle, last, properties)
        return services, table

    async def _serve(self, peer: "_Peer", link: "_Link") -> bool:
        """Until the link ends; return whether a value came or the Sensor was drained."""
        services, table = await self._discover(link)
        link.handles = {place.handle: uuid for uuid, place in table.items() if place.properties & _SENDS}
        self._bonds.keep_handles(link.address, link.handles)
        session = self._gateway.session(
            link.sensor,
            name=peer.name,
            services=services,
            table={uuid: place.properties for uuid, place in table.items()},
            now_ms=self._clock.now_ms(),
        )
        try:
            await self._converse(peer, link, session, table)
        finally:
            session.closed(self._clock.now_ms())
            self._wake()
        return link.values > 0 or session.drained

    async def _converse(
        self, peer: "_Peer", link: "_Link", session: "SensorSession", table: "dict[int, _Place]"
    ) -> None:
        while link.up:
            self._tell_session(link, session)
            now_ms = self._clock.now_ms()
            step = session.next_step(now_ms)
            if step is None:
                link.news.clear()
                await link.wait(session.due_ms(now_ms) - now_ms)
            elif step[0] == DISCONNECT:
                return
            else:
                link.flags = session.frame_flags
                await self._do(peer, link, session, table[step[1]], step)
                self._wake()

    def _tell_session(self, link: "_Link", session: "SensorSession") -> None:
        """What the handler has left; the values themselves are in the Journal."""
        now_ms = self._clock.now_ms()
        if link.rebonded:
            link.rebonded = False
            self._bonds.keep()
            self._gateway.bond(0, link.address, now_ms)
        if link.indicated:
            handle, link.indicated = link.indicated, 0
            session.value_received(link.handles.get(handle, 0), b"", now_ms)
        if link.racp_length:
            answer, link.racp_length = bytes(link.racp[: link.racp_length]), 0
            session.value_received(RECORD_ACCESS_CONTROL_POINT, answer, now_ms)

    async def _do(
        self, peer: "_Peer", link: "_Link", session: "SensorSession", place: "_Place", step: "Step"
    ) -> None:
        """Carry out one step. After the loss of the link it stays open: `closed` knows what that means."""
        try:
            value = await self._operation(link, place, step)
        except RadioError as error:
            if not error.status:
                raise
            code = error.status - _ATT_ERROR
            peer.bond_lost = peer.bond_lost or code in (0x05, 0x0F)
            refused = code > 0 and code not in _NOT_FOR_GOOD
            session.step_failed(str(error), self._clock.now_ms(), refused=refused)
        else:
            session.step_done(value, self._clock.now_ms())

    async def _operation(self, link: "_Link", place: "_Place", step: "Step") -> "bytes | None":
        what, _, argument = step
        ble = self._ble
        if what == READ:
            found = await self._ask(link, _READ_DONE, ble.gattc_read, place.handle)
            return found[-1][2] if found else b""
        if what == WRITE:
            await self._ask(link, _WRITE_DONE, ble.gattc_write, place.handle, argument, 1)
            return None
        # NimBLE looks behind the handle that it is given.
        within = (place.handle, place.last)
        for _, handle, uuid in await self._ask(
            link, _DESCRIPTOR_DONE, ble.gattc_discover_descriptors, *within
        ):
            if len(uuid) == 2 and _number(uuid) == _CCCD:
                on = _ON_INDICATE if argument == INDICATE else _ON_NOTIFY
                await self._ask(link, _WRITE_DONE, ble.gattc_write, handle, on, 1)
                return None
        raise RadioError("no client configuration", _ATT_ERROR + 0x0A)  # attribute not found

    async def _ask(
        self, link: "_Link", done: int, begin: "Callable[..., Any]", *arguments: "Any"
    ) -> "list[tuple[Any, ...]]":
        """Carry out one GATT operation; return its results. One without an answer ends the visit.

        An answer that came later would be taken for that of the next operation.
        """
        if not link.up:
            raise RadioError("the link was lost")
        link.found = []
        link.status = None
        link.awaited = done
        begin(link.connection, *arguments)
        await link.until(lambda: link.status is not None or not link.up, STEP_WAIT_MS)
        link.awaited = 0
        if link.status is None:
            raise RadioError("no answer" if link.up else "the link was lost")
        if link.status:
            raise RadioError("refused with 0x%x" % link.status, link.status)
        return link.found

    async def _leave(self, link: "_Link") -> None:
        """End the link, if it is still there, and wait until it is gone."""
        if link.up:
            try:
                self._ble.gap_disconnect(link.connection)
            except OSError:
                pass
            await link.until(lambda: link.over, _LEAVE_WAIT_MS)
        self._links.pop(link.connection, None)
        link.up = False


class _Peer:
    """What the radio remembers of one address."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.link: _Link | None = None  # of the visit under way
        self.failures = 0  # visits in a row that brought nothing
        self.rest_until_ms = 0
        self.bond_lost = False  # it did not know our key any more, or we not its


class _Place:
    """A characteristic in a Sensor's table."""

    def __init__(self, handle: int, last: int, properties: int) -> None:
        self.handle = handle
        self.last = last
        self.properties = properties


class _Link:
    """One connection: what the handler writes, and what its visit waits for."""

    def __init__(self, address: bytes, sensor: int, handles: "dict[int, int]", clock: "Clock") -> None:
        self.address = address
        self.air_address = reverse(address)
        self.sensor = sensor
        self.handles = handles
        self.news = asyncio.Event()
        self._clock = clock
        # Written by the handler.
        self.connection = -1
        self.up = False
        self.over = False
        self.rebonded = False  # a new key
        self.values = 0  # kept
        self.indicated = 0  # value handle of the newest indication
        self.racp = bytearray(_RACP_BYTES)
        self.racp_length = 0
        # Of the main loop.
        self.flags = 0  # of the Frames that come now
        self.told = 0
        self.encrypted: bool | None = None
        self.awaited = 0  # the event that ends the operation under way
        self.status: int | None = None
        self.found: list[tuple[Any, ...]] = []

    def take(self, event: int, data: "tuple[Any, ...]") -> None:
        """An event of this connection."""
        if event == _ENCRYPTED:
            self.encrypted = bool(data[1])
        elif event in _RESULTS:
            self.found.append(data)
        elif event == self.awaited:
            self.status = data[-1]
        self.news.set()

    async def wait(self, wait_ms: int) -> None:
        """Until there is news, for so long at most."""
        await for_event(self.news, wait_ms)

    async def until(self, holds: "Callable[[], object]", wait_ms: int) -> None:
        """Until it holds or the time is over."""
        end_ms = self._clock.now_ms() + wait_ms
        while not holds() and self._clock.now_ms() < end_ms:
            self.news.clear()
            await self.wait(end_ms - self._clock.now_ms())


def _parse(advert: bytes) -> "tuple[list[int], str]":
    """Return the 16-bit services and the name of an advert. One that is broken ends where it breaks."""
    services: list[int] = []
    name = ""
    at = 0
    while at + 1 < len(advert) and advert[at]:
        kind, value = advert[at + 1], advert[at + 2 : at + 1 + advert[at]]
        if kind in (0x02, 0x03):
            services += [_number(value[i : i + 2]) for i in range(0, len(value) - 1, 2)]
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


def _number(uuid: bytes) -> int:
    return uuid[0] | uuid[1] << 8
