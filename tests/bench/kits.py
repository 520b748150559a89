"""The generator: what each Kit would send, encoded before the clock starts, and its link to the broker.

A Kit here is a Gateway that has been offline for days and comes back with its Journal: one boot with an
ANCHOR, an oximeter and a cuff that keep a Reading each minute between them and are collected in sessions. A
session is what SensorSession makes of one: clock read, stored values, clock set and read again, drained. One
Batch holds one session with each Sensor. A Kit keeps to the Uplink's rule: one Batch in flight, the next
after the Ack.
"""

import asyncio
import ssl
import struct
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import aiomqtt

from gateway import record
from gateway.limits import MAX_BATCH_BYTES
from gateway.message import (
    ENVELOPE_BYTES,
    Ack,
    ack_topic,
    begin_batch,
    decode_ack,
    seal_batch,
    up_topic,
)
from gateway.record import Anchor, Event, Frame, Sensor, SensorClock

OXIMETER, CUFF = 1, 2
SPOT_CHECK, BLOOD_PRESSURE, DATE_TIME = 0x2A5E, 0x2A35, 0x2A08
MINUTE_MS = 60_000
ACK_S = 30.0
"""Every Batch is answered within milliseconds; without an answer the bench has failed."""


class NoAck(RuntimeError):
    """The service has not answered a Batch, or with something else than its Ack."""


class Sent(NamedTuple):
    """One encoded Batch."""

    nonce: bytes
    last: int  # its last sequence: what the Ack has to cover
    records: int
    whole: bytes


class KitJournal:
    """Encodes a Kit's Batches in their order. `birth` is uptime 0 in UTC; the Sensors' clocks show UTC."""

    def __init__(self, number: int, birth: datetime) -> None:
        self._number, self._birth = number, birth
        self._journal_id = struct.pack("<Q", 0xB0_0000 + number)
        self._uptime_ms = MINUTE_MS
        self._last = self._batches = 0

    def opening(self) -> Sent:
        """The Batch that says where the Kit stands: time, Sensors, bonds, clocks; both Sensors are empty."""
        anchor = Anchor(round(self._birth.timestamp() * 1000) + self._uptime_ms, 40, record.FROM_ACK, 0)
        records = [self._record(record.ANCHOR, record.encode_anchor(anchor))]
        for sensor in (OXIMETER, CUFF):
            records.append(self._record(record.SENSOR, record.encode_sensor(self._sensor(sensor))))
            records.append(self._event(record.BOND_MADE, sensor))
            records += self._session(sensor, [])
        return self._batch(records)

    def readings(self, count: int) -> Sent:
        """The next Batch of `count` Readings: spot-checks and blood pressures in turn, a minute apart."""
        minutes = [self._uptime_ms + MINUTE_MS * (at + 1) for at in range(count)]
        self._uptime_ms += MINUTE_MS * (count + 1)
        oximeter = self._session(OXIMETER, [self._spot_check(taken_ms) for taken_ms in minutes[0::2]])
        return self._batch(oximeter + self._session(CUFF, [self._blood_pressure(ms) for ms in minutes[1::2]]))

    def _batch(self, records: list[bytes]) -> Sent:
        buffer = bytearray(MAX_BATCH_BYTES)
        self._batches += 1
        nonce = struct.pack("<Q", self._batches)
        first = self._last - len(records) + 1
        begin_batch(
            buffer,
            flags=0,
            journal_id=self._journal_id,
            boot=1,
            uptime_ms=self._uptime_ms,
            nonce=nonce,
            acked_through=first - 1,
            first=first,
            count=len(records),
        )
        body = b"".join(records)
        end = ENVELOPE_BYTES + len(body)
        buffer[ENVELOPE_BYTES:end] = body
        return Sent(nonce, self._last, len(records), bytes(buffer[: seal_batch(buffer, end)]))

    def _session(self, sensor: int, values: list[tuple[int, bytes]]) -> list[bytes]:
        return [
            self._clock(sensor, record.CLOCK_BEFORE),
            *(self._frame(sensor, characteristic, value) for characteristic, value in values),
            self._clock(sensor, record.CLOCK_SET),
            self._clock(sensor, record.CLOCK_AFTER),
            self._event(record.SENSOR_DRAINED, sensor),
        ]

    def _sensor(self, sensor: int) -> Sensor:
        items = [
            (record.MANUFACTURER, b"Nonin" if sensor == OXIMETER else b"A&D"),
            (record.MODEL, b"3230" if sensor == OXIMETER else b"UA-651BLE"),
            (record.SERIAL, b"%06d" % (501_000 + 10 * self._number + sensor)),
        ]
        if sensor == OXIMETER:  # storage, and a timestamp for spot-checks
            items.append((record.FEATURE, struct.pack("<HH", SPOT_CHECK + 2, 0x000C)))
        return Sensor(sensor, 1, b"\xc0\xff\xee" + struct.pack(">HB", self._number, sensor), tuple(items))

    def _clock(self, sensor: int, kind: int) -> bytes:
        clock = SensorClock(sensor, kind, 0, DATE_TIME, self._date_time(self._uptime_ms))
        return self._record(record.SENSOR_CLOCK, record.encode_sensor_clock(clock))

    def _event(self, code: int, sensor: int) -> bytes:
        return self._record(record.EVENT, record.encode_event(Event(code, sensor, b"")))

    def _frame(self, sensor: int, characteristic: int, value: bytes) -> bytes:
        frame = Frame(sensor, record.INDICATED | record.FROM_STORAGE, characteristic, value)
        return self._record(record.FRAME, record.encode_frame(frame))

    def _record(self, type: int, body: bytes) -> bytes:
        self._last += 1
        self._uptime_ms += 1
        return record.encode(type, 1, self._last, 1, self._uptime_ms, body)

    def _spot_check(self, taken_ms: int) -> tuple[int, bytes]:
        """With timestamp and measurement status 'fully qualified, from storage'."""
        minute = taken_ms // MINUTE_MS
        value = struct.pack("<BHH", 0x03, 92 + minute % 8, 58 + minute % 41)
        return SPOT_CHECK, value + self._date_time(taken_ms) + struct.pack("<H", 0x0300)

    def _blood_pressure(self, taken_ms: int) -> tuple[int, bytes]:
        """In mm[Hg], with timestamp, pulse rate and a clear status."""
        minute = taken_ms // MINUTE_MS
        systolic, diastolic = 110 + minute % 47, 62 + minute % 29
        value = struct.pack("<BHHH", 0x16, systolic, diastolic, (systolic + 2 * diastolic) // 3)
        return BLOOD_PRESSURE, value + self._date_time(taken_ms) + struct.pack("<HH", 58 + minute % 41, 0)

    def _date_time(self, uptime_ms: int) -> bytes:
        shown = self._birth + timedelta(milliseconds=uptime_ms)
        return struct.pack("<HBBBBB", *shown.timetuple()[:6])


class Kit:
    """One Kit's connection, as production has it: TLS, its own certificate, QoS 0. Use as `async with`."""

    def __init__(self, name: str, identity: Path, port: int) -> None:
        self.name = name
        tls = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=identity / "ca.pem")
        tls.load_cert_chain(identity / "kit.pem", identity / "kit.key")
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._client = aiomqtt.Client("127.0.0.1", port, identifier=name, tls_context=tls)
        self._acks = aiter(self._client.messages)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        await self._client.subscribe(ack_topic(self.name))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def send(self, sent: Sent) -> Ack:
        """Send one Batch and wait for its Ack. Raises NoAck."""
        await self._client.publish(up_topic(self.name), sent.whole)
        try:
            async with asyncio.timeout(ACK_S):
                message = await anext(self._acks)
        except TimeoutError:
            raise NoAck(f"no Ack for {self.name} in {ACK_S:.0f} s") from None
        assert isinstance(message.payload, bytes)
        ack = decode_ack(message.payload)
        if ack.nonce != sent.nonce or ack.through != sent.last:
            raise NoAck(f"{self.name} sent up to {sent.last}, the Ack says {ack.through}")
        return ack


async def send_all(kit: Kit, batches: list[Sent]) -> list[Ack]:
    """Send each as soon as the one before is acked."""
    return [await kit.send(batch) for batch in batches]


async def send_evenly(kit: Kit, batches: list[Sent], first_at: float, every_s: float) -> list[float]:
    """Send one Batch each `every_s`; return the seconds from when each was due to its Ack."""
    waited = []
    for at, batch in enumerate(batches):
        due = first_at + at * every_s
        await asyncio.sleep(due - time.perf_counter())
        await kit.send(batch)
        waited.append(time.perf_counter() - due)
    return waited
