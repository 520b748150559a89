"""Pulse Oximeter Service 0x1822 (PLXS 1.0.1): spot-check 0x2A5E, continuous 0x2A5F, features 0x2A60."""

import struct

from gateway.port import const
from gateway.reading import (
    CLOCK_NOT_SET,
    CONTINUOUS,
    DATE_TIME_BYTES,
    GOOD,
    NEVER,
    PER_MINUTE,
    PERCENT,
    QUESTIONABLE,
    SPOT_CHECK,
    Feature,
    Reading,
    Value,
    check_length,
    date_time_at,
    flags_of,
    remarks,
    sfloat,
    words,
)

PLX_SPOT_CHECK = const(0x2A5E)
PLX_CONTINUOUS = const(0x2A5F)
PLX_FEATURES = const(0x2A60)
STORAGE = "measurement storage for spot-check"

# Flags. The two characteristics number the same fields differently.
_SPOT_TIMESTAMP = const(0x01)
_SPOT_STATUS = const(0x02)
_SPOT_SENSOR_STATUS = const(0x04)
_SPOT_AMPLITUDE = const(0x08)
_SPOT_CLOCK_NOT_SET = const(0x10)
_FAST = const(0x01)
_SLOW = const(0x02)
_STATUS = const(0x04)
_SENSOR_STATUS = const(0x08)
_AMPLITUDE = const(0x10)
_RESERVED_FLAGS = const(0xE0)

_MOST_SPO2 = const(100)
_MOST_BY_EXPONENT = (100, 10, 1, 0, 0, 0, 0, 0, 2047, 2047, 2047, 2047, 2047, 2047, 2047, 1000)
"""Mantissa of the greatest SpO2 by the SFLOAT's exponent, two's complement. All specials are above."""
_MALFORMED = const(-1)

# Measurement Status, section 3.1.1.4.
_FROM_STORAGE = const(0x0200)
_NEVER_STATUS = const(0xAC00)  # for demonstration or testing, unavailable, invalid
_QUESTIONABLE_STATUS = const(0x5060)  # ongoing, early estimate, calibration, questionable
_MEASUREMENT_STATUS = {
    0x0020: "measurement ongoing",
    0x0040: "early estimated data",
    0x0080: "validated data",
    0x0100: "fully qualified data",
    0x0200: "data from measurement storage",
    0x0400: "data for demonstration",
    0x0800: "data for testing",
    0x1000: "calibration ongoing",
    0x2000: "measurement unavailable",
    0x4000: "questionable measurement",
    0x8000: "invalid measurement",
}

# Device and Sensor Status, section 3.1.1.5. MDC 150604 numbers the bits the other way round: 15 - bit.
_NEVER_SENSOR = const(0xD882)  # bits 1, 7, 11, 12, 14, 15: no working sensor on a pulsing patient
_QUESTIONABLE_SENSOR = const(0x277C)  # bits 2-6, 8-10, 13: a poor signal
_DEVICE_AND_SENSOR_STATUS = {
    0x0001: "extended display update ongoing",
    0x0002: "equipment malfunction",
    0x0004: "signal processing irregularity",
    0x0008: "inadequate signal",
    0x0010: "poor signal",
    0x0020: "low perfusion",
    0x0040: "erratic signal",
    0x0080: "non-pulsatile",
    0x0100: "questionable pulse",
    0x0200: "signal analysis ongoing",
    0x0400: "sensor interference",
    0x0800: "sensor unconnected to user",
    0x1000: "unknown sensor connected",
    0x2000: "sensor displaced",
    0x4000: "sensor malfunctioning",
    0x8000: "sensor disconnected",
}

_FEATURES = {
    0x01: "measurement status",
    0x02: "device and sensor status",
    0x04: STORAGE,
    0x08: "timestamp for spot-check",
    0x10: "spo2pr-fast",
    0x20: "spo2pr-slow",
    0x40: "pulse amplitude index",
    0x80: "multiple bonds",
}
_STATUS_MASK = const(0x01)
_SENSOR_STATUS_MASK = const(0x02)


def decode_spot_check(value: "bytes | memoryview") -> Reading:
    """Decode 0x2A5E (section 3.1). Raises Truncated."""
    flags = flags_of(value, "PLX spot-check measurement")
    timed = flags & _SPOT_TIMESTAMP
    has_status = flags & _SPOT_STATUS
    has_sensor = flags & _SPOT_SENSOR_STATUS
    indexed = flags & _SPOT_AMPLITUDE
    needed = 5 + (timed and DATE_TIME_BYTES) + (has_status and 2) + (has_sensor and 3) + (indexed and 2)
    check_length(value, needed, "PLX spot-check measurement")
    values = _pair(value, 1, "spo2", "pulse_rate")
    at = 5
    timestamp = clock_set = remark = None
    if timed:
        timestamp, clock_set, remark = date_time_at(value, at)
        at += DATE_TIME_BYTES
    if flags & _SPOT_CLOCK_NOT_SET:
        clock_set, remark = False, CLOCK_NOT_SET
    own = remarks(flags & _RESERVED_FLAGS, len(value) > needed, remark)
    return _reading(
        SPOT_CHECK, values, value, at, (has_status, has_sensor, indexed), own, timestamp, clock_set
    )


def as_measured(value: bytes) -> bytes:
    """Return a spot-check without the bit that says that it comes from storage.

    A Sensor whose new value was not confirmed sends it again from there: the same measurement, another bit.
    """
    if not value or not value[0] & _SPOT_STATUS:
        return value
    high = 5 + (DATE_TIME_BYTES if value[0] & _SPOT_TIMESTAMP else 0) + 1  # byte of the status
    if len(value) <= high:
        return value
    return value[:high] + bytes([value[high] & ~(_FROM_STORAGE >> 8) & 0xFF]) + value[high + 1 :]


def decode_continuous(value: "bytes | memoryview") -> Reading:
    """Decode 0x2A5F (section 3.2): no timestamp, and stored by nobody. Raises Truncated."""
    flags = flags_of(value, "PLX continuous measurement")
    fast = flags & _FAST
    slow = flags & _SLOW
    has_status = flags & _STATUS
    has_sensor = flags & _SENSOR_STATUS
    indexed = flags & _AMPLITUDE
    needed = 5 + (fast and 4) + (slow and 4) + (has_status and 2) + (has_sensor and 3) + (indexed and 2)
    check_length(value, needed, "PLX continuous measurement")
    values = _pair(value, 1, "spo2", "pulse_rate")
    at = 5
    if fast:
        values += _pair(value, at, "spo2_fast", "pulse_rate_fast")
        at += 4
    if slow:
        values += _pair(value, at, "spo2_slow", "pulse_rate_slow")
        at += 4
    own = remarks(flags & _RESERVED_FLAGS, len(value) > needed)
    return _reading(CONTINUOUS, values, value, at, (has_status, has_sensor, indexed), own, None, None)


def decode_features(value: "bytes | memoryview") -> Feature:
    """Decode 0x2A60 (section 3.3). Raises Truncated.

    A bit that the Sensor does not support is always 0, so that a missing fault bit proves nothing by itself.
    """
    check_length(value, 2, "PLX features")
    bits = value[0] | value[1] << 8
    has_status = bits & _STATUS_MASK
    has_sensor = bits & _SENSOR_STATUS_MASK
    needed = 2 + (has_status and 2) + (has_sensor and 3)
    check_length(value, needed, "PLX features")
    at = 2
    status = sensor = None
    if has_status:
        status = words(value[2] | value[3] << 8, _MEASUREMENT_STATUS)
        at = 4
    if has_sensor:
        sensor = words(_u24(value, at), _DEVICE_AND_SENSOR_STATUS)
    return Feature("plx_features", words(bits, _FEATURES) + remarks(0, len(value) > needed), status, sensor)


def stream_class(value: "bytes | memoryview") -> int:
    """Class of a 0x2A5F value: the bits that its trust depends on, and whether SpO2 is a number.

    Two values of one class may differ in their numbers, and in bits that say nothing about worth. Malformed
    values are one class. Does not allocate: the result has 25 bits, and nothing is raised.
    """
    length = len(value)
    if length < 5:
        return _MALFORMED
    flags = value[0]
    at = 5 + (flags & _FAST and 4) + (flags & _SLOW and 4)
    needed = at + (flags & _STATUS and 2) + (flags & _SENSOR_STATUS and 3) + (flags & _AMPLITUDE and 2)
    if length < needed:
        return _MALFORMED
    spo2 = value[1] | value[2] << 8
    found = 0 if 0 < spo2 & 0xFFF <= _MOST_BY_EXPONENT[spo2 >> 12] else 1
    if flags & _STATUS:
        found |= (value[at + 1] >> 2) << 3 | (value[at] >> 5 & 3) << 1
        at += 2
    if flags & _SENSOR_STATUS:
        found |= (value[at] & 0xFE | value[at + 1] << 8) << 9
    return found


def _pair(value: "bytes | memoryview", at: int, spo2: str, pulse_rate: str) -> "tuple[Value, ...]":
    """The two SFLOATs of an SpO2PR field."""
    first, second = struct.unpack_from("<HH", value, at)
    return (sfloat(spo2, first, PERCENT, _MOST_SPO2), sfloat(pulse_rate, second, PER_MINUTE))


def _reading(
    kind: str,
    values: "tuple[Value, ...]",
    value: "bytes | memoryview",
    at: int,
    has: "tuple[int, int, int]",
    own: "tuple[str, ...]",
    timestamp: "tuple[int, ...] | None",
    clock_set: "bool | None",
) -> Reading:
    """Decode from `at` what both values end with: status fields and index (`has`: which are there)."""
    has_status, has_sensor, indexed = has
    status = sensor = 0
    stored = None
    if has_status:
        status = value[at] | value[at + 1] << 8
        stored = bool(status & _FROM_STORAGE)
        at += 2
    if has_sensor:
        sensor = _u24(value, at)
        at += 3
    if indexed:
        values += (sfloat("pulse_amplitude_index", value[at] | value[at + 1] << 8, PERCENT, zero=True),)
    trust = _trust(values[0].special, status, sensor)
    spoken = words(status, _MEASUREMENT_STATUS) + words(sensor, _DEVICE_AND_SENSOR_STATUS) + own
    return Reading(kind, trust, values, spoken, timestamp, clock_set, stored, None)


def _trust(special: "str | None", status: int, sensor: int) -> str:
    """Without SpO2 there is no measurement, whatever the bits say: a Sensor need not support a single one."""
    if special is not None or status & _NEVER_STATUS or sensor & _NEVER_SENSOR:
        return NEVER
    if status & _QUESTIONABLE_STATUS or sensor & _QUESTIONABLE_SENSOR:
        return QUESTIONABLE
    return GOOD


def _u24(value: "bytes | memoryview", at: int) -> int:
    return value[at] | value[at + 1] << 8 | value[at + 2] << 16
