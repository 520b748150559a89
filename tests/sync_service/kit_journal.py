"""What a Kit has sent, written into the Store as ingest would: Records of one Journal in their order."""

import sqlite3
import struct

from gateway import record
from gateway.record import Anchor, Event, Frame, Lost, Sensor, SensorClock

BIRTH_MS = 1_783_641_600_000  # 2026-07-10T00:00:00Z
"""Uptime 0 of boot 1 in UTC."""
OXIMETER, CUFF = 1, 2
SPOT, CONTINUOUS, BP = 0x2A5E, 0x2A5F, 0x2A35
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


def spot(spo2: int = 97, pulse: int = 72, at: "tuple[int, ...] | None" = None) -> bytes:
    """A fully qualified spot-check, with the Sensor's timestamp if `at` is (year, month, day, h, min, s)."""
    head = struct.pack("<BHH", 0x02 | (at is not None), spo2, pulse)
    return head + (struct.pack("<HBBBBB", *at) if at else b"") + b"\x00\x01"


class KitJournal:
    """Collects Records; `store` writes what is new. `uptime_ms` is the time of the next Record."""

    def __init__(self, kit: str = "HW-0001", journal_id: bytes = b"journal1", *, number: int = 1) -> None:
        self.kit, self.journal_id, self.number = kit, journal_id, number
        self.boot, self.uptime_ms, self.sequence = 1, 0, 0
        self._rows: list[tuple[object, ...]] = []

    def create(self, db: sqlite3.Connection) -> None:
        """The Kit (unless it is there) and the Journal. The Kit is a day older than its first boot."""
        db.execute(
            "insert into kit (kit, state, created_ms) values (?, 'active', ?) on conflict do nothing",
            (self.kit, BIRTH_MS - DAY),
        )
        row = (self.number, self.kit, self.journal_id, BIRTH_MS)
        db.execute("insert into journal (journal, kit, journal_id, created_ms) values (?, ?, ?, ?)", row)

    def store(self, db: sqlite3.Connection) -> None:
        """Commit what was added since."""
        db.executemany("insert into record values (?, ?, ?, ?, ?, ?, ?, ?)", self._rows)
        db.execute("update journal set through = ? where journal = ?", (self.sequence, self.number))
        self._rows.clear()

    def add(self, type: int, body: bytes, version: int = 1) -> int:
        self.sequence += 1
        received_ms = BIRTH_MS + 30 * DAY
        row = (self.number, self.sequence, type, version, self.boot, self.uptime_ms, body, received_ms)
        self._rows.append(row)
        return self.sequence

    def anchor(self, utc_ms: int | None = None, uncertainty_ms: int = 50) -> int:
        utc_ms = BIRTH_MS + self.uptime_ms if utc_ms is None else utc_ms
        return self.add(record.ANCHOR, record.encode_anchor(Anchor(utc_ms, uncertainty_ms, 1, 60)))

    def hint(self, utc_ms: int, uncertainty_ms: int = 5_050) -> int:
        """What an SNTP server said."""
        anchor = Anchor(utc_ms, uncertainty_ms, record.FROM_SNTP, record.NO_OFFSET)
        return self.add(record.ANCHOR, record.encode_anchor(anchor))

    def sensor(
        self, reference: int, *items: "tuple[int, bytes]", address: bytes = b"\xc0\xff\xee\x00\x00"
    ) -> int:
        whole = Sensor(reference, 0, address + bytes([reference]), items)
        return self.add(record.SENSOR, record.encode_sensor(whole))

    def event(self, code: int, sensor: int) -> int:
        return self.add(record.EVENT, record.encode_event(Event(code, sensor, b"")))

    def lost(self, reason: int) -> int:
        """One Record that will never come."""
        number = self.sequence + 1
        return self.add(record.LOST, record.encode_lost(Lost(number, number, reason)))

    def clock(self, sensor: int, kind: int, at: "tuple[int, ...]") -> int:
        clock = SensorClock(sensor, kind, 60, 0x2A08, struct.pack("<HBBBBB", *at))
        return self.add(record.SENSOR_CLOCK, record.encode_sensor_clock(clock))

    def frame(self, sensor: int, characteristic: int, value: bytes, flags: int = record.INDICATED) -> int:
        return self.add(record.FRAME, record.encode_frame(Frame(sensor, flags, characteristic, value)))

    def begin(self) -> None:
        """A boot with its ANCHOR, an oximeter that stores nothing, and a cuff; both had nothing to send."""
        number = self.kit[-1:].encode()  # every Kit has Sensors of its own
        self.anchor()
        features = struct.pack("<HH", SPOT + 2, 0x0040)
        self.sensor(OXIMETER, (record.SERIAL, b"50123" + number), (record.FEATURE, features))
        self.event(record.SENSOR_DRAINED, OXIMETER)
        self.sensor(
            CUFF, (record.MANUFACTURER, b"A&D"), (record.MODEL, b"UA-651"), (record.SERIAL, b"51807" + number)
        )
        self.event(record.SENSOR_DRAINED, CUFF)
        self.uptime_ms += MINUTE
