"""Ingest: what Kits send is stored, and acked after the commit that holds it (P2, P3, P8).

    bytes --arrival.decode--> Arrival --batches.keep--> commit --> Ack

What has arrived by the time a commit ends shares the next one. When the Store can't write, what has arrived
is dropped without an Ack: the Kits still have it and send it again.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from functools import partial

from gateway.message import Ack, ack_topic, encode_ack
from gateway.record import NO_OFFSET
from sync_service.arrival import Arrival, Refusal, Said, decode
from sync_service.batches import Kept, keep
from sync_service.store import Store, StoreUnavailable

log = logging.getLogger(__name__)

QUEUE_LIMIT = 512
"""Arrivals that wait for a commit, 2 MB at most. When it is full the socket is not read: the Kits feel it."""
GROUP_LIMIT = 128
"""Arrivals in one transaction: some 6,000 Records, 30 ms. More would only make the first Ack wait."""
QUIET_S = 0.005
"""A Kit that has more sends it within milliseconds of its Ack."""
PAUSE_FIRST_S = 0.1
PAUSE_MAX_S = 5.0
"""Full jitter up to this between attempts while the Store can't write."""


class Ingest:
    """Stores what is offered. `send(topic, ack)` must not block; `wake` is set after each commit.

    While `clock_sure` says no, Acks carry no time, and what is received bounds none.
    """

    def __init__(
        self,
        store: Store,
        send: Callable[[str, bytes], None],
        wake: asyncio.Event,
        *,
        zone: tzinfo,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock_sure: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store, self._send, self._wake = store, send, wake
        self._zone, self._clock_ms, self._clock_sure = zone, clock_ms, clock_sure
        self._queue: deque[Arrival | Said | Refusal] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._offered = 0
        self._failures = 0  # of the Store, in a row
        self.dropped = 0  # arrivals that the Store could not take

    @property
    def is_full(self) -> bool:
        """Whether to stop reading; `room` says when to go on."""
        return len(self._queue) >= QUEUE_LIMIT

    def offer(self, topic: str, whole: bytes) -> None:
        """Take what has come on a topic."""
        self._queue.append(decode(topic, whole, self._clock_ms()))
        self._offered += 1
        self._news.set()
        self._idle.clear()
        if self.is_full:
            self._room.clear()

    async def room(self) -> None:
        """Wait until half of the queue is free."""
        await self._room.wait()

    async def idle(self) -> None:
        """Wait until all that was offered has been stored and acked, or dropped."""
        await self._idle.wait()

    async def quiet(self) -> None:
        """Wait until all that was offered has been stored, and nothing more comes at once."""
        while True:
            await self._idle.wait()
            offered = self._offered
            await asyncio.sleep(QUIET_S)
            if self._offered == offered and self._idle.is_set():
                return

    async def run(self) -> None:
        """Store and ack until cancelled."""
        while True:
            await self._news.wait()
            group = [self._queue.popleft() for _ in range(min(len(self._queue), GROUP_LIMIT))]
            if len(self._queue) <= QUEUE_LIMIT // 2:
                self._room.set()
            if group:
                await self._store_group(group)
                continue
            self._news.clear()
            self._idle.set()

    async def _store_group(self, group: list[Arrival | Said | Refusal]) -> None:
        try:
            now_ms, sure = self._clock_ms(), self._clock_sure()
            kept = await self._store.write(partial(keep, arrivals=group, now_ms=now_ms, sure=sure))
        except StoreUnavailable as error:
            await self._pause(error, len(group))
            return
        except Exception:
            await self._one_by_one(group)
            return
        if self._failures:
            log.warning("the Store can be written again")
        self._failures = 0
        for arrival, one in zip(group, kept, strict=True):
            if one is not None and isinstance(arrival, Arrival):
                self._send(ack_topic(arrival.kit), self._ack(arrival, one))
        self._wake.set()

    async def _one_by_one(self, group: list[Arrival | Said | Refusal]) -> None:
        """Something of the group broke our code, and with it the group: the others must not suffer for it."""
        if len(group) > 1:
            for one in group:
                await self._store_group([one])
            return
        self.dropped += 1
        log.exception("what Kit %s has sent can't be stored", group[0].kit or "?")

    async def _pause(self, error: StoreUnavailable, dropped: int) -> None:
        if not self._failures:
            log.error("the Store can't be written, Kits get no Acks: %s", error)
        self.dropped += dropped
        bound = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2 ** min(self._failures, 16))
        self._failures += 1
        await asyncio.sleep(random.uniform(0, bound))

    def _ack(self, arrival: Arrival, kept: Kept) -> bytes:
        read_ms = self._clock_ms()  # before the question whether it was set
        now_ms = read_ms if self._clock_sure() else None
        spans = arrival.spans or [(0, 0)]
        return encode_ack(
            Ack(
                arrival.batch.journal_id,
                arrival.batch.nonce,
                kept.through,
                min(spans)[0],
                max(last for _, last in spans),
                kept.replay_from,
                now_ms,
                NO_OFFSET if now_ms is None else offset_min(now_ms, self._zone),
            )
        )


def offset_min(utc_ms: int, zone: tzinfo) -> int:
    """Minutes that the zone is ahead of UTC at a time."""
    offset = datetime.fromtimestamp(utc_ms // 1000, UTC).astimezone(zone).utcoffset()
    assert offset is not None
    return int(offset.total_seconds()) // 60
