# mypy: ignore-errors
"""
The boot: `micropython start.py FOLDER`. Power, the file system of partition `vfs`, then boot.py and main.py.

The machine's own files stand below /host, so that nothing of the firmware sees them by accident.
"""

import os
import sys

import uctypes
import vfs

modules = sys.path[0]
import chip  # noqa: E402  (found beside this file)
from wiring import SOFT_RESET  # noqa: E402

_SECTOR_BYTES = 4096

chip.power_on(sys.argv[1])
vfs.umount("/")
vfs.mount(vfs.VfsPosix("/"), "/host")


def place(path: str) -> str:
    """Where a part of the program is found. Code in a ROMFS image is executed in place, as frozen code is."""
    if not path.endswith(".rom"):
        return "/host" + path
    size = os.stat("/host" + path)[6]
    image = uctypes.bytearray_at(chip.map_file("/host" + path, size), size)
    vfs.mount(vfs.VfsRom(image), "/rom")
    return "/rom"


# The chip's own path is "" (the root of its file system), ".frozen", "/lib".
sys.path[:] = ["/host" + modules] + [place(path) for path in chip.boot["program"]] + ["", ".frozen", "/lib"]
sys.argv[:] = []
chip.boot["folder"] = "/host" + chip.boot["folder"]

import esp32  # noqa: E402

# All of them now, so that what they take is not taken from the firmware's heap later.
for name in ("bluetooth", "machine", "neopixel", "network", "ntptime", "socket", "ssl", "time"):
    __import__(name)
import time  # noqa: E402


def mount() -> None:
    """The file system of partition `vfs`, as a stock image does: a blank one is formatted."""
    partition = esp32.Partition.find(esp32.Partition.TYPE_DATA, label="vfs")[0]
    start = bytearray(_SECTOR_BYTES)
    partition.readblocks(0, start)
    if start == b"\xff" * _SECTOR_BYTES:
        vfs.VfsLfs2.mkfs(partition)
    try:
        vfs.mount(vfs.VfsLfs2(partition), "/")
    except OSError:
        while True:
            print("The filesystem appears to be corrupted.")
            time.sleep_ms(3000)


def run(name: str) -> None:
    """Run a file of the program as the chip does: a problem is printed, and ends in the REPL.

    On a file system that is source, and compiled files there are only imported; in ROM it may be compiled.
    """
    for folder in sys.path[1:]:
        try:
            os.stat(folder + "/" + name + ".py")
        except OSError:
            continue
        with open(folder + "/" + name + ".py") as file:
            code = compile(file.read(), name + ".py", "exec")
        exec(code, {"__name__": "__main__"})
        return
    if "/rom" not in sys.path:
        return
    try:
        __import__(name)
    except ImportError as problem:
        if name not in str(problem):
            raise


def has(name: str) -> bool:
    """Whether the program brings a file of that name along, as a release with frozen code does."""
    for folder in sys.path[1:]:
        for suffix in (".py", ".mpy"):
            try:
                os.stat(folder + "/" + name + suffix)
                return True
            except OSError:
                pass
    return False


try:
    if has("_boot"):
        run("_boot")
    else:
        mount()
    os.chdir("/")
    run("boot")
    run("main")
except SystemExit:
    chip.end(SOFT_RESET)
except BaseException as problem:
    sys.print_exception(problem)

print("MicroPython: the program has ended; the REPL waits for ever")
while True:
    time.sleep_ms(1000)
