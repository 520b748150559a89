"""
An ESP32 or ESP32-S3 in download mode: registers, flash, and the answers of its ROM or of esptool's stub.

Pure but for the flash's file: a frame goes in, the frames of its answer come out. The flash is NOR: an erase
sets every bit of a sector, programming only clears them. The ROM erases all that a write will need when it
begins, the stub each sector as it comes to it; a reset in between leaves what had been done and nothing more.

The rule kept here: nothing is answered that a chip would not answer, and `Faults` are the only ways to fail.
Commands are those of esptool's documentation, "Serial Protocol".
"""

import hashlib
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SECTOR_BYTES = 4096
ROM_BAUD = 115200
SIZE_CODES = {4 << 20: 0x16, 8 << 20: 0x17, 16 << 20: 0x18}
"""Bytes of a flash, and that size in its JEDEC id."""
OPERATIONS = {
    0x02: "flash_begin",
    0x03: "flash_data",
    0x04: "flash_end",
    0x05: "mem_begin",
    0x06: "mem_end",
    0x07: "mem_data",
    0x08: "sync",
    0x09: "write_reg",
    0x0A: "read_reg",
    0x0B: "spi_set_params",
    0x0D: "spi_attach",
    0x0E: "read_slow",
    0x0F: "change_baud",
    0x10: "defl_begin",
    0x11: "defl_data",
    0x12: "defl_end",
    0x13: "md5",
    0x14: "security_info",
    0xD0: "erase_flash",
    0xD1: "erase_region",
    0xD2: "read_flash",
}

_ONLY_STUB = ("erase_flash", "erase_region", "read_flash")
_ONLY_ROM = ("read_slow",)
_BLOCKS = ("flash_data", "defl_data", "mem_data")
_REQUEST = struct.Struct("<BBHI")  # direction, command, length, checksum or value
_FOUR = struct.Struct("<IIII")
_CHECKSUM_SEED = 0xEF
_SYNC_ANSWERS = 8
_SYNC_VALUE = 0x20120707  # of the ROM; the stub says 0
_SLOW_READ_BYTES = 64
_INVALID, _FAILED, _BAD_CHECKSUM, _BAD_DEFLATE = 0x05, 0x06, 0x07, 0x0B
_JEDEC_MAKER = 0xEF
_JEDEC_KIND = 0x40
_READ_JEDEC_ID = 0x9F
_RUN_SPI = 1 << 18
_CRYSTAL_HZ = 40_000_000


class Model(NamedTuple):
    """What esptool asks a chip for, and where that lies."""

    chip_id: int | None  # of its security info; an ESP32 has none and is known by its magic
    registers: dict[int, int]
    mac: int  # register of the MAC's last four bytes; its first two are in the next one
    spi: int  # the flash's controller: its command register
    spi_command: int
    spi_answer: int
    uart_divider: int


_EFUSE, _S3_EFUSE, _SPI, _S3_SPI = 0x3FF5A000, 0x60007000, 0x3FF42000, 0x60002000
_ESP32_REGISTERS = {
    0x40001000: 0x00F01D83,  # the magic
    _EFUSE + 0x0C: 1 << 9 | 1 << 15,  # ESP32-D0WD; this bit and the next two: revision 3
    _EFUSE + 0x14: 1 << 20,
    0x3FF6607C: 1 << 31,
    _EFUSE + 0x10: 128,  # this and the next: its ROM has measured a crystal of 40 MHz
    0x3FF5F06C: 800 << 7,
}
MODELS = {
    "esp32": Model(None, _ESP32_REGISTERS, _EFUSE + 0x04, _SPI, _SPI + 0x24, _SPI + 0x80, 0x3FF40014),
    "esp32s3": Model(9, {}, _S3_EFUSE + 0x44, _S3_SPI, _S3_SPI + 0x20, _S3_SPI + 0x58, 0x60000014),
}


@dataclass
class Faults:
    """What goes wrong. What happens once is spent, so that a second try can succeed."""

    stub: bool = True  # False: the ROM refuses to load esptool's stub
    dumb: bool = False  # never answers: no board, or not in download mode
    bad_checksums: int = 0  # so many blocks arrive damaged
    silent_after: int | None = None  # blocks until it answers no more before the next reset
    unplug_after: int | None = None  # blocks until the cable is out
    weak_cell: int | None = None  # address of a byte that can't be programmed
    slow_s: float = 0.0  # that each block takes


class Refused(Exception):
    """A command that fails. The number is the reason that the chip gives."""

    def __init__(self, reason: int) -> None:
        super().__init__(reason)
        self.reason = reason


class Flash:
    """A NOR flash in a file. Raises Refused for what lies outside of it."""

    def __init__(self, path: Path, size: int, weak_cell: int | None) -> None:
        if not path.exists():
            path.write_bytes(b"\xff" * size)
        self.size = path.stat().st_size
        self._file = path.open("r+b", buffering=0)
        self._weak_cell = weak_cell

    def close(self) -> None:
        self._file.close()

    def read(self, at: int, length: int) -> bytes:
        self._check(at, length)
        self._file.seek(at)
        return self._file.read(length)

    def erase(self, at: int, length: int) -> None:
        """Every sector that has a byte of this."""
        first = at // SECTOR_BYTES * SECTOR_BYTES
        end = -(-(at + length) // SECTOR_BYTES) * SECTOR_BYTES
        self._check(first, end - first)
        self._put(first, b"\xff" * (end - first))

    def program(self, at: int, content: bytes) -> None:
        content = content[: max(0, self.size - at)] if not content.strip(b"\xff") else content  # filling
        before = self.read(at, len(content))
        number = int.from_bytes(before, "little") & int.from_bytes(content, "little")
        self._put(at, number.to_bytes(len(content), "little"))

    def _put(self, at: int, content: bytes) -> None:
        if self._weak_cell is not None and at <= self._weak_cell < at + len(content):
            place = self._weak_cell - at
            content = content[:place] + b"\xff" + content[place + 1 :]
        self._file.seek(at)
        self._file.write(content)

    def _check(self, at: int, length: int) -> None:
        if at + length > self.size:
            raise Refused(_FAILED)


class Chip:
    """A chip in download mode. `take` gives each frame from the host, without its framing."""

    def __init__(self, flash: Flash, model: Model, mac: str, faults: Faults) -> None:
        self.faults = faults
        self.blocks = 0  # written, over all sessions
        self._flash = flash
        self._model = model
        self._mac = bytes.fromhex(mac.replace(":", ""))
        self._operations = {
            command: (name, getattr(self, "_" + name)) for command, name in OPERATIONS.items()
        }
        self.reset()

    def reset(self) -> None:
        """Into the ROM: what was loaded into memory is gone, what lies in flash is not."""
        self.baud = ROM_BAUD
        self.is_stub = self.is_silent = self.is_unplugged = False
        self._registers = dict(self._model.registers)
        self._registers[self._model.mac] = int.from_bytes(self._mac[2:], "big")
        self._registers[self._model.mac + 4] = int.from_bytes(self._mac[:2], "big")
        self._at = self._erased = self._sequence = 0
        self._inflate = zlib.decompressobj()
        self._rest: list[bytes] = []  # of a reading, each sent when the one before has come
        self._after: list[bytes] = []  # frames behind the answer

    def take(self, frame: bytes) -> list[bytes]:
        """Answer a frame, with nothing to what is none."""
        if self.faults.dumb or self.is_silent or self.is_unplugged:
            return []
        if self._rest:
            return [self._rest.pop(0)]
        if len(frame) < _REQUEST.size:
            return []
        direction, command, length, checksum = _REQUEST.unpack_from(frame)
        content = frame[_REQUEST.size :]
        if direction != 0 or len(content) != length:
            return []
        name, run = self._operations.get(command, ("", None))
        answers = self._answer(command, name, run, content, checksum)
        return [] if self.is_silent or self.is_unplugged else answers

    def _answer(
        self,
        command: int,
        name: str,
        run: Callable[[bytes], tuple[int, bytes]] | None,
        content: bytes,
        checksum: int,
    ) -> list[bytes]:
        was_stub, reason, value, said = self.is_stub, 0, 0, b""
        try:
            if run is None or name in (_ONLY_ROM if was_stub else _ONLY_STUB):
                raise Refused(_INVALID)
            if name in _BLOCKS:
                content = self._block(name, content, checksum)
            value, said = run(content)
        except (Refused, struct.error) as refused:
            reason = refused.reason if isinstance(refused, Refused) else _INVALID
        said += bytes([bool(reason), reason]) + (b"" if was_stub else b"\0\0")
        answer = _REQUEST.pack(1, command, len(said), value) + said
        behind, self._after = self._after, []
        return [answer] * (_SYNC_ANSWERS if name == "sync" else 1) + behind

    # --- Small things ---------------------------------------------------------------------------------------

    def _sync(self, content: bytes) -> tuple[int, bytes]:
        return (0 if self.is_stub else _SYNC_VALUE), b""

    def _read_reg(self, content: bytes) -> tuple[int, bytes]:
        (address,) = struct.unpack("<I", content)
        if address == self._model.uart_divider:
            return _CRYSTAL_HZ // self.baud, b""
        return self._registers.get(address, 0), b""

    def _write_reg(self, content: bytes) -> tuple[int, bytes]:
        for address, value, mask, _ in _FOUR.iter_unpack(content):
            self._registers[address] = self._registers.get(address, 0) & ~mask | value & mask
        model, registers = self._model, self._registers
        if registers.get(model.spi, 0) & _RUN_SPI:
            registers[model.spi] = 0
            is_id = registers.get(model.spi_command, 0) & 0xFF == _READ_JEDEC_ID
            size = SIZE_CODES[self._flash.size]
            registers[model.spi_answer] = size << 16 | _JEDEC_KIND << 8 | _JEDEC_MAKER if is_id else 0
        return 0, b""

    def _security_info(self, content: bytes) -> tuple[int, bytes]:
        if self._model.chip_id is None:
            raise Refused(_INVALID)
        return 0, struct.pack("<I8xII", 0, self._model.chip_id, 0)

    def _change_baud(self, content: bytes) -> tuple[int, bytes]:
        self.baud, _ = struct.unpack("<II", content)
        return 0, b""

    def _spi_attach(self, content: bytes) -> tuple[int, bytes]:
        return 0, b""

    _spi_set_params = _spi_attach

    # --- The stub -------------------------------------------------------------------------------------------

    def _mem_begin(self, content: bytes) -> tuple[int, bytes]:
        if not self.faults.stub:
            raise Refused(_FAILED)
        self._sequence = 0
        return 0, b""

    def _mem_data(self, content: bytes) -> tuple[int, bytes]:
        return 0, b""

    def _mem_end(self, content: bytes) -> tuple[int, bytes]:
        self.is_stub = True
        self._after = [b"OHAI"]
        return 0, b""

    # --- Flash ----------------------------------------------------------------------------------------------

    def _flash_begin(self, content: bytes) -> tuple[int, bytes]:
        length, _, _, self._at = _FOUR.unpack_from(content)
        self._sequence, self._erased = 0, self._at
        self._inflate = zlib.decompressobj()
        if self._at + length > self._flash.size:
            raise Refused(_FAILED)
        if not self.is_stub:
            self._flash.erase(self._at, length)
            self._erased = self._at + length
        return 0, b""

    _defl_begin = _flash_begin

    def _flash_data(self, content: bytes) -> tuple[int, bytes]:
        self._program(content)
        return self._count_block()

    def _defl_data(self, content: bytes) -> tuple[int, bytes]:
        try:
            self._program(self._inflate.decompress(content))
        except zlib.error:
            raise Refused(_BAD_DEFLATE) from None
        return self._count_block()

    def _flash_end(self, content: bytes) -> tuple[int, bytes]:
        return 0, b""

    _defl_end = _flash_end

    def _md5(self, content: bytes) -> tuple[int, bytes]:
        at, length, _, _ = _FOUR.unpack(content)
        digest = hashlib.md5(self._flash.read(at, length))
        return 0, digest.digest() if self.is_stub else digest.hexdigest().encode()

    def _read_slow(self, content: bytes) -> tuple[int, bytes]:
        at, length = struct.unpack("<II", content)
        return 0, self._flash.read(at, min(length, _SLOW_READ_BYTES)).ljust(_SLOW_READ_BYTES, b"\0")

    def _read_flash(self, content: bytes) -> tuple[int, bytes]:
        at, length, piece, _ = _FOUR.unpack(content)
        whole = self._flash.read(at, length)
        frames = [whole[start : start + piece] for start in range(0, length, piece)]
        frames.append(hashlib.md5(whole).digest())
        self._after, self._rest = frames[:1], frames[1:]
        return 0, b""

    def _erase_flash(self, content: bytes) -> tuple[int, bytes]:
        self._flash.erase(0, self._flash.size)
        return 0, b""

    def _erase_region(self, content: bytes) -> tuple[int, bytes]:
        at, length = struct.unpack("<II", content)
        self._flash.erase(at, length)
        return 0, b""

    def _block(self, name: str, content: bytes, checksum: int) -> bytes:
        """The bytes of a block that has come whole and in its turn. Raises Refused."""
        length, sequence, _, _ = _FOUR.unpack_from(content)
        block = content[_FOUR.size :]
        if self.faults.bad_checksums and name != "mem_data":  # for which esptool has no second try
            self.faults.bad_checksums -= 1
            block = block[:-1] + bytes([block[-1] ^ 1])
        found = _CHECKSUM_SEED
        for byte in block:
            found ^= byte
        if found != checksum:
            raise Refused(_BAD_CHECKSUM)
        if len(block) != length or sequence != self._sequence:
            raise Refused(_INVALID)
        self._sequence += 1
        return block

    def _program(self, content: bytes) -> None:
        end = self._at + len(content)
        if end > self._erased and content.strip(b"\xff"):
            first = (
                -(-self._erased // SECTOR_BYTES) * SECTOR_BYTES
                if self._erased % SECTOR_BYTES
                else self._erased
            )
            if end > first:
                self._flash.erase(first, end - first)
                self._erased = -(-end // SECTOR_BYTES) * SECTOR_BYTES
        self._flash.program(self._at, content)
        self._at = end

    def _count_block(self) -> tuple[int, bytes]:
        self.blocks += 1
        time.sleep(self.faults.slow_s)
        if self.faults.silent_after is not None:
            self.faults.silent_after -= 1
            if self.faults.silent_after <= 0:
                self.faults.silent_after, self.is_silent = None, True
        if self.faults.unplug_after is not None:
            self.faults.unplug_after -= 1
            if self.faults.unplug_after <= 0:
                self.faults.unplug_after, self.is_unplugged = None, True
        return 0, b""
