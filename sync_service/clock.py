"""The service's own clock, and whether it may give time to anyone (DESIGN 8).

Two witnesses are asked: the Store, which may be on another machine, and the Hub, by the Date of each of its
answers. Either contradicts; the Hub alone confirms, since a Store in a file has our own clock. The rule: no
time is given before ours has been confirmed, while a witness contradicts it, when it has been set since, or
when nobody has confirmed it for a day. Who is right does not matter: a Kit without time waits, a Kit with a
wrong time lies. Nothing has to be reset: the next look decides anew. While the Hub is away nothing could be
delivered, so that little is lost by waiting.

An Ack then carries no time, and what is received bounds nothing (`Ingest`).
"""

import time
from collections.abc import Callable
from typing import NamedTuple

BOUND_MS = 5_000
"""Two hosts that are kept by NTP differ by milliseconds, a Date shows whole seconds. Beyond this, one of them
is not kept."""
STEADY_MS = 86_400_000
"""A crystal that is off by 50 ppm is off by 4 s after a day without anybody who confirms the time."""
UNCONFIRMED = "nobody has confirmed the service's clock yet"


class Look(NamedTuple):
    """A witness showed [shown, shown + resolution) while our clock went from `before_ms` to `after_ms`."""

    before_ms: int
    after_ms: int
    shown_ms: int
    resolution_ms: int

    def off_by_ms(self) -> int:
        """By how much ours is ahead (behind: negative), at the very least; 0 when they can be the same."""
        if (ahead := self.before_ms - self.shown_ms - self.resolution_ms) > 0:
            return ahead
        return min(0, self.after_ms - self.shown_ms)


class Clock:
    """UTC in ms, and whether to believe it. `steady_ms` is never set by anybody."""

    def __init__(
        self,
        *,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        steady_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
    ) -> None:
        self.now_ms, self._steady_ms = wall_ms, steady_ms
        self._doubts: dict[str, str] = {}  # witness -> what it says against us
        self._confirmed: tuple[int, int] | None = None  # wall and steady time when one agreed

    def heard(self, witness: str, look: Look, *, confirms: bool = True) -> None:
        """A witness has shown its clock. One that does not confirm can only contradict."""
        off_ms = look.off_by_ms()
        if abs(off_ms) > BOUND_MS:
            ahead = "ahead of" if off_ms > 0 else "behind"
            self._doubts[witness] = f"the service's clock is {abs(off_ms) // 1000} s {ahead} {witness}'s"
            return
        self._doubts.pop(witness, None)
        if confirms and look.after_ms - look.before_ms <= BOUND_MS:
            self._confirmed = (self.now_ms(), self._steady_ms())

    def silent(self, witness: str) -> None:
        """It answers and tells no time, though RFC 9110 wants that: nobody else can be asked, ours stands."""
        self._doubts.pop(witness, None)
        self._confirmed = (self.now_ms(), self._steady_ms())

    @property
    def doubt(self) -> str | None:
        """Why no time is given now; None: it is."""
        if self._confirmed is None:
            return next(iter(self._doubts.values()), UNCONFIRMED)
        if self._doubts:
            return next(iter(self._doubts.values()))
        wall_ms, steady_ms = self._confirmed
        passed_ms = self._steady_ms() - steady_ms
        moved_ms = self.now_ms() - wall_ms - passed_ms
        if abs(moved_ms) > BOUND_MS:
            way = "ahead" if moved_ms > 0 else "back"
            return f"the service's clock was set {way} by {abs(moved_ms) // 1000} s"
        if passed_ms > STEADY_MS:
            return "nobody has confirmed the service's clock for a day"
        return None
