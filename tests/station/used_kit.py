"""A Kit that was with a patient: what its flash holds, in the places where it is looked for and in others."""

from base64 import b64encode
from typing import Any

from firmware.bonds import Bonds
from gateway import record
from gateway.journal import Journal
from gateway.record import Frame
from hw.station import board, image, micropython, partitions
from hw.station.kit_folder import KitFolder
from tests.station import binaries

BOARD = "esp32-4mb"
RECORDS = 64
JOURNAL_ID = b"journal1"
HOME_PASSWORD = "the patient's own Wi-Fi"
BOND_KEY = bytes(range(100, 180))
SENSOR = "C0:FF:EE:00:00:01"


class Region:
    """A part of a flash in RAM, NOR."""

    def __init__(self, flash: bytearray, row: partitions.Partition) -> None:
        self._flash, self._at = flash, row.offset
        self.size, self.block_bytes = row.size, 4096

    def read(self, offset: int, buffer: Any) -> None:
        at = self._at + offset
        buffer[:] = self._flash[at : at + len(buffer)]

    def program(self, offset: int, buffer: Any) -> None:
        for place, value in enumerate(buffer, self._at + offset):
            self._flash[place] &= value

    def erase(self, position: int) -> None:
        at = self._at + position * self.block_bytes
        self._flash[at : at + self.block_bytes] = b"\xff" * self.block_bytes


class Lock:
    def acquire(self) -> None: ...
    def release(self) -> None: ...


def used_flash(kit: KitFolder) -> bytes:
    """A Kit that was with a patient: its image, 64 Records, a bond, and the home's password written about."""
    chosen = board.load(BOARD)
    flash = bytearray(image.compose(chosen, micropython.read(binaries.esp32(), chosen), kit))
    rows = {row.label: row for row in chosen.partitions}
    journal = Journal(Region(flash, rows["journal"]), Lock())
    journal.format(JOURNAL_ID)
    for n in range(RECORDS):
        value = bytes((0x16, n, 0, 80, 0, 90, 0, 0xE8, 0x07, 3, 1, 10, n % 60, 0, n, 0))
        journal.append(record.FRAME, 1, record.encode_frame(Frame(1, 1, 0x2A35, value)), 1000 * n)
    bonds = Bonds(Region(flash, rows["bonds"]))
    bonds.set_secret(2, b"peer", BOND_KEY)
    bonds.save([{"reference": 1, "address_type": 1, "address": SENSOR.replace(":", "").lower()}])
    # Where nobody looks: free entries of NVS, and the end of the file system, in other words.
    end = rows["nvs"].offset + rows["nvs"].size
    flash[end - 2048 : end - 2048 + len(HOME_PASSWORD)] = HOME_PASSWORD.encode()
    end = rows["vfs"].offset + rows["vfs"].size
    for n, form in enumerate((BOND_KEY.hex().encode(), b64encode(kit.key))):
        flash[end - 4096 * (n + 1) : end - 4096 * (n + 1) + len(form)] = form
    return bytes(flash)
