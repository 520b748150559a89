"""A scripted week of a Kit at home: two Sensors, a link that fails for days, reboots, a ring that wraps.

The Journal, the Gateway, its sessions and its uplink are the real ones. Here are only what is around them:
the Sensors' answers, and a service that stores what comes and acks what it has without a gap.
"""

import json
import struct
from collections.abc import Iterator
from typing import Any

from gateway.gateway import Gateway
from gateway.journal import Journal
from gateway.limits import QUIET_MS
from gateway.message import Ack, decode_batch, encode_ack
from gateway.record import (
    BUTTON,
    FRAME,
    INDICATED,
    LOST,
    Frame,
    Lost,
    decode_all,
    decode_body,
    encode,
    encode_frame,
    encode_lost,
)
from gateway.sensor_session import CAN_INDICATE, CAN_NOTIFY, CAN_READ, CAN_WRITE, READ
from gateway.uplink import Uplink
from tests.power_cuts.flash import NorFlash

JOURNAL_ID = b"journal1"
HOURS = (7, 12, 18, 22)
HOUR_MS = 3_600_000
UTC_MS = 1_764_000_000_000
OFF_LINE = range(2, 6)
"""Days without a network: more comes than the ring holds."""
REBOOTS = ((1, 7), (2, 12), (4, 7), (4, 18), (6, 12))
"""(day, hour) at which the plug is pulled."""
BURSTS = {1: 6, 3: 10, 5: 90}
"""Day: values that the oximeter had stored; all come before the main loop gets its turn again. The last are
more than the reserve holds: the handler has to erase."""

CUFF, OXIMETER = 1, 2
ADDRESSES = (b"\xc0\0\0\0\0\1", b"\xc0\0\0\0\0\2")
TABLES: dict[int, dict[int, int]] = {
    CUFF: {
        0x2A24: CAN_READ,
        0x2A25: CAN_READ,
        0x2A35: CAN_INDICATE,
        0x2A49: CAN_READ,
        0x2A08: CAN_READ | CAN_WRITE,
    },
    OXIMETER: {
        0x2A25: CAN_READ,
        0x2A60: CAN_READ,
        0x2A5E: CAN_INDICATE,
        0x2A5F: CAN_NOTIFY,
        0x2A19: CAN_READ,
    },
}
MEASURES = {CUFF: 0x2A35, OXIMETER: 0x2A5E}
ANSWERS = {
    0x2A24: b"V1",
    0x2A25: b"SN-1",
    0x2A49: b"\x37\x00",
    0x2A60: b"\x00\x00",
    0x2A08: b"\xe9\x07\x0b\x1a\x07\x00\x05",
    0x2A19: b"\x58",
}


class Lock:
    """The writer lock of one task: it must never be taken twice."""

    def __init__(self) -> None:
        self.held = False

    def acquire(self) -> None:
        assert not self.held
        self.held = True

    def release(self) -> None:
        assert self.held
        self.held = False


class Kept:
    """What appends have returned for: sequence -> the bytes that must be in flash from then on."""

    def __init__(self) -> None:
        self.records: dict[int, bytes] = {}
        self.confirmed: list[int] = []  # sequences of indications
        self.boot = 0

    @property
    def last(self) -> int:
        return max(self.records, default=0)

    def keep(self, sequence: int, whole: bytes, boot: int) -> None:
        assert self.records.setdefault(sequence, whole) == whole, f"sequence {sequence} twice"
        self.boot = max(self.boot, boot)


class Kit:
    """One boot: a Journal that was mounted and a Gateway on it. What its appends return for is in `kept`."""

    def __init__(self, flash: NorFlash, bonds: "Bonds", kept: Kept, kind: type[Journal] = Journal) -> None:
        self.kept = kept
        self.journal = kind(flash, Lock())
        self.journal.mount()
        self._append = self.journal.append
        self.journal.append = self._keep  # type: ignore[method-assign]
        self.gateway = Gateway(
            "HW-0001",
            "0",
            journal=self.journal,
            uplink=Uplink(self.journal, lambda: b"\x55" * 8),
            bonds=bonds,
        )

    def indicate(self, sensor: int, value: bytes, now_ms: int) -> None:
        """A Sensor indicates; when this returns it has its confirmation."""
        hi, lo = now_ms >> 24, now_ms & 0xFFFFFF
        sequence = self.gateway.received(sensor, MEASURES[sensor], value, INDICATED, hi, lo)
        body = encode_frame(Frame(sensor, INDICATED, MEASURES[sensor], value))
        boot = self.journal.boot
        self.kept.keep(sequence, encode(FRAME, 1, sequence, boot, now_ms, body), boot)
        self.kept.confirmed.append(sequence)

    def _keep(self, type: int, version: int, body: bytes, uptime_ms: int) -> int:
        sequence = self._append(type, version, body, uptime_ms)
        boot = self.journal.boot
        self.kept.keep(sequence, encode(type, version, sequence, boot, uptime_ms, body), boot)
        return sequence


class Bonds:
    """Where a rim keeps its bonds, as JSON text."""

    def __init__(self, text: str = "[]") -> None:
        self.text = text

    def load(self) -> list[dict[str, Any]]:
        kept: list[dict[str, Any]] = json.loads(self.text)
        return kept

    def save(self, sensors: list[dict[str, Any]]) -> None:
        self.text = json.dumps(sensors)


class Service:
    """Stores every Record and acks what it has without a gap."""

    def __init__(self) -> None:
        self.records: dict[int, bytes] = {}
        self.lost: list[Lost] = []
        self.through = 0

    def receive(self, whole: bytes, utc_ms: int) -> bytes:
        batch = decode_batch(whole)
        self.take(batch.records)
        return encode_ack(Ack(batch.journal_id, batch.nonce, self.through, 0, 0, None, utc_ms, 60))

    def take(self, records: bytes) -> None:
        """Store what a Batch holds."""
        for record in decode_all(records):
            if record.type == LOST:
                lost = decode_body(LOST, 1, record.body)
                assert isinstance(lost, Lost) and encode_lost(lost) == record.body
                self.lost.append(lost)
                self.through = max(self.through, lost.last)
            else:
                whole = encode(*record)
                assert self.records.setdefault(record.sequence, whole) == whole, "a conflict"
                self.through = max(self.through, record.sequence)


class Week:
    """The week, day by day. `kind` is the Journal to try."""

    def __init__(self, blocks: int, block_bytes: int, kind: type[Journal] = Journal) -> None:
        self.flash = NorFlash.erased(blocks, block_bytes)
        self.bonds = Bonds()
        self.kept = Kept()
        self.service = Service()
        self._kind = kind
        self._day_ms = 0  # of this boot's begin, since the first
        self._now_ms = 0  # uptime
        kind(self.flash, Lock()).format(JOURNAL_ID)
        self.kit = Kit(self.flash, self.bonds, self.kept, kind)

    def begin(self) -> None:
        """At the bench: both Sensors are bonded."""
        self.kit.gateway.start(0)
        for address in ADDRESSES:
            self.kit.gateway.bond(1, address, 0)

    def live(self, day: int) -> None:
        """One day."""
        for hour in HOURS:
            self.spend(day, hour)

    def spend(self, day: int, hour: int) -> None:
        """A quarter of a day: what is measured around this hour."""
        if (day, hour) in REBOOTS:
            self._reboot()
        self._now_ms += 5 * HOUR_MS
        self._visit(CUFF, 1 + (hour == 7), day * 24 + hour)
        if hour != 12:
            self._visit(OXIMETER, BURSTS.get(day, 1) if hour == 18 else 2, day * 24 + hour)
        if day not in OFF_LINE:
            self._drain()

    def end(self) -> None:
        """The last evening: a button, a link, an orderly end."""
        self.kit.gateway.append_event(BUTTON, 0, b"", self._now_ms)
        self._drain()
        self.kit.gateway.close()

    def _reboot(self) -> None:
        self._day_ms += self._now_ms
        self._now_ms = 100
        self.kit = Kit(self.flash, self.bonds, self.kept, self._kind)
        self.kit.gateway.start(self._now_ms, cause=1)

    def _visit(self, sensor: int, values: int, number: int) -> None:
        """A session that takes this many values; the main loop keeps house only before and after them."""
        gateway = self.kit.gateway
        session = gateway.session(
            sensor, name="Sensor", services=[0x1810], table=TABLES[sensor], now_ms=self._now_ms
        )
        self._converse(session)
        for value in _values(sensor, values, number):
            self.kit.indicate(sensor, value, self._now_ms)
            session.value_received(MEASURES[sensor], value, self._now_ms)
            self._now_ms += 1
        self._now_ms += QUIET_MS
        self._converse(session)
        session.closed(self._now_ms)
        self._keep_house()

    def _converse(self, session: Any) -> None:
        while (step := session.next_step(self._now_ms)) is not None:
            session.step_done(ANSWERS.get(step[1]) if step[0] == READ else None, self._now_ms)
            self._keep_house()

    def _keep_house(self) -> None:
        while self.kit.gateway.maintain():
            pass

    def _drain(self) -> None:
        gateway = self.kit.gateway
        gateway.connected(self._now_ms)
        while (batch := gateway.uplink.next_batch(self._now_ms)) is not None:
            self._now_ms += 150
            gateway.receive_ack(
                self.service.receive(bytes(batch), UTC_MS + self._day_ms + self._now_ms), self._now_ms
            )
        gateway.uplink.disconnected(self._now_ms)


def _values(sensor: int, count: int, number: int) -> Iterator[bytes]:
    for each in range(count):
        if sensor == CUFF:
            yield struct.pack(
                "<BHHHHBBBBBH", 0x06, 120 + number % 40, 80, 93, 2025, 11, 26, 7, each, 5, 60 + each
            )
        else:
            yield struct.pack("<BHH", 0, 90 + number % 10, 60 + each)
