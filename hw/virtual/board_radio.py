"""
The radio of a Board: the central's half of NimBLE over bumble, as MicroPython's `bluetooth` shows it.

Every event is queued to the board in the order in which it happens, and the board handles one at a time. The
rule kept here (P1 rests on it): the confirmation of an indication is sent when the board says that its
handler has returned, whatever it returned; a board that dies before that has confirmed nothing.

Bonds are kept by the board alone: NimBLE asks for keys and hands them over by the events GET_SECRET and
SET_SECRET, and nothing is remembered here.
"""

import asyncio
import os
import struct
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from bumble import att, core, hci
from bumble.core import UUID
from bumble.device import Advertisement, Connection
from bumble.gatt_client import Client, ServiceProxy
from bumble.keys import KeyStore, PairingKeys
from bumble.pairing import PairingConfig, PairingDelegate

from hw.virtual.bleak_backend import BumbleAdapter
from hw.virtual.board_event import Signed, Uuid
from hw.virtual.radio import Room

# _IRQ_ numbers of the documentation.
SCAN_RESULT, SCAN_DONE, CONNECTED, DISCONNECTED = 5, 6, 7, 8
SERVICE_RESULT, SERVICE_DONE, CHARACTERISTIC_RESULT, CHARACTERISTIC_DONE = 9, 10, 11, 12
DESCRIPTOR_RESULT, DESCRIPTOR_DONE, READ_RESULT, READ_DONE, WRITE_DONE = 13, 14, 15, 16, 17
NOTIFY, INDICATE, MTU_EXCHANGED, ENCRYPTION_UPDATE, GET_SECRET, SET_SECRET = 18, 19, 21, 28, 29, 30

# Errors as the module raises them (MicroPython's own numbers), and as NimBLE reports them.
_EBUSY, _EINVAL, _ENOTCONN, _EALREADY = 16, 22, 107, 114
_BLE_HS_ENOTCONN, _BLE_HS_ETIMEOUT, _ATT_ERROR = 7, 13, 0x100

# Types of secrets (NimBLE's store).
_OUR_SECRET, _PEER_SECRET, _OUR_IRK = 1, 2, 10
_NOBODY = 0xFFFF
_MAX_WAITING_ADVERTS = 8

_SECRET = struct.Struct("<7sBBH8s16s45x")
"""Address, key size, flags (1 authenticated, 2 LE Secure), EDIV, RAND, LTK: 80 bytes, as NimBLE's are."""

Post = Callable[..., "asyncio.Future[Any]"]
Procedure = Callable[[], Coroutine[Any, Any, None]]


class Central:
    """The controller and host of one Board; `answer` is what module bluetooth asks."""

    def __init__(self, room: Room, address: str, post: Post, has_handler: Callable[[], bool]) -> None:
        self.address = address
        self.confirmed = 0  # indications
        self._post = post
        self._has_handler = has_handler
        self._adapter = BumbleAdapter(room, address, name="Board")
        self._links: dict[int, _Link] = {}
        self._settings: dict[str, Any] = {}
        self._is_on = False
        self._scanning: asyncio.Task[None] | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Future[Any]] = set()
        self._adverts = 0  # posted, not handled yet

    async def power_off(self) -> None:
        """Links time out at the Sensors; nobody is left to be told."""
        await asyncio.gather(*self._answering, return_exceptions=True)
        await self._cancel(self._scanning, self._connecting)
        self._scanning = self._connecting = None
        if self._is_on:
            self._is_on = False
            await self._adapter.stop()  # ends every link
        self._links.clear()

    async def answer(self, question: str, values: dict[str, Any]) -> Any:
        answers: dict[str, Callable[..., Awaitable[Any]]] = {
            "active": self._active,
            "config": self._config,
            "scan": self._scan,
            "connect": self._connect,
            "connect_cancel": self._connect_cancel,
            "disconnect": self._disconnect,
            "pair": self._pair,
            "services": self._services,
            "characteristics": self._characteristics,
            "descriptors": self._descriptors,
            "read": self._read,
            "write": self._write,
            "mtu": self._mtu,
        }
        work = asyncio.ensure_future(answers[question](**values))
        self._answering.add(work)
        work.add_done_callback(self._answering.discard)
        # Shielded: a command to the controller that is cancelled half-way leaves bumble with its answer.
        return await asyncio.shield(work)

    # GAP.

    async def _active(self, on: bool) -> None:
        if not on:
            for link in list(self._links.values()):
                await _quietly(link.connection.disconnect())
            self._answering.clear()  # this very answer
            await self.power_off()
            return
        self._settings = {"bond": False, "mitm": False, "io": 3, "le_secure": False, "mtu": 256, "rxbuf": 256}
        self._settings |= {"gap_name": "MPY ESP32", "addr_mode": 1}
        await self._adapter.start()
        self._is_on = True
        self._adapter.device.keystore = _Secrets(self._post, self._announce)
        self._adapter.device.pairing_config_factory = lambda _link: self._pairing()
        self._adapter.device.on("connection", self._on_connection)
        if self._has_handler():
            asyncio.create_task(self._load_identity(), name="irk").add_done_callback(_cancelled_is_fine)

    async def _load_identity(self) -> None:
        """NimBLE's first question: its own identity key."""
        if not await self._post(GET_SECRET, _OUR_IRK, 0, b"irk"):
            await self._post(SET_SECRET, _OUR_IRK, b"irk", os.urandom(16))

    async def _config(self, get: str | None = None, **new: Any) -> Any:
        if get == "mac":
            return [1, self.address.replace(":", "").lower()]
        if get is not None:
            if get not in self._settings:
                raise OSError(_EINVAL)
            return self._settings[get]
        self._settings |= new
        return None

    def _pairing(self) -> PairingConfig:
        encryption_key_only = PairingDelegate.KeyDistribution.DISTRIBUTE_ENCRYPTION_KEY
        return PairingConfig(
            sc=bool(self._settings["le_secure"]),
            mitm=bool(self._settings["mitm"]),
            bonding=bool(self._settings["bond"]),
            identity_address_type=PairingConfig.AddressType.RANDOM,
            delegate=PairingDelegate(
                PairingDelegate.NO_OUTPUT_NO_INPUT, encryption_key_only, encryption_key_only
            ),
        )

    async def _scan(self, duration_ms: int | None) -> None:
        if duration_ms is None:
            await self._stop_scanning()
            return
        if self._scanning is not None:
            raise OSError(_EALREADY)
        if self._connecting is not None:
            raise OSError(_EBUSY)
        self._adapter.device.on("advertisement", self._on_advert)
        await self._adapter.device.start_scanning(active=False, filter_duplicates=False)
        self._scanning = asyncio.create_task(self._end_scan(duration_ms), name="scan")

    async def _end_scan(self, duration_ms: int) -> None:
        if not duration_ms:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(duration_ms / 1000)
        self._scanning = None
        await self._silence()

    async def _stop_scanning(self) -> None:
        scanning, self._scanning = self._scanning, None
        if scanning is not None:
            await self._cancel(scanning)
            await self._silence()

    async def _silence(self) -> None:
        self._adapter.device.remove_listener("advertisement", self._on_advert)
        await self._adapter.device.stop_scanning()
        self._post(SCAN_DONE)

    def _on_advert(self, advert: Advertisement) -> None:
        """Dropped when the board does not keep up, as NimBLE drops them."""
        if self._adverts >= _MAX_WAITING_ADVERTS:
            return
        self._adverts += 1
        kind = 0 if advert.is_connectable else 3
        address = bytes(reversed(bytes(advert.address)))
        told = self._post(
            SCAN_RESULT, _kind(advert.address), address, kind, Signed(advert.rssi), bytes(advert.data_bytes)
        )
        told.add_done_callback(self._advert_told)

    def _advert_told(self, _told: "asyncio.Future[Any]") -> None:
        self._adverts -= 1

    async def _connect(self, kind: int, address: str, duration_ms: int) -> None:
        if self._connecting is not None:
            raise OSError(_EALREADY)
        await self._stop_scanning()
        peer = hci.Address(
            bytes(reversed(bytes.fromhex(address))),
            hci.Address.RANDOM_DEVICE_ADDRESS if kind else hci.Address.PUBLIC_DEVICE_ADDRESS,
        )
        self._connecting = asyncio.create_task(self._call(peer, duration_ms / 1000), name="connect")

    async def _call(self, peer: hci.Address, timeout_s: float) -> None:
        try:
            await self._adapter.connect(peer, timeout_s)
        except Exception:  # whatever it is, the module has one way to say so
            self._connecting = None
            self._post(DISCONNECTED, _NOBODY, 0xFF, bytes(6))
        self._connecting = None

    async def _connect_cancel(self) -> None:
        connecting, self._connecting = self._connecting, None
        if connecting is None:
            raise OSError(_EALREADY)
        await self._cancel(connecting)
        self._post(DISCONNECTED, _NOBODY, 0xFF, bytes(6))

    def _on_connection(self, connection: Connection) -> None:
        link = self._links[connection.handle] = _Link(connection)
        client = connection.gatt_client
        # Bumble finds these by name; its own would confirm at once.
        vars(client).update(
            on_att_handle_value_notification=lambda pdu: self._on_notification(link, pdu),
            on_att_handle_value_indication=lambda pdu: self._on_indication(link, pdu),
        )
        on = connection.on
        on(connection.EVENT_DISCONNECTION, lambda _reason: self._on_disconnection(link))
        on(connection.EVENT_CONNECTION_ENCRYPTION_CHANGE, lambda: self._on_encryption(link))
        on(connection.EVENT_SECURITY_REQUEST, lambda _wish: self._secure_in_background(link))
        on(connection.EVENT_PAIRING, lambda *_: self._on_paired(link))
        self._connecting = None
        self._post(CONNECTED, connection.handle, _kind(connection.peer_address), link.address)

    def _on_disconnection(self, link: "_Link") -> None:
        """NimBLE first ends what is under way, then tells of the end of the link."""
        if self._links.pop(link.handle, None) is None:
            return
        for done in link.cancel():
            self._post(*done, _BLE_HS_ENOTCONN)
        self._post(DISCONNECTED, link.handle, _kind(link.connection.peer_address), link.address)

    async def _disconnect(self, conn: int) -> bool:
        link = self._links.get(conn)
        if link is None:
            return False
        link.run(_quietly(link.connection.disconnect()))
        return True

    # Security.

    async def _pair(self, conn: int) -> None:
        link = self._link(conn)
        if link.pairing:
            raise OSError(_EALREADY)
        self._secure_in_background(link)

    def _secure_in_background(self, link: "_Link") -> None:
        if not link.pairing:
            link.pairing = True
            link.run(self._secure(link))

    async def _secure(self, link: "_Link") -> None:
        """With the key of a bond if the board has one, else by pairing: what NimBLE does."""
        try:
            try:
                await link.connection.encrypt()
            except core.InvalidOperationError:  # the board has no key
                await link.connection.pair()  # the event is posted by `_announce` or `_on_paired`
            else:
                link.bonded = True
                self._announce_link(link)
        except (hci.HCI_Error, core.BaseBumbleError, asyncio.CancelledError):
            if link.handle in self._links:
                self._post(ENCRYPTION_UPDATE, link.handle, False, False, False, 0)
        finally:
            link.pairing = False

    def _on_encryption(self, link: "_Link") -> None:
        """While pairing, NimBLE tells of it at the end."""
        link.encrypted = bool(link.connection.is_encrypted)

    def _announce(self, address: str, authenticated: bool) -> None:
        """Pairing is over; NimBLE says so just before it hands over the keys."""
        for link in self._links.values():
            if str(link.connection.peer_address) == address:
                link.authenticated = authenticated
                link.bonded = True
                self._announce_link(link)

    def _on_paired(self, link: "_Link") -> None:
        if not link.announced:  # no bond was asked for, so no key was kept
            self._announce_link(link)

    def _announce_link(self, link: "_Link") -> None:
        link.announced = True
        self._post(ENCRYPTION_UPDATE, link.handle, True, link.authenticated, link.bonded, 16)

    # GATT client.

    async def _services(self, conn: int, uuid: str | None) -> None:
        link = self._link(conn)

        async def discover() -> None:
            for service in await link.client.discover_services([_uuid(uuid)] if uuid else []):
                if not uuid or service.uuid == _uuid(uuid):
                    self._post(
                        SERVICE_RESULT, conn, service.handle, service.end_group_handle, _value(service.uuid)
                    )

        self._procedure(link, discover, SERVICE_DONE, conn)

    async def _characteristics(self, conn: int, start: int, end: int, uuid: str | None) -> None:
        link = self._link(conn)
        if link.discovering:
            raise OSError(_EBUSY)
        link.discovering = True

        async def discover() -> None:
            try:
                range_ = ServiceProxy(link.client, start, end, UUID.from_16_bits(0))  # type: ignore[no-untyped-call]
                found = await link.client.discover_characteristics([_uuid(uuid)] if uuid else [], range_)
            finally:
                link.discovering = False
            for each in found:
                last, properties = each.end_group_handle, int(each.properties)
                self._post(CHARACTERISTIC_RESULT, conn, last, each.handle, properties, _value(each.uuid))

        self._procedure(link, discover, CHARACTERISTIC_DONE, conn)

    async def _descriptors(self, conn: int, start: int, end: int) -> None:
        link = self._link(conn)

        async def discover() -> None:
            if start >= end:
                return
            # NimBLE takes the start for a value handle, and looks behind it.
            for each in await link.client.discover_descriptors(start_handle=start + 1, end_handle=end):
                self._post(DESCRIPTOR_RESULT, conn, each.handle, _value(each.type))

        self._procedure(link, discover, DESCRIPTOR_DONE, conn)

    async def _read(self, conn: int, handle: int) -> None:
        link = self._link(conn)

        async def read() -> None:
            self._post(READ_RESULT, conn, handle, await link.client.read_value(handle, no_long_read=True))

        self._procedure(link, read, READ_DONE, conn, handle)

    async def _write(self, conn: int, handle: int, value: str, mode: int) -> None:
        link = self._link(conn)

        async def write() -> None:
            await link.client.write_value(handle, bytes.fromhex(value), with_response=mode == 1)

        if mode == 1:
            self._procedure(link, write, WRITE_DONE, conn, handle)
        else:
            await write()

    async def _mtu(self, conn: int) -> None:
        link = self._link(conn)

        async def exchange() -> None:
            self._post(MTU_EXCHANGED, conn, await link.client.request_mtu(int(self._settings["mtu"])))

        link.run(_quietly(exchange()))

    def _procedure(self, link: "_Link", work: Procedure, *done: int) -> None:
        """Run one GATT procedure; `done`: the event that tells of its end, without the status."""
        link.run(self._run(link, work, done), done)

    async def _run(self, link: "_Link", work: Procedure, done: tuple[int, ...]) -> None:
        status = 0
        try:
            async with link.one_at_a_time:
                await work()
        except att.ATT_Error as error:
            status = _ATT_ERROR + int(error.error_code)
        except (core.BaseBumbleError, TimeoutError):
            status = _BLE_HS_ETIMEOUT
        link.ends.pop(asyncio.current_task(), None)  # type: ignore[arg-type]
        self._post(*done, status)

    def _on_notification(self, link: "_Link", pdu: att.ATT_Handle_Value_Notification) -> None:
        self._post(NOTIFY, link.handle, pdu.attribute_handle, bytes(pdu.attribute_value))

    def _on_indication(self, link: "_Link", pdu: att.ATT_Handle_Value_Indication) -> None:
        told = self._post(INDICATE, link.handle, pdu.attribute_handle, bytes(pdu.attribute_value))
        told.add_done_callback(lambda told: self._confirm(link, told))

    def _confirm(self, link: "_Link", told: "asyncio.Future[Any]") -> None:
        if not told.cancelled() and link.handle in self._links:
            self.confirmed += 1
            link.client.send_confirmation(att.ATT_Handle_Value_Confirmation())

    def _link(self, conn: int) -> "_Link":
        link = self._links.get(conn)
        if link is None:
            raise OSError(_ENOTCONN)
        return link

    async def _cancel(self, *tasks: "asyncio.Task[None] | None") -> None:
        for task in tasks:
            if task is not None and task is not asyncio.current_task():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


class _Link:
    """One connection and what is under way on it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.handle: int = connection.handle
        self.address = bytes(reversed(bytes(connection.peer_address)))
        self.client: Client = connection.gatt_client
        self.one_at_a_time = asyncio.Lock()  # ATT has one request outstanding
        self.encrypted = self.authenticated = self.bonded = self.announced = False
        self.pairing = self.discovering = False
        self.ends: dict[asyncio.Task[None], tuple[int, ...]] = {}  # events owed for procedures under way

    def run(self, work: Coroutine[Any, Any, None], done: tuple[int, ...] = ()) -> None:
        task = asyncio.create_task(work, name=f"link {self.handle}")
        self.ends[task] = done
        task.add_done_callback(lambda task: self.ends.pop(task, None))
        task.add_done_callback(_cancelled_is_fine)

    def cancel(self) -> list[tuple[int, ...]]:
        """End everything; the events that are owed for it, in order."""
        owed = [done for done in self.ends.values() if done]
        for task in list(self.ends):
            task.cancel()
        self.ends.clear()
        return owed


class _Secrets(KeyStore):
    """Bumble's key store, kept by the board."""

    def __init__(self, post: Post, announce: Callable[[str, bool], None]) -> None:
        self._post = post
        self._announce = announce

    async def get(self, name: str) -> PairingKeys | None:
        value = await self._post(GET_SECRET, _PEER_SECRET, 0, _key(name))
        if not isinstance(value, bytes) or len(value) != _SECRET.size:
            return None
        _, _, flags, ediv, rand, ltk = _SECRET.unpack(value)
        key = PairingKeys.Key(value=ltk, authenticated=bool(flags & 1), ediv=ediv, rand=rand)
        return PairingKeys(ltk=key) if flags & 2 else PairingKeys(ltk_central=key)

    async def get_all(self) -> list[tuple[str, PairingKeys]]:
        return []  # only asked for identity keys, which the Sensors do not hand out

    async def update(self, name: str, keys: PairingKeys) -> None:
        key = keys.ltk or keys.ltk_central
        assert key is not None
        flags = (1 if key.authenticated else 0) | (2 if keys.ltk else 0)
        value = _SECRET.pack(_key(name), 16, flags, key.ediv or 0, key.rand or bytes(8), key.value)
        self._announce(name, key.authenticated)
        for kind in (_OUR_SECRET, _PEER_SECRET):
            await self._post(SET_SECRET, kind, _key(name), value)

    async def delete(self, name: str) -> None:
        for kind in (_OUR_SECRET, _PEER_SECRET):
            await self._post(SET_SECRET, kind, _key(name), None)


async def _quietly(work: Coroutine[Any, Any, Any]) -> None:
    """The link may go first, and that has an event of its own."""
    with suppress(core.BaseBumbleError, hci.HCI_Error, att.ATT_Error):
        await work


def _cancelled_is_fine(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        asyncio.get_running_loop().call_exception_handler({"message": task.get_name(), "exception": error})


def _key(name: str) -> bytes:
    """ble_addr_t: the type, then the address from its last byte to the first."""
    address = hci.Address(name)
    return bytes((_kind(address),)) + bytes(address)


def _kind(address: hci.Address) -> int:
    return 0 if address.is_public else 1


def _uuid(text: str) -> UUID:
    return UUID.from_bytes(bytes.fromhex(text))


def _value(uuid: UUID) -> Uuid:
    return Uuid(bytes(uuid.uuid_bytes))
