"""FileFlash: a file that behaves like NOR flash. Programming only clears bits; erasing sets a block to 0xFF.

Every write goes to the kernel at once (pwrite, no buffer of ours), so it survives the end of this process
however it comes, kill -9 included. It does not survive the end of the machine unless `durable` is set: then
each program and erase ends with fdatasync, which takes milliseconds. The Linux Gateway is for bench and demo
and can't keep P1 anyway, so that is off by default.
"""

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.limits import BLOCK_BYTES

_ERASED = b"\xff"


class FileFlash:
    """`size` bytes in a file, made if it is not there; locked, so that no second Gateway can open it.

    Raises OSError (BlockingIOError: another process has it) and ValueError (the file has another size).
    `strict` raises ValueError when a 1 is programmed over a 0, where a chip would keep the 0 and say nothing.
    """

    def __init__(
        self,
        path: Path,
        size: int,
        *,
        block_bytes: int = BLOCK_BYTES,
        strict: bool = False,
        durable: bool = False,
    ) -> None:
        if size <= 0 or size % block_bytes:
            raise ValueError(f"{size} bytes are not a number of blocks of {block_bytes}")
        self.size = size
        self.block_bytes = block_bytes
        self._strict = strict
        self._durable = durable
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._fill(path)
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill the whole buffer."""
        self._check(offset, len(buffer))
        os.preadv(self._file, [buffer], offset)

    def program(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Clear the bits that are 0 in the buffer."""
        self._check(offset, len(buffer))
        old = os.pread(self._file, len(buffer), offset)
        new = bytes(was & now for was, now in zip(old, buffer, strict=True))
        if self._strict and new != bytes(buffer):
            raise ValueError(f"a 1 is programmed over a 0 in {len(buffer)} bytes at {offset}")
        self._write(new, offset)

    def erase(self, position: int) -> None:
        """Set every bit of a block."""
        self._check(position * self.block_bytes, self.block_bytes)
        self._write(_ERASED * self.block_bytes, position * self.block_bytes)

    def close(self) -> None:
        """Let go of the file and its lock. May be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fill(self, path: Path) -> None:
        """Erased flash, in a new file or one whose making was cut short; any other size is someone else's."""
        size = os.fstat(self._file).st_size
        if size == self.size:
            return
        if size > self.size or os.pread(self._file, size, 0).strip(_ERASED):
            raise ValueError(f"{path} has {size} bytes, not {self.size}")
        self._write(_ERASED * (self.size - size), size)

    def _write(self, whole: bytes, offset: int) -> None:
        if os.pwrite(self._file, whole, offset) != len(whole):
            raise OSError(errno.EIO, "short write")
        if self._durable:
            os.fdatasync(self._file)

    def _check(self, offset: int, length: int) -> None:
        """The chip ends; a file would grow."""
        if offset < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} are outside of {self.size}")
