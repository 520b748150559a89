"""Bonds: the bonded Sensors, the keys that NimBLE has agreed on with them, and where their values stand.

Two copies in a flash of their own, each half of it, written in turn:

    0   2  magic "HB"
    2   u16  version (1)
    4   u32  generation
    8   u32  length of the content
    12  u32  CRC-32 over generation, length and content
    16  ...  content, JSON: {"sensors": [], "secrets": [[type, key, value]], "handles": {address: []}}

The content is programmed before the header, and the other copy stays untouched: a power cut leaves the old
bonds or the new ones.
"""

import json
import struct
from binascii import crc32

from gateway.block import padded
from gateway.port import const

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gateway.block import Flash

_MAGIC = b"HB"
_VERSION = const(1)
_HEADER = "<2sHIII"
_HEADER_BYTES = const(16)
PEER_KEY = const(2)
"""NimBLE's type of the key by which the peer is known again; 1 is our own, and is handed over before it."""


class Bonds:
    """Gateway's `Bonds`, and NimBLE's store of secrets. Raises OSError where the flash refuses."""

    def __init__(self, flash: "Flash") -> None:
        self._flash = flash
        self._half = flash.size // 2 // flash.block_bytes * flash.block_bytes
        self._sensors: list[dict[str, Any]] = []
        # (type, key, value). Replaced as a whole: the handler may read while the main loop forgets.
        self._secrets: tuple[tuple[int, bytes, bytes], ...] = ()
        self._handles: dict[str, list[list[int]]] = {}
        self._generation = 0
        self._newest = 1  # which copy; the next one goes to the other
        self._changed = False
        self._mount()

    def load(self) -> "list[dict[str, Any]]":
        """Return the bonded Sensors."""
        return self._sensors

    def save(self, sensors: "list[dict[str, Any]]") -> None:
        """Replace the bonded Sensors; what has changed besides is kept with them."""
        self._sensors = sensors
        self._changed = True
        self.keep()

    def keep(self) -> None:
        """Write what has changed."""
        if self._changed:
            self._changed = False
            self._write()

    def clear(self) -> None:
        """Forget everything."""
        self._secrets = ()
        self._handles = {}
        self.save([])

    # --- NimBLE's secrets: asked for in the handler ---------------------------------------------------------

    def secret(self, type: int, index: int, key: "bytes | None") -> "bytes | None":
        """Return the secret of a type with this key, or the index'th of its type."""
        for each in self._secrets:
            if each[0] == type and (key is None or each[1] == key):
                if key is not None or index == 0:
                    return each[2]
                index -= 1
        return None

    def set_secret(self, type: int, key: bytes, value: "bytes | None") -> None:
        """Replace or forget (None) a secret. It is in flash after the next `keep`."""
        others = tuple([each for each in self._secrets if each[0] != type or each[1] != key])
        self._secrets = others if value is None else others + ((type, key, value),)
        self._changed = True

    def is_bonded(self, address: bytes) -> bool:
        """Whether there is a key of the peer with this address (6 bytes, as people write it)."""
        wanted = reverse(address)
        return any(each[0] == PEER_KEY and wanted in each[1] for each in self._secrets)

    def forget(self, address: bytes) -> None:
        """Forget the keys of a peer: it has forgotten ours."""
        wanted = reverse(address)
        self._secrets = tuple([each for each in self._secrets if wanted not in each[1]])
        self._changed = True
        self.keep()

    # --- Value handles --------------------------------------------------------------------------------------

    def handles(self, address: bytes) -> "dict[int, int]":
        """Return the characteristics of a bonded Sensor by value handle, as last discovered."""
        return {row[0]: row[1] for row in self._handles.get(address.hex(), ())}

    def keep_handles(self, address: bytes, handles: "dict[int, int]") -> None:
        """Remember them: a Sensor that knows us may indicate before we have discovered it again."""
        if handles != self.handles(address):
            self._handles[address.hex()] = [[handle, handles[handle]] for handle in sorted(handles)]
            self._changed = True
            self.keep()

    # --- Flash ----------------------------------------------------------------------------------------------

    def _mount(self) -> None:
        for copy in (0, 1):
            found = self._read(copy)
            if found is not None and found[0] > self._generation:
                self._generation, content = found
                self._newest = copy
                self._sensors = content["sensors"]
                self._handles = content["handles"]
                self._secrets = tuple([_secret(each) for each in content["secrets"]])

    def _read(self, copy: int) -> "tuple[int, dict[str, Any]] | None":
        """Return generation and content of a copy, None when it is not whole."""
        header = bytearray(_HEADER_BYTES)
        self._flash.read(copy * self._half, header)
        magic, version, generation, length, crc = struct.unpack(_HEADER, header)
        if magic != _MAGIC or version != _VERSION or length > self._half - _HEADER_BYTES:
            return None
        content = bytearray(length)
        self._flash.read(copy * self._half + _HEADER_BYTES, content)
        return (generation, json.loads(content)) if _crc(header, content) == crc else None

    def _write(self) -> None:
        content = json.dumps(
            {
                "sensors": self._sensors,
                "secrets": [(type, key.hex(), value.hex()) for type, key, value in self._secrets],
                "handles": self._handles,
            }
        ).encode()
        if len(content) > self._half - _HEADER_BYTES:
            raise OSError("%d bytes of bonds" % len(content))
        header = bytearray(_HEADER_BYTES)
        struct.pack_into(_HEADER, header, 0, _MAGIC, _VERSION, self._generation + 1, len(content), 0)
        struct.pack_into("<I", header, 12, _crc(header, content))
        copy = 1 - self._newest
        start = copy * self._half
        blocks = self._half // self._flash.block_bytes
        for position in range(copy * blocks, (copy + 1) * blocks):
            self._flash.erase(position)
        words = content + b"\xff" * (padded(len(content)) - len(content))
        self._flash.program(start + _HEADER_BYTES, memoryview(words))
        self._flash.program(start, header)
        self._generation += 1
        self._newest = copy


def reverse(address: bytes) -> bytes:
    """Return the bytes of an address in the order of the air, which is that of NimBLE's keys."""
    return bytes([address[5 - i] for i in range(6)])


def _secret(row: "list[Any]") -> "tuple[int, bytes, bytes]":
    return row[0], bytes.fromhex(row[1]), bytes.fromhex(row[2])


def _crc(header: bytearray, content: "bytes | bytearray") -> int:
    return crc32(content, crc32(memoryview(header)[4:12])) & 0xFFFFFFFF
