"""What goes to the service and what its Acks mean. Knows no socket.

Theory of operation. A connection says nothing about storage, so only an Ack moves the pointer. Two lanes
share the link, each with at most one Batch in flight, each a machine whose whole table stands below.

The main lane carries the Journal in order. On each connection an empty Batch goes first (GREET): its Ack
gives time and position. Then what waits, a Batch at a time; and an empty one when the last anchor is old.

    DOWN --connected--> GREET --sent--> GREETED --acked--> READY --sent--> FLYING
                        GREET <-overdue- GREETED           READY <--acked, overdue-- FLYING
                        GREET <----------time due--------- READY

The peek lane goes past a backlog. A peek is wanted when the greeting is answered and more waits than one
Batch holds, and whenever a live value comes while that is so: it holds the newest Records that are not
streamed, so that a clinician need not wait for the backlog. They come again in order. What a peek's Ack says
is contiguous at the service, as in any Ack; that a Record was peeked never moves the pointer.

    NONE --news--> WANTED --sent--> PEEKED --acked--> NONE
                   NONE <-nothing-- WANTED <-overdue- PEEKED

What is not acked in time is sent again under a new nonce; the wait doubles, with jitter, up to a bound. An
Ack is believed when its nonce is in flight. Refused and counted, with nothing changed: broken bytes, another
Journal's Ack, one with another nonce (an answer to an earlier try, of unknown age), one for the future, and
one that says less than an earlier one and asks for no replay. Where no Ack has come for long the link may be
open at one end only, or nobody may listen to our topic: `is_stuck` tells the rim to make a new one.

The service took its time somewhere between sending and receipt. So at receipt it is that time plus half the
round trip, and no further off than half the round trip.
"""

import struct

from gateway.errors import FormatError
from gateway.limits import (
    ACK_WAIT_MAX_MS,
    ACK_WAIT_MS,
    ANCHOR_EVERY_MS,
    MAX_BATCH_BYTES,
    MAX_BATCH_RECORDS,
    MAX_ROUND_TRIP_MS,
    STUCK_WAITS,
)
from gateway.message import ENVELOPE_BYTES, PEEK, WHOLE, Ack, begin_batch, decode_ack, seal_batch
from gateway.peek import Peek
from gateway.port import const
from gateway.record import ANCHOR, EVENT, FROM_ACK, REPLAYED, Anchor, Event, encode_anchor, encode_event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.journal import Journal

    Table = dict[str, dict[str, str]]

# States of the main lane.
DOWN = "down"  # no link
GREET = "greet"  # an empty Batch is due
GREETED = "greeted"  # it is in flight
READY = "ready"  # Records may go
FLYING = "flying"  # Records are in flight

# States of the peek lane.
NONE = "none"
WANTED = "wanted"
PEEKED = "peeked"  # a peek is in flight

# Events.
CONNECTED = "connected"
DISCONNECTED = "disconnected"
SENT = "sent"
ACKED = "acked"  # by an Ack that is believed
OVERDUE = "overdue"  # no Ack in time
TIME_DUE = "time due"  # nothing waits, and the last anchor is old
NEWS = "news"  # there is something to peek
NOTHING = "nothing"  # there is not, after all

# An event without a cell changes nothing.
MAIN: "Table" = {
    DOWN: {CONNECTED: GREET},
    GREET: {CONNECTED: GREET, SENT: GREETED, DISCONNECTED: DOWN},
    GREETED: {CONNECTED: GREET, ACKED: READY, OVERDUE: GREET, DISCONNECTED: DOWN},
    READY: {CONNECTED: GREET, SENT: FLYING, TIME_DUE: GREET, DISCONNECTED: DOWN},
    FLYING: {CONNECTED: GREET, ACKED: READY, OVERDUE: READY, DISCONNECTED: DOWN},
}
PEEKS: "Table" = {
    NONE: {NEWS: WANTED},
    WANTED: {SENT: PEEKED, NOTHING: NONE, CONNECTED: NONE, DISCONNECTED: NONE},
    PEEKED: {ACKED: NONE, OVERDUE: WANTED, CONNECTED: NONE, DISCONNECTED: NONE},
}

_OPEN = (READY, FLYING)  # the service has answered over this link
_CRC_BYTES = const(4)
_ANCHOR_GAP_MS = const(600_000)
"""Every connection asks for the time; six anchors an hour at most, or a flapping link fills the Journal."""
_END = MAX_BATCH_BYTES - _CRC_BYTES

COUNTERS = (
    "batches", "peeks", "resent", "acks", "broken", "other_journal", "stale", "future", "behind", "replays",
)  # fmt: skip
"""Batches sent, the peeks among them, those sent again; Acks believed, and refused for five reasons; replays
begun."""


class Uplink:
    """`nonce` returns 8 random bytes, the jitter's source too; `ack_wait_ms` is the first wait for an Ack.

    Times are uptime in ms. `peek.live` and `peek.marks` are the Gateway's to set. `buffer`: where Batches are
    made, MAX_BATCH_BYTES long; the rim's own, where it can send from there.
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
        self.main = Lane(MAIN, DOWN)
        self.peeks = Lane(PEEKS, NONE)
        self.peek = Peek(journal)
        self._journal = journal
        self._nonce = nonce
        self._ack_wait_ms = ack_wait_ms
        self._buffer = bytearray(MAX_BATCH_BYTES) if buffer is None else buffer
        self._view = memoryview(self._buffer)
        self._unanswered_ms: int | None = None  # since when
        self._replayed_through = 0  # what is sent up to here was acked before
        self._anchored_ms: int | None = None
        self._ask_time_ms = 0

    def connected(self, now_ms: int) -> None:
        """A link to the broker is up."""
        self._both(CONNECTED)

    def disconnected(self, now_ms: int) -> None:
        """The link is gone, and with it the Ack that was on its way."""
        self._both(DISCONNECTED)

    def is_stuck(self, now_ms: int) -> bool:
        """No Ack has come over this link for so long that a new one should be made."""
        since_ms = self._unanswered_ms
        return since_ms is not None and now_ms - since_ms > STUCK_WAITS * self._ack_wait_ms

    def next_batch(self, now_ms: int) -> "memoryview | None":
        """Return the Batch to send now, valid until the next call; None: ask again at `due_ms`."""
        for lane in (self.main, self.peeks):
            if lane.nonce is not None and now_ms >= lane.resend_ms:
                lane.take(OVERDUE)
        state = self.main.state
        if state == GREET:
            return self._send(self.main, now_ms, 0, 0, 0, ENVELOPE_BYTES)
        if state in _OPEN:
            return self._next_peek(now_ms) or self._next_in_order(now_ms)
        return None

    def receive_ack(self, whole: "bytes | memoryview", now_ms: int) -> "Anchor | None":
        """Take an Ack; return the anchor it gave, already in the Journal. Bad ones are counted."""
        try:
            ack = decode_ack(whole)
        except FormatError:
            self.counters["broken"] += 1
            return None
        lane = self.main if ack.nonce == self.main.nonce else self.peeks
        why = self._refusal(ack, lane)
        if why is not None:
            self.counters[why] += 1
            return None
        self.counters["acks"] += 1
        self._unanswered_ms = None
        self._journal.ack(ack.through)
        greeted = lane.state == GREETED
        sent_ms = lane.sent_ms
        lane.take(ACKED)
        if lane is self.peeks:
            self.peek.acked()
        else:
            self._replay(ack, now_ms)
        anchor = self._anchor(ack, now_ms, now_ms - sent_ms)
        if greeted and self._has_backlog():
            self.peeks.take(NEWS)  # with the anchor in it
        return anchor

    def due_ms(self, now_ms: int) -> int:
        """When to ask for the next Batch if nothing happens before."""
        state = self.main.state
        if state == DOWN:
            return now_ms + ANCHOR_EVERY_MS
        if state == GREET or (state == READY and self._journal.pending) or self._may_peek():
            return now_ms
        due = [lane.resend_ms for lane in (self.main, self.peeks) if lane.nonce is not None]
        return min(due) if due else self._ask_time_ms

    # --- Sending --------------------------------------------------------------------------------------------

    def _next_in_order(self, now_ms: int) -> "memoryview | None":
        if self.main.state != READY:
            return None
        journal = self._journal
        if journal.pending:
            return self._send(
                self.main, now_ms, 0, *journal.read_batch(self._buffer, ENVELOPE_BYTES, _END, journal.acked)
            )
        self.main.settle()
        if now_ms < self._ask_time_ms:
            return None
        self.main.take(TIME_DUE)
        return self._send(self.main, now_ms, 0, 0, 0, ENVELOPE_BYTES)

    def _next_peek(self, now_ms: int) -> "memoryview | None":
        if not self._may_peek():
            return None
        self.peeks.take(NEWS)
        first, count, end = self.peek.read(self._buffer, ENVELOPE_BYTES, _END)
        if not count or not self._has_backlog():
            self.peeks.take(NOTHING)
            return None
        self.counters["peeks"] += 1
        # A service that was restored may have derived the same values before, with what it lacks now.
        is_whole = self.peek.is_whole and self._journal.acked >= self._replayed_through
        flags = PEEK | WHOLE if is_whole else PEEK
        return self._send(self.peeks, now_ms, flags, first, count, end)

    def _may_peek(self) -> bool:
        """One is wanted, or a live value has come that a peek has not held yet."""
        if self.main.state not in _OPEN:
            return False
        state = self.peeks.state
        return state == WANTED or (state == NONE and self.peek.has_news and self._has_backlog())

    def _has_backlog(self) -> bool:
        """More waits than the next Batch holds."""
        return self._journal.pending > MAX_BATCH_RECORDS

    def _send(self, lane: "Lane", now_ms: int, flags: int, first: int, count: int, end: int) -> memoryview:
        """Put envelope and CRC around the Records in the buffer."""
        journal = self._journal
        nonce = self._nonce()
        begin_batch(
            self._buffer,
            flags=flags,
            journal_id=journal.journal_id,
            boot=journal.boot,
            uptime_ms=now_ms,
            nonce=nonce,
            acked_through=journal.acked,
            first=first,
            count=count,
        )
        self.counters["batches"] += 1
        self.counters["resent"] += lane.tries > 0
        lane.sent(nonce, now_ms, self._wait_ms(lane.tries, nonce))
        if self._unanswered_ms is None:
            self._unanswered_ms = now_ms
        return self._view[: seal_batch(self._buffer, end)]

    def _wait_ms(self, tries: int, nonce: bytes) -> int:
        """From `ack_wait_ms`, the time of an answer, to a random part of what has doubled with each try."""
        growth = min(self._ack_wait_ms << min(tries, 16), ACK_WAIT_MAX_MS) - self._ack_wait_ms
        return self._ack_wait_ms + (nonce[0] << 8 | nonce[1]) * max(growth, 0) // 0xFFFF

    def _both(self, event: str) -> None:
        self.main.take(event)
        self.peeks.take(event)
        self._unanswered_ms = None

    # --- Acks -----------------------------------------------------------------------------------------------

    def _refusal(self, ack: Ack, lane: "Lane") -> "str | None":
        """Why this Ack is not believed, by the name of its counter."""
        journal = self._journal
        if ack.journal_id != journal.journal_id:
            return "other_journal"
        if ack.nonce != lane.nonce:
            return "stale"
        if ack.through >= journal.next_sequence:
            return "future"
        # That of a peek may come after that of the Batch behind it.
        if ack.through < journal.acked and ack.replay_from is None and lane is self.main:
            return "behind"
        return None

    def _replay(self, ack: Ack, now_ms: int) -> None:
        """Send again what the service has lost. A peek's Ack may not ask: the replay would begin twice."""
        if ack.replay_from is None or not 0 < ack.replay_from <= self._journal.acked:
            return
        self._replayed_through = max(self._replayed_through, self._journal.acked)
        self._journal.replay(ack.replay_from)
        self.counters["replays"] += 1
        detail = struct.pack("<I", ack.replay_from)
        self._journal.append(EVENT, 1, encode_event(Event(REPLAYED, 0, detail)), now_ms)

    def _anchor(self, ack: Ack, now_ms: int, round_trip_ms: int) -> "Anchor | None":
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
        self.peek.anchor = self._journal.append(ANCHOR, 1, encode_anchor(anchor), now_ms)
        return anchor


class Lane:
    """A machine with at most one Batch in flight: `nonce` is its nonce, None when none is."""

    def __init__(self, table: "Table", state: str) -> None:
        self.state = state
        self.nonce: bytes | None = None
        self.sent_ms = 0
        self.resend_ms = 0
        self.tries = 0  # that had no Ack
        self._table = table

    def take(self, event: str) -> None:
        """An event. Whatever ends a flight ends it here."""
        after = self._table[self.state].get(event)
        if after is None:
            return
        self.state = after
        if event == OVERDUE:
            self.tries += 1
            self.nonce = None
        elif event != NEWS and event != SENT:
            self.settle()

    def sent(self, nonce: bytes, now_ms: int, wait_ms: int) -> None:
        """A Batch goes out now."""
        self.take(SENT)
        self.nonce = nonce
        self.sent_ms = now_ms
        self.resend_ms = now_ms + wait_ms

    def settle(self) -> None:
        """Nothing is in flight, and nothing has to go again."""
        self.nonce = None
        self.tries = 0
