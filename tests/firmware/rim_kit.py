"""What the scripts of this folder share: a Gateway with one Sensor connected, on NOR flash in RAM.

That RAM is none of the heap's, as a chip's flash is not. The radio, the Gateway and the Journal are the real
ones. The modules that only a board has are names here: nothing of them is called.
"""

import sys
import time

import ffi
import uctypes

NOTIFY, INDICATE = 18, 19
SENSOR, CONNECTION, HANDLE, CHARACTERISTIC = 1, 0, 12, 0x2A35
ADDRESS = b"\xc0\0\0\0\0\1"


class Names:
    """A module of which only the names matter."""

    def __init__(self, **names):
        for name in names:
            setattr(self, name, names[name])


class Nothing:
    """BLE, UUID, RTC: never called."""


sys.modules["bluetooth"] = Names(BLE=Nothing, UUID=Nothing)
sys.modules["machine"] = Names(RTC=Nothing)

from nor import Lock, NorFlash  # noqa: E402

from firmware.clock import Clock  # noqa: E402
from firmware.radio import Radio  # noqa: E402
from firmware.visit import Link  # noqa: E402
from gateway.gateway import Gateway  # noqa: E402
from gateway.journal import Journal  # noqa: E402
from gateway.uplink import Uplink  # noqa: E402


class Kept:
    """Bonds with one Sensor."""

    def load(self):
        return [{"reference": SENSOR, "address_type": 1, "address": ADDRESS.hex()}]

    def save(self, sensors):
        pass


def pages(count):
    """So many bytes that the heap knows nothing of."""
    mmap = ffi.open(None).func("P", "mmap", "Pliiil")
    private_anonymous = 0x1002 if sys.platform == "darwin" else 0x22
    return uctypes.bytearray_at(mmap(None, count, 3, private_anonymous, -1, 0), count)


def moved_out(flash):
    """The same flash, its cells in pages."""
    cells = pages(len(flash.cells))
    cells[:] = flash.cells
    flash.cells = cells
    return flash


class Kit:
    """A Gateway with one Sensor connected."""

    def __init__(self, flash=None):
        self.flash = flash or moved_out(NorFlash())
        self.journal = Journal(self.flash, Lock())
        self.journal.format(b"journal1")
        self.clock = Clock()
        self.gateway = Gateway(
            "HW-0001",
            "0",
            journal=self.journal,
            uplink=Uplink(self.journal, lambda: b"noncenon"),
            bonds=Kept(),
        )
        self.radio = Radio(self.gateway, self.clock, None, wake=None, alive=None, heard=None)
        link = Link(ADDRESS, SENSOR, {HANDLE: CHARACTERISTIC}, self.clock)
        self.radio._links[CONNECTION] = link

    def at(self, hi, lo):
        self.clock._base = (hi, lo, time.ticks_ms())

    def indicate(self, event):
        self.radio._on_event(INDICATE, event)


def event_of(length):
    value = bytearray(length)
    for i in range(length):
        value[i] = (7 * i + length) & 0xFF
    return (CONNECTION, HANDLE, memoryview(value))
