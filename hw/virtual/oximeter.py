"""
A pulse oximeter with the Pulse Oximeter Service 0x1822 (PLXS 1.0.1): spot-check, continuous, stored records
by RACP.

The rule kept here: a new measurement is indicated at most once confirmed; undelivered at the end of its
session it is stored when the oximeter can store, and discarded when it cannot. Stored ones leave only by
RACP, oldest first.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bumble import att
from bumble.device import Connection
from bumble.gatt import Characteristic, Service

from hw.virtual import sfloat
from hw.virtual.clock import SensorClock, decode_current_time, encode_current_time, encode_date_time
from hw.virtual.ledger import CONTINUOUS, DISCARDED, EMPTIED, SENT, SPOT_CHECK, Ledger, Measurement
from hw.virtual.radio import Room
from hw.virtual.sensor import INDICATE, NOTIFY, Habits, Label, Sensor, gatt_service, stop
from hw.virtual.sfloat import Quantity

PULSE_OXIMETER = 0x1822

# Measurement Status bits (PLXS 1.0.1 section 3.1.1.5).
ONGOING = 1 << 5
EARLY = 1 << 6
VALIDATED = 1 << 7
FULLY_QUALIFIED = 1 << 8
FROM_STORAGE = 1 << 9
DEMONSTRATION = 1 << 10
TESTING = 1 << 11
CALIBRATION = 1 << 12
UNAVAILABLE = 1 << 13
QUESTIONABLE = 1 << 14
INVALID = 1 << 15
_ALL_STATUS = 0xFFE0

# Device and Sensor Status bits (PLXS section 3.1.1.6), those that tests and the demo use.
POOR_SIGNAL = 1 << 4
LOW_PERFUSION = 1 << 5
SENSOR_DISCONNECTED = 1 << 15
_ALL_SENSOR_STATUS = 0xFFFF

# Spot-check flags.
_TIMESTAMP, _STATUS, _SENSOR_STATUS, _AMPLITUDE, _CLOCK_NOT_SET = 1, 2, 4, 8, 16
# Continuous flags: the same fields, other bits.
_CONTINUOUS_STATUS, _CONTINUOUS_SENSOR_STATUS = 4, 8
# Features.
_STATUS_BITS, _SENSOR_STATUS_BITS, _STORAGE, _TIMESTAMPS, _PAI, _MANY_BONDS = 1, 2, 4, 8, 64, 128

# RACP op codes, operators and answers (DOMAIN 1.3).
_REPORT, _DELETE, _ABORT, _COUNT, _COUNT_IS, _ANSWER = 1, 2, 3, 4, 5, 6
_NULL, _ALL, _NEWEST = 0, 1, 6
_SUCCESS, _NO_SUCH_OP, _BAD_OPERATOR, _NO_SUCH_OPERATOR, _BAD_OPERAND, _NO_RECORDS = 1, 2, 3, 4, 5, 6

# ATT errors of the profile (CSS Part B).
_IMPROPERLY_CONFIGURED = 0xFD
_ALREADY_IN_PROGRESS = 0xFE
_OUT_OF_RANGE = 0xFF


@dataclass
class _Record:
    """A spot-check as it will be sent, and its line in the ledger."""

    measurement: Measurement
    flags: int
    quantities: bytes
    date_time: bytes
    status: int
    sensor_status: int
    amplitude: bytes

    def encode(self, *, stored: bool) -> bytes:
        """PLX Spot-check Measurement 0x2A5E."""
        value = bytes((self.flags,)) + self.quantities + self.date_time
        if self.flags & _STATUS:
            value += struct.pack("<H", self.status | (FROM_STORAGE if stored else 0))
        if self.flags & _SENSOR_STATUS:
            value += self.sensor_status.to_bytes(3, "little")
        return value + self.amplitude


@dataclass(frozen=True)
class _Request:
    """What was written to the Record Access Control Point. It ends with its link (PLXS: does not resume)."""

    link: Connection
    op: int
    operator: int
    operand: bytes


class Oximeter(Sensor):
    """
    Options: `storage` (RACP; needs a clock and timestamps), `timestamps`, `status` (the status words are
    supported), `amplitude` (pulse amplitude index), `refuses` (RACP op codes that it does not know: 1 report,
    2 delete). Oximeter.simple() has none of them and no clock.
    """

    service = PULSE_OXIMETER

    def __init__(
        self,
        room: Room,
        address: str,
        *,
        label: Label,
        clock: SensorClock | None = None,
        ledger: Ledger | None = None,
        bonds: Path | None = None,
        habits: Habits | None = None,
        storage: bool = True,
        timestamps: bool = True,
        status: bool = True,
        amplitude: bool = False,
        capacity: int = 30,
        refuses: frozenset[int] = frozenset(),
    ) -> None:
        clock = SensorClock() if clock is None and timestamps else clock
        super().__init__(room, address, label=label, clock=clock, ledger=ledger, bonds=bonds, habits=habits)
        assert timestamps or not storage, "PLXS: stored measurements carry a timestamp"
        assert status or not storage, "PLXS: stored measurements say so in their status"
        self._timestamps = timestamps
        self._status = status
        self._amplitude = amplitude
        self._storage = storage
        self._capacity = capacity
        self._refuses = refuses
        self._new: _Record | None = None
        self._stored: deque[_Record] = deque()
        self._request: _Request | None = None
        self._abort = False
        self._stream: asyncio.Task[None] | None = None

    @classmethod
    def simple(cls, room: Room, address: str, **rest: Any) -> "Oximeter":
        """No timestamp, no storage, no status words, no clock: what cannot be delivered at once is gone."""
        return cls(room, address, storage=False, timestamps=False, status=False, **rest)

    def measure_spot_check(
        self,
        spo2: Quantity,
        pulse: Quantity,
        *,
        status: int = FULLY_QUALIFIED,
        sensor_status: int = 0,
        amplitude: Quantity | None = None,
    ) -> Measurement:
        """Take a reading (%, /min) and try to deliver it. Undelivered earlier one: stored or discarded."""
        assert self._status or sensor_status == 0, "this oximeter has no status words"
        self._retire()
        self._new = self._take(spo2, pulse, status, sensor_status, amplitude)
        self.wake()
        return self._new.measurement

    def start_continuous(
        self, samples: Iterable[tuple[Quantity, Quantity]], *, period_s: float = 1.0, status: int = ONGOING
    ) -> None:
        """Stream (SpO2, pulse) until `samples` ends. What nobody subscribed to is not in the ledger."""
        assert self._stream is None or self._stream.done()
        self.wake()
        self._stream = asyncio.create_task(self._run_stream(samples, period_s, status))

    async def stop_continuous(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stop(stream)

    async def power_off(self) -> None:
        await self.stop_continuous()
        await super().power_off()

    @property
    def stored(self) -> list[Measurement]:
        """Oldest first."""
        return [record.measurement for record in self._stored]

    @property
    def features(self) -> bytes:
        """PLX Features 0x2A60."""
        bits = 0 if self.habits.one_bond else _MANY_BONDS
        bits |= (_STORAGE if self._storage else 0) | (_TIMESTAMPS if self._timestamps else 0)
        bits |= _PAI if self._amplitude else 0
        if not self._status:
            return struct.pack("<H", bits)
        bits |= _STATUS_BITS | _SENSOR_STATUS_BITS
        return struct.pack("<HH", bits, _ALL_STATUS) + _ALL_SENSOR_STATUS.to_bytes(3, "little")

    # Sensor.

    def _services(self) -> list[Service]:
        self._spot = self._subscribable(0x2A5E, INDICATE)
        self._continuous = self._subscribable(0x2A5F, NOTIFY)
        characteristics = [self._spot, self._continuous, self._readable(0x2A60, lambda: self.features)]
        if self._storage:
            self._racp = self._subscribable(0x2A52, INDICATE, self._on_request)
            characteristics.append(self._racp)
        services = [gatt_service(PULSE_OXIMETER, characteristics)]
        if self.clock is not None:
            services.append(_current_time_service(self._readable(0x2A2B, self._read_clock, self._set_clock)))
        return services

    async def _deliver(self, link: Connection) -> None:
        request = self._request
        if request is not None:
            answer = await self._answer_to(request) if request.link is link else None
            self._request = None  # over: the next request may come before this answer's confirmation
            if answer is not None:
                await self._indicate(link, self._racp, answer)
        if self._new is not None and self._subscribed(link, self._spot, INDICATE):
            await self._send_new(link, self._new)

    def _has_news(self) -> bool:
        return self._new is not None or (self._stream is not None and not self._stream.done())

    def _retire(self) -> None:
        record, self._new = self._new, None
        if record is not None and record.measurement is not self._sending:
            self._put_away(record)

    async def _send_new(self, link: Connection, record: _Record) -> None:
        confirmed = False
        try:
            confirmed = await self._send(link, self._spot, record.encode(stored=False), record.measurement)
        finally:
            if confirmed and self._new is record:
                self._new = None
            if not confirmed and self._new is not record:  # a newer one came while this was on its way
                self._put_away(record)

    def _put_away(self, record: _Record) -> None:
        if not self._storage:
            self.ledger.mark(record.measurement, DISCARDED)
            return
        self._stored.append(record)
        if len(self._stored) > self._capacity and self._stored[0].measurement is not self._sending:
            self.ledger.mark(self._stored.popleft().measurement, DISCARDED)

    # Measurements.

    def _take(
        self, spo2: Quantity, pulse: Quantity, status: int, sensor_status: int, amplitude: Quantity | None
    ) -> _Record:
        shown = self.clock.read() if self.clock is not None else None
        flags = (_TIMESTAMP if self._timestamps else 0) | (_STATUS | _SENSOR_STATUS if self._status else 0)
        flags |= _AMPLITUDE if self._amplitude and amplitude is not None else 0
        if self.clock is not None and not self.clock.is_set:
            flags |= _CLOCK_NOT_SET
        return _Record(
            measurement=self._enter(SPOT_CHECK, spo2, pulse, status, sensor_status),
            flags=flags,
            quantities=sfloat.encode(spo2) + sfloat.encode(pulse),
            date_time=encode_date_time(shown) if self._timestamps else b"",
            status=status,
            sensor_status=sensor_status,
            amplitude=sfloat.encode(amplitude) if flags & _AMPLITUDE and amplitude is not None else b"",
        )

    def _enter(
        self, kind: str, spo2: Quantity, pulse: Quantity, status: int, sensor_status: int
    ) -> Measurement:
        shown = self.clock.read() if self.clock is not None else None
        return self.ledger.take(
            {"spo2": spo2, "pulse": pulse},
            sensor=self.address,
            serial=self.label.serial or "",
            kind=kind,
            unit="%",
            failed=isinstance(spo2, sfloat.Special),
            status=status if self._status else None,
            sensor_status=sensor_status if self._status else None,
            timestamped=self._timestamps and kind == SPOT_CHECK,
            clock=self._clock_state(),
            shown_at=None if shown is None else shown.isoformat(),
        )

    async def _run_stream(
        self, samples: Iterable[tuple[Quantity, Quantity]], period_s: float, status: int
    ) -> None:
        for spo2, pulse in samples:
            self.wake(period_s + self.habits.linger_s)
            if self._link is not None and self._subscribed(self._link, self._continuous, NOTIFY):
                await self._stream_one(self._link, spo2, pulse, status)
            await asyncio.sleep(period_s)

    async def _stream_one(self, link: Connection, spo2: Quantity, pulse: Quantity, status: int) -> None:
        """PLX Continuous Measurement 0x2A5F: SpO2PR-Normal and, where supported, the two status words."""
        value = bytes((_CONTINUOUS_STATUS | _CONTINUOUS_SENSOR_STATUS if self._status else 0,))
        value += sfloat.encode(spo2) + sfloat.encode(pulse)
        value += struct.pack("<H", status) + bytes(3) if self._status else b""
        measurement = self._enter(CONTINUOUS, spo2, pulse, status, 0)
        await self._notify(link, self._continuous, value)
        self.ledger.mark(measurement, SENT)

    # Clock: PLXS names no means to set it; this one has a Current Time Service.

    def _read_clock(self) -> bytes:
        assert self.clock is not None
        return encode_current_time(self.clock.read())

    def _set_clock(self, _link: Connection, value: bytes) -> None:
        assert self.clock is not None
        if len(value) != 10:
            raise att.ATT_Error(att.ErrorCode.INVALID_ATTRIBUTE_LENGTH)
        try:
            self.clock.set(decode_current_time(value))
        except ValueError as error:
            raise att.ATT_Error(_OUT_OF_RANGE) from error

    # Record Access Control Point.

    def _on_request(self, link: Connection, value: bytes) -> None:
        if len(value) < 2:
            raise att.ATT_Error(att.ErrorCode.INVALID_ATTRIBUTE_LENGTH)
        op, operator, operand = value[0], value[1], value[2:]
        if not self._subscribed(link, self._racp, INDICATE):
            raise att.ATT_Error(_IMPROPERLY_CONFIGURED)
        if op == _REPORT and not self._subscribed(link, self._spot, INDICATE):
            raise att.ATT_Error(_IMPROPERLY_CONFIGURED)
        busy = self._request is not None and self._request.link is link
        if busy and op != _ABORT:
            raise att.ATT_Error(_ALREADY_IN_PROGRESS)
        if busy:
            self._abort = True
        else:
            self._request = _Request(link, op, operator, operand)
            self._abort = False

    async def _answer_to(self, request: _Request) -> bytes | None:
        """Carry out one request: the answer to indicate, or None when the link went, which ends it."""
        op = request.op
        if op in self._refuses:
            return _answer(op, _NO_SUCH_OP)
        refusal = _refusal(op, request.operator, request.operand)
        if refusal is not None:
            return _answer(op, refusal)
        if op == _COUNT:
            return struct.pack("<BBH", _COUNT_IS, _NULL, len(self._stored))
        if op == _DELETE:
            return _answer(op, self._empty())
        if op == _ABORT:  # nothing is running: trivially done
            return _answer(op, _SUCCESS)
        return await self._report(request.link)

    async def _report(self, link: Connection) -> bytes | None:
        """All stored records, oldest first; each is forgotten at its own confirmation, not at the end."""
        answer = _SUCCESS if self._stored else _NO_RECORDS
        while self._stored and not self._abort:
            record = self._stored[0]
            if not await self._send(link, self._spot, record.encode(stored=True), record.measurement):
                return None
            self._stored.popleft()
        return _answer(_ABORT, _SUCCESS) if self._abort else _answer(_REPORT, answer)

    def _empty(self) -> int:
        if not self._stored:
            return _NO_RECORDS
        for record in self._stored:
            self.ledger.mark(record.measurement, EMPTIED)
        self._stored.clear()
        return _SUCCESS


def _answer(op: int, answer: int) -> bytes:
    return bytes((_ANSWER, _NULL, op, answer))


def _refusal(op: int, operator: int, operand: bytes) -> int | None:
    """Why a request is not carried out; PLXS excludes every filter, so no request has an operand."""
    if op not in (_REPORT, _DELETE, _ABORT, _COUNT):
        return _NO_SUCH_OP
    wanted = _NULL if op == _ABORT else _ALL
    if operator != wanted:
        known = _ALL < operator <= _NEWEST and op != _ABORT
        return _NO_SUCH_OPERATOR if known else _BAD_OPERATOR
    return _BAD_OPERAND if operand else None


def _current_time_service(current_time: Characteristic[bytes]) -> Service:
    return gatt_service(0x1805, [current_time])
