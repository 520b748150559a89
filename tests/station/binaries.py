"""Stock MicroPython binaries for tests: the published one, and the same laid out for an ESP32-S3."""

import hashlib
from pathlib import Path

from hw.station import micropython, partitions
from hw.station.board import CHIPS
from hw.virtual import programs

S3_BOOTLOADER, ESP32_BOOTLOADER = CHIPS["esp32s3"].bootloader_offset, CHIPS["esp32"].bootloader_offset
_CHIP_AT = 12  # in an image's header


def esp32() -> Path:
    return programs.esp32_micropython()


def for_s3(place: Path) -> Path:
    """
    The published binary with the S3's number in its headers, and laid out from 0 on, where an S3 starts.

    No published S3 binary is in a package registry. What the tools look at is all here; only the machine code
    is another chip's, and no test runs it.
    """
    stock = esp32().read_bytes()
    app_at = partitions.app(partitions.decode(stock[partitions.TABLE_OFFSET - ESP32_BOOTLOADER :])).offset
    flash = bytearray(b"\xff" * ESP32_BOOTLOADER + stock)
    bootloader = _renumbered(micropython.part(stock).content)
    app = _renumbered(micropython.part(stock, app_at - ESP32_BOOTLOADER).content)
    flash[: partitions.TABLE_OFFSET] = bootloader.ljust(partitions.TABLE_OFFSET, b"\xff")
    flash[app_at : app_at + len(app)] = app
    place.write_bytes(flash)
    return place


def _renumbered(image: bytes) -> bytes:
    changed = bytearray(image)
    changed[_CHIP_AT] = CHIPS["esp32s3"].image_id
    changed[-32:] = hashlib.sha256(changed[:-32]).digest()
    return bytes(changed)
