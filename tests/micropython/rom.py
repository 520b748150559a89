"""Run a module out of a ROMFS image: `micropython rom.py IMAGE FOLDER MODULE ...`; FOLDER is in the image.

To the module, sys.argv is what it is to a program: its own name, then what follows. Its code is executed
where it lies, as frozen code is on the chip: the heap holds only what it makes.
"""

import os
import sys

import ffi
import uctypes
import vfs

_READ, _PRIVATE = 1, 2


def main(path, folder, module):
    mmap = ffi.open(None).func("P", "mmap", "Pliiil")
    size = os.stat(path)[6]
    with open(path, "rb") as file:
        address = mmap(None, size, _READ, _PRIVATE, file.fileno(), 0)
    vfs.mount(vfs.VfsRom(uctypes.bytearray_at(address, size)), "/rom")
    sys.path[:] = ["/rom/" + folder, "/rom", "/rom/tests/gateway", ".frozen"]
    sys.argv[:] = sys.argv[3:]
    __import__(module)


main(sys.argv[1], sys.argv[2], sys.argv[3])
