# mypy: ignore-errors
"""
Module bluetooth: the central's half of BLE, with the semantics of NimBLE on the ESP32.

What the radio does happens in the host process (hw/virtual/board_radio.py); events come through `chip`. The
peripheral's half (gap_advertise, gatts_*) and L2CAP are not here: the Gateway has no use for them.
"""

import chip
from micropython import const
from wiring import HANDLER

FLAG_READ = const(0x02)
FLAG_WRITE_NO_RESPONSE = const(0x04)
FLAG_WRITE = const(0x08)
FLAG_NOTIFY = const(0x10)
FLAG_INDICATE = const(0x20)

_ENODEV = const(19)


class UUID:
    """bluetooth.UUID: 16 or 128 bits, from an int, a string, or the little-endian bytes."""

    def __init__(self, value: object) -> None:
        if isinstance(value, int):
            value = bytes((value & 0xFF, value >> 8))
        elif isinstance(value, str):
            value = bytes(reversed(bytes.fromhex(value.replace("-", ""))))
        self._bytes = bytes(value)
        if len(self._bytes) not in (2, 16):
            raise ValueError("invalid UUID")

    def __iter__(self) -> object:
        return iter(self._bytes)  # so that bytes(uuid) and UUID(uuid) copy it

    def __len__(self) -> int:
        return len(self._bytes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UUID) and bytes(self._bytes) == bytes(other._bytes)

    def __lt__(self, other: "UUID") -> bool:
        return bytes(self._bytes) < bytes(other._bytes)

    def __hash__(self) -> int:
        return hash(bytes(self._bytes))

    def __str__(self) -> str:
        text = bytes(reversed(bytes(self._bytes))).hex()
        if len(text) == 4:
            return "UUID(0x" + text + ")"
        parts = (text[:8], text[8:12], text[12:16], text[16:20], text[20:])
        return "UUID('" + "-".join(parts) + "')"

    __repr__ = __str__

    def show(self, view: memoryview) -> None:
        """Become the UUID of the event that is being delivered."""
        self._bytes = view

    def forget(self) -> None:
        self._bytes = b"\xa5\xa5"


chip.uuid_seen = UUID(0)


class BLE:
    """bluetooth.BLE: one radio, so one object."""

    _one = None

    def __new__(cls) -> "BLE":
        if cls._one is None:
            cls._one = super().__new__(cls)
            cls._one._active = False
        return cls._one

    def active(self, on: bool = None) -> bool:
        if on is not None and bool(on) != self._active:
            chip.ask("ble_active", on=bool(on))
            self._active = bool(on)
        return self._active

    def config(self, *what: str, **new: object) -> object:
        if not what:
            return self._ask("ble_config", **new)
        if what[0] == "mac":
            kind, address = self._ask("ble_config", get="mac")
            return (kind, bytes.fromhex(address))
        return self._ask("ble_config", get=what[0])

    def irq(self, handler: object) -> None:
        chip.radio_handler = handler
        chip.wires[HANDLER] = 1 if handler else 0

    def gap_scan(
        self,
        duration_ms: int = 0,
        interval_us: int = 1_280_000,
        window_us: int = 11_250,
        active: bool = False,
    ) -> None:
        self._ask("ble_scan", duration_ms=duration_ms)

    def gap_connect(
        self,
        addr_type: int,
        addr: object = None,
        scan_duration_ms: int = 2000,
        min_conn_interval_us: int = 0,
        max_conn_interval_us: int = 0,
    ) -> None:
        if addr_type is None:
            self._ask("ble_connect_cancel")
            return
        if len(addr) != 6:
            raise ValueError("invalid addr")
        self._ask("ble_connect", kind=addr_type, address=bytes(addr).hex(), duration_ms=scan_duration_ms)

    def gap_disconnect(self, conn_handle: int) -> bool:
        return self._ask("ble_disconnect", conn=conn_handle)

    def gap_pair(self, conn_handle: int) -> None:
        self._ask("ble_pair", conn=conn_handle)

    def gattc_discover_services(self, conn_handle: int, uuid: UUID = None) -> None:
        self._ask("ble_services", conn=conn_handle, uuid=_hex(uuid))

    def gattc_discover_characteristics(
        self, conn_handle: int, start_handle: int, end_handle: int, uuid: UUID = None
    ) -> None:
        self._ask(
            "ble_characteristics", conn=conn_handle, start=start_handle, end=end_handle, uuid=_hex(uuid)
        )

    def gattc_discover_descriptors(self, conn_handle: int, start_handle: int, end_handle: int) -> None:
        self._ask("ble_descriptors", conn=conn_handle, start=start_handle, end=end_handle)

    def gattc_read(self, conn_handle: int, value_handle: int) -> None:
        self._ask("ble_read", conn=conn_handle, handle=value_handle)

    def gattc_write(self, conn_handle: int, value_handle: int, data: object, mode: int = 0) -> None:
        value = data.encode() if isinstance(data, str) else bytes(data)
        self._ask("ble_write", conn=conn_handle, handle=value_handle, value=value.hex(), mode=mode)

    def gattc_exchange_mtu(self, conn_handle: int) -> None:
        self._ask("ble_mtu", conn=conn_handle)

    def _ask(self, question: str, **values: object) -> object:
        if not self._active:
            raise OSError(_ENODEV)
        return chip.ask(question, **values)


def _hex(uuid: UUID) -> object:
    return None if uuid is None else bytes(uuid).hex()
