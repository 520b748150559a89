"""Visit: one connection to one Sensor, from its encryption to its end. Does what the SensorSession says.

One GATT operation at a time. What the handler (radio.py) and the visit share is the Link.
"""

import asyncio
from collections import namedtuple

from firmware.bonds import reverse
from firmware.wait import for_event
from gateway.limits import STEP_WAIT_MS
from gateway.port import const
from gateway.record import INDICATED
from gateway.sensor_session import CAN_INDICATE, CAN_NOTIFY, DISCONNECT, INDICATE, READ, WRITE
from gateway.sensors.racp import RECORD_ACCESS_CONTROL_POINT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bluetooth import BLE

    from firmware.bonds import Bonds
    from firmware.clock import Clock
    from gateway.gateway import Gateway
    from gateway.sensor_session import SensorSession, Step

# Events of bluetooth.BLE.irq.
_SERVICE_RESULT = const(9)
_SERVICE_DONE = const(10)
_CHARACTERISTIC_RESULT = const(11)
_CHARACTERISTIC_DONE = const(12)
_DESCRIPTOR_RESULT = const(13)
_DESCRIPTOR_DONE = const(14)
_READ_RESULT = const(15)
_READ_DONE = const(16)
_WRITE_DONE = const(17)
_ENCRYPTED = const(28)
_RESULTS = (_SERVICE_RESULT, _CHARACTERISTIC_RESULT, _DESCRIPTOR_RESULT, _READ_RESULT)

_PAIR_WAIT_MS = const(20_000)
"""Somebody may have to press a button on the Sensor; SMP itself gives up after 30 s."""
_KEY_WAIT_MS = const(1_000)
"""NimBLE says that the link is encrypted just before it hands over the keys."""
_LEAVE_WAIT_MS = const(2_000)
_RACP_BYTES = const(20)
_VALUE_BYTES = const(32)
"""Of a measurement; today's Sensors send up to 20."""

_GENERIC = (0x1800, 0x1801)  # services that every peripheral has
_SENDS = CAN_NOTIFY | CAN_INDICATE
_CCCD = const(0x2902)
_ON_NOTIFY = b"\x01\x00"
_ON_INDICATE = b"\x02\x00"
_ATT_ERROR = const(0x100)  # a status from here on is an ATT error
_NOT_FOUND = const(0x0A)
_NO_KEY = (0x05, 0x0F)  # insufficient authentication, encryption
_NOT_FOR_GOOD = (0x05, 0x08, 0x0E, 0x0F, 0x11)
"""The same, insufficient authorization or resources, and "unlikely": pairing or patience helps."""


Place = namedtuple("Place", ("handle", "last", "properties"))
"""A characteristic in a Sensor's table: value handle, last handle, properties."""


class RadioError(Exception):
    """An operation was not done. `status`: what the Sensor answered, 0 when it did not."""

    def __init__(self, what: str, status: int = 0) -> None:
        super().__init__(what)
        self.status = status


class Link:
    """One connection: what the handler writes, and what its visit waits for."""

    def __init__(self, address: bytes, sensor: int, handles: "dict[int, int]", clock: "Clock") -> None:
        self.address = address
        self.air_address = reverse(address)
        self.sensor = sensor
        self.handles = handles  # characteristics by value handle
        self.news = asyncio.Event()
        self._clock = clock
        # Written by the handler.
        self.connection = -1
        self.up = False
        self.over = False
        self.rebonded = False  # a new key
        self.values = 0  # kept
        self.indicated = 0  # value handle of the newest indication
        self.value = bytearray(_VALUE_BYTES)  # the newest one that was indicated, for the ear of the patient
        self.value_handle = 0
        self.value_length = 0
        self.racp = bytearray(_RACP_BYTES)
        self.racp_length = 0
        # Of the main loop.
        self.indicated_flags = INDICATED  # of the Frames that are indicated now
        self.told = 0
        self.encrypted: bool | None = None
        self.awaited = 0  # the event that ends the operation under way
        self.status: int | None = None
        self.found: list[tuple[Any, ...]] = []

    def take(self, event: int, data: "tuple[Any, ...]") -> None:
        """An event of this connection, in the main loop."""
        if event == _ENCRYPTED:
            self.encrypted = bool(data[1])
        elif event in _RESULTS:
            self.found.append(data)
        elif event == self.awaited:
            self.status = data[-1]
        self.news.set()

    async def until(self, holds: "Callable[[], object]", wait_ms: int) -> None:
        """Until it holds or the time is over."""
        end_ms = self._clock.now_ms() + wait_ms
        while not holds() and self._clock.now_ms() < end_ms:
            self.news.clear()
            await for_event(self.news, end_ms - self._clock.now_ms())


class Visit:
    """Of a link that is up; `bond_lost`: one had forgotten the other. Raises RadioError, OSError."""

    def __init__(
        self,
        gateway: "Gateway",
        clock: "Clock",
        bonds: "Bonds",
        ble: "BLE",
        link: Link,
        wake: "Callable[[], None]",
    ) -> None:
        self.bond_lost = False
        self._gateway = gateway
        self._clock = clock
        self._bonds = bonds
        self._ble = ble
        self._link = link
        self._wake = wake

    async def encrypt(self) -> None:
        """With the key of a bond, or pairing when there is none: NimBLE knows which."""
        link = self._link
        self._ble.gap_pair(link.connection)
        await link.until(lambda: link.encrypted is not None or link.over, _PAIR_WAIT_MS)
        self.bond_lost = link.encrypted is False
        if not link.encrypted:
            raise RadioError("not encrypted")

    async def bond(self, address_type: int) -> None:
        """A bond that is not in flash is none: the Sensor would be a stranger after a power cut."""
        link = self._link
        await link.until(lambda: self._bonds.is_bonded(link.address) or link.over, _KEY_WAIT_MS)
        if not self._bonds.is_bonded(link.address):
            raise RadioError("not bonded")
        self._bonds.keep()
        link.rebonded = False
        link.sensor = self._gateway.bond(address_type, link.address, self._clock.now_ms())

    async def serve(self, name: str) -> bool:
        """Until the link ends; return whether a value came or the Sensor was drained."""
        link = self._link
        services, table = await self._discover()
        link.handles = {place.handle: uuid for uuid, place in table.items() if place.properties & _SENDS}
        self._bonds.keep_handles(link.address, link.handles)
        session = self._gateway.session(
            link.sensor,
            name=name,
            services=services,
            table={uuid: place.properties for uuid, place in table.items()},
            now_ms=self._clock.now_ms(),
        )
        try:
            await self._converse(session, table)
        finally:
            session.closed(self._clock.now_ms())
            self._wake()
        return link.values > 0 or session.drained

    async def leave(self) -> None:
        """End the link, if it is still there, and wait until it is gone."""
        link = self._link
        if link.up:
            try:
                self._ble.gap_disconnect(link.connection)
            except OSError:
                pass  # it has just gone
            await link.until(lambda: link.over, _LEAVE_WAIT_MS)

    async def _discover(self) -> "tuple[list[int], dict[int, Place]]":
        """Return the Sensor's services, and where its characteristics stand; in two services: the first."""
        ble = self._ble
        services: list[int] = []
        table: dict[int, Place] = {}
        for _, start, end, service in await self._ask(_SERVICE_DONE, ble.gattc_discover_services):
            if len(service) != 2 or number(service) in _GENERIC:
                continue
            services.append(number(service))
            for _, last, handle, properties, uuid in await self._ask(
                _CHARACTERISTIC_DONE, ble.gattc_discover_characteristics, start, end
            ):
                if len(uuid) == 2 and number(uuid) not in table:
                    table[number(uuid)] = Place(handle, last, properties)
        return services, table

    async def _converse(self, session: "SensorSession", table: "dict[int, Place]") -> None:
        link = self._link
        while link.up:
            link.news.clear()
            self._tell(session)
            now_ms = self._clock.now_ms()
            step = session.next_step(now_ms)
            if step is None:
                await for_event(link.news, session.due_ms(now_ms) - now_ms)
            elif step[0] == DISCONNECT:
                return
            else:
                link.indicated_flags = session.frame_flags(INDICATED)
                await self._do(session, table[step[1]], step)
                self._wake()

    def _tell(self, session: "SensorSession") -> None:
        """What the handler has left; the values themselves are in the Journal."""
        link = self._link
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

    async def _do(self, session: "SensorSession", place: Place, step: "Step") -> None:
        """Carry out one step. After the loss of the link it stays open: `closed` knows what that means."""
        try:
            value = await self._operation(place, step)
        except RadioError as error:
            if not error.status:
                raise
            code = error.status - _ATT_ERROR
            self.bond_lost = self.bond_lost or code in _NO_KEY
            refused = code > 0 and code not in _NOT_FOR_GOOD
            session.step_failed(str(error), self._clock.now_ms(), refused=refused)
        else:
            session.step_done(value, self._clock.now_ms())

    async def _operation(self, place: Place, step: "Step") -> "bytes | None":
        what, _, argument = step
        ble = self._ble
        if what == READ:
            found = await self._ask(_READ_DONE, ble.gattc_read, place.handle)
            return found[-1][2] if found else b""
        if what == WRITE:
            await self._ask(_WRITE_DONE, ble.gattc_write, place.handle, argument, 1)
            return None
        # NimBLE looks behind the handle that it is given.
        span = (place.handle, place.last)
        for _, handle, uuid in await self._ask(_DESCRIPTOR_DONE, ble.gattc_discover_descriptors, *span):
            if len(uuid) == 2 and number(uuid) == _CCCD:
                on = _ON_INDICATE if argument == INDICATE else _ON_NOTIFY
                await self._ask(_WRITE_DONE, ble.gattc_write, handle, on, 1)
                return None
        raise RadioError("no client configuration", _ATT_ERROR + _NOT_FOUND)

    async def _ask(self, done: int, begin: "Callable[..., None]", *arguments: "Any") -> "list[Any]":
        """Carry out one GATT operation; return its results. One without an answer ends the visit.

        An answer that came later would be taken for that of the next operation.
        """
        link = self._link
        if not link.up:
            raise RadioError("the link was lost")
        link.status = None
        link.awaited = done
        begin(link.connection, *arguments)
        await link.until(lambda: link.status is not None or not link.up, STEP_WAIT_MS)
        link.awaited = 0
        found, link.found = link.found, []
        if link.status is None:
            raise RadioError("no answer" if link.up else "the link was lost")
        if link.status:
            raise RadioError("refused with 0x%x" % link.status, link.status)
        return found


def number(uuid: bytes) -> int:
    """A 16-bit UUID as a number."""
    return uuid[0] | uuid[1] << 8
