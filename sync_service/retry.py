"""What comes after an attempt at the Hub: done, retry or parked; and when the whole Hub is left alone. Pure.

Two questions that must not be mixed. `decide` looks at one Reading: its answer can be final for it alone.
`Breaker` looks at whole requests: a Hub that is down, busy or does not know us says nothing about any
Reading, so nothing is parked for it and no more than one probe at a time is sent.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

BASE_MS = 500
"""First back-off: a Hub restarts in seconds, and full jitter halves this on average."""
CAP_MS = 30_000
"""Longest back-off: how long a Reading waits after the Hub is back; a probe in 30 s burdens nobody."""
RETRY_AFTER_MAX_MS = 900_000
"""A Retry-After of more than 15 minutes is cut: a wrong date there must not silence a ward."""
CONFLICT_ATTEMPTS = 8
"""409 is a lock at some servers and a final no at others: tried this often, then parked."""
BREAKER_FAILURES = 3
"""Failed requests in a row before the Hub is left alone; one lost connection is not yet an outage."""

NO_ANSWER = 0
"""Status of a request that the Hub did not answer in a form that can be believed."""
CONFIGURATION = frozenset({301, 302, 303, 307, 308, 401, 403, 404, 405, 406, 407, 410, 415, 501})
"""Of a whole request: wrong address, wrong credentials or not a FHIR server. Never a Reading's fault."""
_TRANSIENT = frozenset({NO_ANSWER, 401, 403, 408, 421, 423, 425, 429})

Random = Callable[[], float]
"""Returns a float in [0, 1)."""


class Answer(NamedTuple):
    """What the Hub said about one entry, or about a whole request."""

    status: int  # HTTP status, or NO_ANSWER
    diagnostics: str = ""  # of the OperationOutcome, or what went wrong on the way; no patient detail
    retry_after_ms: int | None = None
    location: str = ""  # of the resource: 'Device/7/_history/1', perhaps with the server's address before it
    whole: bool = False  # of the request as such, not of one entry

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def reference(self) -> str | None:
        """'Device/7', None when the Hub did not say where."""
        steps = self.location.partition("/_history")[0].rstrip("/").split("/")
        return "/".join(steps[-2:]) if len(steps) > 1 else None

    def __str__(self) -> str:
        status = str(self.status) if self.status else "no answer"
        return f"{status}: {self.diagnostics}" if self.diagnostics else status


class Done(NamedTuple):
    """The Hub holds it."""

    answer: str


class RetryAt(NamedTuple):
    """Try again, not before `due_ms`."""

    answer: str
    due_ms: int


class Parked(NamedTuple):
    """The Hub will never take it as it is: shown to the operator, who can replay it."""

    answer: str


Decision = Done | RetryAt | Parked


def decide(answer: Answer, *, attempts: int, now_ms: int, random: Random) -> Decision:
    """The next step of one Reading. `attempts` counts the ones that failed before this one.

    401 and 403 are retried, not parked: they end when the credentials are mended, and no Reading is at fault.
    """
    if answer.ok:
        return Done(str(answer))
    if is_transient(answer):
        return RetryAt(str(answer), now_ms + wait_ms(answer, attempts, random))
    if answer.status == 409 and attempts + 1 < CONFLICT_ATTEMPTS:
        return RetryAt(str(answer), now_ms + wait_ms(answer, attempts, random))
    return Parked(str(answer))


def worst(answers: Iterable[Answer]) -> Answer:
    """The answer that counts for a Reading of several Observations: refusal before retry before success."""
    return max(answers, key=_weight)


def wait_ms(answer: Answer, attempts: int, random: Random) -> int:
    """Full jitter over a doubling back-off, never sooner than the Hub asked for."""
    jitter = int(random() * min(CAP_MS, BASE_MS << min(attempts, 16)))
    return max(jitter, min(answer.retry_after_ms or 0, RETRY_AFTER_MAX_MS))


def is_transient(answer: Answer) -> bool:
    """True when waiting can help: the Hub's state is at fault, or our configuration, but not what we sent."""
    if answer.whole and answer.status in CONFIGURATION:
        return True
    return answer.status >= 500 or answer.status in _TRANSIENT


class Breaker:
    """Opens after BREAKER_FAILURES failed requests in a row, or at once when the Hub says for how long.

    closed --failures--> open --due--> one probe --success--> closed
                           ^-------------- failure ---|
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._failures = 0
        self._open_until_ms: int | None = None
        self._probing = False

    @property
    def is_open(self) -> bool:
        return self._open_until_ms is not None

    @property
    def open_until_ms(self) -> int:
        """When the next probe may go; 0 when closed."""
        return self._open_until_ms or 0

    def allows(self, now_ms: int) -> int:
        """How many requests may start now: any number (a large one), one probe, or none."""
        if self._open_until_ms is None:
            return 1 << 30
        return 0 if self._probing or now_ms < self._open_until_ms else 1

    def started(self) -> None:
        """A request has been sent."""
        self._probing = self.is_open

    def ended(self, answer: Answer, now_ms: int) -> None:
        """A request has its answer. A refusal of its content is a success here: the Hub works."""
        self._probing = False
        if answer.ok or not is_transient(answer):
            self._failures, self._open_until_ms = 0, None
            return
        self._failures += 1
        if self._failures >= BREAKER_FAILURES or answer.retry_after_ms:
            self._open_until_ms = now_ms + wait_ms(answer, self._failures - 1, self._random)


def _weight(answer: Answer) -> int:
    if answer.ok:
        return 0
    return 1 if is_transient(answer) else 2
