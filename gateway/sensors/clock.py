"""A Sensor's clock: Date Time 0x2A08 (A&D cuffs keep it inside 0x1810) and Current Time 0x2A2B (CTS 1.1)."""

from gateway.port import const
from gateway.reading import DATE_TIME_BYTES, Clock, check_length, date_time_at, remarks, words

DATE_TIME_CHARACTERISTIC = const(0x2A08)
CURRENT_TIME = const(0x2A2B)
_CURRENT_TIME_BYTES = const(10)

_ADJUST_REASONS = {
    0x01: "manual time update",
    0x02: "external reference time update",
    0x04: "change of time zone",
    0x08: "change of dst",
}


def decode_date_time(value: "bytes | memoryview") -> Clock:
    """Decode 0x2A08: local wall time without a zone. Raises Truncated."""
    check_length(value, DATE_TIME_BYTES, "date time")
    return _clock(value, None, (), len(value) > DATE_TIME_BYTES)


def decode_current_time(value: "bytes | memoryview") -> Clock:
    """Decode 0x2A2B: Date Time, day of week (says nothing new), 1/256 s, adjust reason. Raises Truncated."""
    check_length(value, _CURRENT_TIME_BYTES, "current time")
    return _clock(value, value[8], words(value[9], _ADJUST_REASONS), len(value) > _CURRENT_TIME_BYTES)


def _clock(
    value: "bytes | memoryview", fraction_256: "int | None", status: "tuple[str, ...]", trailing: bool
) -> Clock:
    date_time, clock_set, remark = date_time_at(value, 0)
    return Clock(date_time, clock_set, fraction_256, status + remarks(0, trailing, remark))
