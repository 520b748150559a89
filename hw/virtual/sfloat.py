"""
IEEE 11073-20601 SFLOAT, the encoding side: what a Sensor does with a number it has measured.

Written apart from gateway/reading.py on purpose, so that one mistake cannot hide in both. The resolution is
the caller's: Decimal("2.0") and Decimal("2.00") are different words on air.
"""

import enum
import struct
from decimal import Decimal

# 12-bit signed mantissa without the five words with a special meaning: -(2^11 - 3) .. 2^11 - 3.
_MANTISSA_LIMIT = 2045


class Special(enum.Enum):
    """Words that are no number (IEEE 11073-20601: exponent 0, mantissa at the ends of its range)."""

    NAN = 0x07FF
    NRES = 0x0800
    PLUS_INFINITY = 0x07FE
    MINUS_INFINITY = 0x0802
    RESERVED = 0x0801


Quantity = int | Decimal | Special


def encode(quantity: Quantity) -> bytes:
    """Two bytes, little-endian. ValueError when the number does not fit at its own resolution."""
    return struct.pack("<H", word(quantity))


def word(quantity: Quantity) -> int:
    if isinstance(quantity, Special):
        return quantity.value
    mantissa, exponent = _split(Decimal(quantity))
    if abs(mantissa) > _MANTISSA_LIMIT or not -8 <= exponent <= 7:
        raise ValueError(f"{quantity} does not fit an SFLOAT")
    return (exponent & 0xF) << 12 | mantissa & 0xFFF


def _split(number: Decimal) -> tuple[int, int]:
    sign, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError(f"{number} is not finite: use Special")
    mantissa = int("".join(map(str, digits)))
    return -mantissa if sign else mantissa, exponent
