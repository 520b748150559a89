"""The bench's radio: bleak, one Sensor at a time. A bond is made only on demand, and `forget` ends it.

Each connection is a Visit as the Linux Gateway makes it (gateway/linux/radio.py), with a Guest in its place.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import tzinfo
from typing import NamedTuple

from bleak import BleakClient, BleakScanner
from bleak.backends.client import BaseBleakClient
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData, BaseBleakScanner
from bleak.exc import (
    BleakBluetoothNotAvailableError,
    BleakBluetoothNotAvailableReason,
    BleakDBusError,
    BleakError,
)

from gateway.errors import SensorError
from gateway.linux.clock import Clock
from gateway.linux.radio import Visit, address_type_of, is_bond_lost, short_uuids
from gateway.sensor_session import SENSOR_SERVICES
from hw.station import StationError
from hw.station.guest import Found, Guest

FIND_S = 60.0
"""A person takes the Sensor, wakes it and holds its button meanwhile."""
CONNECT_S = 15.0
VISIT_S = 120.0
"""A full cuff sends a hundred values in some 20 s, one that hangs must not hold up the bench."""
GONE_S = 5.0
"""A Sensor in reach that is on the air advertises at least every 1.3 s (DOMAIN 1.5): this misses three."""
ADDRESS = re.compile(r"[0-9A-F]{2}(:[0-9A-F]{2}){5}")

_NOT_HERE = {
    BleakBluetoothNotAvailableReason.NO_BLUETOOTH: "this computer has no Bluetooth adapter: plug one in",
    BleakBluetoothNotAvailableReason.NO_BLE_CENTRAL_ROLE: "this Bluetooth adapter is too old for "
    "Sensors: plug in one that knows Bluetooth 4.0 or later",
    BleakBluetoothNotAvailableReason.POWERED_OFF: "Bluetooth is off: run `bluetoothctl power on` (when that "
    "fails, `rfkill unblock bluetooth`)",
}
_DENIED = "this computer does not let you use Bluetooth: add yourself to group bluetooth, then sign in again"
_NO_BLUEZ = "BlueZ does not run here: install package bluez, then `systemctl start bluetooth`"


class RadioError(StationError):
    """What the radio could not do: one sentence that says what to do."""


class BondLost(RadioError):
    """The Sensor does not know the bench's key, or has never had one."""


class Heard(NamedTuple):
    """A Sensor on the air."""

    peer: BLEDevice
    name: str
    services: tuple[int, ...]
    signal_dbm: int

    @property
    def address_type(self) -> int:
        """As in a Kit's list of Sensors: 1 is random."""
        return address_type_of(self.peer, bytes.fromhex(self.peer.address.replace(":", "")))


class Radio:
    """The adapter of this computer. Every call raises RadioError. The backends replace BlueZ in tests."""

    def __init__(
        self,
        *,
        scanner_backend: type[BaseBleakScanner] | None = None,
        client_backend: type[BaseBleakClient] | None = None,
        find_s: float = FIND_S,
        gone_s: float = GONE_S,
    ) -> None:
        self._scanner_backend, self._client_backend = scanner_backend, client_backend
        self._find_s, self._gone_s = find_s, gone_s
        self._clock = Clock()

    async def scan(self, seconds: float) -> list[Heard]:
        """The Sensors in reach, the nearest first."""
        heard: dict[str, Heard] = {}

        def keep(one: Heard) -> None:
            if any(uuid in SENSOR_SERVICES for uuid in one.services):
                heard[one.peer.address] = one

        async with self._listening(keep):
            await asyncio.sleep(seconds)
        return sorted(heard.values(), key=lambda one: -one.signal_dbm)

    async def find(self, address: str) -> Heard:
        """Wait until this Sensor is on the air."""
        found: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()

        def keep(one: Heard) -> None:
            if one.peer.address.upper() == address and not found.done():
                found.set_result(one)

        async with self._listening(keep):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._find_s):
                    return await found
        raise RadioError(
            f"{address} was not heard in {self._find_s:.0f} s: wake it (measure, or press its button), "
            "bring it near, and look that no other computer or phone is connected to it"
        )

    async def wait_until_gone(self, address: str) -> None:
        """Wait until this Sensor has been silent for long enough to be off."""
        loop = asyncio.get_running_loop()
        last = [loop.time()]

        def note(one: Heard) -> None:
            if one.peer.address.upper() == address:
                last[0] = loop.time()

        async with self._listening(note):
            until = loop.time() + self._find_s + self._gone_s
            while (silent_s := loop.time() - last[0]) < self._gone_s:
                if loop.time() > until:
                    raise RadioError(
                        f"{address} is still on the air: switch it off, or take its batteries out, then run "
                        "this again"
                    )
                await asyncio.sleep(self._gone_s - silent_s)

    async def visit(
        self,
        heard: Heard,
        *,
        pair: bool = False,
        zone: tzinfo | None = None,
        set_clock: bool = False,
        only_look: bool = False,
        delete: bool = False,
    ) -> Found:
        """Connect once and do what a Gateway does; return what was found.

        `pair`: make a bond. `zone`: of the home, None: this computer's. `only_look`: leave every value where
        it is. `delete`: of an oximeter that can, delete what it has stored before it is asked for.
        """
        address = heard.peer.address
        guest = Guest(zone, set_clock=set_clock, only_look=only_look, delete=delete)
        visit = Visit(guest, self._clock, lambda: None)
        client = self._client(heard.peer, visit.on_disconnected, pair=pair)
        try:
            async with asyncio.timeout(VISIT_S), client:
                await visit.serve(client, 1, heard.name)
                if only_look and client.is_connected:
                    guest.found.battery = await _battery(client)
        except SensorError:
            raise RadioError(
                f"{address} measures nothing that a Kit knows: neither an oximeter nor a cuff of the "
                "standard kind (services 1822, 1810)"
            ) from None
        except TimeoutError:
            raise RadioError(f"{address} does not answer: wake it again and bring it near") from None
        except (BleakError, OSError) as error:
            raise _said(error, address, pair=pair) from None
        guest.found.kept_back |= visit.bond_lost
        return guest.found

    async def forget(self, address: str) -> None:
        """Remove the bench's own bond, if there is one."""
        with suppress(BleakError, OSError):
            await self._client(address, lambda client: None, pair=False).unpair()

    def _client(
        self, peer: BLEDevice | str, gone: Callable[[BleakClient], None], *, pair: bool
    ) -> BleakClient:
        return BleakClient(peer, gone, timeout=CONNECT_S, pair=pair, backend=self._client_backend)

    @asynccontextmanager
    async def _listening(self, heard: Callable[[Heard], None]) -> AsyncIterator[None]:
        def on_advert(peer: BLEDevice, advert: AdvertisementData) -> None:
            name = advert.local_name or peer.name or ""
            heard(Heard(peer, name, tuple(short_uuids(advert.service_uuids)), advert.rssi))

        scanner = BleakScanner(on_advert, backend=self._scanner_backend)
        try:
            await scanner.start()
        except (BleakError, OSError) as error:
            raise _said(error, "the air") from None
        try:
            yield
        finally:
            with suppress(BleakError, OSError):
                await scanner.stop()


async def _battery(client: BleakClient) -> int | None:
    for service in client.services:
        for one in service.characteristics:
            if short_uuids([one.uuid]) == [0x2A19]:
                with suppress(BleakError):
                    return (await client.read_gatt_char(one))[0]
    return None


def _said(error: Exception, address: str, *, pair: bool = False) -> RadioError:
    """What an error of bleak means at the bench."""
    if isinstance(error, BleakBluetoothNotAvailableError):
        return RadioError(_NOT_HERE.get(error.reason, _DENIED))
    if isinstance(error, OSError) or (isinstance(error, BleakDBusError) and "ServiceUnknown" in str(error)):
        return RadioError(_NO_BLUEZ)
    if pair:
        return RadioError(
            f"{address} does not pair: put it into pairing mode (hold its button), and try again. One "
            "that keeps a single bond must first be reset, as its manual says"
        )
    if is_bond_lost(error):
        return BondLost(f"{address} does not know this computer's key")
    return RadioError(f"the connection to {address} has failed ({error}): wake it again and bring it near")
