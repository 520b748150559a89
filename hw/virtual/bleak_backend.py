"""
bleak over bumble: the unchanged Linux Gateway in a virtual room.

`BumbleAdapter` stands for the computer's Bluetooth adapter with BlueZ above it, and copies what BlueZ does:
bonds belong to the adapter and survive the process; a bonded Sensor is encrypted as soon as it is connected;
an indication is confirmed by the stack itself, before the application has seen it (so the promise P1 cannot
be kept above it).

Use: BleakScanner(..., backend=adapter.scanner_backend), BleakClient(..., backend=adapter.client_backend).
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from bleak.args import SizedBuffer
from bleak.assigned_numbers import CharacteristicPropertyName
from bleak.backends.characteristic import BleakGATTCharacteristic
from bleak.backends.client import BaseBleakClient, NotifyCallback
from bleak.backends.descriptor import BleakGATTDescriptor
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData, AdvertisementDataCallback, BaseBleakScanner
from bleak.backends.service import BleakGATTService, BleakGATTServiceCollection
from bleak.exc import BleakError, BleakGATTProtocolError
from bleak.uuids import normalize_uuid_str
from bumble import att, core, hci
from bumble.core import UUID, AdvertisingData
from bumble.device import Advertisement, Connection, Device
from bumble.gatt_client import CharacteristicProxy, Client, DescriptorProxy, ServiceProxy

from hw.virtual.radio import Bonds, Room

_ATT_HEADER = 3
_CANCEL_AGAIN_S = 0.05

_PROPERTIES: dict[int, CharacteristicPropertyName] = {
    0x02: "read",
    0x04: "write-without-response",
    0x08: "write",
    0x10: "notify",
    0x20: "indicate",
}

T = TypeVar("T")


class BumbleAdapter:
    """A Bluetooth adapter in a Room. `bonds`: the file that keeps its bonds, None for memory only."""

    def __init__(self, room: Room, address: str, *, bonds: Path | None = None, name: str = "Gateway") -> None:
        self.room = room
        self.address = address.upper()
        self.bonds = Bonds(bonds)
        self._name = name
        self._device: Device | None = None
        self._scanners = 0
        self._connecting = asyncio.Lock()  # a controller initiates one connection at a time

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        self._device = await self.room.join(name=self._name, address=self.address, bonds=self.bonds)

    async def stop(self) -> None:
        """The end of the Gateway's process: every link times out at the Sensors."""
        device, self._device = self._device, None
        if device is not None:
            await self.room.leave(device)

    @property
    def device(self) -> Device:
        if self._device is None:
            raise BleakError("the adapter is off")
        return self._device

    @property
    def scanner_backend(self) -> type[BaseBleakScanner]:
        return type("BumbleScanner", (_Scanner,), {"adapter": self})

    @property
    def client_backend(self) -> type[BaseBleakClient]:
        return type("BumbleClient", (_Client,), {"adapter": self})

    async def scan(self, on_advert: Callable[[Advertisement], None]) -> None:
        self.device.on("advertisement", on_advert)
        self._scanners += 1
        if self._scanners == 1:
            await self.device.start_scanning(filter_duplicates=False)

    async def stop_scan(self, on_advert: Callable[[Advertisement], None]) -> None:
        self._scanners -= 1
        if self._device is not None:
            self._device.remove_listener("advertisement", on_advert)
            if self._scanners == 0:
                await self._device.stop_scanning()

    async def connect(self, peer: hci.Address, timeout_s: float) -> Connection:
        """TimeoutError when the Sensor is not there. Cancelled or timed out, the attempt is taken back."""
        async with asyncio.timeout(timeout_s), self._connecting:
            attempt = asyncio.ensure_future(self.device.connect_le(peer, timeout=None))
            try:
                link = await asyncio.shield(attempt)
            except asyncio.CancelledError:
                await self._take_back(self.device, attempt)
                raise
            except core.BaseBumbleError as error:
                raise BleakError(f"connection failed: {error}") from error
            if not _is_up(link):
                raise BleakError("connection failed to be established")
            return link

    async def _take_back(self, device: Device, attempt: "asyncio.Future[Connection]") -> None:
        """Cancel at the controller, or bumble refuses every later connection; it may just have succeeded."""
        while not attempt.done():
            with suppress(hci.HCI_Error):
                await device.send_sync_command(hci.HCI_LE_Create_Connection_Cancel_Command())
            await asyncio.wait({attempt}, timeout=_CANCEL_AGAIN_S)
        if attempt.exception() is None and _is_up(attempt.result()):
            await attempt.result().disconnect()


class _Scanner(BaseBleakScanner):
    adapter: BumbleAdapter

    def __init__(
        self,
        detection_callback: AdvertisementDataCallback | None,
        service_uuids: list[str] | None,
        scanning_mode: str,
        **kwargs: Any,
    ) -> None:
        super().__init__(detection_callback, service_uuids)

    async def start(self) -> None:
        self.seen_devices = {}
        await self.adapter.scan(self._on_advert)

    async def stop(self) -> None:
        await self.adapter.stop_scan(self._on_advert)

    def _on_advert(self, advert: Advertisement) -> None:
        seen = _advertisement_data(advert)
        if not self.is_allowed_uuid(seen.service_uuids):
            return
        address = advert.address.to_string(False)
        sensor = self.create_or_update_device(address, address, seen.local_name, advert.address, seen)
        self.call_detection_callbacks(sensor, seen)


class _Client(BaseBleakClient):
    adapter: BumbleAdapter

    def __init__(
        self,
        address_or_ble_device: BLEDevice | str,
        *,
        disconnected_callback: Callable[[], None] | None,
        timeout: float,
        services: set[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(address_or_ble_device, disconnected_callback=disconnected_callback, timeout=timeout)
        self._wanted = services
        self._name = address_or_ble_device.name if isinstance(address_or_ble_device, BLEDevice) else None
        self._link: Connection | None = None
        self._gone: asyncio.Future[None] | None = None
        self._running: set[asyncio.Future[Any]] = set()
        self._callbacks: dict[int, NotifyCallback] = {}
        self._subscribers: dict[int, Callable[[bytes], None]] = {}

    @property
    def name(self) -> str:
        return self._name or self.address.replace(":", "-")

    @property
    def mtu_size(self) -> int:
        return att.ATT_DEFAULT_MTU if self._link is None else self._link.att_mtu

    @property
    def is_connected(self) -> bool:
        return self._link is not None

    # Link.

    async def connect(self, pair: bool, **kwargs: Any) -> None:
        """Connect, encrypt when bonded, discover. Any failure leaves it disconnected."""
        if self._link is not None:
            raise BleakError("already connected")
        link = await self.adapter.connect(self._peer, kwargs.get("timeout", self._timeout))
        self._link = link
        self._gone = asyncio.get_running_loop().create_future()
        link.on(link.EVENT_DISCONNECTION, lambda _reason: self._on_disconnection())
        try:
            if await self._is_bonded():
                await self._ask(link.encrypt())
            elif pair:
                await self.pair()
            self.services = await self._ask(self._discover(link.gatt_client))
        except BaseException:
            await self.disconnect()
            raise

    async def disconnect(self) -> None:
        if self._link is not None:
            with suppress(BleakError):
                await self._ask(self._link.disconnect())

    async def pair(self, *args: Any, **kwargs: Any) -> None:
        """Bond, or nothing when the link is encrypted already."""
        link = self._connected()
        if not link.is_encrypted:
            await self._ask(link.encrypt() if await self._is_bonded() else link.pair())

    async def unpair(self) -> None:
        await self.adapter.bonds.delete(str(self._peer))
        await self.disconnect()

    # GATT.

    async def read_gatt_char(
        self, characteristic: BleakGATTCharacteristic, *, use_cached: bool = False, **kwargs: Any
    ) -> bytearray:
        return bytearray(await self._ask(self._gatt().read_value(characteristic.handle)))

    async def read_gatt_descriptor(
        self, descriptor: BleakGATTDescriptor, *, use_cached: bool = False, **kwargs: Any
    ) -> bytearray:
        return bytearray(await self._ask(self._gatt().read_value(descriptor.handle)))

    async def write_gatt_char(
        self, characteristic: BleakGATTCharacteristic, data: SizedBuffer, response: bool
    ) -> None:
        await self._ask(self._gatt().write_value(characteristic.handle, bytes(data), response))

    async def write_gatt_descriptor(self, descriptor: BleakGATTDescriptor, data: SizedBuffer) -> None:
        await self._ask(self._gatt().write_value(descriptor.handle, bytes(data), True))

    async def start_notify(
        self, characteristic: BleakGATTCharacteristic, callback: NotifyCallback, **kwargs: Any
    ) -> None:
        handle = characteristic.handle
        self._callbacks[handle] = callback
        # One per handle and link: after a refused attempt (not paired yet) bumble still holds the first.
        subscriber = self._subscribers.setdefault(handle, lambda value: self._on_value(handle, value))
        await self._ask(self._gatt().subscribe(characteristic.obj, subscriber))

    async def stop_notify(self, characteristic: BleakGATTCharacteristic) -> None:
        subscriber = self._subscribers.pop(characteristic.handle, None)
        self._callbacks.pop(characteristic.handle, None)
        await self._ask(self._gatt().unsubscribe(characteristic.obj, subscriber))

    def _on_value(self, handle: int, value: bytes) -> None:
        """Not called in place: the stack confirms whatever the application does with the value."""
        asyncio.get_running_loop().call_soon(self._callbacks[handle], bytearray(value))

    def _on_disconnection(self) -> None:
        self._link = None
        self.services = None
        self._callbacks = {}
        self._subscribers = {}
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        if self._disconnected_callback is not None:
            self._disconnected_callback()

    @property
    def _peer(self) -> hci.Address:
        return hci.Address(self.address, hci.Address.RANDOM_DEVICE_ADDRESS)

    async def _is_bonded(self) -> bool:
        return await self.adapter.bonds.get(str(self._peer)) is not None

    def _connected(self) -> Connection:
        if self._link is None:
            raise BleakError("not connected")
        return self._link

    def _gatt(self) -> Client:
        return self._connected().gatt_client

    async def _ask(self, operation: Awaitable[T]) -> T:
        """
        Run one operation of bumble and speak bleak's errors.

        bumble tells a lost link by cancelling what waits for it, or not at all; and an operation that is
        cancelled in the middle leaves its answer to the next one. So it runs in its own future, beside the
        end of the link.
        """
        gone = self._gone
        assert gone is not None
        running = asyncio.ensure_future(operation)
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        either: set[asyncio.Future[Any]] = {running, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not running.done() or running.cancelled():
            running.cancel()
            raise BleakError("the link was lost")
        try:
            return running.result()
        except att.ATT_Error as error:
            raise BleakGATTProtocolError(int(error.error_code)) from error
        except core.BaseBumbleError as error:
            raise BleakError(str(error)) from error

    async def _discover(self, client: Client) -> BleakGATTServiceCollection:
        found = BleakGATTServiceCollection()
        for service in await client.discover_services():
            uuid = _uuid(service.uuid)
            if self._wanted is None or uuid in self._wanted:
                await self._discover_service(found, service, uuid)
        return found

    async def _discover_service(
        self, found: BleakGATTServiceCollection, service: ServiceProxy, uuid: str
    ) -> None:
        known = BleakGATTService(service, service.handle, uuid)
        found.add_service(known)
        for characteristic in await service.discover_characteristics():
            here = _characteristic(characteristic, known, lambda: self.mtu_size - _ATT_HEADER)
            found.add_characteristic(here)
            for descriptor in await characteristic.discover_descriptors():
                found.add_descriptor(_descriptor(descriptor, here))
            characteristic.descriptors_discovered = True


def _is_up(link: Connection) -> bool:
    """False when it went before anybody could listen for that."""
    return link.device.connections.get(link.handle) is link


def _characteristic(
    proxy: CharacteristicProxy[bytes], service: BleakGATTService, size: Callable[[], int]
) -> BleakGATTCharacteristic:
    properties = [name for bit, name in _PROPERTIES.items() if proxy.properties & bit]
    return BleakGATTCharacteristic(proxy, proxy.handle, _uuid(proxy.uuid), properties, size, service)


def _descriptor(proxy: DescriptorProxy, characteristic: BleakGATTCharacteristic) -> BleakGATTDescriptor:
    return BleakGATTDescriptor(proxy, proxy.handle, _uuid(proxy.type), characteristic)


def _advertisement_data(advert: Advertisement) -> AdvertisementData:
    kinds = AdvertisingData.Type
    name = advert.data.get(kinds.COMPLETE_LOCAL_NAME) or advert.data.get(kinds.SHORTENED_LOCAL_NAME)
    lists = advert.data.get_all(kinds.COMPLETE_LIST_OF_16_BIT_SERVICE_CLASS_UUIDS)
    lists += advert.data.get_all(kinds.COMPLETE_LIST_OF_128_BIT_SERVICE_CLASS_UUIDS)
    return AdvertisementData(
        local_name=name,
        manufacturer_data={},
        service_data={},
        # The scan response repeats the advert in bumble's controller: keep each UUID once, in order.
        service_uuids=list(dict.fromkeys(_uuid(uuid) for uuids in lists for uuid in uuids)),
        tx_power=None,
        rssi=advert.rssi,
        platform_data=(advert,),
    )


def _uuid(uuid: UUID) -> str:
    return normalize_uuid_str(uuid.to_hex_str("-"))
