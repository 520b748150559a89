"""Timebase: when something was, from what a Journal says. Every answer is a bound that holds the true time.

Theory of operation. Inside a boot, uptime ties everything together: true time passes at the rate of uptime,
at most DRIFT_PPM off. An ANCHOR bounds the true time of one uptime, and so by a cone that of every other
uptime of its boot; with several ANCHORs the truth lies in all cones. If they exclude each other, one of
them is wrong and nobody knows which: then the answer spans all of them. A boot without an ANCHOR lies
between the boots before it (or the floor) and what came after it: the next boot, or the service's clock at
receipt.

What an SNTP server has said is in the Journal as well, and is not used: nobody vouches for it, and one that
is right before a boot and after it may have been wrong in it.

A Sensor's own clock counts in local time, perhaps wrong. What helps is not what it shows but how its
difference to true time behaved: in a stretch between two reads whose difference stayed the same (within
SENSOR_DRIFT_PPM) the clock ran, and a timestamp from it is as good as the two reads. The Kit reads the
clock when a Sensor connects, before it collects, and again after it has set it, so that nearly every
measurement lies in such a stretch. In any other stretch the clock was set, lost, stepped or stopped at a
moment that nobody saw: a timestamp from there is not believed, and it casts doubt on the same timestamp
elsewhere. A value that came in the middle of a stretch is corrected as soon as the read at its end is known:
what was told of it before is then told again, narrower.
"""

from collections import namedtuple

from gateway.limits import ANCHOR_EVERY_MS, DRIFT_PPM, SENSOR_DRIFT_PPM
from gateway.port import const
from gateway.reading import CONTINUOUS, OLDEST_SET_YEAR, Reading, seconds_of
from gateway.record import CLOCK_AFTER, CLOCK_SET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Bound = tuple[int, int]
    """Earliest and latest ms since 1970."""
    Moment = tuple[int, int]
    """Boot and uptime in ms."""

# Qualities.
SYNCED = "synced"
EXTRAPOLATED = "extrapolated"
SENSOR_CORRECTED = "sensor_corrected"
BRACKETED = "bracketed"

CLOCK_LATENCY_MS = const(2_000)
"""From a Sensor's look at its clock to our noting the answer, or from noting a set to its effect. The Gateway
chooses connection intervals of some 50 ms: this allows for 40 retransmissions."""
RESOLUTION_MS = const(1_000)
"""Of a Date Time."""
LIVE_MS = const(120_000)
"""A spot-check takes 40 s. So soon after a read, nobody but us sets the clock of a Sensor that is in use."""
BLUR_MS = const(10_000)
"""Doubt that widens a corrected time by no more (the clock was set by some seconds) leaves it corrected."""
HELD_MS = const(60_000)
"""A Sensor that can't store sends a measurement within its session, or not at all."""
STREAM_MS = const(4_000)
"""Longest period of continuous oximetry (PLXS 1.0.1: 1 to 4 s)."""
MAX_READS = const(128)
"""Reads of a Sensor's clock that are remembered: 40 sessions. No measurement waits in a Sensor for longer."""

Time = namedtuple("Time", ("earliest_ms", "latest_ms", "quality"))
"""The true time lies within [earliest_ms, latest_ms], UTC since 1970."""

_Read = namedtuple("_Read", ("at", "seconds", "was_set", "run", "shown"))
"""Of a Sensor's clock. at: (boot, uptime); seconds: shown, since 1970, None when not set or unknown;
run: grows when it was set or lost; shown: seconds of the newest read that was no set."""

_Link = namedtuple("_Link", ("ran", "first", "last", "reach"))
"""A read and the one before. ran: the clock is seen to have run; first, last: timestamps perhaps from there;
reach: where it is not, the seconds by which those may be away from either read."""
_NEAR_S = const(4)
"""CLOCK_LATENCY_MS and the resolution of both read and timestamp."""


class Timebase:
    """True time of one Journal's boots and uptimes."""

    def __init__(self) -> None:
        self.floor_ms = 0
        self.changes = 0  # grows when a time that was told before may be another one now
        self._boots: dict[int, _Boot] = {}
        self._newest = -1
        self._brackets: dict[int, tuple[int, int | None]] | None = None
        self._end_ms: int | None = None  # every boot had ended by then

    def not_before(self, utc_ms: int) -> None:
        """Nothing in this Journal is older (provisioning)."""
        self.floor_ms = max(self.floor_ms, utc_ms)
        self._change()

    def seen(self, boot: int, uptime_ms: int) -> None:
        """The Journal reaches at least this far: earlier boots have ended."""
        known = self._boot(boot)
        if uptime_ms > known.last_ms:
            known.last_ms = uptime_ms
            if self._has_ended(boot):  # nothing is bracketed by how long the newest boot has lasted
                self._change()

    def ended_before(self, utc_ms: int) -> None:
        """The Kit had begun another Journal by then: the newest boot has ended too."""
        if self._end_ms is None or utc_ms < self._end_ms:
            self._end_ms = utc_ms
            self._change()

    def add_anchor(self, boot: int, uptime_ms: int, utc_ms: int, uncertainty_ms: int) -> None:
        """At this uptime it was `utc_ms`, give or take `uncertainty_ms`."""
        self.seen(boot, uptime_ms)
        self._boot(boot).add_anchor((uptime_ms, utc_ms - uncertainty_ms - 1, utc_ms + uncertainty_ms + 1))
        self._change()

    def add_receipt(self, boot: int, uptime_ms: int, utc_ms: int) -> None:
        """The service got the boot's first Batch, sent at this uptime, at `utc_ms` of its clock."""
        self.seen(boot, uptime_ms)
        known = self._boot(boot)
        if known.receipt is None or _start(uptime_ms, utc_ms) < _start(*known.receipt):
            known.receipt = (uptime_ms, utc_ms)
            self._change()

    def time_of(self, boot: int, uptime_ms: int) -> "Time | None":
        """Return when this uptime was; None while the boot has no ANCHOR and may still get one."""
        known = self._boots.get(boot)
        if known is not None and known.anchors:
            return known.time_of(uptime_ms)
        return self._between_neighbours(boot, uptime_ms) if self._has_ended(boot) else None

    def is_anchored(self, boot: int) -> bool:
        """Whether the boot has an ANCHOR."""
        known = self._boots.get(boot)
        return known is not None and bool(known.anchors)

    def agrees(self, boot: int) -> bool:
        """Whether the boot's ANCHORs allow for each other. Where not, its times span what each says."""
        known = self._boots.get(boot)
        return known is None or known.agrees()

    def elapsed(self, first: "Moment", second: "Moment") -> "Bound | None":
        """Return least and most ms that passed between two moments; None while one is not known."""
        if first[0] == second[0]:
            least = _least(second[1] - first[1])
            return least, 2 * (second[1] - first[1]) - least
        before, after = self.time_of(*first), self.time_of(*second)
        if before is None or after is None:
            return None
        # Brackets overlap: what ran between is the least that passed, however little they tell.
        ran_ms = self._boots[first[0]].last_ms - first[1] + second[1]
        ran_ms += sum([known.last_ms for boot, known in self._boots.items() if first[0] < boot < second[0]])
        return max(_least(ran_ms), after.earliest_ms - before.latest_ms), after.latest_ms - before.earliest_ms

    def _boot(self, boot: int) -> "_Boot":
        known = self._boots.get(boot)
        if known is None:
            known = self._boots[boot] = _Boot()
            self._newest = max(self._newest, boot)
            self._change()
        return known

    def _has_ended(self, boot: int) -> bool:
        return boot < self._newest or self._end_ms is not None

    def _change(self) -> None:
        self.changes += 1
        self._brackets = None

    def _between_neighbours(self, boot: int, uptime_ms: int) -> "Time | None":
        self.seen(boot, uptime_ms)
        known = self._boots[boot]
        if self._brackets is None:
            self._brackets = self._bracket_all()
        began_ms, ended_ms = self._brackets[boot]
        bounds = [] if ended_ms is None else [ended_ms - _least(known.last_ms - uptime_ms)]
        if known.receipt is not None and known.receipt[0] >= uptime_ms:
            bounds.append(_start(known.receipt[0] - uptime_ms, known.receipt[1]))
        if not bounds:
            return None
        earliest, latest = began_ms + _least(uptime_ms), min(bounds)
        # A floor or a receipt by a wrong clock: the truth may be on either side.
        return Time(min(earliest, latest), max(earliest, latest), BRACKETED)

    def _bracket_all(self) -> "dict[int, tuple[int, int | None]]":
        """Return for each boot the earliest ms of its begin and, if known, the latest ms of its end."""
        begins, ends = {}, {}
        begin: int = self.floor_ms
        end = self._end_ms
        for boot in sorted(self._boots):
            begins[boot] = begin
            begin = max(begin, self._boots[boot].earliest_end(begin))
        for boot in sorted(self._boots, reverse=True):
            ends[boot] = end
            end = self._boots[boot].latest_begin(end)
        return {boot: (begins[boot], ends[boot]) for boot in begins}


class _Boot:
    """What is known of one boot. An anchor is (uptime, earliest, latest) of that uptime."""

    def __init__(self) -> None:
        self.last_ms = 0
        self.anchors: list[tuple[int, int, int]] = []  # by uptime
        self.receipt: tuple[int, int] | None = None
        self._combined: list[tuple[int, int, int]] | None = None
        self._agree = True

    def add_anchor(self, anchor: "tuple[int, int, int]") -> None:
        at = len(self.anchors)
        while at and self.anchors[at - 1][0] > anchor[0]:
            at -= 1
        self.anchors.insert(at, anchor)
        self._combined = None

    def agrees(self) -> bool:
        if self.anchors and self._combined is None:
            self._combine()
        return self._agree

    def time_of(self, uptime_ms: int) -> Time:
        earliest, latest, near = self._bound(uptime_ms)
        return Time(earliest, latest, SYNCED if near else EXTRAPOLATED)

    def earliest_end(self, begin: int) -> int:
        return self._bound(self.last_ms)[0] if self.anchors else begin + _least(self.last_ms)

    def latest_begin(self, next_begin: "int | None") -> "int | None":
        bounds = []
        if self.receipt is not None:
            bounds.append(_start(*self.receipt))
        if self.anchors:
            began = self._bound(0)
            if bounds and bounds[0] < began[0]:
                return began[1]  # one of the service's clocks was wrong: the later bound holds for both
            bounds.append(began[1])
        elif next_begin is not None:
            bounds.append(next_begin - _least(self.last_ms))
        return min(bounds) if bounds else None

    def _bound(self, uptime_ms: int) -> "tuple[int, int, bool]":
        """Earliest and latest; whether an anchor is near, or one lies on either side."""
        if self._combined is None:
            self._combine()
        after = self._first_after(uptime_ms)
        nearest = self._combined[after - 1 if after else 0]  # type: ignore[index]
        _, earliest, latest = _moved(nearest, uptime_ms)
        if not 0 < after < len(self.anchors):
            return earliest, latest, abs(uptime_ms - nearest[0]) <= ANCHOR_EVERY_MS
        both = _moved(self._combined[after], uptime_ms)  # type: ignore[index]
        narrow, widen = (max, min) if self._agree else (min, max)
        return narrow(earliest, both[1]), widen(latest, both[2]), True

    def _first_after(self, uptime_ms: int) -> int:
        low, high = 0, len(self.anchors)
        while low < high:
            middle = (low + high) // 2
            if self.anchors[middle][0] > uptime_ms:
                high = middle
            else:
                low = middle + 1
        return low

    def _combine(self) -> None:
        """Let every anchor know of all others, so that a query needs its neighbours alone."""
        self._combined = _sweep_both(self.anchors, max, min)
        self._agree = all(earliest <= latest for _, earliest, latest in self._combined)
        if not self._agree:
            self._combined = _sweep_both(self.anchors, min, max)


class SensorTimeline:
    """When one Sensor's values were taken, in one Journal. Calls come in the order of the Records."""

    def __init__(self, timebase: Timebase) -> None:
        self._timebase = timebase
        self._reads: list[_Read] = []
        self._links: list[_Link] = []  # of each read with the one before
        self._links_of = 0  # `changes` of the Timebase when they were compared
        self._near: list[int] | None = None  # of `_near_hour`; None: to be found anew
        self._near_hour = 0
        self._moments: dict[_Read, Bound] = {}
        self._moments_of = 0  # `changes` of the Timebase when they were told
        self._run = 0
        self._shown: int | None = None
        self._last_kind = 0
        self._drained: list[tuple[int, int]] = []
        # When it was last asked since when the Sensor had been empty: which of these, `changes`, the answer.
        self._empty: tuple[tuple[int, int], int, int] = ((0, 0), -1, 0)
        self._disproved = False

    def clock_read(self, kind: int, boot: int, uptime_ms: int, date_time: "tuple[int, ...] | None") -> None:
        """Take a SENSOR_CLOCK Record: what the clock showed or was set to; None when that is not known.

        An "after" without a "set" before it stands for both: that Record is lost, or its write had no answer.
        """
        is_set = date_time is not None and date_time[0] >= OLDEST_SET_YEAR
        if kind == CLOCK_SET or not is_set or (kind == CLOCK_AFTER and self._last_kind != CLOCK_SET):
            self._run += 1
        self._last_kind = kind
        seconds = seconds_of(date_time) if date_time is not None and is_set else None
        if kind != CLOCK_SET:
            self._shown = seconds
        self._reads.append(_Read((boot, uptime_ms), seconds, kind == CLOCK_SET, self._run, self._shown))
        if len(self._reads) > MAX_READS:
            self._link()
            self._moments.pop(self._reads.pop(0), None)
            if self._links:
                self._links.pop(0)
            self._near = None

    def records_lost(self) -> None:
        """Records are missing here: the clock may have been set."""
        self._run += 1

    def drained(self, boot: int, uptime_ms: int) -> None:
        """At this time the Sensor held nothing older: it had gone quiet."""
        self._drained.append((boot, uptime_ms))
        if len(self._drained) > MAX_READS:
            self._drained.pop(0)

    def clock_disproved(self) -> bool:
        """Whether two reads show that the Sensor's clock did not run, or was set by others."""
        self._link()
        return self._disproved

    def time_of(self, reading: Reading, boot: int, uptime_ms: int, *, can_store: bool) -> "Time | None":
        """Return when a Reading was taken that came at this uptime; None while that moment is not known."""
        received = self._timebase.time_of(boot, uptime_ms)
        if received is None:
            return None
        if reading.kind == CONTINUOUS:
            return Time(received.earliest_ms - STREAM_MS, received.latest_ms, received.quality)
        if reading.timestamp is not None and reading.clock_set:
            taken = self._by_clock(seconds_of(reading.timestamp), (boot, uptime_ms), received.latest_ms)
            if taken is not None:
                return _not_before(taken, self._held_from((boot, uptime_ms)))
        held_from = self._held_from((boot, uptime_ms))
        if not can_store:
            earliest = max(received.earliest_ms - HELD_MS, min(held_from, received.earliest_ms))
            return Time(earliest, received.latest_ms, received.quality)
        return Time(held_from, received.latest_ms, BRACKETED)

    # --- The Sensor's clock ---------------------------------------------------------------------------------

    def _by_clock(self, stamp: int, at: "Moment", latest_ms: int) -> "Time | None":
        """Return where a timestamp lies in the stretches in which the clock ran; None when in none."""
        self._link()
        count = self._linked_until(at)
        proved: list[Bound] = []
        doubtful: list[Bound] = []
        for index in self._links_near(stamp):
            ran, first, last, reach = self._links[index]
            if index < count and first <= stamp <= last:
                before, after = self._reads[index - 1], self._reads[index]
                if ran:
                    proved.append(self._between(before, after, stamp))
                else:
                    doubtful += self._around(before, after, reach, stamp)
        self._beside(stamp, at, latest_ms, count, proved, doubtful)
        if len(proved) == 1 and not doubtful and proved[0][0] <= latest_ms:  # nearly always
            return Time(proved[0][0], min(latest_ms, proved[0][1]), SENSOR_CORRECTED)
        proved = [bound for bound in proved if bound[0] <= latest_ms]
        if not proved:
            return None
        spanned = proved + [bound for bound in doubtful if bound[0] <= latest_ms]
        earliest = min([bound[0] for bound in spanned])
        latest = min(latest_ms, max([bound[1] for bound in spanned]))
        clear = latest - earliest <= max([bound[1] - bound[0] for bound in proved]) + BLUR_MS
        return Time(earliest, latest, SENSOR_CORRECTED if clear else BRACKETED)

    def _links_near(self, stamp: int) -> "list[int]":
        """Return which links reach into the timestamp's hour. What is collected together often shares it."""
        hour = stamp // 3600
        if self._near is None or hour != self._near_hour:
            begin, end = hour * 3600, hour * 3600 + 3599
            # Before the first link stands a read that is not remembered any more.
            near = [
                i for i, (_, first, last, _) in enumerate(self._links) if i and first <= end and last >= begin
            ]
            self._near, self._near_hour = near, hour
        return self._near

    def _beside(
        self,
        stamp: int,
        at: "Moment",
        latest_ms: int,
        count: int,
        proved: "list[Bound]",
        doubtful: "list[Bound]",
    ) -> None:
        """Add what a timestamp means before the first read and after the last one (of `count`)."""
        if not count:
            return
        first, last = self._reads[0], self._reads[count - 1]
        if first.seconds is not None and stamp < first.seconds:
            doubtful.append(self._by(first, stamp))
        fresh = last.at[0] == at[0] and at[1] - last.at[1] <= LIVE_MS
        if fresh and last.seconds is not None and stamp > last.seconds:
            proved.append(self._by(last, stamp))
        elif count < len(self._links) and self._links[count].ran:  # as a read that came later shows
            if self._links[count].first <= stamp <= self._links[count].last:
                proved.append(self._between(last, self._reads[count], stamp))
        elif not fresh or stamp in (last.seconds, last.shown):  # it may have been set since, or stand still
            doubtful.append((self._moment_of(last)[0], latest_ms))

    def _link(self) -> None:
        """Compare each new read with the one before; two of different boots again when times are others."""
        if self._links_of != self._timebase.changes:
            self._links_of = self._timebase.changes
            self._near = None
            for index in range(1, len(self._links)):
                if self._reads[index - 1].at[0] != self._reads[index].at[0]:
                    link = self._compare(index)
                    if link is None:
                        del self._links[index:]
                        break
                    self._links[index] = link
        if not self._links and self._reads:
            self._links.append(_Link(False, 1, 0, 0))
        while len(self._links) < len(self._reads):
            link = self._compare(len(self._links))
            if link is None:
                return
            self._near = None
            self._links.append(link)

    def _compare(self, index: int) -> "_Link | None":
        """A read with the one before; None while it is not known how much time passed."""
        before, after = self._reads[index - 1], self._reads[index]
        elapsed = self._timebase.elapsed(before.at, after.at)
        if elapsed is None:
            return None
        same = before.run == after.run and before.seconds is not None and after.seconds is not None
        if same and _agree(before, after, elapsed):
            return _Link(True, before.seconds, after.seconds, 0)
        if same and not before.was_set:  # a Sensor may ignore a set and run on
            self._disproved = True
        return _gap(before, after, elapsed[1])

    def _linked_until(self, at: "Moment") -> int:
        count = len(self._links)
        while count and self._reads[count - 1].at >= at:
            count -= 1
        return count

    def _between(self, before: "_Read", after: "_Read", stamp: int) -> "Bound":
        """A timestamp between two reads that agree.

        The clock's difference to true time went from the one's to the other's. Drifting back and forth it may
        have left that range by what drift allows from the nearer one.
        """
        began = self._moment_of(before)
        low, high = _difference(before, began)
        end_low, end_high = _difference(after, self._moment_of(after))
        gone, left = _sensor_drift(stamp - before.seconds), _sensor_drift(after.seconds - stamp)
        lowest = min(low, end_low, max(low - gone, end_low - left))
        highest = max(high, end_high, min(high + gone, end_high + left))
        earliest = max(stamp * 1000 + lowest, began[0] - RESOLUTION_MS)
        return earliest, stamp * 1000 + RESOLUTION_MS + highest

    def _around(self, before: "_Read", after: "_Read", reach: int, stamp: int) -> "list[Bound]":
        """Where a timestamp may lie between two reads, when the clock changed at some moment between them."""
        bounds = []
        if stamp in (before.seconds, before.shown):  # it may have stood still
            bounds.append((self._moment_of(before)[0], self._moment_of(after)[1]))
        if before.seconds is not None and -_NEAR_S <= stamp - before.seconds <= reach:
            bounds.append(self._by(before, stamp))
        if after.seconds is not None and -_NEAR_S <= after.seconds - stamp <= reach:
            bounds.append(self._by(after, stamp))
        return bounds

    def _by(self, read: "_Read", stamp: int) -> "Bound":
        """A timestamp of the clock as it was at one read."""
        low, high = _difference(read, self._moment_of(read))
        drift = _sensor_drift(stamp - read.seconds)
        return stamp * 1000 + low - drift, stamp * 1000 + RESOLUTION_MS + high + drift

    def _moment_of(self, read: "_Read") -> "Bound":
        """When the Sensor looked at its clock or set it: before the answer was noted, after the set was."""
        if self._moments_of != self._timebase.changes:
            self._moments_of = self._timebase.changes
            self._moments.clear()
        moment = self._moments.get(read)
        if moment is None:
            moment = self._moments[read] = self._look_up(read)
        return moment

    def _look_up(self, read: "_Read") -> "Bound":
        time = self._timebase.time_of(*read.at)
        assert time is not None, "linked reads have a time"
        if read.was_set:
            return time.earliest_ms, time.latest_ms + CLOCK_LATENCY_MS
        return time.earliest_ms - CLOCK_LATENCY_MS, time.latest_ms

    def _held_from(self, at: "Moment") -> int:
        """Earliest ms of a value that may have waited in the Sensor."""
        for drained in reversed(self._drained):
            if drained < at:  # in the same ms: perhaps only after the value had come
                if self._empty[:2] != (drained, self._timebase.changes):
                    time = self._timebase.time_of(*drained)
                    earliest_ms = self._timebase.floor_ms if time is None else time.earliest_ms
                    self._empty = (drained, self._timebase.changes, earliest_ms)
                return self._empty[2]
        return self._timebase.floor_ms


def _difference(read: _Read, moment: "Bound") -> "Bound":
    """True time minus the Sensor's, in ms; the Sensor's shows whole seconds."""
    shown_ms: int = read.seconds * 1000
    return moment[0] - shown_ms - RESOLUTION_MS, moment[1] - shown_ms


def _not_before(taken: Time, empty_ms: int) -> Time:
    """A value that came after the Sensor was empty is not older, unless its timestamp is sure of it."""
    if not taken.earliest_ms < empty_ms <= taken.latest_ms:
        return taken
    return Time(empty_ms, taken.latest_ms, taken.quality)


def _gap(before: _Read, after: _Read, elapsed_ms: int) -> _Link:
    """The link of two reads between which the clock was set, lost, stepped or stopped."""
    reach = elapsed_ms // 1000 + _sensor_drift(elapsed_ms // 1000 + 1) // 1000 + 1 + _NEAR_S
    sides = []
    if before.seconds is not None:
        sides += [before.seconds - _NEAR_S, before.seconds + reach]
    if after.seconds is not None:
        sides += [after.seconds - reach, after.seconds + _NEAR_S]
    if before.shown is not None:
        sides.append(before.shown)
    return _Link(False, min(sides), max(sides), reach) if sides else _Link(False, 1, 0, 0)


def _agree(before: _Read, after: _Read, elapsed: "Bound") -> bool:
    """Whether the Sensor's clock advanced as true time did, as far as can be told."""
    ran_ms: int = (after.seconds - before.seconds) * 1000
    slack = CLOCK_LATENCY_MS + RESOLUTION_MS + _sensor_drift(max(0, elapsed[1]) // 1000 + 1)
    return elapsed[0] - slack <= ran_ms <= elapsed[1] + slack


def _sweep_both(
    anchors: "list[tuple[int, int, int]]", low: "Callable[[int, int], int]", high: "Callable[[int, int], int]"
) -> "list[tuple[int, int, int]]":
    forth = _sweep(anchors, low, high)
    back = _sweep(anchors[::-1], low, high)[::-1]
    return [(a[0], low(a[1], b[1]), high(a[2], b[2])) for a, b in zip(forth, back)]


def _sweep(
    anchors: "list[tuple[int, int, int]]", low: "Callable[[int, int], int]", high: "Callable[[int, int], int]"
) -> "list[tuple[int, int, int]]":
    """Combine each anchor with those before it: `low` and `high` choose of two earliest and two latest ms."""
    swept = [anchors[0]]
    for anchor in anchors[1:]:
        moved = _moved(swept[-1], anchor[0])
        swept.append((anchor[0], low(anchor[1], moved[1]), high(anchor[2], moved[2])))
    return swept


def _moved(anchor: "tuple[int, int, int]", uptime_ms: int) -> "tuple[int, int, int]":
    """What an anchor says of another uptime."""
    distance = uptime_ms - anchor[0]
    drift = _drift(abs(distance), DRIFT_PPM)
    return uptime_ms, anchor[1] + distance - drift, anchor[2] + distance + drift


def _start(uptime_ms: int, utc_ms: int) -> int:
    """Latest ms of uptime 0, when `uptime_ms` was at `utc_ms` or before."""
    return utc_ms - _least(uptime_ms)


def _least(uptime_ms: int) -> int:
    """Least true ms in so much uptime."""
    return uptime_ms - _drift(uptime_ms, DRIFT_PPM)


def _sensor_drift(seconds: int) -> int:
    return _drift(abs(seconds) * 1000, SENSOR_DRIFT_PPM)


def _drift(distance_ms: int, ppm: int) -> int:
    """Rounded up, and one ms for what uptimes round off."""
    return (distance_ms * ppm + 999_999) // 1_000_000 + 1
