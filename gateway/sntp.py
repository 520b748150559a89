"""SNTP: a time that nobody vouches for, and how far to believe it (RFC 5905, client mode). Knows no socket.

It is optional, and never better than its bound. The packet is not authenticated, and a home's router may have
any time at all. So it is asked only while the service gives no time; it never sets a Sensor's clock or the
wall clock; what the service's Acks or the floor exclude is refused and told in an EVENT; and what is left
stands in the Journal as evidence, and dates no Reading (`timebase`).
"""

import struct

from gateway.errors import Corrupt, Truncated
from gateway.limits import ANCHOR_EVERY_MS, DRIFT_PPM, SNTP_BOUND_MS
from gateway.port import const
from gateway.record import FROM_SNTP, NO_OFFSET, Anchor

PACKET_BYTES = const(48)
NONCE_BYTES = const(8)
MAX_ROUND_TRIP_MS = const(2_000)
"""A server answers within a tenth of a second; what comes later has been waiting in a queue."""
AGAIN_MS = const(600_000)
"""A server that does not answer, or answers nonsense, is asked six times an hour (RFC 5905 asks for more than
15 s)."""

# Reasons, as they stand in the EVENT.
BELIEVED = const(0)
SLOW = const(1)
BEFORE_FLOOR = const(2)
EXCLUDED = const(3)
"""By an Ack of this boot, earlier or later than it."""

_CLIENT = const(0x23)  # version 4, mode 3
_SERVER = const(4)
_UNSYNCHRONISED = const(3)
_MAX_STRATUM = const(15)
_TO_1970_S = 2_208_988_800
_ERA_S = 4_294_967_296


def question(nonce: bytes) -> bytes:
    """Return the packet to send. The server echoes the nonce, which stands where a clock's time would."""
    return bytes((_CLIENT,)) + bytes(PACKET_BYTES - NONCE_BYTES - 1) + nonce


def answer(packet: bytes, nonce: bytes) -> int:
    """Return the server's time in ms since 1970. Raises Truncated, Corrupt: not an answer to our question."""
    if len(packet) < PACKET_BYTES:
        raise Truncated("SNTP packet of %d bytes" % len(packet))
    if packet[24:32] != nonce:
        raise Corrupt("SNTP answer to another question")
    if packet[0] & 0x07 != _SERVER or packet[0] >> 6 == _UNSYNCHRONISED or not 0 < packet[1] <= _MAX_STRATUM:
        raise Corrupt("SNTP server without a time")
    seconds, fraction = struct.unpack(">II", packet[40:48])
    if seconds < _TO_1970_S:  # the counter begins anew in 2036
        seconds += _ERA_S
    utc_ms: int = (seconds - _TO_1970_S) * 1000 + (fraction * 1000 >> 32)
    return utc_ms


def judge(
    utc_ms: int, round_trip_ms: int, floor_ms: int, known: "tuple[int, int] | None"
) -> "tuple[int, Anchor]":
    """Return whether to believe an answer (a reason), and the ANCHOR that it makes at its receipt.

    `floor_ms`: it is later than this. `known`: what Acks leave open for now, earliest and latest.
    """
    half_ms = (round_trip_ms + 1) // 2
    anchor = Anchor(utc_ms + half_ms, half_ms + SNTP_BOUND_MS, FROM_SNTP, NO_OFFSET)
    if round_trip_ms > MAX_ROUND_TRIP_MS:
        return SLOW, anchor
    latest_ms = anchor.utc_ms + anchor.uncertainty_ms
    if latest_ms < floor_ms:
        return BEFORE_FLOOR, anchor
    if known is not None and not known[0] <= latest_ms <= known[1] + 2 * anchor.uncertainty_ms:
        return EXCLUDED, anchor
    return BELIEVED, anchor


def moved(anchor: Anchor, passed_ms: int) -> "tuple[int, int]":
    """What an ANCHOR leaves open so much later (or earlier) in its boot: earliest and latest ms."""
    spread_ms = anchor.uncertainty_ms + abs(passed_ms) * DRIFT_PPM // 1_000_000 + 1
    return anchor.utc_ms + passed_ms - spread_ms, anchor.utc_ms + passed_ms + spread_ms


class Sntp:
    """What this boot knows of a server's time. All times are uptime in ms but where they say UTC."""

    def __init__(self) -> None:
        self._ask_ms = 0
        self._believed: tuple[Anchor, int] | None = None
        self._false = False  # an Ack has shown it: not asked any more in this boot

    def is_due(self, now_ms: int, acked_ms: "int | None") -> bool:
        """Whether to ask now. `acked_ms`: when an Ack last gave the time."""
        fresh = acked_ms is not None and now_ms - acked_ms <= ANCHOR_EVERY_MS
        return not (self._false or fresh or now_ms < self._ask_ms)

    def asked(self, now_ms: int) -> None:
        """A question goes out."""
        self._ask_ms = now_ms + AGAIN_MS

    def told(self, anchor: Anchor, now_ms: int, reason: int) -> None:
        """Its answer has been judged."""
        self._false = self._false or reason == EXCLUDED
        if reason == BELIEVED:
            self._believed = (anchor, now_ms)
        if reason != SLOW:
            self._ask_ms = now_ms + ANCHOR_EVERY_MS

    def is_excluded_by(self, ack: Anchor, now_ms: int) -> bool:
        """Whether an Ack shows that what was believed is false. Said once."""
        if self._believed is None:
            return False
        anchor, at_ms = self._believed
        self._believed = None
        earliest_ms, latest_ms = moved(anchor, now_ms - at_ms)
        self._false = (
            ack.utc_ms + ack.uncertainty_ms < earliest_ms or latest_ms < ack.utc_ms - ack.uncertainty_ms
        )
        return self._false
