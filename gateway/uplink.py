"""What goes to the service and what its Acks mean: one Batch in flight, sent until acked. Knows no socket.

Theory of operation. A connection says nothing about storage, so only an Ack moves the pointer.

    state      event                    next       what happens
    DOWN       connected                GREETING
    GREETING   next_batch               IN FLIGHT  an empty Batch: its Ack gives time and position
    READY      next_batch, Records wait IN FLIGHT  the next Records after the acked one
    READY      next_batch, anchor old   IN FLIGHT  an empty Batch
    IN FLIGHT  Ack with its nonce       READY      the pointer moves; time, if due; replay, if asked
    IN FLIGHT  no Ack in time           IN FLIGHT  again with a new nonce; the wait doubles, with jitter
    any        Ack with another nonce   same       the pointer moves (what it says is stored, is stored);
                                                   an answer of unknown age gives no time, no replay
    any        disconnected             DOWN

Refused and counted, with nothing changed: broken bytes, another Journal's Ack, an Ack for the future.

The service took its time somewhere between sending and receipt. So at receipt it is that time plus half the
round trip, and no further off than half the round trip.
"""

import struct

from gateway.errors import FormatError, JournalError
from gateway.limits import (
    ACK_WAIT_MAX_MS,
    ACK_WAIT_MS,
    ANCHOR_EVERY_MS,
    MAX_BATCH_BYTES,
    MAX_ROUND_TRIP_MS,
)
from gateway.message import ENVELOPE_BYTES, Ack, begin_batch, decode_ack, seal_batch
from gateway.port import const
from gateway.record import ANCHOR, EVENT, FROM_ACK, REPLAYED, Anchor, Event, encode_anchor, encode_event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.journal import Journal

_CRC_BYTES = const(4)
_ANCHOR_GAP_MS = const(600_000)
"""Every connection asks for the time; six anchors an hour at most, or a flapping link fills the Journal."""

COUNTERS = ("batches", "resent", "acks", "stale", "broken", "other_journal", "future", "replays")
"""Batches sent, those sent again; Acks believed, late, and refused for three reasons; replays begun."""


class Uplink:
    """`nonce` returns 8 random bytes; `ack_wait_ms` is the first wait for an Ack. Times are uptime in ms.

    `buffer`: where Batches are made, MAX_BATCH_BYTES long; the rim's own, where it can send from there.
    """

    def __init__(
        self,
        journal: "Journal",
        nonce: "Callable[[], bytes]",
        *,
        ack_wait_ms: int = ACK_WAIT_MS,
        buffer: "bytearray | memoryview | None" = None,
    ) -> None:
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._journal = journal
        self._nonce = nonce
        self._ack_wait_ms = ack_wait_ms
        self._buffer = bytearray(MAX_BATCH_BYTES) if buffer is None else buffer
        self._view = memoryview(self._buffer)
        self._up = False
        self._greet = False
        self._outstanding: bytes | None = None  # the nonce in flight
        self._sent_ms = 0
        self._resend_ms = 0
        self._tries = 0
        self._anchored_ms: int | None = None
        self._ask_time_ms = 0

    def connected(self, now_ms: int) -> None:
        """A link to the broker is up."""
        self._up = self._greet = True
        self._settle()

    def disconnected(self, now_ms: int) -> None:
        """The link is gone, and with it the Ack that was on its way."""
        self._up = False
        self._settle()

    def next_batch(self, now_ms: int) -> "memoryview | None":
        """Return the Batch to send now, valid until the next call; None: ask again at `due_ms`."""
        if not self._up or (self._outstanding is not None and now_ms < self._resend_ms):
            return None
        if not self._greet and not self._journal.pending and now_ms < self._ask_time_ms:
            self._settle()  # an Ack that came late has covered what was in flight
            return None
        return self._begin(now_ms)

    def receive_ack(self, whole: "bytes | memoryview", now_ms: int) -> "Anchor | None":
        """Take an Ack; return the anchor it gave, already in the Journal. Bad ones are counted."""
        try:
            ack = decode_ack(whole)
        except FormatError:
            self._count("broken")
            return None
        if ack.journal_id != self._journal.journal_id:
            self._count("other_journal")
            return None
        try:
            self._journal.ack(ack.through)
        except JournalError:
            self._count("future")
            return None
        if ack.nonce != self._outstanding:
            self._count("stale")
            return None
        self._count("acks")
        self._greet = False
        self._settle()
        self._replay(ack, now_ms)
        return self._anchor(ack, now_ms)

    def due_ms(self, now_ms: int) -> int:
        """When to ask for the next Batch if nothing happens before."""
        if not self._up:
            return now_ms + ANCHOR_EVERY_MS
        if self._outstanding is not None:
            return self._resend_ms
        if self._greet or self._journal.pending:
            return now_ms
        return self._ask_time_ms

    def _begin(self, now_ms: int) -> memoryview:
        """Fill the buffer: empty for a greeting, else with what waits."""
        nonce = self._nonce()
        first, count, end = 0, 0, ENVELOPE_BYTES
        journal = self._journal
        if not self._greet and journal.pending:
            first, count, end = journal.read_batch(
                self._buffer, ENVELOPE_BYTES, MAX_BATCH_BYTES - _CRC_BYTES, journal.acked
            )
        begin_batch(
            self._buffer,
            flags=0,
            journal_id=journal.journal_id,
            boot=journal.boot,
            uptime_ms=now_ms,
            nonce=nonce,
            acked_through=journal.acked,
            first=first,
            count=count,
        )
        self._sent(nonce, now_ms)
        return self._view[: seal_batch(self._buffer, end)]

    def _sent(self, nonce: bytes, now_ms: int) -> None:
        """Waits grow from `ack_wait_ms` to ACK_WAIT_MAX_MS by a random part, so that Kits spread out."""
        self._count("batches")
        if self._outstanding is not None:
            self._tries += 1
            self._count("resent")
        growth = min(self._ack_wait_ms << min(self._tries, 16), ACK_WAIT_MAX_MS) - self._ack_wait_ms
        self._outstanding = nonce
        self._sent_ms = now_ms
        self._resend_ms = now_ms + self._ack_wait_ms + (nonce[0] << 8 | nonce[1]) * max(growth, 0) // 0xFFFF

    def _settle(self) -> None:
        """Nothing is in flight."""
        self._outstanding = None
        self._tries = 0

    def _count(self, why: str) -> None:
        self.counters[why] += 1

    def _replay(self, ack: Ack, now_ms: int) -> None:
        """Send again what the service has lost. A late Ack may not ask: the replay would begin twice."""
        if ack.replay_from is None or not 0 < ack.replay_from <= self._journal.acked:
            return
        self._journal.replay(ack.replay_from)
        self._count("replays")
        detail = struct.pack("<I", ack.replay_from)
        self._journal.append(EVENT, 1, encode_event(Event(REPLAYED, 0, detail)), now_ms)

    def _anchor(self, ack: Ack, now_ms: int) -> "Anchor | None":
        round_trip_ms = now_ms - self._sent_ms
        if ack.utc_ms is None or round_trip_ms > MAX_ROUND_TRIP_MS:
            self._ask_time_ms = now_ms + ACK_WAIT_MAX_MS
            return None
        if self._anchored_ms is not None and now_ms - self._anchored_ms < _ANCHOR_GAP_MS:
            return None
        self._anchored_ms = now_ms
        self._ask_time_ms = now_ms + ANCHOR_EVERY_MS
        # 1 ms more: the service's clock and half the round trip were both rounded down.
        bound_ms = (round_trip_ms + 1) // 2 + 1
        anchor = Anchor(ack.utc_ms + round_trip_ms // 2, bound_ms, FROM_ACK, ack.offset_min)
        self._journal.append(ANCHOR, 1, encode_anchor(anchor), now_ms)
        return anchor
