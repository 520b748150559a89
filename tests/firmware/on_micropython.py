"""Run MicroPython scripts of this folder as a board would: compiled, out of ROM, with the heap of a board."""

import json
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hw.virtual import programs, romfs

ROOT = Path(__file__).parent.parent.parent
HEAPS = {64: "240k", 32: "120k"}
"""What an ESP32 without PSRAM has left; twice that where a word is twice as long."""

_TIMEOUT_S = 600  # pytest ends a test earlier


def run(bits: int, module: str, folder: Path, *arguments: str, heap: str | None = None) -> dict[str, Any]:
    """The JSON of a script's last line. Skips where this machine runs no program of that word size.

    `heap`: for a script that holds more than a board does.
    """
    if bits == 32 and platform.machine() != "x86_64":
        pytest.skip(f"MicroPython 32-bit needs an x86-64 machine; this one is {platform.machine()}")
    folder.mkdir(exist_ok=True)
    rom = folder / "program.rom"
    rom.write_bytes(romfs.image(romfs.compiled(ROOT, _sources(module), folder / "program")))
    command = [
        *programs.micropython(bits),
        "-X",
        f"heapsize={heap or HEAPS[bits]}",
        "tests/micropython/rom.py",
    ]
    done = subprocess.run(
        [*command, str(rom), "tests/firmware", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for line in done.stdout.splitlines():
        if line.startswith("qstr pool:"):
            result["names_bytes"] = names_bytes(line)
    return result


def names_bytes(line: str) -> int:
    """What MicroPython's table of names takes of the heap; the strings lie in ROM.

    Frozen code has its table in flash.
    """
    strings, whole = (int(found) for found in re.findall(r"bytes=(\d+)", line))
    return whole - strings


def _sources(module: str) -> list[str]:
    patterns = ("gateway/*.py", "gateway/sensors/*.py", "firmware/*.py", "tests/gateway/nor.py")
    found = [str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)]
    return [*sorted(found), "tests/firmware/rim_kit.py", f"tests/firmware/{module}.py"]
