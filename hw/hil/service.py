"""A service just large enough for a bench: it acks every Batch of one Kit, and keeps what was in it."""

import json
import time
from collections.abc import Callable
from typing import Any

import aiomqtt

from gateway.message import Ack, ack_topic, decode_batch, encode_ack
from gateway.reading import Reading
from gateway.record import FRAME, Event, Frame, Record, decode_body, scan
from gateway.sensors import decode

OFFSET_MIN = 60
"""The home's UTC offset: another one than this machine's, so that a mix-up shows."""


class Service:
    """Acks every Batch and keeps its Records, unless it is `deaf`."""

    def __init__(self, kit: str) -> None:
        self.kit = kit
        self.records: dict[int, Record] = {}
        self.repeats = 0
        self.clashes = 0
        self.statuses: list[dict[str, Any]] = []
        self.deaf = False
        self.before_ack: Callable[[int], None] = lambda count: None  # of a Batch with so many Records

    async def run(self, client: aiomqtt.Client) -> None:
        """Serve until cancelled."""
        status = f"homeward/1/{self.kit}/status"
        async with client:
            await client.subscribe(f"homeward/1/{self.kit}/up")
            await client.subscribe(status)
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                if message.topic.matches(status):
                    self.statuses.append(json.loads(message.payload))
                elif not self.deaf:
                    await client.publish(ack_topic(self.kit), self._take(message.payload))

    def _take(self, whole: bytes) -> bytes:
        batch = decode_batch(whole)
        records, broken = scan(batch.records)
        assert not broken
        for record in records:
            before = self.records.setdefault(record.sequence, record)
            self.repeats += before is not record
            self.clashes += before != record
        last = batch.first + batch.count - 1 if batch.count else 0
        self.before_ack(batch.count)
        utc_ms = time.time_ns() // 1_000_000
        return encode_ack(
            Ack(batch.journal_id, batch.nonce, self.through, batch.first, last, None, utc_ms, OFFSET_MIN)
        )

    @property
    def through(self) -> int:
        """The last sequence up to which nothing is missing."""
        through = 0
        while through + 1 in self.records:
            through += 1
        return through

    def bodies(self) -> list[Any]:
        """Of all Records, in order."""
        return [decode_body(r.type, r.version, r.body) for _, r in sorted(self.records.items())]

    def all_of(self, kind: type) -> list[Any]:
        """The bodies of one type, in order."""
        return [body for body in self.bodies() if isinstance(body, kind)]

    def frames(self) -> list[Frame]:
        return self.all_of(Frame)

    def readings(self) -> list[Reading]:
        """What the Frames say."""
        decoded = [decode(frame.characteristic, frame.value) for frame in self.frames()]
        return [each for each in decoded if isinstance(each, Reading)]

    def values(self) -> list[bytes]:
        """Of the Frames, each once: a Sensor that was not confirmed sends again."""
        return list(dict.fromkeys(frame.value for frame in self.frames()))

    def events(self, code: int) -> list[Event]:
        return [event for event in self.all_of(Event) if event.code == code]

    @property
    def has_frames(self) -> bool:
        return any(record.type == FRAME for record in self.records.values())
