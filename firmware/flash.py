"""PartitionFlash: a flash partition as the Journal wants it. Every call goes to the chip at once."""

from esp32 import Partition

from gateway.port import const

_ERASE = const(6)  # MP_BLOCKDEV_IOCTL_BLOCK_ERASE
_BLOCK_BYTES = const(4096)


class PartitionFlash:
    """The data partition with this label. Raises OSError when there is none, and when the chip refuses.

    `writeblocks` with an offset programs without erasing; without one it would erase first.
    """

    def __init__(self, label: str) -> None:
        found = Partition.find(Partition.TYPE_DATA, label=label)
        if not found:
            raise OSError("no partition " + label)
        self._partition = found[0]
        self.size: int = self._partition.info()[3]
        self.block_bytes = _BLOCK_BYTES

    def read(self, offset: int, buffer: "bytearray | memoryview") -> None:
        """Fill the whole buffer."""
        self._partition.readblocks(offset // _BLOCK_BYTES, buffer, offset % _BLOCK_BYTES)

    def program(self, offset: int, buffer: "bytearray | memoryview") -> None:
        """Clear the bits that are 0 in the buffer."""
        self._partition.writeblocks(offset // _BLOCK_BYTES, buffer, offset % _BLOCK_BYTES)

    def erase(self, position: int) -> None:
        """Set every bit of the block at this position to 1."""
        self._partition.ioctl(_ERASE, position)
