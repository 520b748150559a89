"""Whatever the world does within its limits, the true time lies within the bound that is given for it."""

from datetime import datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.limits import DRIFT_PPM, SENSOR_DRIFT_PPM
from gateway.reading import BLOOD_PRESSURE, GOOD, OLDEST_SET_YEAR, Reading
from gateway.record import CLOCK_AFTER, CLOCK_BEFORE, CLOCK_SET
from gateway.timebase import CLOCK_LATENCY_MS, LIVE_MS, SensorTimeline, Time, Timebase
from sync_service.redate import ROUNDING_MS

BIRTH_MS = 1_783_641_600_000
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
EPOCH = datetime(1970, 1, 1)

# The same examples in every run, so that a red test means a change. Look further with max_examples=20_000.
OFF_BY = [0, HOUR, -20 * DAY, 90 * MINUTE, 365 * DAY, -366 * DAY]
"""What a Sensor's clock shows at first: true time, local time, another zone, a year off, ..."""
QUICK = settings(max_examples=300, deadline=None, derandomize=True, database=None)


class World:
    """True time in ms since the Kit's birth, and what boots and a crystal make of it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.boot = 0
        self.rate = 1.0
        self._began = 0.0
        self.timebase = Timebase()
        self.timebase.not_before(BIRTH_MS)

    def start(self, ppm: float) -> None:
        self.boot += 1
        self.rate = 1 + ppm / 1e6
        self._began = self.now
        self.timebase.seen(self.boot, 0)

    @property
    def uptime_ms(self) -> int:
        return int((self.now - self._began) / self.rate)

    @property
    def utc_ms(self) -> float:
        return BIRTH_MS + self.now

    def anchor(self, error: float, uncertainty_ms: int) -> None:
        utc_ms = round(self.utc_ms + error * uncertainty_ms)
        self.timebase.add_anchor(self.boot, self.uptime_ms, utc_ms, uncertainty_ms)

    def receive(self, delay_ms: int) -> None:
        self.timebase.add_receipt(self.boot, self.uptime_ms, round(self.utc_ms) + delay_ms)


def assert_inside(new: Time, old: Time) -> None:
    """What was told before still holds: it is narrower now, or the same."""
    assert old.earliest_ms - ROUNDING_MS <= new.earliest_ms, (old, new)
    assert new.latest_ms <= old.latest_ms + ROUNDING_MS, (old, new)


def assert_holds(time: Time, true_ms: float, slip_ms: float = 0) -> None:
    assert time.earliest_ms - slip_ms <= true_ms <= time.latest_ms + slip_ms, (time, true_ms)


ppm = st.floats(-DRIFT_PPM, DRIFT_PPM)
anchors = st.tuples(st.floats(-1, 1), st.integers(0, 60_000))
moments = st.tuples(st.floats(0, 3 * DAY), st.sampled_from("mmmar"), anchors, st.integers(0, MINUTE))
boots = st.lists(st.tuples(ppm, st.lists(moments, max_size=6), st.floats(0, DAY)), min_size=1, max_size=6)


@QUICK
@given(boots)
def test_the_true_time_lies_within_the_bound(
    plan: list[tuple[float, list[tuple[float, str, tuple[float, int], int]], float]],
) -> None:
    """Whatever the crystal, the Acks and the boots do."""
    world = World()
    marks = []
    for rate, steps, off_ms in plan:
        world.start(rate)
        received = False
        for wait_ms, what, anchor, delay_ms in steps:
            world.now += wait_ms
            world.timebase.seen(world.boot, world.uptime_ms)
            if what == "a":
                world.anchor(*anchor)
            elif what == "r" and not received:
                world.receive(delay_ms)
                received = True
            marks.append((world.boot, world.uptime_ms, world.utc_ms))
        world.now += off_ms
    world.start(0.0)
    world.receive(0)
    world.anchor(0.0, 40)
    for boot, uptime_ms, true_ms in marks:
        time = world.timebase.time_of(boot, uptime_ms)
        assert time is not None
        assert_holds(time, true_ms)


@QUICK
@given(boots)
def test_what_is_learnt_later_only_narrows_a_time(
    plan: list[tuple[float, list[tuple[float, str, tuple[float, int], int]], float]],
) -> None:
    """So nothing that was delivered has to be amended in a world where nobody's clock is wrong."""
    world = World()
    told: dict[tuple[int, int], Time] = {}
    for rate, steps, off_ms in plan:
        world.start(rate)
        for at, (wait_ms, what, anchor, delay_ms) in enumerate(steps):
            world.now += wait_ms
            world.timebase.seen(world.boot, world.uptime_ms)
            if what == "a":
                world.anchor(*anchor)
            elif what == "r" and not any(one[1] == "r" for one in steps[:at]):
                world.receive(delay_ms)
            for moment in [*told, (world.boot, world.uptime_ms)]:
                if (time := world.timebase.time_of(*moment)) is not None:
                    assert_inside(time, told.get(moment, time))
                    told[moment] = time
        world.now += off_ms


@QUICK
@given(
    ppm,
    st.lists(st.tuples(st.integers(0, DAY), anchors), min_size=2, max_size=6),
    st.integers(-DAY, DAY),
    st.data(),
)
def test_a_lying_anchor_never_hides_the_truth(
    rate: float, steps: list[tuple[int, tuple[float, int]]], lie_ms: int, data: st.DataObject
) -> None:
    """One ANCHOR is wrong by any amount. It is found out, or it lies within what the others leave open."""
    world = World()
    world.start(rate)
    liar = data.draw(st.integers(0, len(steps) - 1))
    marks = []
    for index, (wait_ms, (error, uncertainty_ms)) in enumerate(steps):
        world.now += wait_ms
        utc_ms = round(world.utc_ms + error * uncertainty_ms) + (lie_ms if index == liar else 0)
        world.timebase.add_anchor(world.boot, world.uptime_ms, utc_ms, uncertainty_ms)
        marks.append((world.uptime_ms, world.utc_ms, utc_ms, uncertainty_ms))
    others = Timebase()
    for index, (uptime_ms, _, utc_ms, uncertainty_ms) in enumerate(marks):
        if index != liar:
            others.add_anchor(1, uptime_ms, utc_ms, uncertainty_ms)
    for uptime_ms, true_ms, _, _ in marks:
        time = world.timebase.time_of(1, uptime_ms)
        honest = others.time_of(1, uptime_ms)
        assert time is not None and honest is not None
        if not time.earliest_ms <= true_ms <= time.latest_ms:
            rounding = 2 * len(steps)
            assert honest.earliest_ms - rounding <= time.earliest_ms
            assert time.latest_ms <= honest.latest_ms + rounding


class Clock:
    """A Sensor's clock and its faults."""

    def __init__(self, world: World, ppm: float, shows_ms: float) -> None:
        self._world = world
        self._rate = 1 + ppm / 1e6
        self._runs = True
        self._base, self._since = shows_ms, world.now

    def read(self) -> tuple[int, ...]:
        shown = self._shown()
        moment = EPOCH + timedelta(milliseconds=shown // 1000 * 1000)
        return (moment.year, moment.month, moment.day, moment.hour, moment.minute, moment.second)

    def set(self, shows_ms: float) -> None:
        self._base, self._since = shows_ms, self._world.now

    def suffer(self, trouble: str, by_ms: float) -> None:
        """ "step" by so much, "stop", or "lose": a new battery, and it runs from its factory date."""
        if trouble == "lose":
            self._runs = True
            self.set((datetime(2010, 1, 1) - EPOCH).total_seconds() * 1000)
        else:
            self.set(self._shown() + by_ms)
            self._runs = self._runs and trouble != "stop"

    def _shown(self) -> float:
        passed = (self._world.now - self._since) * self._rate if self._runs else 0.0
        return self._base + passed


class Sensor:
    """Measures, stores, and is collected by a Kit that keeps the order of the session."""

    def __init__(self, world: World, clock: Clock, *, ignores_setting: bool) -> None:
        self.clock = clock
        self.timeline = SensorTimeline(world.timebase)
        self._world = world
        self._ignores_setting = ignores_setting
        self._stored: list[tuple[float, tuple[int, ...]]] = []
        self.received: list[tuple[float, Reading, int, int, Time]] = []
        self._drained()

    def measure(self) -> None:
        self._stored.append((self._world.utc_ms, self.clock.read()))

    def session(self, *, latency_ms: float, live: bool, reads: bool, drains: bool, sets: bool) -> None:
        world = self._world
        world.timebase.seen(world.boot, world.uptime_ms)
        if reads:
            self._read(CLOCK_BEFORE, latency_ms)
        if live:
            world.now += 20_000
            self.measure()
        if drains or live:
            self._collect()
        if drains:
            self._drained()
        if sets and drains:
            self._set(latency_ms)
            world.now += 100
            if reads:
                self._read(CLOCK_AFTER, latency_ms)

    def _read(self, kind: int, latency_ms: float) -> None:
        shown = self.clock.read()
        self._world.now += latency_ms
        self.timeline.clock_read(kind, self._world.boot, self._world.uptime_ms, shown)

    def _set(self, latency_ms: float) -> None:
        world = self._world
        local_ms = world.utc_ms // 1000 * 1000 + HOUR
        moment = EPOCH + timedelta(milliseconds=local_ms)
        written = (moment.year, moment.month, moment.day, moment.hour, moment.minute, moment.second)
        self.timeline.clock_read(CLOCK_SET, world.boot, world.uptime_ms, written)
        world.now += latency_ms
        if not self._ignores_setting:
            self.clock.set(local_ms)

    def _collect(self) -> None:
        world = self._world
        for taken_ms, stamp in self._stored:
            world.now += 50
            is_set = stamp[0] >= OLDEST_SET_YEAR
            reading = Reading(BLOOD_PRESSURE, GOOD, (), (), stamp, is_set, None, None)
            at = world.boot, world.uptime_ms
            time = self.timeline.time_of(reading, *at, can_store=True)
            assert time is not None
            self.received.append((taken_ms, reading, *at, time))
        self._stored.clear()

    def _drained(self) -> None:
        self.timeline.drained(self._world.boot, self._world.uptime_ms)


sessions = st.fixed_dictionaries(
    {
        "latency_ms": st.floats(0, CLOCK_LATENCY_MS - 200),
        "live": st.booleans(),
        "reads": st.sampled_from([True, True, True, False]),
        "drains": st.sampled_from([True, True, True, False]),
        "sets": st.booleans(),
    }
)
pauses = st.lists(st.floats(0, 6 * HOUR), max_size=2)
# Steps that drift between two reads can't explain, whatever reads fail.
plain_steps = st.integers(20 * MINUTE, 3 * HOUR).flatmap(lambda by: st.sampled_from([by, -by]))
faults = st.one_of(
    st.none(),
    st.none(),
    st.tuples(st.just("step"), plain_steps),
    st.tuples(st.just("stop"), st.just(0)),
    st.tuples(st.just("lose"), st.just(0)),
)
slips = st.one_of(st.none(), st.tuples(st.just("step"), st.integers(-2 * MINUTE, 2 * MINUTE)))
sensor_ppm = st.one_of(st.just(0.0), st.floats(-SENSOR_DRIFT_PPM, SENSOR_DRIFT_PPM))


def lives(troubles: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Days: measurements, perhaps a trouble, measurements; then a session. From read to read one trouble."""
    return st.lists(
        st.tuples(pauses, st.floats(LIVE_MS, 6 * HOUR), troubles, pauses, sessions), min_size=1, max_size=8
    )


def live(
    rate: float, sensor_rate: float, off_ms: int, ignores_setting: bool, days: list[Any]
) -> tuple[World, Sensor]:
    world = World()
    world.start(rate)
    world.anchor(0.5, 40)
    clock = Clock(world, sensor_rate, BIRTH_MS + off_ms)
    sensor = Sensor(world, clock, ignores_setting=ignores_setting)
    sensor.session(latency_ms=50, live=False, reads=True, drains=True, sets=True)
    unread = False
    for before, wait_ms, trouble, after, session in days:
        _measure(world, sensor, before)
        world.now += wait_ms
        if trouble and not unread:
            clock.suffer(*trouble)
            unread = True
        _measure(world, sensor, after)
        world.now += 10
        sensor.session(**session)
        unread = unread and not session["reads"]
        world.anchor(-0.5, 40)
    return world, sensor


def _measure(world: World, sensor: Sensor, pauses: list[float]) -> None:
    for pause_ms in pauses:
        world.now += pause_ms
        sensor.measure()


@QUICK
@given(ppm, sensor_ppm, st.sampled_from(OFF_BY), st.booleans(), lives(faults))
def test_no_clock_of_a_sensor_makes_a_false_time(
    rate: float, sensor_rate: float, off_ms: int, ignores_setting: bool, days: list[Any]
) -> None:
    world, sensor = live(rate, sensor_rate, off_ms, ignores_setting, days)
    # A clock that stops a second before it is read can't be told from one that drifts.
    stops = any(trouble and trouble[0] == "stop" for _, _, trouble, _, _ in days)
    slip_ms = abs(sensor_rate) * world.now / 1e6 if stops else 0.0
    for taken_ms, reading, boot, uptime_ms, time in sensor.received:
        assert_holds(time, taken_ms, slip_ms)
        again = sensor.timeline.time_of(reading, boot, uptime_ms, can_store=True)
        assert again is not None
        assert_holds(again, taken_ms, slip_ms)
        assert_inside(again, time)


@QUICK
@given(ppm, sensor_ppm, lives(slips))
def test_steps_that_look_like_drift_make_a_time_wrong_by_no_more_than_drift(
    rate: float, sensor_rate: float, days: list[Any]
) -> None:
    world, sensor = live(rate, sensor_rate, 0, False, days)
    for taken_ms, _, _, _, time in sensor.received:
        assert_holds(time, taken_ms, 2 * SENSOR_DRIFT_PPM * world.now / 1e6)


@QUICK
@given(
    ppm,
    st.floats(-SENSOR_DRIFT_PPM, SENSOR_DRIFT_PPM),
    st.lists(st.floats(MINUTE, 20 * HOUR), min_size=1, max_size=8),
)
def test_a_good_clock_gives_a_corrected_time(rate: float, sensor_rate: float, pauses: list[float]) -> None:
    """The usual life: measure, connect, collect, set. Every timestamp is believed, to about a minute."""
    world = World()
    world.start(rate)
    world.anchor(0.0, 40)
    sensor = Sensor(world, Clock(world, sensor_rate, BIRTH_MS), ignores_setting=False)
    sensor.session(latency_ms=50, live=False, reads=True, drains=True, sets=True)
    for pause_ms in pauses:
        world.now += pause_ms
        sensor.measure()
        world.now += 15_000
        sensor.session(latency_ms=50, live=False, reads=True, drains=True, sets=True)
    for taken_ms, _, _, _, time in sensor.received:
        assert_holds(time, taken_ms)
        assert time.quality == "sensor_corrected"
        assert time.latest_ms - time.earliest_ms < 2 * MINUTE
    assert not sensor.timeline.clock_disproved()
