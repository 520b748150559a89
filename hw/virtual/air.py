"""
The air itself: a virtual Sensor on a real Bluetooth controller, so that a real board can hear it.

A Room for one Sensor at a time, since there is one controller. The rule of the Room cannot be kept here: what
the other end learns, and when, is up to the radios.
"""

import asyncio
from typing import Any

from bumble import hci
from bumble.device import Connection, Device, DeviceConfiguration
from bumble.transport import open_transport
from bumble.transport.common import Transport

from hw.virtual.radio import Bonds, Room, just_works


class Air(Room):
    """`transport`: the controller, as bumble names it ("usb:0", "serial:/dev/ttyACM1", "tcp-client:...")."""

    def __init__(self, transport: str) -> None:
        super().__init__()
        self._name = transport
        self._transport: Transport | None = None
        self._links: set[Connection] = set()
        self._ending: set[asyncio.Task[Any]] = set()

    async def join(self, *, name: str, address: str, bonds: Bonds, advertising: bytes = b"") -> Device:
        assert self._transport is None, "one controller, one Sensor"
        identity = hci.Address(address, hci.Address.RANDOM_DEVICE_ADDRESS)
        self._transport = transport = await open_transport(self._name)
        config = DeviceConfiguration(name=name, address=identity, advertising_data=advertising)
        device = Device.from_config_with_hci(config, transport.source, transport.sink)
        device.keystore = bonds
        device.pairing_config_factory = lambda _connection: just_works()
        device.on("connection", self._on_connection)
        await device.power_on()
        return device

    async def leave(self, device: Device) -> None:
        transport, self._transport = self._transport, None
        await device.power_off()  # ends every link
        if transport is not None:
            await transport.close()

    def drop(self, address: str) -> None:
        """End every link: a controller can't be made to lose one."""
        for link in list(self._links):
            task = asyncio.create_task(link.disconnect(), name="drop")
            self._ending.add(task)
            task.add_done_callback(self._ended)

    def _on_connection(self, link: Connection) -> None:
        self._links.add(link)
        link.on(link.EVENT_DISCONNECTION, lambda _reason: self._links.discard(link))

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._ending.discard(task)
        if not task.cancelled():
            task.exception()  # it had gone by itself
