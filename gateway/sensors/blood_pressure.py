"""Blood Pressure Service 0x1810 (BLS 1.1.1): measurement 0x2A35, cuff pressure 0x2A36, feature 0x2A49."""

import struct

from gateway.port import const
from gateway.reading import (
    BLOOD_PRESSURE,
    CUFF_PRESSURE,
    DATE_TIME_BYTES,
    GOOD,
    KPA,
    MMHG,
    NEVER,
    PER_MINUTE,
    QUESTIONABLE,
    RESERVED_BITS,
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

BLOOD_PRESSURE_MEASUREMENT = const(0x2A35)
INTERMEDIATE_CUFF_PRESSURE = const(0x2A36)
BLOOD_PRESSURE_FEATURE = const(0x2A49)

_FLAG_KPA = const(0x01)
_FLAG_TIMESTAMP = const(0x02)
_FLAG_PULSE = const(0x04)
_FLAG_USER = const(0x08)
_FLAG_STATUS = const(0x10)
_RESERVED_FLAGS = const(0xE0)
_UNKNOWN_USER = const(255)

# Measurement Status, section 3.1.1.6. Bits 3 and 4 are one number; 3 is reserved.
_QUESTIONABLE_STATUS = const(0x23)  # body movement, cuff too loose, improper position
_MEASUREMENT_STATUS = {
    0x01: "body movement",
    0x02: "cuff too loose",
    0x04: "irregular pulse",  # a finding (atrial fibrillation), not an artefact: it lowers no trust
    0x20: "improper measurement position",
}
_RANGE_BITS = const(0x18)
_RANGE = (
    (),
    ("pulse rate above upper limit",),
    ("pulse rate below lower limit",),
    (RESERVED_BITS,),
)

_FEATURES = {
    0x001: "body movement detection",
    0x002: "cuff fit detection",
    0x004: "irregular pulse detection",
    0x008: "pulse rate range detection",
    0x010: "measurement position detection",
    0x020: "multiple bonds",
    0x040: "e2e-crc",
    0x080: "user data service",
    0x100: "user facing time",
}


def decode_measurement(value: "bytes | memoryview") -> Reading:
    """Decode 0x2A35. Raises Truncated."""
    flags, trailing = _check(value, "blood pressure measurement")
    unit = KPA if flags & _FLAG_KPA else MMHG
    systolic, diastolic, mean = struct.unpack_from("<HHH", value, 1)
    values = (
        sfloat("systolic", systolic, unit),
        sfloat("diastolic", diastolic, unit),
        sfloat("mean", mean, unit),
    )
    # Some cuffs report a failure by NaN alone, with every status bit clear.
    failed = values[0].special is not None or values[1].special is not None
    return _reading(BLOOD_PRESSURE, failed, values, value, flags, trailing)


def decode_cuff_pressure(value: "bytes | memoryview") -> Reading:
    """Decode 0x2A36: the same layout, the pressure in the cuff alone: nobody's vital. Raises Truncated."""
    flags, trailing = _check(value, "intermediate cuff pressure")
    pressure = sfloat(
        "cuff_pressure", value[1] | value[2] << 8, KPA if flags & _FLAG_KPA else MMHG, zero=True
    )
    return _reading(CUFF_PRESSURE, True, (pressure,), value, flags, trailing)


def decode_feature(value: "bytes | memoryview") -> Feature:
    """Decode 0x2A49. Raises Truncated."""
    check_length(value, 2, "blood pressure feature")
    supported = words(value[0] | value[1] << 8, _FEATURES)
    return Feature("blood_pressure_feature", supported + remarks(0, len(value) > 2), None, None)


def _check(value: "bytes | memoryview", what: str) -> "tuple[int, bool]":
    """Return the flags, and whether there are more bytes than they announce. Raises Truncated."""
    flags = flags_of(value, what)
    needed = 7
    if flags & _FLAG_TIMESTAMP:
        needed += DATE_TIME_BYTES
    if flags & _FLAG_PULSE:
        needed += 2
    if flags & _FLAG_USER:
        needed += 1
    if flags & _FLAG_STATUS:
        needed += 2
    check_length(value, needed, what)
    return flags, len(value) > needed


def _reading(
    kind: str,
    never: bool,
    values: "tuple[Value, ...]",
    value: "bytes | memoryview",
    flags: int,
    trailing: bool,
) -> Reading:
    """Decode the optional fields after the three pressures."""
    at = 7
    status = 0
    timestamp = clock_set = remark = user = None
    if flags & _FLAG_TIMESTAMP:
        timestamp, clock_set, remark = date_time_at(value, at)
        at += DATE_TIME_BYTES
    if flags & _FLAG_PULSE:
        values += (sfloat("pulse_rate", value[at] | value[at + 1] << 8, PER_MINUTE),)
        at += 2
    if flags & _FLAG_USER:
        user = value[at] if value[at] != _UNKNOWN_USER else None
        at += 1
    if flags & _FLAG_STATUS:
        status = value[at] | value[at + 1] << 8
    spoken = (_words(status) if status else ()) + remarks(flags & _RESERVED_FLAGS, trailing, remark)
    trust = NEVER if never else QUESTIONABLE if status & _QUESTIONABLE_STATUS else GOOD
    return Reading(kind, trust, values, spoken, timestamp, clock_set, None, user)


def _words(status: int) -> "tuple[str, ...]":
    return words(status & ~_RANGE_BITS, _MEASUREMENT_STATUS) + _RANGE[(status & _RANGE_BITS) >> 3]
