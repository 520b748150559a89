# mypy: ignore-errors
"""Module esp32: flash partitions, NVS and heap information. NOR flash: programming only clears bits."""

import os
import struct

import chip
import uctypes
from micropython import const
from wiring import ERASE, PROGRAM

HEAP_EXEC = const(1)
HEAP_DATA = const(4)

_BLOCK_BYTES = const(4096)
_INVALID_SIZE = const(-260)  # ESP_ERR_INVALID_SIZE
_NVS_NOT_FOUND = const(-4354)
_NVS_KEY_TOO_LONG = const(-4361)
_NVS_INVALID_LENGTH = const(-4364)
_NVS_KEY_MAX = const(15)
_I32 = ".i32"
_BLOB = ".blob"
_ENOENT = const(2)

_path = chip.boot["folder"] + "/flash"
_file = open(_path, "r+b")  # noqa: SIM115
_flash = uctypes.bytearray_at(chip.map_file(_path, chip.boot["flash_bytes"]), chip.boot["flash_bytes"])
_erased = b"\xff" * _BLOCK_BYTES


class Partition:
    """esp32.Partition. The three-argument writeblocks programs, the two-argument one erases first."""

    BOOT = 0
    RUNNING = 1
    TYPE_APP = 0
    TYPE_DATA = 1

    def __init__(self, which: object) -> None:
        rows = chip.boot["partitions"]
        if which in (Partition.BOOT, Partition.RUNNING):
            found = [row for row in rows if row[1] == Partition.TYPE_APP]
        else:
            found = [row for row in rows if row is which or row[0] == which]
        if not found:
            raise OSError(_ENOENT)
        self._label, self._type, self._subtype, self._address, self._size = found[0]

    @staticmethod
    def find(type: int = 0, subtype: int = 0xFF, label: str = None, block_size: int = _BLOCK_BYTES) -> list:
        return [
            Partition(row)
            for row in chip.boot["partitions"]
            if row[1] == type and subtype in (0xFF, row[2]) and label in (None, row[0])
        ]

    @classmethod
    def mark_app_valid_cancel_rollback(cls) -> None:
        chip.ask("app_valid")

    def info(self) -> tuple:
        return (self._type, self._subtype, self._address, self._size, self._label, False)

    def readblocks(self, block: int, buffer: object, offset: int = 0) -> None:
        chip.hold()
        try:
            _file.seek(self._at(block * _BLOCK_BYTES + offset, len(buffer)))
            _file.readinto(buffer)
        finally:
            chip.release()

    def writeblocks(self, block: int, buffer: object, offset: int = None) -> None:
        at = self._at(block * _BLOCK_BYTES + (offset or 0), len(buffer))
        chip.hold()
        try:
            if offset is None:
                if len(buffer) % _BLOCK_BYTES:
                    raise OSError(_INVALID_SIZE)
                for start in range(at, at + len(buffer), _BLOCK_BYTES):
                    _erase(start)
            _program(at, buffer)
        finally:
            chip.release()

    def ioctl(self, operation: int, argument: int) -> object:
        if operation == 4:
            return self._size // _BLOCK_BYTES
        if operation == 5:
            return _BLOCK_BYTES
        if operation == 6:
            at = self._at(argument * _BLOCK_BYTES, _BLOCK_BYTES)
            chip.hold()
            try:
                _erase(at)
            finally:
                chip.release()
        return 0 if operation in (1, 2, 3, 6) else None

    def get_next_update(self) -> "Partition":
        raise OSError(_ENOENT)  # one application slot: updates are files

    def set_boot(self) -> None:
        pass

    def _at(self, offset: int, length: int) -> int:
        if offset < 0 or offset + length > self._size:
            raise OSError(_INVALID_SIZE)
        return self._address + offset


def _program(at: int, buffer: object) -> None:
    chip.counters.programs += 1
    length = len(buffer)
    left = chip.power_left(PROGRAM)
    for index in range(length if left < 0 else min(left, length)):
        _flash[at + index] &= buffer[index]
    if left >= 0:
        chip.pull_plug()


def _erase(at: int) -> None:
    chip.counters.erases += 1
    left = chip.power_left(ERASE)
    if left < 0:
        _file.seek(at)
        _file.write(_erased)
        return
    for index in range(min(left, _BLOCK_BYTES)):
        _flash[at + index] = 0xFF
    chip.pull_plug()


class NVS:
    """
    esp32.NVS: what was committed survives, what was only set does not.

    A file for each value, `<namespace>/<key>.i32` or `.blob`, replaced at once; no heap is held for them.
    """

    _pending: dict = {}  # path: the bytes, or None when erased

    def __init__(self, namespace: str) -> None:
        self._folder = chip.boot["folder"] + "/nvs/" + _checked(namespace)
        _make_folder(self._folder)

    def set_i32(self, key: str, value: int) -> None:
        self._set(key, _I32, struct.pack("<i", value))

    def get_i32(self, key: str) -> int:
        return struct.unpack("<i", self._get(key, _I32))[0]

    def set_blob(self, key: str, value: object) -> None:
        self._set(key, _BLOB, bytes(value))

    def get_blob(self, key: str, buffer: object) -> int:
        value = self._get(key, _BLOB)
        if len(value) > len(buffer):
            raise OSError(_NVS_INVALID_LENGTH, "ESP_ERR_NVS_INVALID_LENGTH")
        memoryview(buffer)[: len(value)] = value
        return len(value)

    def erase_key(self, key: str) -> None:
        for kind in (_I32, _BLOB):
            try:
                self._get(key, kind)
            except OSError:
                continue
            self._set(key, kind, None)
            return
        raise OSError(_NVS_NOT_FOUND, "ESP_ERR_NVS_NOT_FOUND")

    def commit(self) -> None:
        chip.hold()
        try:
            while NVS._pending:
                path, value = NVS._pending.popitem()
                if value is None:
                    _remove(path)
                else:
                    with open(path + ".new", "wb") as file:
                        file.write(value)
                    chip.replace(path + ".new", path)
        finally:
            chip.release()

    def _set(self, key: str, kind: str, value: object) -> None:
        path = self._folder + "/" + _checked(key)
        NVS._pending[path + (_BLOB if kind == _I32 else _I32)] = None  # a key has one type
        NVS._pending[path + kind] = value

    def _get(self, key: str, kind: str) -> bytes:
        path = self._folder + "/" + key + kind
        try:
            value = NVS._pending[path]
        except KeyError:
            value = _content(path)
        if value is None:
            raise OSError(_NVS_NOT_FOUND, "ESP_ERR_NVS_NOT_FOUND")
        return value


def _checked(key: str) -> str:
    if len(key) > _NVS_KEY_MAX:
        raise OSError(_NVS_KEY_TOO_LONG, "ESP_ERR_NVS_KEY_TOO_LONG")
    return key


def _content(path: str) -> object:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def _remove(path: str) -> None:
    try:  # noqa: SIM105  (no contextlib here)
        os.unlink(path)
    except OSError:
        pass  # it was never there


def _make_folder(path: str) -> None:
    try:  # noqa: SIM105
        os.mkdir(path)
    except OSError:
        pass  # it is there


def idf_heap_info(capabilities: int) -> list:
    """(total, free, largest free block, least free) of each region: an ESP32 with Wi-Fi and TLS up."""
    if capabilities != HEAP_DATA:
        return []
    return [(98_304, 45_056, 31_744, 40_960), (131_072, 18_432, 12_288, 16_384)]


def mcu_temperature() -> int:
    return 41
