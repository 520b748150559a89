"""The littlefs of partition `vfs`: files by path, made the same way every time, and read back."""

from collections.abc import Mapping

from hw.station import StationError

BLOCK_BYTES = 4096
_CHUNK_BYTES = 32
"""MicroPython's littlefs reads and programs in these; it is not kept in the file system."""
_ON_DISK = 0x0002_0000
"""littlefs 2.0, which every driver since mounts; 2.1 would shut out older ones for nothing that is used."""


class FilesystemError(StationError):
    """Files that do not fit, or a file system that is damaged."""


def encode(files: Mapping[str, bytes], size: int) -> bytes:
    """A file system of `size` bytes. Paths have no leading slash. Raises FilesystemError."""
    from littlefs import LittleFS, LittleFSError

    disk = LittleFS(
        block_size=BLOCK_BYTES,
        block_count=size // BLOCK_BYTES,
        read_size=_CHUNK_BYTES,
        prog_size=_CHUNK_BYTES,
        cache_size=BLOCK_BYTES,
        disk_version=_ON_DISK,
    )
    try:
        for path in sorted(files):
            disk.makedirs(path.rpartition("/")[0] or "/", exist_ok=True)
            with disk.open(path, "wb") as file:
                file.write(files[path])
    except LittleFSError as problem:
        raise FilesystemError(f"{path} can't be put into partition vfs of {size} bytes: {problem}") from None
    return bytes(disk.context.buffer)


def decode(partition: bytes) -> dict[str, bytes]:
    """The files of a file system, by path. Raises FilesystemError where it is damaged."""
    from littlefs import LittleFS, LittleFSError, UserContext

    disk = LittleFS(
        context=UserContext(buffer=bytearray(partition)),
        mount=False,
        block_size=BLOCK_BYTES,
        block_count=len(partition) // BLOCK_BYTES,
        read_size=_CHUNK_BYTES,
        prog_size=_CHUNK_BYTES,
        cache_size=BLOCK_BYTES,
    )
    files = {}
    try:
        disk.mount()
        for folder, _, names in disk.walk("/"):
            for name in names:
                path = f"{folder.rstrip('/')}/{name}"
                with disk.open(path, "rb") as file:
                    files[path.lstrip("/")] = file.read()
    except LittleFSError as problem:
        raise FilesystemError(f"the file system is damaged: {problem}") from None
    return files
