"""
What a Sensor measured and what became of it: the ground truth that the demo's checker compares the Hub with.

Append-only. A measurement is taken once, sent any number of times, and ends at most once: confirmed (the
Gateway's stack confirmed the indication), discarded (the Sensor had nowhere to keep it) or emptied (deleted
by command). With a path each event is also one JSON line: {"event": "taken", "number": 1, ...} and {"event":
"sent", "number": 1, "at": ...}.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hw.virtual.sfloat import Quantity, Special

SPOT_CHECK = "spot_check"
CONTINUOUS = "continuous"
BLOOD_PRESSURE = "blood_pressure"

TAKEN = "taken"
SENT = "sent"
CONFIRMED = "confirmed"
DISCARDED = "discarded"
EMPTIED = "emptied"
_ENDS = (CONFIRMED, DISCARDED, EMPTIED)


@dataclass
class Measurement:
    """One measurement as the world knows it. `values` are physical numbers in `unit`; None is "no number"."""

    number: int  # 1, 2, 3, ... per Sensor
    sensor: str  # identity address
    serial: str
    kind: str  # SPOT_CHECK, CONTINUOUS, BLOOD_PRESSURE
    taken_at: str  # true UTC, ISO 8601 with microseconds
    episode: str | None  # whose finger or arm it was
    values: dict[str, int | float | None]  # spo2, pulse | systolic, diastolic, mean, pulse
    unit: str  # of spo2 or of the pressures: "%", "mmHg", "kPa"
    failed: bool  # the Sensor says itself that it measured nothing
    status: int | None  # Measurement Status as sent, None when the field is not sent
    sensor_status: int | None  # Device and Sensor Status of an oximeter
    timestamped: bool  # the value carries the Sensor's own time
    clock: str  # "set", "unset", "stopped", "none" when it was taken
    shown_at: str | None  # what the Sensor's clock showed, local wall time
    sent: int = 0
    end: str | None = None

    @property
    def state(self) -> str:
        return self.end or (SENT if self.sent else TAKEN)


@dataclass
class Ledger:
    """The measurements of one Sensor. `episode` labels what is taken from now on."""

    path: Path | None = None
    utc: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    episode: str | None = None
    measurements: list[Measurement] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        """The ledger that a Sensor wrote, in another process or earlier."""
        ledger = cls()
        for line in path.read_text().splitlines():
            ledger._replay(json.loads(line))
        return ledger

    @property
    def taken(self) -> list[Measurement]:
        """Everything but streamed values, which nobody confirms and no Sensor keeps."""
        return [m for m in self.measurements if m.kind != CONTINUOUS]

    @property
    def streamed(self) -> list[Measurement]:
        return [m for m in self.measurements if m.kind == CONTINUOUS]

    @property
    def confirmed(self) -> list[Measurement]:
        return [m for m in self.taken if m.end == CONFIRMED]

    @property
    def held(self) -> list[Measurement]:
        """Still in the Sensor, to be sent."""
        return [m for m in self.taken if m.end is None]

    def take(self, values: dict[str, Quantity], **facts: Any) -> Measurement:
        """Enter a new measurement; `facts` are the fields of Measurement that the Sensor knows."""
        measurement = Measurement(
            number=len(self.measurements) + 1,
            taken_at=self._now(),
            episode=self.episode,
            values={name: physical(quantity) for name, quantity in values.items()},
            **facts,
        )
        self.measurements.append(measurement)
        self._write({"event": TAKEN, **asdict(measurement)})
        return measurement

    def mark(self, measurement: Measurement, event: str) -> None:
        """Enter SENT, CONFIRMED, DISCARDED or EMPTIED."""
        self._apply(measurement, event)
        self._write({"event": event, "number": measurement.number, "at": self._now()})

    def _apply(self, measurement: Measurement, event: str) -> None:
        assert measurement.end is None, f"{event} after {measurement.end}"
        if event == SENT:
            measurement.sent += 1
        else:
            assert event in _ENDS
            measurement.end = event

    def _replay(self, line: dict[str, Any]) -> None:
        event = line.pop("event")
        if event == TAKEN:
            self.measurements.append(Measurement(**line))
        else:
            self._apply(self.measurements[line["number"] - 1], event)

    def _write(self, line: dict[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def _now(self) -> str:
        return self.utc().isoformat(timespec="microseconds")


def physical(quantity: Quantity) -> int | float | None:
    """The number that a quantity stands for; None for the specials."""
    if isinstance(quantity, Special):
        return None
    return int(quantity) if quantity == int(quantity) else float(quantity)
