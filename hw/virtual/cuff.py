"""
A blood-pressure cuff with the Blood Pressure Service 0x1810 (BLS 1.0) and the habits of an A&D UA-651BLE.

It keeps every measurement, indicates what it holds oldest first as soon as an encrypted central subscribes,
forgets each at its confirmation, and drops the link by itself after a quiet time in which its clock (Date
Time 0x2A08 inside the same service) can be read and set.
"""

import struct
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from bumble import att
from bumble.device import Connection
from bumble.gatt import Service

from hw.virtual import sfloat
from hw.virtual.clock import SensorClock, decode_date_time, encode_date_time
from hw.virtual.ledger import BLOOD_PRESSURE, DISCARDED, Ledger, Measurement
from hw.virtual.radio import Room
from hw.virtual.sensor import INDICATE, Habits, Label, Sensor, gatt_service
from hw.virtual.sfloat import Quantity, Special

BLOOD_PRESSURE_SERVICE = 0x1810

MMHG = "mmHg"
KPA = "kPa"

# Measurement Status bits (BLS 1.0 section 3.1.1.6).
BODY_MOVEMENT = 1 << 0
CUFF_LOOSE = 1 << 1
IRREGULAR_PULSE = 1 << 2
WRONG_POSITION = 1 << 5

# Flags of 0x2A35.
_KPA, _TIMESTAMP, _PULSE, _USER, _STATUS = 1, 2, 4, 8, 16
# Feature 0x2A49: body movement, cuff fit, irregular pulse, position; and multiple bonds.
_FEATURE, _MANY_BONDS = 0b010111, 0b100000

_OUT_OF_RANGE = 0xFF


@dataclass
class _Record:
    measurement: Measurement
    value: bytes  # 0x2A35, made when taken: its timestamp is that of the taking


class Cuff(Sensor):
    """`timestamps=False`: values carry no time. `capacity`: of a full cuff the oldest goes first."""

    service = BLOOD_PRESSURE_SERVICE

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
        timestamps: bool = True,
        capacity: int = 30,
    ) -> None:
        clock = SensorClock() if clock is None and timestamps else clock
        super().__init__(room, address, label=label, clock=clock, ledger=ledger, bonds=bonds, habits=habits)
        self._timestamps = timestamps
        self._capacity = capacity
        self._stored: deque[_Record] = deque()

    def measure(
        self,
        systolic: Quantity,
        diastolic: Quantity,
        mean: Quantity,
        pulse: Quantity,
        *,
        unit: str = MMHG,
        status: int = 0,
        user: int | None = None,
    ) -> Measurement:
        """Take a reading (`unit`, pulse in /min), keep it, and become connectable to deliver what is held."""
        pressures = {"systolic": systolic, "diastolic": diastolic, "mean": mean, "pulse": pulse}
        value = self._encode(pressures, unit, status, user)  # first: refuses what does not fit
        self._keep(_Record(self._enter(pressures, unit, status), value))
        self.wake()
        return self._stored[-1].measurement

    def measure_failed(self) -> Measurement:
        """All values NaN and Measurement Status 0: the capture of DOMAIN 1.1, where no status bit tells."""
        return self.measure(Special.NAN, Special.NAN, Special.NAN, Special.NAN)

    @property
    def stored(self) -> list[Measurement]:
        """Oldest first."""
        return [record.measurement for record in self._stored]

    # Sensor.

    def _services(self) -> list[Service]:
        self._pressure = self._subscribable(0x2A35, INDICATE)
        characteristics = [self._pressure, self._readable(0x2A49, self._read_feature)]
        if self.clock is not None:
            characteristics.append(self._readable(0x2A08, self._read_clock, self._set_clock))
        return [gatt_service(BLOOD_PRESSURE_SERVICE, characteristics)]

    def _read_feature(self) -> bytes:
        return struct.pack("<H", _FEATURE | (0 if self.habits.one_bond else _MANY_BONDS))

    async def _deliver(self, link: Connection) -> None:
        while self._stored and self._subscribed(link, self._pressure, INDICATE):
            record = self._stored[0]
            if not await self._send(link, self._pressure, record.value, record.measurement):
                return
            self._stored.popleft()

    def _has_news(self) -> bool:
        return bool(self._stored)

    # Measurements.

    def _keep(self, record: _Record) -> None:
        self._stored.append(record)
        if len(self._stored) > self._capacity and self._stored[0].measurement is not self._sending:
            self.ledger.mark(self._stored.popleft().measurement, DISCARDED)

    def _encode(self, pressures: dict[str, Quantity], unit: str, status: int, user: int | None) -> bytes:
        """Blood Pressure Measurement 0x2A35."""
        flags = _PULSE | _STATUS | (_KPA if unit == KPA else 0) | (0 if user is None else _USER)
        value = b"".join(sfloat.encode(pressures[name]) for name in ("systolic", "diastolic", "mean"))
        if self._timestamps and self.clock is not None:
            flags |= _TIMESTAMP
            value += encode_date_time(self.clock.read())
        value += sfloat.encode(pressures["pulse"])
        value += b"" if user is None else bytes((user,))
        return bytes((flags,)) + value + struct.pack("<H", status)

    def _enter(self, pressures: dict[str, Quantity], unit: str, status: int) -> Measurement:
        shown = self.clock.read() if self.clock is not None else None
        return self.ledger.take(
            pressures,
            sensor=self.address,
            serial=self.label.serial or "",
            kind=BLOOD_PRESSURE,
            unit=unit,
            failed=isinstance(pressures["systolic"], Special) or isinstance(pressures["diastolic"], Special),
            status=status,
            sensor_status=None,
            timestamped=self._timestamps,
            clock=self._clock_state(),
            shown_at=None if shown is None else shown.isoformat(),
        )

    # Clock.

    def _read_clock(self) -> bytes:
        assert self.clock is not None
        return encode_date_time(self.clock.read())

    def _set_clock(self, _link: Connection, value: bytes) -> None:
        assert self.clock is not None
        if len(value) != 7:
            raise att.ATT_Error(att.ErrorCode.INVALID_ATTRIBUTE_LENGTH)
        try:
            self.clock.set(decode_date_time(value))
        except ValueError as error:
            raise att.ATT_Error(_OUT_OF_RANGE) from error
