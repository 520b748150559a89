"""
The air of one room: bumble controllers on one in-process link, in which Sensors and Gateways hear each other.

Everything above the link layer is real (HCI, L2CAP, SMP, ATT); the air itself is perfect until it is told
otherwise: `drop` loses a link once, `cut` puts a host out of range until `restore`. The rule kept here:
whatever the air does, both ends learn of it the way a real controller would tell them (supervision timeout,
failed to be established), never by silence.
"""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bumble import hci, ll
from bumble.controller import Connection, Controller
from bumble.core import PhysicalTransport
from bumble.device import Device, DeviceConfiguration
from bumble.host import Host
from bumble.keys import KeyStore, PairingKeys
from bumble.link import LocalLink
from bumble.pairing import PairingConfig, PairingDelegate
from bumble.transport.common import AsyncPipeSink, Transport

# HCI error codes (Core 5.4 Vol 1 Part F).
SUPERVISION_TIMEOUT = 0x08
_FAILED_TO_BE_ESTABLISHED = 0x3E


class _Radio(Controller):
    """A Bluetooth 4 controller: no extended advertising, as the Sensors of a Kit and its ESP32 are used."""

    le_features = Controller.le_features & ~hci.LeFeatureMask.LE_EXTENDED_ADVERTISING

    def on_hci_le_create_connection_cancel_command(
        self, _command: hci.HCI_LE_Create_Connection_Cancel_Command
    ) -> hci.HCI_StatusReturnParameters:
        """Bumble's own only says "done": the attempt would stay pending for ever and block the next one."""
        pending, self.pending_le_connection = self.pending_le_connection, None
        if pending is None:
            return hci.HCI_StatusReturnParameters(hci.HCI_ErrorCode.COMMAND_DISALLOWED_ERROR)
        loop = asyncio.get_running_loop()
        loop.call_soon(self._say_not_connected, pending.peer_address)
        return hci.HCI_StatusReturnParameters(hci.HCI_ErrorCode.SUCCESS)

    def _say_not_connected(self, peer: hci.Address) -> None:
        self.send_hci_packet(
            hci.HCI_LE_Connection_Complete_Event(
                status=hci.HCI_ErrorCode.UNKNOWN_CONNECTION_IDENTIFIER_ERROR,
                connection_handle=0,
                role=hci.Role.CENTRAL,
                peer_address_type=peer.address_type,
                peer_address=peer,
                connection_interval=0,
                peripheral_latency=0,
                supervision_timeout=0,
                central_clock_accuracy=0,
            )
        )

    def lose(self, connection: Connection, reason: int) -> None:
        """End a connection on this side only, if it is still there."""
        if self.le_connections.get(connection.peer_address) is connection:
            self.on_le_disconnected(connection, reason)

    def on_link_acl_data(
        self, sender_address: hci.Address, transport: PhysicalTransport, data: bytes
    ) -> None:
        """What was in the air when the link went is lost."""
        if sender_address in self.le_connections:
            super().on_link_acl_data(sender_address, transport, data)

    def on_ll_control_pdu(self, sender_address: hci.Address, packet: ll.ControlPdu) -> None:
        if sender_address in self.le_connections:
            super().on_ll_control_pdu(sender_address, packet)


class Room(LocalLink):
    """One room. Hosts join with a static random address ("C0:..." and up) and hear each other at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._out_of_range: set[hci.Address] = set()

    async def join(self, *, name: str, address: str, bonds: "Bonds", advertising: bytes = b"") -> Device:
        """Power a new bumble host with its controller. Add its GATT services before anyone connects."""
        identity = hci.Address(address, hci.Address.RANDOM_DEVICE_ADDRESS)
        assert identity.is_static, f"{address} is not a static random address"
        device = Device(config=DeviceConfiguration(name=name, address=identity, advertising_data=advertising))
        radio = _Radio(name, link=self)
        device.host = Host(radio, AsyncPipeSink(radio))
        device.keystore = bonds
        device.pairing_config_factory = lambda _connection: just_works()
        await device.power_on()
        return device

    async def leave(self, device: Device) -> None:
        """Power a host off: its links time out at the other end, nobody hears it any more."""
        self.drop(str(device.static_address))
        await asyncio.sleep(0)  # let the host hear of it while its controller is there
        for radio in self._radios(device.static_address):
            radio.le_legacy_advertiser.stop()
            radio.pending_le_connection = None
            radio.host = None
            self.remove_controller(radio)
        await device.power_off()

    def drop(self, address: str) -> None:
        """Lose every link of this host once, on both ends at the same moment, as a supervision timeout."""
        lost = hci.Address(address, hci.Address.RANDOM_DEVICE_ADDRESS)
        for radio in list(self.controllers):
            for connection in list(radio.le_connections.values()):
                if lost in (connection.self_address, connection.peer_address):
                    assert isinstance(radio, _Radio)
                    radio.lose(connection, SUPERVISION_TIMEOUT)

    def cut(self, address: str) -> None:
        """Take this host out of range of everybody, until `restore`."""
        self._out_of_range.add(hci.Address(address, hci.Address.RANDOM_DEVICE_ADDRESS))
        self.drop(address)

    def restore(self, address: str) -> None:
        self._out_of_range.discard(hci.Address(address, hci.Address.RANDOM_DEVICE_ADDRESS))

    def _radios(self, address: hci.Address) -> list[Controller]:
        return [radio for radio in self.controllers if radio.random_address == address]

    def _hears(self, one: hci.Address, other: hci.Address) -> bool:
        return self._out_of_range.isdisjoint((one, other))

    # LocalLink: what controllers put on the air.

    def send_advertising_pdu(self, sender_controller: Controller, packet: ll.AdvertisingPdu) -> None:
        sender = sender_controller.random_address
        loop = asyncio.get_running_loop()
        for radio in self.controllers:
            if radio is not sender_controller and self._hears(sender, radio.random_address):
                loop.call_soon(radio.on_ll_advertising_pdu, packet)
        if isinstance(packet, ll.ConnectInd):
            loop.call_soon(self._check_established, sender_controller, packet.advertiser_address)

    def _check_established(self, initiator: Controller, peer: hci.Address) -> None:
        """Two Gateways can answer one advert; the one not taken must learn that it has no link."""
        taken = any(initiator.random_address in radio.le_connections for radio in self._radios(peer))
        connection = initiator.le_connections.get(peer)
        if connection is not None and not taken:
            assert isinstance(initiator, _Radio)
            initiator.lose(connection, _FAILED_TO_BE_ESTABLISHED)

    def send_acl_data(
        self,
        sender_controller: Controller,
        destination_address: hci.Address,
        transport: PhysicalTransport,
        data: bytes,
    ) -> None:
        if self._hears(sender_controller.random_address, destination_address):
            super().send_acl_data(sender_controller, destination_address, transport, data)

    def send_ll_control_pdu(
        self, sender_address: hci.Address, receiver_address: hci.Address, packet: ll.ControlPdu
    ) -> None:
        if self._hears(sender_address, receiver_address) and self.find_le_controller(receiver_address):
            super().send_ll_control_pdu(sender_address, receiver_address, packet)


def controller(room: Room, name: str, transport: Transport) -> Controller:
    """A controller of this room, reached through its HCI: to its host it is a real one."""
    return _Radio(name, link=room, host_source=transport.source, host_sink=transport.sink)


class Bonds(KeyStore):
    """
    The bonds of one host, kept over power cycles: in this object, and in a JSON file when a path is given.

    File: {"<peer address>": {"ltk": {"value": hex, ...}, ...}}. Every change goes to a temporary file that is
    synced and renamed, so that a power cut leaves either the old bonds or the new ones.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._keys: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self._keys = json.loads(path.read_text())

    @property
    def peers(self) -> list[str]:
        return list(self._keys)

    def forget(self) -> None:
        self._keys.clear()
        self._save()

    async def get(self, name: str) -> PairingKeys | None:
        keys = self._keys.get(name)
        return None if keys is None else PairingKeys.from_dict(keys)

    async def get_all(self) -> list[tuple[str, PairingKeys]]:
        return [(name, PairingKeys.from_dict(keys)) for name, keys in self._keys.items()]

    async def update(self, name: str, keys: PairingKeys) -> None:
        self._keys[name] = keys.to_dict()
        self._save()

    async def delete(self, name: str) -> None:
        if self._keys.pop(name, None) is not None:
            self._save()

    def _save(self) -> None:
        if self._path is None:
            return
        new = self._path.with_name(self._path.name + ".new")
        with new.open("w") as file:
            json.dump(self._keys, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class _Consent(PairingDelegate):
    """Accepts a pairing request while `accepts` says so; has no keypad and no display."""

    def __init__(self, accepts: Callable[[], bool]) -> None:
        encryption_key_only = PairingDelegate.KeyDistribution.DISTRIBUTE_ENCRYPTION_KEY
        super().__init__(PairingDelegate.NO_OUTPUT_NO_INPUT, encryption_key_only, encryption_key_only)
        self._accepts = accepts

    async def accept(self) -> bool:
        return self._accepts()


def just_works(accepts: Callable[[], bool] = lambda: True) -> PairingConfig:
    """
    Unauthenticated LE Secure Connections with bonding: what a cuff or an oximeter without keypad and display
    can do.

    No identity key is handed out: the identity is the static address in use, and a peer for which bumble
    holds an IRK is first searched for by scanning, which blocks the connection.
    """
    return PairingConfig(
        sc=True,
        mitm=False,
        bonding=True,
        identity_address_type=PairingConfig.AddressType.RANDOM,
        delegate=_Consent(accepts),
    )
