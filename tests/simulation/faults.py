"""Which faults are injected, how often, and why the system must survive exactly those.

    kind                     why it must be survived
    -- the home and the way to the service
    message lost             QoS 0, a full queue of the broker, a NAT that forgot the connection
    message doubled          a retry below us, a bridge between brokers
    message late             mobile links hold bytes for minutes: the Ack comes after the next try
    message overtaken        several workers, several paths
    link half open           the router was replaced: nobody says that the connection is gone
    home offline             minutes to a week
    broker restarted         all connections end, and only what is retained stays
    SNTP wrong / late        a router that has any time at all, a queue
    worker cut off           the way between broker and service
    -- the Kit
    power cut                at any moment
    power cut in a program   before it, in the middle of a word, after it
    power cut in an erase    the same
    watchdog                 a boot without a power cut
    handler preempts         NimBLE's task comes between two bytecodes of the main loop
    flash refuses            a bad block: the driver says so
    flash forgets            the same, and nobody says so
    bit rot                  flash forgets later: also the last Record before a boot
    -- the Sensor
    link dropped             out of reach, at any step
    confirmation lost        kept, and sent again
    no answer                a GATT operation that has none
    operation refused        a Sensor that does not do what its table says
    bond forgotten           batteries were changed; it is paired again, and its values wait for a clinician
    clock unset / stopped / stepped / lost      batteries and buttons; `local` is the rule, not a fault
    failed measurement       NaN: cuff not tight
    questionable measurement / demonstration    status bits
    hostile value            bytes that no specification allows, from a bonded Sensor
    -- the service
    worker killed            at any await
    two workers              the old one lives on when the new one begins
    database down            a restart of the database, a full disk
    transaction broken       in its middle
    commit unheard           committed, and nobody was told
    service clock wrong      by seconds to hours, until somebody sees it
    backup restored          yesterday's: what is known is less than what was acked
    -- the Hub
    hub 5xx / 429 / 4xx / 412 / silent / unheard (committed) / nonsense
    hub race                 a conditional create that looks, waits, and then writes
    hub restored             yesterday's: Observations are gone, and those that were retracted are back
    -- people
    unsent at hand-on        the Kit goes to the next patient without a wipe, with Records that wait
    Sensor not emptied       it holds the last patient's values
    measured at the bench    by a technician: nobody's value
    assigned late            hours after the Kit was handed over
    returned late            the next patient's values went to the last one, and have to come back
    stolen Kit               sends what another Kit has sent, and goes on after its revocation

Not injected, since nothing in reach of the parts could tell the difference: a Sensor's clock that is stepped
by less than its drift allows, or twice between two looks at it; a clinician who names the wrong patient; a
flash that loses all copies of a thing at once. Two workers are never set upon a Hub that races: the service's
lock keeps a second one off (`app.only_one`), and what they would do to such a Hub is known.
"""

from collections import Counter
from random import Random

KINDS = (
    "message lost", "message doubled", "message late", "message overtaken", "link half open",
    "home offline", "broker restarted", "worker cut off",
    "SNTP wrong", "SNTP late",
    "power cut", "power cut in a program", "power cut in an erase", "watchdog", "handler preempts",
    "flash refuses", "flash forgets", "bit rot",
    "link dropped", "confirmation lost", "no answer", "operation refused",
    "bond forgotten", "clock unset", "clock stopped", "clock stepped", "clock lost",
    "failed measurement", "questionable measurement", "demonstration", "hostile value",
    "worker killed", "two workers", "database down", "transaction broken", "commit unheard",
    "service clock wrong", "backup restored",
    "hub 5xx", "hub 429", "hub 4xx", "hub 412", "hub silent", "hub unheard", "hub nonsense", "hub race",
    "hub restored",
    "unsent at hand-on", "Sensor not emptied", "measured at the bench", "assigned late", "returned late",
    "stolen Kit",
)  # fmt: skip


class Faults:
    """Draws faults while `active`, and counts them by kind."""

    def __init__(self, random: Random) -> None:
        self.active = True
        self.counts: Counter[str] = Counter()
        self._random = random
        # Each seed has a weather of its own: some kinds often, some never.
        self._rates = {kind: random.choice((0.0, 0.3, 1.0, 1.0, 3.0)) for kind in KINDS}

    def strikes(self, kind: str, chance: float) -> bool:
        """Whether a fault of this kind happens now."""
        if self.active and self._random.random() < chance * self._rates[kind]:
            self.counts[kind] += 1
            return True
        return False

    def happened(self, kind: str) -> None:
        """A fault that was decided elsewhere."""
        assert kind in KINDS, kind
        self.counts[kind] += 1
