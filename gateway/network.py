"""Network: how each network that the Kit knows stands, told as an EVENT where that has changed.

The one rule: a router that comes and goes does not fill the Journal. A few EVENTs may follow each other at
once, then one an hour. A boot that nobody knows of yet waits with them, or a loop of boots would fill it. Of
what could not be told at its time the last trouble and the present state are told, with the time of each.
"""

from gateway.port import const
from gateway.record import (
    NET_ABSENT,
    NET_AWAY,
    NET_CAPTIVE,
    NET_FOREIGN,
    NET_NO_ADDRESS,
    NET_NO_INTERNET,
    NET_NOT_JOINED,
    NET_ONLINE,
    NET_UNTRIED,
    NET_WRONG_PASSWORD,
    NETWORK,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_NETWORKS = const(8)
"""The Kit's own router, the home's, a neighbour's: more than a person will type, and few enough to try."""
BURST = const(8)
"""EVENTs that may follow each other: one evening of set-up."""
EVERY_MS = const(3_600_000)
"""24 EVENTs of 28 bytes a day at most: a year of them is half of the smallest Journal."""

STATES = (
    "untried",
    "online",
    "absent",
    "wrong_password",
    "not_joined",
    "no_address",
    "no_internet",
    "captive",
    "foreign_certificate",
    "service_away",
)
"""The words of the status, by NETWORK state."""

_URGENT = (
    NET_ONLINE,
    NET_WRONG_PASSWORD,  # somebody in the home can do something about it
    NET_CAPTIVE,
    NET_FOREIGN,
    NET_AWAY,
    NET_NO_INTERNET,
    NET_NO_ADDRESS,
    NET_NOT_JOINED,
    NET_ABSENT,
)


class Networks:
    """`say` is Gateway.append_event, `may_speak` Gateway.may_speak.

    Networks have places 0 to MAX_NETWORKS - 1, the best one first.
    """

    def __init__(
        self, say: "Callable[[int, int, bytes, int], None]", may_speak: "Callable[[int], bool]"
    ) -> None:
        self.states = [NET_UNTRIED] * MAX_NETWORKS
        self._say = say
        self._may_speak = may_speak
        self._since_ms = [0] * MAX_NETWORKS
        self._told = [NET_UNTRIED] * MAX_NETWORKS
        self._missed: dict[int, tuple[int, int]] = {}  # by place: what was replaced untold, and its uptime
        self._left = BURST
        self._granted_ms = 0

    def see(self, place: int, state: int, now_ms: int) -> None:
        """This is how a network stands now."""
        if not 0 <= place < MAX_NETWORKS:
            return
        before = self.states[place]
        if state != before:
            if before != self._told[place]:
                self._missed[place] = (before, self._since_ms[place])
            self.states[place] = state
            self._since_ms[place] = now_ms
        self.settle(now_ms)

    def settle(self, now_ms: int) -> None:
        """Tell what is still to be told, as far as it may be."""
        self._grant(now_ms)
        if not self._may_speak(now_ms):
            return
        for place in range(MAX_NETWORKS):
            missed = self._missed.pop(place, None)
            if missed is not None:
                self._tell(place, *missed)
            self._tell(place, self.states[place], self._since_ms[place])

    def _tell(self, place: int, state: int, since_ms: int) -> None:
        if state != self._told[place] and self._left:
            self._left -= 1
            self._told[place] = state
            self._say(NETWORK, 0, bytes([place, state]), since_ms)

    @property
    def state(self) -> int:
        """What a person in the home has to know: the best there is, else what can be helped."""
        for state in _URGENT:
            if state in self.states:
                return state
        return NET_UNTRIED

    def words(self) -> "list[str]":
        """For the status: one word for each network that was tried, in order."""
        tried = [place for place in range(MAX_NETWORKS) if self.states[place] != NET_UNTRIED]
        return [STATES[self.states[place]] for place in range(tried[-1] + 1)] if tried else []

    def _grant(self, now_ms: int) -> None:
        while now_ms - self._granted_ms >= EVERY_MS:
            self._granted_ms += EVERY_MS
            self._left = min(self._left + 1, BURST)
