"""The radio under Linux: scans without end, and gives every bonded Sensor that advertises its own session.

The operating system confirms an indication by itself and hands it over later, so P1 cannot hold here: every
Frame carries HOST_CONFIRMED. What can be done is done: a value goes to the Gateway in the callback, first of
all.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bleak import BleakClient, BleakScanner
from bleak.backends.characteristic import BleakGATTCharacteristic
from bleak.backends.client import BaseBleakClient
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData, BaseBleakScanner
from bleak.exc import BleakError, BleakGATTProtocolError, BleakGATTProtocolErrorCode

from gateway.errors import SensorError
from gateway.gateway import Gateway
from gateway.limits import STEP_WAIT_MS
from gateway.linux.clock import Clock
from gateway.record import INDICATED, NOTIFIED
from gateway.sensor_session import (
    CAN_INDICATE,
    CAN_NOTIFY,
    CAN_READ,
    CAN_WRITE,
    DISCONNECT,
    INDICATE,
    READ,
    WRITE,
    SensorSession,
)
from gateway.sensors.racp import RECORD_ACCESS_CONTROL_POINT

if TYPE_CHECKING:
    from gateway.sensor_session import Step

_CONNECT_WAIT_S = 10.0
_AGAIN_FIRST_S = 0.5
_AGAIN_MAX_S = 60.0
"""After a failed connection a Sensor is left alone, up to a minute: a cuff advertises for 30 s to 3 min."""
_RESCAN_S = 5.0
_DEAF_S = 300.0
"""Something nearby advertises every few seconds; after five minutes of nothing the radio itself is deaf."""

_PROPERTIES = {"read": CAN_READ, "write": CAN_WRITE, "notify": CAN_NOTIFY, "indicate": CAN_INDICATE}
_BASE_UUID = "-0000-1000-8000-00805f9b34fb"
_NO_KEY = (
    BleakGATTProtocolErrorCode.INSUFFICIENT_AUTHENTICATION,
    BleakGATTProtocolErrorCode.INSUFFICIENT_ENCRYPTION,
)
_NOT_FOR_GOOD = (
    *_NO_KEY,
    BleakGATTProtocolErrorCode.INSUFFICIENT_AUTHORIZATION,
    BleakGATTProtocolErrorCode.UNLIKELY_ERROR,
    BleakGATTProtocolErrorCode.INSUFFICIENT_RESOURCE,
)

_log = logging.getLogger(__name__)


@dataclass
class _Peer:
    """What the radio remembers of one address."""

    visiting: bool = False
    failures: int = 0  # visits in a row that brought nothing
    left_at: float = -_AGAIN_MAX_S  # loop time
    bond_lost: bool = False  # it did not know our key any more, or we not its


class Radio:
    """`run` until cancelled. `wake` is called after an append; backends replace BlueZ in tests and demo."""

    def __init__(
        self,
        gateway: Gateway,
        clock: Clock,
        *,
        wake: Callable[[], None],
        scanner_backend: type[BaseBleakScanner] | None = None,
        client_backend: type[BaseBleakClient] | None = None,
    ) -> None:
        self._gateway = gateway
        self._clock = clock
        self._wake = wake
        self._scanner_backend = scanner_backend
        self._client_backend = client_backend
        self._peers: dict[bytes, _Peer] = {}
        self._heard = asyncio.Event()
        self._visits: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Scan for ever; every visit to a Sensor is a task beside it."""
        async with asyncio.TaskGroup() as self._visits:
            while True:
                try:
                    async with BleakScanner(self._on_advert, backend=self._scanner_backend):
                        await self._listen()
                except Exception as error:  # BlueZ or D-Bus gone: what is in the Journal must still be sent
                    self._gateway.counters["scan_failures"] += 1
                    _log.warning("scan: %r", error)
                await asyncio.sleep(_RESCAN_S)

    async def _listen(self) -> None:
        """Until no advert has come for long: radios go deaf and look healthy (OpenMQTTGateway#1278)."""
        with suppress(TimeoutError):
            while True:
                self._heard.clear()
                async with asyncio.timeout(_DEAF_S):
                    await self._heard.wait()
        _log.warning("no advert for %d s: the scan is begun again", _DEAF_S)

    def _on_advert(self, device: BLEDevice, advert: AdvertisementData) -> None:
        self._heard.set()
        address = _address(device)
        services = short_uuids(advert.service_uuids)
        if address is None or not self._gateway.wants(address, services, self._clock.now_ms()):
            return
        peer = self._peers.setdefault(address, _Peer())
        if peer.visiting or self._visits is None or _loop_time() < peer.left_at + self._rest_s(peer):
            return
        peer.visiting = True
        self._visits.create_task(self._supervise(peer, device, address), name=f"visit {device.address}")

    def _rest_s(self, peer: _Peer) -> float:
        """How long to leave it alone. In a pairing window somebody stands beside it and waits."""
        if self._gateway.pairing(self._clock.now_ms()):
            return _AGAIN_FIRST_S
        return min(_AGAIN_MAX_S, _AGAIN_FIRST_S * 2.0 ** min(peer.failures, 16))

    async def _supervise(self, peer: _Peer, device: BLEDevice, address: bytes) -> None:
        """One visit, whose failure stays its own: the other Sensors must not notice."""
        fruitful = False
        try:
            fruitful = await self._visit(peer, device, address)
        except (BleakError, SensorError, TimeoutError) as error:
            peer.bond_lost = peer.bond_lost or is_bond_lost(error)
            _log.info("%s: %s", device.address, error or "no answer")
        except Exception:
            self._gateway.counters["failures"] += 1
            _log.exception("visit %s", device.address)
        finally:
            peer.visiting = False
            peer.failures = 0 if fruitful else peer.failures + 1
            peer.left_at = _loop_time()

    async def _visit(self, peer: _Peer, device: BLEDevice, address: bytes) -> bool:
        """Connect, bond where that is asked for, and serve; return whether it was worth it."""
        sensor = self._gateway.reference_of(address)
        again = peer.bond_lost and self._gateway.pairing(self._clock.now_ms())
        visit = Visit(self._gateway, self._clock, self._wake)
        client = BleakClient(
            device,
            visit.on_disconnected,
            timeout=_CONNECT_WAIT_S,
            pair=not sensor or again,
            backend=self._client_backend,
        )
        if again:
            with suppress(BleakError):
                await client.unpair()
        async with client:
            if not sensor or again:
                sensor = self._gateway.bond(address_type_of(device, address), address, self._clock.now_ms())
            peer.bond_lost = False
            fruitful = await visit.serve(client, sensor, device.name or "")
        peer.bond_lost = visit.bond_lost
        return fruitful


class Receiver(Protocol):
    """Whose visit it is: Gateway, or what a bench has in its place."""

    def session(
        self, sensor: int, *, name: str, services: list[int], table: dict[int, int], now_ms: int
    ) -> SensorSession: ...
    def thins(
        self, sensor: int, characteristic: int, value: bytes, uptime_hi: int, uptime_lo: int
    ) -> bool: ...
    def received(
        self, sensor: int, characteristic: int, value: bytes, flags: int, uptime_hi: int, uptime_lo: int
    ) -> int: ...


class Visit:
    """One connection: carries out the steps of a SensorSession."""

    def __init__(self, gateway: Receiver, clock: Clock, wake: Callable[[], None]) -> None:
        self.bond_lost = False
        self._gateway = gateway
        self._clock = clock
        self._wake = wake
        self._news = asyncio.Event()
        self._values = 0

    def on_disconnected(self, client: BleakClient) -> None:
        self._news.set()

    async def serve(self, client: BleakClient, sensor: int, name: str) -> bool:
        """Until the link ends; return whether a value came or the Sensor was drained."""
        table = _table(client)
        session = self._gateway.session(
            sensor,
            name=name,
            services=short_uuids([service.uuid for service in client.services]),
            table={uuid: _properties(found) for uuid, found in table.items()},
            now_ms=self._clock.now_ms(),
        )
        try:
            await self._converse(client, sensor, session, table)
        finally:
            session.closed(self._clock.now_ms())
            self._wake()
        return self._values > 0 or session.drained

    async def _converse(
        self,
        client: BleakClient,
        sensor: int,
        session: SensorSession,
        table: dict[int, BleakGATTCharacteristic],
    ) -> None:
        while client.is_connected:
            self._news.clear()
            now_ms = self._clock.now_ms()
            step = session.next_step(now_ms)
            if step is None:
                await self._wait(session.due_ms(now_ms) - now_ms)
            elif step[0] == DISCONNECT:
                return
            else:
                await self._take(client, session, self._operation(client, sensor, session, table, step))
                self._wake()

    async def _wait(self, wait_ms: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(wait_ms, 1) / 1000):
                await self._news.wait()

    async def _take(
        self, client: BleakClient, session: SensorSession, operation: Awaitable[bytearray | None]
    ) -> None:
        """Carry out one step. After the loss of the link it stays open: `closed` knows what that means."""
        try:
            async with asyncio.timeout(STEP_WAIT_MS / 1000):
                value = await operation
        except TimeoutError:
            session.step_failed("no answer", self._clock.now_ms())
        except BleakError as error:
            self.bond_lost = self.bond_lost or is_bond_lost(error)
            if client.is_connected:
                session.step_failed(str(error), self._clock.now_ms(), refused=_is_final(error))
        else:
            session.step_done(None if value is None else bytes(value), self._clock.now_ms())

    async def _operation(
        self,
        client: BleakClient,
        sensor: int,
        session: SensorSession,
        table: dict[int, BleakGATTCharacteristic],
        step: "Step",
    ) -> bytearray | None:
        what, uuid, argument = step
        if what == READ:
            return await client.read_gatt_char(table[uuid])
        if what == WRITE:
            assert isinstance(argument, bytes)
            await client.write_gatt_char(table[uuid], argument, response=True)
            return None
        flag = INDICATED if argument == INDICATE else NOTIFIED

        def on_value(_: BleakGATTCharacteristic, value: bytearray) -> None:
            now_ms = self._clock.now_ms()
            hi, lo = now_ms >> 24, now_ms & 0xFFFFFF
            if flag == NOTIFIED and self._gateway.thins(sensor, uuid, bytes(value), hi, lo):
                return
            if uuid != RECORD_ACCESS_CONTROL_POINT:
                self._gateway.received(sensor, uuid, bytes(value), session.frame_flags(flag), hi, lo)
                self._values += 1
            session.value_received(uuid, bytes(value), now_ms)
            self._news.set()
            self._wake()

        await client.start_notify(table[uuid], on_value)
        return None


def _table(client: BleakClient) -> dict[int, BleakGATTCharacteristic]:
    """The Sensor's characteristics by 16-bit UUID; where one stands in two services, the first."""
    table: dict[int, BleakGATTCharacteristic] = {}
    for service in client.services:
        for characteristic in service.characteristics:
            for uuid in short_uuids([characteristic.uuid]):
                table.setdefault(uuid, characteristic)
    return table


def _properties(characteristic: BleakGATTCharacteristic) -> int:
    return sum(bit for name, bit in _PROPERTIES.items() if name in characteristic.properties)


def short_uuids(uuids: list[str]) -> list[int]:
    """Those of the UUIDs that the Bluetooth SIG has assigned, as 16-bit numbers."""
    return [int(uuid[4:8], 16) for uuid in uuids if uuid.startswith("0000") and uuid.endswith(_BASE_UUID)]


def _address(device: BLEDevice) -> bytes | None:
    """The six bytes of the address; None where the system hides it (macOS)."""
    with suppress(ValueError):
        address = bytes.fromhex(device.address.replace(":", ""))
        return address if len(address) == 6 else None
    return None


def address_type_of(device: BLEDevice, address: bytes) -> int:
    """1 for a random address. BlueZ says so; elsewhere the two top bits of a static random address do."""
    details = device.details.get("props", {}) if isinstance(device.details, dict) else {}
    kind = details.get("AddressType") or ("random" if address[0] >= 0xC0 else "public")
    return int(kind == "random")


def _is_final(error: BleakError) -> bool:
    """The Sensor has answered that it will not, and pairing or patience would not change that."""
    return isinstance(error, BleakGATTProtocolError) and error.code not in _NOT_FOR_GOOD


def is_bond_lost(error: Exception) -> bool:
    """One of the two has forgotten the key. Backends differ in their errors; all of them name the reason."""
    if isinstance(error, BleakGATTProtocolError):
        return error.code in _NO_KEY
    text = str(error).lower().replace("_", " ")
    return "key missing" in text or "authentication" in text or "encryption" in text


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
