"""A Sensor's session with the bench in the Gateway's place: the core's own (gateway/sensor_session.py).

The rules: a Sensor's values are counted and never kept or shown, for they may be a patient's; and who only
looks subscribes to nothing, since a Sensor forgets each value that it is confirmed.
"""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, NamedTuple

from gateway.limits import RACP_WAIT_MS
from gateway.record import INDICATED, RACP_ENDED, SENSOR_DRAINED, SENSOR_FAILED
from gateway.sensor_session import DISCONNECT, SUBSCRIBE, WRITE, SensorSession
from gateway.sensors.racp import RECORD_ACCESS_CONTROL_POINT, REPORT_ALL

if TYPE_CHECKING:
    from gateway.sensor_session import Items, Step

_DELETE_ALL = b"\x02\x01"
_DELETE = 2
_RESPONSE = 6


class ClockRead(NamedTuple):
    """A Sensor's clock as read or set, and what the bench's showed then (the home's time, ms since 1970)."""

    kind: int  # CLOCK_BEFORE, CLOCK_SET, CLOCK_AFTER
    characteristic: int
    value: bytes
    local_ms: int


@dataclass
class Found:
    """What one connection has told. Of values no more than how many there were."""

    items: list[tuple[int, bytes]] = field(default_factory=list)
    clocks: list[ClockRead] = field(default_factory=list)
    battery: int | None = None
    values: int = 0
    drained: bool = False
    record_access: int | None = None  # the last response code of RACP, 0: none came
    refused: str = ""  # why it could not be subscribed to
    kept_back: bool = False  # something is told only to whom it is bonded

    def item(self, tag: int) -> bytes:
        """One of SENSOR's items, b"" when it has not told."""
        return next((value for one, value in self.items if one == tag), b"")


class Session(SensorSession):
    """The core's session, ended early: before the first subscription, or when the Sensor is empty."""

    only_look = False
    delete = False
    _response_due = _again = False

    def next_step(self, now_ms: int) -> "Step | None":
        if self._again:
            self._again = False
            return (WRITE, RECORD_ACCESS_CONTROL_POINT, REPORT_ALL)
        step = super().next_step(now_ms)
        if step is None:
            return (DISCONNECT, 0, None) if self.drained else None
        if step[0] == SUBSCRIBE and self.only_look:
            return (DISCONNECT, 0, None)
        if step[2] == REPORT_ALL and self.delete:
            self._response_due = True
            return (WRITE, RECORD_ACCESS_CONTROL_POINT, _DELETE_ALL)
        return step

    def value_received(self, characteristic: int, value: bytes | memoryview, now_ms: int) -> None:
        """However it takes the deletion, what it still has is asked for: an empty Sensor says so."""
        answers = characteristic == RECORD_ACCESS_CONTROL_POINT and bytes(value[:3:2]) == bytes(
            (_RESPONSE, _DELETE)
        )
        if self._response_due and answers:
            self._response_due, self._again = False, True
        super().value_received(characteristic, value, now_ms)

    def due_ms(self, now_ms: int) -> int:
        return now_ms if self._again else min(super().due_ms(now_ms), now_ms + RACP_WAIT_MS)


class Guest:
    """The bench in the Gateway's place: what a Visit and its session ask of one. Keeps a Found."""

    def __init__(self, zone: tzinfo | None, *, set_clock: bool, only_look: bool, delete: bool) -> None:
        self.found = Found()
        self._zone, self._set_clock = zone, set_clock
        self._only_look, self._delete = only_look, delete

    def session(
        self, sensor: int, *, name: str, services: list[int], table: dict[int, int], now_ms: int
    ) -> SensorSession:
        made = Session(self, sensor, name=name, services=services, table=table, now_ms=now_ms)
        made.only_look, made.delete = self._only_look, self._delete
        return made

    def thins(self, sensor: int, characteristic: int, value: bytes, hi: int, lo: int) -> bool:
        return True  # a streamed value was never kept by the Sensor

    def received(self, sensor: int, characteristic: int, value: bytes, flags: int, hi: int, lo: int) -> int:
        self.found.values += bool(flags & INDICATED)
        return self.found.values

    def identity(self, sensor: int) -> "tuple[Items, bool]":
        return (), False

    def describe(self, sensor: int, items: "Items", complete: bool, now_ms: int) -> None:
        self.found.items = list(items)
        self.found.kept_back = not complete

    def append_clock(
        self, sensor: int, kind: int, offset_min: int, characteristic: int, value: bytes, now_ms: int
    ) -> None:
        self.found.clocks.append(ClockRead(kind, characteristic, value, local_time(self._zone)[0]))

    def append_event(self, code: int, sensor: int, detail: bytes, now_ms: int) -> None:
        if code == SENSOR_DRAINED:
            self.found.drained = True
        elif code == RACP_ENDED:
            self.found.record_access = detail[0]
        elif code == SENSOR_FAILED:
            self.found.refused = detail.decode(errors="replace")

    def append_battery(self, sensor: int, percent: int, now_ms: int) -> None:
        self.found.battery = percent

    def local_time(self, now_ms: int) -> tuple[int, int] | None:
        return local_time(self._zone) if self._set_clock else None


def local_time(zone: tzinfo | None) -> tuple[int, int]:
    """Wall time now in ms since 1970, and its UTC offset in minutes."""
    utc_ms = time.time_ns() // 1_000_000
    offset = datetime.fromtimestamp(utc_ms / 1000, UTC).astimezone(zone).utcoffset()
    assert offset is not None
    minutes = int(offset.total_seconds()) // 60
    return utc_ms + minutes * 60_000, minutes
