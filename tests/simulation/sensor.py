"""A Sensor: what it measures, keeps, sends and forgets; and the ledger of all that was ever measured.

It encodes its values itself and knows nothing of the code under test. It forgets a value when that is
confirmed (DOMAIN 1.2), and only then.
"""

import asyncio
import struct
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.kit import Visit
    from tests.simulation.world import World

CUFF, OXIMETER, PLAIN_OXIMETER, STREAM = "cuff", "oximeter", "plain oximeter", "stream"
NAN = 0x07FF
READ, WRITE, NOTIFY, INDICATE = 0x02, 0x08, 0x10, 0x20
PRESSURE, SPOT_CHECK, CONTINUOUS, RACP = 0x2A35, 0x2A5E, 0x2A5F, 0x2A52
DATE_TIME, CURRENT_TIME = 0x2A08, 0x2A2B
CAPACITY = 60
STREAMS = 0.04
"""Visits in which the finger stays on."""
FACTORY_MS = int(datetime(2010, 1, 1, tzinfo=UTC).timestamp() * 1000)
STEPS_MIN = (-600, -180, -60, -25, 25, 60, 180, 600, -525_600)
"""Minutes; the last one is a year. Less than twenty could be the drift of a clock that nobody looked at."""
_FINGER_S = 45
"""A Sensor without a store forgets its value when the finger is gone."""
_ALONE_S = 130
"""A trouble within two minutes after a look at the clock is not to be told from a live value's."""
GOOD, QUESTIONABLE, NEVER, BROKEN = "good", "questionable", "never", "broken"


@dataclass(eq=False)
class Measurement:
    """What really happened. `patient` None: a technician at the bench."""

    number: int
    serial: str
    kind: str  # of the Sensor
    taken_ms: int
    patient: str | None
    values: dict[str, int]
    trust: str
    value: bytes = b""  # as sent when new
    stamp: bytes = b""  # of the Sensor's clock, in `value`
    stored: bool = False  # it was not taken when it was new
    confirmed: bool = False
    frames: list["Kept"] = field(default_factory=list)


@dataclass(eq=False)
class Kept:
    """A Frame that a Kit has taken."""

    kit: str
    journal: bytes
    sequence: int
    measurement: Measurement
    value: bytes
    in_flash: bool = False  # when the handler returned
    confirmed: bool = False


class Clock:
    """Local time without a zone, and its troubles. Times are UTC in ms."""

    def __init__(self, now_ms: int, shows_ms: float, ppm: float) -> None:
        self._rate = 1 + ppm / 1e6
        self._runs = True
        self._since, self._shows = now_ms, shows_ms
        self.troubled = False  # and nobody has looked since

    def shows(self, now_ms: int) -> int:
        return int(self._shows + ((now_ms - self._since) * self._rate if self._runs else 0))

    def set(self, now_ms: int, shows_ms: float) -> None:
        self._since, self._shows = now_ms, shows_ms

    def stop(self, now_ms: int) -> None:
        self.set(now_ms, self.shows(now_ms))
        self._runs = False

    def step(self, now_ms: int, by_ms: int) -> None:
        self.set(now_ms, self.shows(now_ms) + by_ms)

    def lose(self, now_ms: int) -> None:
        self._runs = True
        self.set(now_ms, FACTORY_MS)


class Sensor:
    """`owner` is the name of its Kit; the world moves both together."""

    def __init__(self, world: "World", serial: str, kind: str, random: Random) -> None:
        self.world, self.serial, self.kind, self.random = world, serial, kind, random
        self.address = bytes([0xC0, *random.randbytes(5)])
        self.stores = kind != PLAIN_OXIMETER
        self.characteristic = PRESSURE if kind == CUFF else SPOT_CHECK
        self.held: deque[Measurement] = deque()  # oldest first
        self.visit: Visit | None = None
        self.clock = self._first_clock() if self.stores else None
        self.clock_uuid = DATE_TIME if kind == CUFF else CURRENT_TIME
        self.settable = random.random() < 0.85  # the others ignore what is written
        self.table = self._table()
        self.linger_s = random.choice((6.0, 12.0, 40.0))
        self._sending = self._asked = False
        self.has_bond = False
        self.patient: str | None = None  # who has measured last
        self.left_s = 0.0  # when the last visit ended

    def _first_clock(self) -> Clock:
        now_ms = self.world.now_ms
        ppm = self.random.uniform(-400, 400)
        if self.world.faults.strikes("clock unset", 0.3):
            return Clock(now_ms, FACTORY_MS, ppm)
        return Clock(now_ms, self.world.local_ms() + self.random.randrange(-300_000, 300_000), ppm)

    def _table(self) -> dict[int, int]:
        table = {0x2A25: READ, 0x2A29: READ, 0x2A24: READ, 0x2A19: READ, self.characteristic: INDICATE}
        if self.clock is not None:
            table[self.clock_uuid] = READ | WRITE
        if self.kind != CUFF:
            table[0x2A60] = READ
        if self.kind == OXIMETER:
            table[RACP] = INDICATE | WRITE
            table[CONTINUOUS] = NOTIFY
        return table

    @property
    def services(self) -> list[int]:
        return [0x1810 if self.kind == CUFF else 0x1822]

    # --- Measuring ------------------------------------------------------------------------------------------

    def measure(self, patient: str | None) -> Measurement:
        """Take a measurement and keep it as far as this kind can."""
        now_ms = self.world.now_ms
        self.patient = patient
        self._suffer(now_ms)
        one = Measurement(len(self.world.ledger), self.serial, self.kind, now_ms, patient, {}, GOOD)
        self.world.ledger.append(one)
        status = self._quality(one)
        one.stamp = _date_time(self.clock.shows(now_ms)) if self.clock else b""
        one.value = self._pressure(one, status) if self.kind == CUFF else self._spot_check(one, status)
        if self.world.faults.strikes("hostile value", 0.004):
            one.trust = BROKEN
            one.value = one.value[: self.random.randrange(0, 5)]
        if not self.stores:
            self.held.clear()  # discarded: nobody was there
        for older in self.held:
            older.stored = True
        self.held.append(one)
        if len(self.held) > CAPACITY:
            self.held.popleft()
        return one

    def _suffer(self, now_ms: int) -> None:
        """One trouble at most between two looks at the clock, and none while somebody is there."""
        clock, strikes = self.clock, self.world.faults.strikes
        alone = self.visit is None and self.world.loop.time() - self.left_s > 2 * _ALONE_S
        if clock is None or clock.troubled or not alone:
            return
        at_ms = now_ms - _ALONE_S * 1000
        if strikes("clock stopped", 0.003):
            clock.stop(at_ms)
        elif strikes("clock stepped", 0.006):
            clock.step(at_ms, self.random.choice(STEPS_MIN) * 60_000)
        elif strikes("clock lost", 0.004):
            clock.lose(at_ms)
        else:
            return
        clock.troubled = True

    def _quality(self, one: Measurement) -> int:
        """Choose the values; return the status word."""
        draw, strikes = self.random.randrange, self.world.faults.strikes
        if self.kind == CUFF:
            one.values = {"systolic": draw(105, 150), "diastolic": draw(60, 90), "pulse": draw(55, 90)}
            one.values["mean"] = (one.values["systolic"] + 2 * one.values["diastolic"]) // 3
        else:
            one.values = {"spo2": draw(94, 99), "pulse": draw(60, 66)}
        if strikes("failed measurement", 0.03):
            one.trust = NEVER
            return 0
        if strikes("questionable measurement", 0.03):
            one.trust = QUESTIONABLE
            return 0x0001 if self.kind == CUFF else 0x4000
        if self.kind == OXIMETER and strikes("demonstration", 0.02):
            one.trust = NEVER
            return 0x0400
        return 0 if self.kind == CUFF else 0x0100

    def _pressure(self, one: Measurement, status: int) -> bytes:
        numbers = [one.values[name] for name in ("systolic", "diastolic", "mean", "pulse")]
        if one.trust == NEVER:
            numbers = [NAN] * 4
        value = struct.pack("<BHHH", 0x16, *numbers[:3]) + one.stamp
        return value + struct.pack("<HH", numbers[3], status)

    def _spot_check(self, one: Measurement, status: int) -> bytes:
        numbers = [one.values["spo2"], one.values["pulse"]]
        if one.trust == NEVER and not status:
            numbers = [NAN, NAN]
        if self.kind == PLAIN_OXIMETER and not status & ~0x0100:
            return struct.pack("<BHH", 0, *numbers)  # no status words at all
        flags = 0x02 | (0x01 if one.stamp else 0)
        return struct.pack("<BHH", flags, *numbers) + one.stamp + struct.pack("<H", status)

    # --- GATT -----------------------------------------------------------------------------------------------

    def read(self, uuid: int) -> bytes:
        now_ms = self.world.now_ms
        if uuid == self.clock_uuid and self.clock is not None:
            self.clock.troubled = False
            shown = self.clock.shows(now_ms)
            more = bytes([0, shown % 1000 * 256 // 1000, 0]) if uuid == CURRENT_TIME else b""
            return _date_time(shown) + more
        return {
            0x2A25: self.serial.encode(),
            0x2A29: b"Simulated",
            0x2A24: self.kind.encode(),
            0x2A19: bytes([100 - self.random.randrange(3)]),
            # Status bits, and for one that stores: storage and timestamps.
            0x2A60: struct.pack("<HH", 0x000D if self.kind == OXIMETER else 0x0001, 0xFFE0),
        }[uuid]

    def write(self, uuid: int, value: bytes) -> None:
        if uuid == RACP:
            self._asked = True
            self._send()
        elif self.clock is not None and self.settable:
            self.clock.set(self.world.now_ms, _milliseconds(value))

    def subscribed(self, uuid: int) -> None:
        if uuid == self.characteristic:
            self._send()
        elif uuid == CONTINUOUS and self.visit is not None and self.random.random() < STREAMS:
            self.world.loop.spawn(None, self._stream(self.visit), "stream")

    def wake(self) -> None:
        """There is a new value, and perhaps somebody to send it to."""
        if self.visit is not None and self.characteristic in self.visit.subscriptions:
            self._send()

    def left(self) -> None:
        """The visit has ended. What it has not taken is stored, and comes from the store next time."""
        self.visit, self._asked = None, False
        self.left_s = self.world.loop.time()
        for one in self.held:
            one.stored = True

    def _send(self) -> None:
        if self.visit is not None and not self._sending:
            self._sending = True
            self.world.loop.spawn(None, self._send_all(self.visit), "sensor")

    async def _send_all(self, visit: "Visit") -> None:
        """Oldest first; each is forgotten at its confirmation. An oximeter's store has to be asked for."""
        if not self.stores and self.held and self.world.now_ms - self.held[0].taken_ms > _FINGER_S * 1000:
            self.held.clear()
        while visit.up and (one := self._next()) is not None:
            if not await visit.indicate(self.characteristic, self._said(one), one):
                one.stored = True
                break
            if one in self.held:
                self.held.remove(one)
        self._sending = False
        if visit.up and self._asked and self._next() is None:
            self._asked = False
            await visit.indicate(RACP, bytes([6, 0, 1, 1]), None)
        visit.last_s = self.world.loop.time()

    async def _stream(self, visit: "Visit") -> None:
        """A value a second, as long as the finger stays; it slips now and then."""
        for _ in range(self.random.randrange(5, 120)):
            await asyncio.sleep(1.0)
            if not visit.up:
                return
            visit.last_s = self.world.loop.time()
            one = Measurement(-1, self.serial, STREAM, self.world.now_ms, self.patient, {}, GOOD)
            one.values = {"spo2": self.random.randrange(94, 99), "pulse": self.random.randrange(60, 66)}
            one.trust = NEVER if self.random.random() < 0.02 else GOOD
            numbers = [NAN, NAN] if one.trust == NEVER else [one.values["spo2"], one.values["pulse"]]
            one.value = struct.pack("<BHH", 0, *numbers)
            if visit.notify(CONTINUOUS, one.value, one):
                one.number = len(self.world.ledger)
                self.world.ledger.append(one)

    def _next(self) -> Measurement | None:
        ready = [one for one in self.held if self.kind != OXIMETER or self._asked or not one.stored]
        return ready[0] if ready else None

    def _said(self, one: Measurement) -> bytes:
        """As sent: from an oximeter's store a value says that it comes from there."""
        if self.kind != OXIMETER or not one.stored or one.trust == BROKEN:
            return one.value
        return one.value[:-2] + bytes([one.value[-2], one.value[-1] | 0x02])


def _date_time(shown_ms: int) -> bytes:
    at = datetime.fromtimestamp(shown_ms // 1000, UTC)
    return struct.pack("<HBBBBB", at.year, at.month, at.day, at.hour, at.minute, at.second)


def _milliseconds(value: bytes) -> float:
    year, *rest = struct.unpack_from("<HBBBBB", value)
    fraction = value[8] * 1000 / 256 if len(value) > 8 else 0
    return datetime(year, *rest, tzinfo=UTC).timestamp() * 1000 + fraction
