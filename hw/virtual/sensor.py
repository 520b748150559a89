"""
What every Bluetooth LE vital-sign Sensor has: a life on air, Device Information, Battery, bonds, a clock and
a Ledger.

Theory of operation. A Sensor is dark until something wakes it (a measurement, a button). Then it has a
*session*: it advertises, serves one central at a time, and goes dark again when nothing has happened for a
while. One task runs the session, so a Sensor never does two things at once:

    dark --wake()--> advertising --central--> connected --link lost--> advertising ...
      ^                   |                        |
      +--- window over ---+------ linger over -----+

What there is to say to a connected central is the subclass's `_deliver`; what happens to what could not be
said is its `_retire`. The rule kept here: a measurement is forgotten only on the ATT Handle Value
Confirmation (DOMAIN 1.2).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bumble import att
from bumble.core import UUID, AdvertisingData
from bumble.device import Connection, Device
from bumble.gatt import (
    GATT_CLIENT_CHARACTERISTIC_CONFIGURATION_DESCRIPTOR,
    Characteristic,
    Descriptor,
    Service,
)

from hw.virtual.clock import SensorClock
from hw.virtual.ledger import CONFIRMED, SENT, Ledger, Measurement
from hw.virtual.radio import SUPERVISION_TIMEOUT, Bonds, Room, just_works

NOTIFY = 0x01  # bits of the Client Characteristic Configuration
INDICATE = 0x02

_READ = Characteristic.Properties.READ
_WRITE = Characteristic.Properties.WRITE
_OPEN_READ = att.Attribute.READABLE
_ENCRYPTED_READ = att.Attribute.READABLE | att.Attribute.READ_REQUIRES_ENCRYPTION
_ENCRYPTED_WRITE = att.Attribute.WRITEABLE | att.Attribute.WRITE_REQUIRES_ENCRYPTION

_LIMITED_DISCOVERABLE_LE_ONLY = 0x05
_ADVERTISING_BYTES = 31
_CANCEL_AGAIN_S = 0.05

Read = Callable[[], bytes]
Write = Callable[[Connection, bytes], None]


@dataclass(frozen=True)
class Label:
    """The Sensor's name on air and its Device Information (None: no such characteristic)."""

    name: str
    manufacturer: str = "Homeward Virtual"
    model: str = "V1"
    serial: str | None = None
    firmware: str = "1.0"
    system_id: bytes | None = None


@dataclass(frozen=True)
class Habits:
    """How long a Sensor waits and what it insists on. The defaults are those of real ones (PLXS: 15 s)."""

    window_s: float = 30.0  # connectable after a measurement or a button
    linger_s: float = 15.0  # stays connected after the last thing that happened
    advertising_ms: float = 30.0
    pairing_button: bool = False  # pairs only in pairing_mode()
    security_request: bool = False  # asks the central for security as soon as it connects
    one_bond: bool = False  # a new bond replaces the one before


class Sensor:
    """Base of all virtual Sensors. `async with` powers it on and off."""

    service: int  # 16-bit UUID in the advert

    def __init__(
        self,
        room: Room,
        address: str,
        *,
        label: Label,
        clock: SensorClock | None = None,
        ledger: Ledger | None = None,
        bonds: Path | None = None,
        habits: Habits | None = None,
    ) -> None:
        self.room = room
        self.address = address.upper()
        self.label = label
        self.clock = clock
        self.ledger = Ledger() if ledger is None else ledger
        self.bonds = Bonds(bonds)
        self.habits = habits or Habits()
        self.battery = 100
        self._device: Device | None = None
        self._link: Connection | None = None
        self._gone: asyncio.Future[None] | None = None  # done when _link is
        self._life: asyncio.Task[None] | None = None
        self._kick = asyncio.Event()
        self._dark_at = 0.0  # loop time
        self._pairing_until = 0.0
        self._delivered = False  # something, in this session
        self._sending: Measurement | None = None  # indicated, not confirmed: not to be put away now
        self._drops = 0

    async def __aenter__(self) -> Self:
        await self.power_on()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.power_off()

    # What a person does with it.

    async def power_on(self) -> None:
        assert self._device is None
        self._device = await self.room.join(
            name=self.label.name, address=self.address, bonds=self.bonds, advertising=self._advert()
        )
        self._device.pairing_config_factory = lambda _link: just_works(self._accepts_pairing)
        self._device.add_services([self._device_information(), self._battery_service(), *self._services()])
        self._device.on("connection", self._on_connection)

    async def power_off(self) -> None:
        """Batteries out: the link times out at the central; bonds and stored measurements stay."""
        device, self._device = self._device, None
        if device is None:
            return
        life, self._life = self._life, None
        try:
            if life is not None:
                await stop(life)
        finally:
            self._retire()
            await self.room.leave(device)
            self._link = None
            self._dark_at = 0.0

    def wake(self, window_s: float | None = None) -> None:
        """Press the button: connectable for a window, without a new measurement."""
        assert self._device is not None, "powered off"
        self._stay(self.habits.window_s if window_s is None else window_s)
        if self._life is None or self._life.done():
            self._life = asyncio.create_task(self._live(), name=f"sensor {self.address}")

    def pairing_mode(self, window_s: float | None = None) -> None:
        """Hold the button: connectable, and accepts a new bond for that window."""
        self.wake(window_s)
        self._pairing_until = self._dark_at

    def forget_bonds(self) -> None:
        self.bonds.forget()

    def drop_before_confirmation(self, n: int = 1) -> None:
        """
        The next n indicated measurements reach the central, but the link is lost before the confirmation
        counts.

        So the Sensor still holds them and sends them again: a repeat on reconnect.
        """
        self._drops += n

    @property
    def is_connected(self) -> bool:
        return self._link is not None

    @property
    def is_dark(self) -> bool:
        """Not on air: no session is running."""
        return self._life is None or self._life.done()

    async def dark(self) -> None:
        """Wait until the session is over."""
        if self._life is not None:
            await asyncio.shield(self._life)

    # For the kinds of Sensor.

    def _services(self) -> list[Service]:
        """The GATT services of this kind, made new at each power-on."""
        raise NotImplementedError

    async def _deliver(self, link: Connection) -> None:
        """Say what there is to say; called again after everything that happens on the link."""
        raise NotImplementedError

    def _has_news(self) -> bool:
        """Something that must still be sent in this session."""
        raise NotImplementedError

    def _retire(self) -> None:
        """The session is over: store or discard what was not delivered."""

    def _readable(self, uuid: int, read: Read, write: Write | None = None) -> Characteristic[bytes]:
        """A characteristic that is read (and written) only on an encrypted link."""
        properties, permissions = _READ, _ENCRYPTED_READ
        if write is not None:
            properties, permissions = properties | _WRITE, permissions | _ENCRYPTED_WRITE
        return Characteristic(UUID.from_16_bits(uuid), properties, permissions, self._watched(read, write))

    def _subscribable(self, uuid: int, how: int, write: Write | None = None) -> Characteristic[bytes]:
        """Indicated or notified. The CCCD is ours: anybody may write bumble's automatic one."""
        assert self._device is not None
        properties = Characteristic.Properties(how << 4)  # the property bits lie four above those of the CCCD
        permissions = att.Attribute.Permissions(0)
        if write is not None:
            properties, permissions = properties | _WRITE, permissions | _ENCRYPTED_WRITE
        characteristic: Characteristic[bytes] = Characteristic(
            UUID.from_16_bits(uuid), properties, permissions, self._watched(None, write)
        )
        characteristic.descriptors = [
            Descriptor(
                GATT_CLIENT_CHARACTERISTIC_CONFIGURATION_DESCRIPTOR,
                _OPEN_READ | _ENCRYPTED_WRITE,
                self._device.gatt_server.make_descriptor_value(characteristic),
            )
        ]
        characteristic.on(characteristic.EVENT_SUBSCRIPTION, lambda *_: self._active())
        return characteristic

    def _subscribed(self, link: Connection, characteristic: Characteristic[bytes], how: int) -> bool:
        assert self._device is not None
        cccd = self._device.gatt_server.subscribers.get(link, {}).get(characteristic.handle, b"\0\0")
        return bool(cccd[0] & how)

    async def _send(
        self, link: Connection, characteristic: Characteristic[bytes], value: bytes, measurement: Measurement
    ) -> bool:
        """Indicate a measurement. True: confirmed, the Sensor may forget it."""
        self.ledger.mark(measurement, SENT)
        self._sending = measurement
        try:
            if not await self._indicate(link, characteristic, value):
                return False
        finally:
            self._sending = None
        if self._drops > 0:
            # Lost only now, with the confirmation in hand, so that the central surely has the value.
            self._drops -= 1
            self.room.drop(self.address)
            return False
        self.ledger.mark(measurement, CONFIRMED)
        self._delivered = True
        self._dark_at = _now() + self.habits.linger_s
        return True

    async def _indicate(self, link: Connection, characteristic: Characteristic[bytes], value: bytes) -> bool:
        """True on the confirmation; False when the link went first, or ATT gave up (30 s), which ends it."""
        if link is not self._link or self._device is None or self._gone is None:
            return False
        server = self._device.gatt_server
        sending = asyncio.ensure_future(server.indicate_subscriber(link, characteristic, value, force=True))
        try:
            await asyncio.wait({sending, self._gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and sending.exception() is None:
                return True
        finally:
            sending.cancel()
        self.room.drop(self.address)
        return False

    async def _notify(self, link: Connection, characteristic: Characteristic[bytes], value: bytes) -> None:
        assert self._device is not None
        await self._device.gatt_server.notify_subscriber(link, characteristic, value)

    def _active(self) -> None:
        """Something happened on the link: look again, and do not go dark right now."""
        self._stay(self.habits.linger_s)

    def _stay(self, seconds: float) -> None:
        self._dark_at = max(self._dark_at, _now() + seconds)
        self._kick.set()

    def _clock_state(self) -> str:
        return "none" if self.clock is None else self.clock.state

    # The session.

    async def _live(self) -> None:
        while _now() < self._dark_at:
            await self._serve()
            self._retire()
            await self._go_dark()

    async def _serve(self) -> None:
        while _now() < self._dark_at:
            if self._link is not None:
                await self._deliver(self._link)
            elif self._device is not None:
                await self._advertise(self._device)
            await self._happening()

    async def _happening(self) -> None:
        """Wait until something happens or it is time to go dark."""
        try:
            async with asyncio.timeout(self._dark_at - _now()):
                await self._kick.wait()
        except TimeoutError:
            pass
        self._kick.clear()

    async def _advertise(self, device: Device) -> None:
        if not device.is_advertising:
            ms = self.habits.advertising_ms
            await device.start_advertising(advertising_interval_min=ms, advertising_interval_max=ms)

    async def _go_dark(self) -> None:
        self._delivered = False
        if self._device is not None:
            await self._device.stop_advertising()
        if self._link is not None:
            await self._link.disconnect()

    def _on_connection(self, link: Connection) -> None:
        assert self._device is not None
        self._link = link
        self._gone = asyncio.get_running_loop().create_future()
        link.on(link.EVENT_DISCONNECTION, lambda reason: self._on_disconnection(link, reason))
        if self.habits.security_request:
            self._device.request_pairing(link)
        self._active()

    def _on_disconnection(self, link: Connection, reason: int) -> None:
        if link is not self._link:
            return
        self._link = None
        if self._gone is not None:
            self._gone.set_result(None)
        if reason == SUPERVISION_TIMEOUT or self._has_news():
            self._dark_at = max(self._dark_at, _now() + self.habits.window_s)
        elif self._delivered:
            self._dark_at = _now()  # all said: it switches off, it does not call again
        self._kick.set()

    def _accepts_pairing(self) -> bool:
        accepts = not self.habits.pairing_button or _now() < self._pairing_until
        if accepts and self.habits.one_bond:
            self.forget_bonds()
        return accepts

    # What it shows of itself.

    def _advert(self) -> bytes:
        advert = bytes(
            AdvertisingData(
                [
                    (AdvertisingData.Type.FLAGS, bytes((_LIMITED_DISCOVERABLE_LE_ONLY,))),
                    (
                        AdvertisingData.Type.COMPLETE_LIST_OF_16_BIT_SERVICE_CLASS_UUIDS,
                        self.service.to_bytes(2, "little"),
                    ),
                    (AdvertisingData.Type.COMPLETE_LOCAL_NAME, self.label.name.encode()),
                ]
            )
        )
        assert len(advert) <= _ADVERTISING_BYTES, f"the name {self.label.name!r} is too long for an advert"
        return advert

    def _device_information(self) -> Service:
        texts = {
            0x2A29: self.label.manufacturer,
            0x2A24: self.label.model,
            0x2A25: self.label.serial,
            0x2A26: self.label.firmware,
        }
        values = {uuid: text.encode() for uuid, text in texts.items() if text is not None}
        if self.label.system_id is not None:
            values[0x2A23] = self.label.system_id
        return gatt_service(
            0x180A, [Characteristic(UUID.from_16_bits(u), _READ, _OPEN_READ, v) for u, v in values.items()]
        )

    def _battery_service(self) -> Service:
        level = self._watched(lambda: bytes((self.battery,)), None)
        return gatt_service(0x180F, [Characteristic(UUID.from_16_bits(0x2A19), _READ, _OPEN_READ, level)])

    def _watched(self, read: Read | None, write: Write | None) -> att.AttributeValue[bytes]:
        """A value whose use counts as activity. bumble itself does not look at READABLE and WRITEABLE."""

        def on_read(_link: Connection) -> bytes:
            if read is None:
                raise att.ATT_Error(att.ErrorCode.READ_NOT_PERMITTED)
            self._active()
            return read()

        def on_write(link: Connection, value: bytes) -> None:
            if write is None:
                raise att.ATT_Error(att.ErrorCode.WRITE_NOT_PERMITTED)
            self._active()
            write(link, value)

        return att.AttributeValue(on_read, on_write)


def gatt_service(uuid: int, characteristics: list[Characteristic[bytes]]) -> Service:
    return Service(UUID.from_16_bits(uuid), characteristics)


async def stop(task: asyncio.Task[None]) -> None:
    """
    Cancel until it is over, and raise what it died of: a Sensor's own bug must not stay hidden in its task.

    Once is not enough: wait_for of Python 3.11, on which bumble waits, can swallow a cancellation.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_AGAIN_S)
    if not task.cancelled():
        task.result()


def _now() -> float:
    return asyncio.get_running_loop().time()
