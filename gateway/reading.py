"""Reading: what a raw value of a Sensor means. Here: its shape, and the numbers and dates that Sensors share.

The one rule: a number stays mantissa and exponent, and a word that is no number never becomes one. A naive
decoder shows a failed measurement as 2047: IEEE 11073-20601 puts its special values at the mantissa's ends.
"""

import struct
from collections import namedtuple

from gateway.errors import Truncated
from gateway.port import const

# Trust (P7).
GOOD = "good"
QUESTIONABLE = "questionable"
"""Goes to the Hub, marked."""
NEVER = "never"
"""Never goes to the Hub as a vital sign."""

# Kinds of Reading.
SPOT_CHECK = "spot_check"
CONTINUOUS = "continuous"
BLOOD_PRESSURE = "blood_pressure"
CUFF_PRESSURE = "cuff_pressure"

# Units (UCUM).
PERCENT = "%"
PER_MINUTE = "/min"
MMHG = "mm[Hg]"
KPA = "kPa"

# Specials: why a Value has no number.
NAN = "nan"
NRES = "nres"
PLUS_INFINITY = "+inf"
MINUS_INFINITY = "-inf"
RESERVED = "reserved"
IMPOSSIBLE = "impossible"
"""A number that no patient has: SpO2 above 100 % (127 is a filler), a pressure or rate of zero or less."""

# Status words of ours, beside the specification's own.
RESERVED_BITS = "reserved bits set"
TRAILING_BYTES = "trailing bytes"
BAD_TIMESTAMP = "timestamp not valid"
CLOCK_NOT_SET = "clock not set"

DATE_TIME = "<HBBBBB"
"""Date Time 0x2A08: year, month, day, hours, minutes, seconds."""
DATE_TIME_BYTES = const(7)
OLDEST_SET_YEAR = const(2020)
"""A clock before this runs on from its factory date (2000, 2010, ... are common): no Kit was in use then."""

Value = namedtuple("Value", ("name", "mantissa", "exponent", "unit", "special"))
"""mantissa * 10^exponent, or no number when `special` is not None; mantissa then is of no meaning."""

Reading = namedtuple(
    "Reading", ("kind", "trust", "values", "status", "timestamp", "clock_set", "stored", "user")
)
"""status: the specification's words; timestamp: the Sensor's date-time or None; clock_set: False when its
clock was not set, None when it gave no time; stored: sent from its storage, None when it does not say."""

Feature = namedtuple("Feature", ("kind", "supported", "measurement_status", "sensor_status"))
"""What a Sensor says that it can do; the last two: status bits that it can set, None when it does not say."""

Clock = namedtuple("Clock", ("date_time", "clock_set", "fraction_256", "status"))
"""A Sensor's clock as read; date_time: None without a date; fraction_256: 1/256 s, None for Date Time."""

Racp = namedtuple("Racp", ("procedure", "operator", "operand", "request", "response", "count"))
"""Record access: words or None; operand: the bytes that are left; count: number of stored records."""

MOST = const(0x7FD)
"""The greatest SFLOAT without an exponent: no pressure, rate or index of a patient is above."""

_SFLOAT_SPECIALS = {0x7FF: NAN, 0x800: NRES, 0x7FE: PLUS_INFINITY, 0x802: MINUS_INFINITY, 0x801: RESERVED}
_FLOAT_SPECIALS = {
    0x7FFFFF: NAN,
    0x800000: NRES,
    0x7FFFFE: PLUS_INFINITY,
    0x800002: MINUS_INFINITY,
    0x800001: RESERVED,
}
_DAYS_BEFORE_MONTH = (0, 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365)
_DAYS_TO_1970 = const(719162)


# --- Numbers ------------------------------------------------------------------------------------------------


def sfloat(name: str, word: int, unit: str, most: int = MOST, zero: bool = False) -> Value:
    """Return the Value of a 16-bit SFLOAT. Above `most`, below zero, or zero unless allowed: IMPOSSIBLE."""
    if 0 < word <= most:  # a plain integer is its own word, and nearly every value is one
        return Value(name, word, 0, unit, None)
    special = _SFLOAT_SPECIALS.get(word)
    return _number(name, _signed(word & 0xFFF, 0x800), _signed(word >> 12, 8), unit, most, zero, special)


def float32(name: str, word: int, unit: str, most: int, zero: bool = False) -> Value:
    """Return the Value of a 32-bit FLOAT, with the same bounds."""
    special = _FLOAT_SPECIALS.get(word)
    return _number(
        name, _signed(word & 0xFFFFFF, 0x800000), _signed(word >> 24, 0x80), unit, most, zero, special
    )


def text(value: Value) -> "str | None":
    """Return the number in decimal with the Sensor's precision ("2.0" is not "2.00"), None without one."""
    if value.special is not None:
        return None
    if value.exponent == 0:
        return str(value.mantissa)
    places: int = -value.exponent
    digits = str(abs(value.mantissa))
    if places <= 0:
        digits = str(abs(value.mantissa) * 10**-places)
    else:
        digits = "0" * (places + 1 - len(digits)) + digits
        digits = digits[:-places] + "." + digits[-places:]
    return "-" + digits if value.mantissa < 0 else digits


def _number(
    name: str, mantissa: int, exponent: int, unit: str, most: int, zero: bool, special: "str | None"
) -> Value:
    if special is not None:
        return Value(name, 0, 0, unit, special)
    over = mantissa * 10**exponent > most if exponent >= 0 else mantissa > most * 10**-exponent
    under = mantissa < (0 if zero else 1)
    return Value(name, mantissa, exponent, unit, IMPOSSIBLE if under or over else None)


def _signed(word: int, sign: int) -> int:
    return word - 2 * sign if word & sign else word


# --- Bits ---------------------------------------------------------------------------------------------------


def words(bits: int, table: "dict[int, str]") -> "tuple[str, ...]":
    """Return the table's words for the bits that are set, lowest first; RESERVED_BITS for those it lacks."""
    found = []
    reserved = False
    while bits:
        lowest = bits & -bits
        word = table.get(lowest)
        if word is not None:
            found.append(word)
        else:
            reserved = True
        bits ^= lowest
    if reserved:
        found.append(RESERVED_BITS)
    return tuple(found)


def flags_of(value: "bytes | memoryview", what: str) -> int:
    """Return the flags, the first byte. Raises Truncated."""
    if not len(value):
        raise Truncated(what + " is empty")
    return value[0]


def check_length(value: "bytes | memoryview", needed: int, what: str) -> None:
    """Raise Truncated when fewer bytes are there than the value announces.

    More are accepted: a later version of a specification may add fields, and the raw value is kept anyway.
    """
    if len(value) < needed:
        raise Truncated(f"{what} announces {needed} bytes and has {len(value)}")


def remarks(reserved: int, trailing: bool, clock: "str | None" = None) -> "tuple[str, ...]":
    """Return our own status words about a value's form and its clock."""
    if not (reserved or trailing or clock):
        return ()
    return (
        ((clock,) if clock else ())
        + ((RESERVED_BITS,) if reserved else ())
        + ((TRAILING_BYTES,) if trailing else ())
    )


# --- Dates --------------------------------------------------------------------------------------------------
# A date-time is the naive tuple (year, month, day, hours, minutes, seconds): a Sensor's clock knows no zone.


def date_time_at(
    value: "bytes | memoryview", offset: int
) -> "tuple[tuple[int, ...] | None, bool, str | None]":
    """Decode the 7 bytes of a Date Time.

    Returns (date-time, None when not known or no date; whether the clock was set; a status word or None).
    """
    date_time = struct.unpack_from(DATE_TIME, value, offset)
    if date_time[0] >= OLDEST_SET_YEAR and is_date_time(date_time):
        return date_time, True, None
    if not (date_time[0] and date_time[1] and date_time[2]):  # 0: not known, which is no mistake
        return None, False, CLOCK_NOT_SET
    if is_date_time(date_time):
        return date_time, False, CLOCK_NOT_SET
    return None, False, BAD_TIMESTAMP


def is_date_time(date_time: "tuple[int, ...]") -> bool:
    """Whether this day is in the calendar and this time in the day (Date Time covers 1582 to 9999)."""
    year, month, day, hours, minutes, seconds = date_time
    if not (1582 <= year <= 9999 and 1 <= month <= 12 and 1 <= day <= 31):
        return False
    if day > 28 and day > _days_in(year, month):
        return False
    return hours < 24 and minutes < 60 and seconds < 60


def seconds_of(date_time: "tuple[int, ...]") -> int:
    """Return the seconds from 1970-01-01T00:00:00 to a naive date-time of the Gregorian calendar."""
    year, month, day, hours, minutes, seconds = date_time
    before = year - 1
    days: int = before * 365 + before // 4 - before // 100 + before // 400 - _DAYS_TO_1970
    days += _DAYS_BEFORE_MONTH[month] + day - 1
    if month > 2 and _is_leap(year):
        days += 1
    return days * 86400 + hours * 3600 + minutes * 60 + seconds


def _days_in(year: int, month: int) -> int:
    if month == 2 and _is_leap(year):
        return 29
    return _DAYS_BEFORE_MONTH[month + 1] - _DAYS_BEFORE_MONTH[month]


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
