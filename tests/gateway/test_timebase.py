import unittest

from gateway.reading import BLOOD_PRESSURE, CONTINUOUS, GOOD, Reading
from gateway.record import CLOCK_AFTER, CLOCK_BEFORE, CLOCK_SET
from gateway.timebase import MAX_READS, SensorTimeline, Time, Timebase

SECOND = 1000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
BIRTH = 1_783_641_600_000  # 2026-07-10T00:00:00Z


def date_time(ms, year=2026):
    """Of a clock that shows UTC, within July 2026."""
    seconds = (ms - BIRTH) // SECOND
    return (year, 7, 10 + seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60, seconds % 60)


def stamped(ms, clock_set=True):
    return Reading(BLOOD_PRESSURE, GOOD, (), (), date_time(ms), clock_set, None, None)


def plain(kind=BLOOD_PRESSURE):
    return Reading(kind, GOOD, (), (), None, None, None, None)


class Anchors(unittest.TestCase):
    def holds(self, time, ms, width=None):
        self.assertTrue(time.earliest_ms <= ms <= time.latest_ms)
        if width is not None:
            self.assertTrue(time.latest_ms - time.earliest_ms <= width)

    def test_an_anchor_gives_its_boot_a_time(self):
        timebase = Timebase()
        timebase.add_anchor(1, HOUR, BIRTH + HOUR, 40)
        time = timebase.time_of(1, HOUR)
        self.holds(time, BIRTH + HOUR, 100)
        self.assertEqual(time.quality, "synced")

    def test_away_from_the_anchor_the_bound_grows_with_drift(self):
        timebase = Timebase()
        timebase.add_anchor(1, 0, BIRTH, 40)
        time = timebase.time_of(1, 10 * HOUR)
        self.assertEqual(time.quality, "extrapolated")
        self.holds(time, BIRTH + 10 * HOUR + 3600)  # 100 ppm fast, and slow
        self.holds(time, BIRTH + 10 * HOUR - 3600)
        self.holds(time, BIRTH + 10 * HOUR, 7300)
        self.assertEqual(timebase.time_of(1, HOUR).quality, "synced")
        self.assertEqual(timebase.time_of(1, HOUR + 1).quality, "extrapolated")

    def test_before_the_first_anchor_of_a_boot_it_holds_as_well(self):
        timebase = Timebase()
        timebase.add_anchor(1, 3 * HOUR, BIRTH + 3 * HOUR, 40)
        self.holds(timebase.time_of(1, 0), BIRTH, 2300)

    def test_between_anchors_both_bounds_count(self):
        timebase = Timebase()
        timebase.add_anchor(1, 0, BIRTH, 5000)
        timebase.add_anchor(1, 10 * HOUR, BIRTH + 10 * HOUR, 10)
        timebase.add_anchor(1, 20 * HOUR, BIRTH + 20 * HOUR, 10)
        self.holds(timebase.time_of(1, 11 * HOUR), BIRTH + 11 * HOUR, 800)
        self.assertEqual(timebase.time_of(1, 15 * HOUR).quality, "synced")
        # The exact later ones bound the time of the vague first one.
        self.holds(timebase.time_of(1, 0), BIRTH, 7300)

    def test_anchors_may_come_in_any_order(self):
        forth, back = Timebase(), Timebase()
        hours = (1, 5, 9)
        for hour in hours:
            forth.add_anchor(1, hour * HOUR, BIRTH + hour * HOUR, hour)
        for hour in reversed(hours):
            back.add_anchor(1, hour * HOUR, BIRTH + hour * HOUR, hour)
        for hour in range(12):
            self.assertEqual(forth.time_of(1, hour * HOUR), back.time_of(1, hour * HOUR))

    def test_anchors_that_contradict_are_both_allowed_for(self):
        timebase = Timebase()
        timebase.add_anchor(1, HOUR, BIRTH + HOUR, 40)
        timebase.add_anchor(1, 2 * HOUR, BIRTH + 2 * HOUR + 10 * MINUTE, 40)
        timebase.add_anchor(1, 3 * HOUR, BIRTH + 3 * HOUR, 40)
        self.assertFalse(timebase.agrees(1))
        self.assertTrue(timebase.agrees(2))
        for hour in range(5):
            time = timebase.time_of(1, hour * HOUR)
            self.holds(time, BIRTH + hour * HOUR, 11 * MINUTE)
            self.holds(time, BIRTH + hour * HOUR + 10 * MINUTE)


class Boots(unittest.TestCase):
    def test_the_newest_boot_has_no_time_before_its_anchor(self):
        timebase = Timebase()
        timebase.seen(1, HOUR)
        self.assertIsNone(timebase.time_of(1, HOUR))
        self.assertIsNone(timebase.time_of(2, 0))
        timebase.add_anchor(1, HOUR, BIRTH, 1)
        self.assertEqual(timebase.time_of(1, HOUR).quality, "synced")

    def test_a_boot_without_anchor_lies_between_its_neighbours(self):
        timebase = Timebase()
        timebase.add_anchor(1, HOUR, BIRTH + HOUR, 0)
        timebase.seen(2, 2 * HOUR)
        timebase.add_anchor(3, HOUR, BIRTH + 9 * HOUR, 0)
        time = timebase.time_of(2, HOUR)
        self.assertEqual(time.quality, "bracketed")
        # It began after boot 1 was last seen, and lasted for 2 h before boot 3 began.
        self.assertTrue(abs(time.earliest_ms - (BIRTH + 2 * HOUR)) < SECOND)
        self.assertTrue(abs(time.latest_ms - (BIRTH + 7 * HOUR)) < SECOND)

    def test_boots_without_anchor_push_each_other(self):
        timebase = Timebase()
        timebase.not_before(BIRTH)
        for boot in (1, 2, 3):
            timebase.seen(boot, HOUR)
        timebase.add_anchor(4, 0, BIRTH + 10 * HOUR, 0)
        for boot in (1, 2, 3):
            time = timebase.time_of(boot, 0)
            self.assertTrue(abs(time.earliest_ms - (BIRTH + (boot - 1) * HOUR)) < 2 * SECOND)
            self.assertTrue(abs(time.latest_ms - (BIRTH + (6 + boot) * HOUR)) < 2 * SECOND)

    def test_receipt_is_the_upper_bound_of_what_was_before(self):
        timebase = Timebase()
        timebase.not_before(BIRTH)
        timebase.seen(1, HOUR)
        timebase.seen(2, 0)
        self.assertIsNone(timebase.time_of(1, 0))
        timebase.add_receipt(2, MINUTE, BIRTH + 5 * HOUR)
        time = timebase.time_of(1, 30 * MINUTE)
        self.assertTrue(abs(time.earliest_ms - (BIRTH + 30 * MINUTE)) < SECOND)
        self.assertTrue(abs(time.latest_ms - (BIRTH + 5 * HOUR - 31 * MINUTE)) < SECOND)

    def test_the_boots_own_receipt_bounds_what_was_before_it(self):
        timebase = Timebase()
        timebase.add_receipt(1, HOUR, BIRTH + HOUR)
        timebase.seen(2, 0)
        self.assertTrue(abs(timebase.time_of(1, 0).latest_ms - BIRTH) < SECOND)

    def test_a_receipt_that_its_boots_anchor_excludes_bounds_nothing(self):
        timebase = Timebase()
        timebase.add_anchor(1, HOUR, BIRTH + HOUR, 0)
        timebase.seen(2, HOUR)
        timebase.add_receipt(3, MINUTE, BIRTH + 3 * HOUR)
        self.assertTrue(timebase.time_of(2, 0).latest_ms < BIRTH + 3 * HOUR)
        timebase.add_anchor(3, MINUTE, BIRTH + 9 * HOUR, 0)
        latest = timebase.time_of(2, 0).latest_ms
        self.assertTrue(abs(latest - (BIRTH + 8 * HOUR - MINUTE)) < SECOND)

    def test_bounds_that_contradict_span_both(self):
        timebase = Timebase()
        timebase.not_before(BIRTH + DAY)
        timebase.add_receipt(1, 0, BIRTH)
        timebase.seen(2, 0)
        time = timebase.time_of(1, 0)
        self.assertTrue(time.earliest_ms <= BIRTH + 1 and time.latest_ms >= BIRTH + DAY - 1)

    def test_a_boot_that_nothing_was_seen_of_is_bracketed_too(self):
        timebase = Timebase()
        timebase.add_anchor(1, 0, BIRTH, 0)
        timebase.add_anchor(5, 0, BIRTH + HOUR, 0)
        time = timebase.time_of(3, 10 * MINUTE)
        self.assertTrue(time.earliest_ms > BIRTH + 9 * MINUTE)
        self.assertTrue(time.latest_ms <= BIRTH + HOUR + 10)


class Sensors(unittest.TestCase):
    def setUp(self):
        self.timebase = Timebase()
        self.timebase.not_before(BIRTH - DAY)
        for day in range(4):
            self.timebase.add_anchor(1, day * DAY, BIRTH + day * DAY, 20)
        self.timeline = SensorTimeline(self.timebase)
        self.timeline.drained(1, 0)

    def read(self, uptime_ms, shows_ms, kind=CLOCK_BEFORE):
        self.timeline.clock_read(kind, 1, uptime_ms, date_time(BIRTH + shows_ms))

    def taken(self, stamp_ms, uptime_ms, can_store=True):
        return self.timeline.time_of(stamped(BIRTH + stamp_ms), 1, uptime_ms, can_store=can_store)

    def corrected(self, time, uptime_ms, width=90 * SECOND):
        self.assertEqual(time.quality, "sensor_corrected")
        self.assertTrue(time.earliest_ms <= BIRTH + uptime_ms <= time.latest_ms)
        self.assertTrue(time.latest_ms - time.earliest_ms <= width)

    def test_a_timestamp_between_two_reads_is_corrected_by_their_difference(self):
        self.read(HOUR, 3 * HOUR)  # the clock shows 2 h too much, as in another zone
        self.read(9 * HOUR, 11 * HOUR)
        self.corrected(self.taken(10 * HOUR, 9 * HOUR + 1), 8 * HOUR, 15 * SECOND)

    def test_a_clock_that_drifts_is_corrected_by_both_reads(self):
        self.read(0, 0)
        self.read(DAY, DAY + 40 * SECOND)
        self.corrected(self.taken(12 * HOUR + 20 * SECOND, DAY + 1), 12 * HOUR)

    def test_a_step_that_looks_like_drift_is_allowed_for(self):
        for step in (-30 * SECOND, 30 * SECOND):
            self.timeline = SensorTimeline(self.timebase)
            self.read(0, 0)
            self.read(DAY, DAY + step)
            self.corrected(self.taken(HOUR + step, DAY + 1), HOUR)  # stepped right after the first read
            self.corrected(self.taken(23 * HOUR, DAY + 1), 23 * HOUR)  # or right before the second

    def test_each_timestamp_is_corrected_by_the_clock_that_stamped_it(self):
        self.read(0, 2 * HOUR)
        self.read(10 * HOUR, 12 * HOUR)
        self.read(10 * HOUR + 100, 10 * HOUR, CLOCK_SET)
        self.read(10 * HOUR + 200, 10 * HOUR, CLOCK_AFTER)
        self.read(20 * HOUR, 20 * HOUR)
        self.corrected(self.taken(8 * HOUR, 20 * HOUR + 1), 6 * HOUR)
        self.corrected(self.taken(15 * HOUR, 20 * HOUR + 1), 15 * HOUR)

    def test_reads_are_compared_again_when_their_boots_time_becomes_known(self):
        self.read(0, 0)
        self.timebase.seen(2, HOUR)
        self.timebase.add_receipt(3, 0, BIRTH + 20 * DAY)
        self.timeline.clock_read(CLOCK_BEFORE, 2, 0, date_time(BIRTH + 10 * DAY))
        self.assertFalse(self.timeline.clock_disproved())  # some time in the last days
        self.timebase.add_anchor(2, 0, BIRTH + 9 * DAY, 40)
        self.assertTrue(self.timeline.clock_disproved())

    def test_a_cuff_that_was_away_while_the_clocks_changed_is_corrected_by_its_own_time(self):
        for change in (HOUR, -HOUR):  # of the home: spring, autumn. Nobody tells the cuff
            self.timeline = SensorTimeline(self.timebase)
            self.read(0, 12 * HOUR, CLOCK_SET)
            self.read(100, 12 * HOUR, CLOCK_AFTER)
            self.read(20 * HOUR, 32 * HOUR)  # before, after and within the hour of the change
            for taken in (9 * HOUR, 10 * HOUR, 10 * HOUR + 30 * MINUTE, 11 * HOUR + 30 * MINUTE):
                self.corrected(self.taken(12 * HOUR + taken, 20 * HOUR + 1), taken)
            self.read(20 * HOUR + 100, 32 * HOUR + change, CLOCK_SET)
            self.read(20 * HOUR + 200, 32 * HOUR + change, CLOCK_AFTER)
            self.read(30 * HOUR, 42 * HOUR + change)
            self.corrected(self.taken(37 * HOUR + change, 30 * HOUR + 1), 25 * HOUR)
            self.assertFalse(self.timeline.clock_disproved())

    def test_an_hour_that_the_sensors_clock_shows_twice_spans_both(self):
        self.read(0, 0)
        self.read(10 * HOUR, 10 * HOUR)
        self.read(10 * HOUR + 100, 9 * HOUR, CLOCK_SET)  # the clocks have gone back
        self.read(10 * HOUR + 200, 9 * HOUR, CLOCK_AFTER)
        self.read(20 * HOUR, 19 * HOUR)
        time = self.taken(9 * HOUR + 30 * MINUTE, 20 * HOUR + 1)
        self.assertEqual(time.quality, "bracketed")
        self.assertTrue(time.earliest_ms <= BIRTH + 9 * HOUR + 30 * MINUTE)
        self.assertTrue(time.latest_ms >= BIRTH + 10 * HOUR + 30 * MINUTE)
        self.assertTrue(time.latest_ms - time.earliest_ms < 2 * HOUR)

    def test_a_sensor_that_changes_its_clock_by_itself_is_not_believed_around_the_change(self):
        for change in (HOUR, -HOUR):
            self.timeline = SensorTimeline(self.timebase)
            self.read(0, 0)
            self.read(10 * HOUR, 10 * HOUR + change)
            self.read(20 * HOUR, 20 * HOUR + change)
            time = self.taken(5 * HOUR, 20 * HOUR + 1)
            self.assertEqual(time.quality, "bracketed")
            self.assertTrue(time.earliest_ms <= BIRTH + 5 * HOUR - max(0, change))
            self.assertTrue(time.latest_ms >= BIRTH + 5 * HOUR + max(0, -change))
            self.corrected(self.taken(17 * HOUR + change, 20 * HOUR + 1), 17 * HOUR)

    def test_a_clock_that_is_a_year_off_is_corrected_like_any_other(self):
        for off in (365 * DAY, -366 * DAY):
            self.timeline = SensorTimeline(self.timebase)
            for hour in (0, 10):
                shown = (2027 if off > 0 else 2025, 7, 10, 12 + hour, 0, 0)
                self.timeline.clock_read(CLOCK_BEFORE, 1, hour * HOUR, shown)
            stamp = (2027 if off > 0 else 2025, 7, 10, 15, 0, 0)
            reading = Reading(BLOOD_PRESSURE, GOOD, (), (), stamp, True, None, None)
            time = self.timeline.time_of(reading, 1, 10 * HOUR + 1, can_store=True)
            self.corrected(time, 3 * HOUR)

    def test_a_timestamp_that_two_clocks_may_have_given_spans_both(self):
        self.read(0, 2 * HOUR)
        self.read(10 * HOUR, 12 * HOUR)
        self.read(10 * HOUR + 100, 10 * HOUR, CLOCK_SET)
        self.read(10 * HOUR + 200, 10 * HOUR, CLOCK_AFTER)
        self.read(20 * HOUR, 20 * HOUR)
        time = self.taken(11 * HOUR, 20 * HOUR + 1)
        self.assertTrue(time.earliest_ms <= BIRTH + 9 * HOUR and time.latest_ms >= BIRTH + 11 * HOUR)
        self.assertEqual(time.quality, "bracketed")

    def test_a_set_that_a_later_read_confirms_counts_as_a_read(self):
        self.read(HOUR, HOUR, CLOCK_SET)
        self.read(9 * HOUR, 9 * HOUR)
        self.corrected(self.taken(5 * HOUR, 9 * HOUR + 1), 5 * HOUR)

    def test_a_set_that_the_sensor_ignored_proves_nothing(self):
        self.read(HOUR, 4 * HOUR)
        self.read(HOUR + 100, HOUR, CLOCK_SET)
        self.read(HOUR + 200, 4 * HOUR, CLOCK_AFTER)
        self.read(9 * HOUR, 12 * HOUR)
        self.corrected(self.taken(8 * HOUR, 9 * HOUR + 1), 5 * HOUR)
        self.assertFalse(self.timeline.clock_disproved())

    def test_an_after_without_its_set_begins_anew(self):
        self.read(HOUR, 4 * HOUR)
        self.read(HOUR + 200, HOUR, CLOCK_AFTER)
        self.assertFalse(self.timeline.clock_disproved())

    def test_a_set_that_is_lost_is_allowed_for(self):
        # Both reads fit a clock that ran and drifted; in between it was set (found by the simulation).
        self.read(HOUR, HOUR + 17 * SECOND)
        self.timeline.records_lost()
        self.read(5 * HOUR, 5 * HOUR + 5 * SECOND)
        self.assertFalse(self.timeline.clock_disproved())
        time = self.taken(2 * HOUR, 5 * HOUR + 1)
        self.assertTrue(time.earliest_ms <= BIRTH + 2 * HOUR <= time.latest_ms)
        self.assertEqual(time.quality, "bracketed")

    def test_a_stepped_clock_is_not_believed(self):
        self.read(0, 0)
        self.timeline.drained(1, 1)
        self.read(10 * HOUR, 11 * HOUR)
        self.assertTrue(self.timeline.clock_disproved())
        time = self.taken(5 * HOUR, 10 * HOUR + 1)
        self.assertEqual(time.quality, "bracketed")
        self.assertTrue(time.earliest_ms <= BIRTH + 1 and time.latest_ms >= BIRTH + 10 * HOUR)

    def test_a_stopped_clock_is_not_believed(self):
        self.read(0, 0, CLOCK_SET)
        self.read(100, 0, CLOCK_AFTER)
        self.read(10 * HOUR, 0)
        self.assertTrue(self.timeline.clock_disproved())
        time = self.taken(0, 10 * HOUR + 1)
        self.assertEqual(time.quality, "bracketed")
        self.assertTrue(time.earliest_ms <= BIRTH and time.latest_ms >= BIRTH + 10 * HOUR)

    def test_a_clock_that_went_back_between_two_boots_is_not_believed_however_badly_those_are_known(self):
        # The brackets of boots 2 and 3 overlap by hours; that boot 3 came later is known all the same.
        self.timebase.seen(2, 8 * HOUR)
        self.timebase.seen(3, HOUR)
        self.timebase.add_receipt(4, 0, BIRTH + 6 * DAY)
        for boot, uptime_ms, shows_ms in ((2, 0, 20 * HOUR), (2, 8 * HOUR, 28 * HOUR), (3, HOUR, 24 * HOUR)):
            self.timeline.clock_read(CLOCK_BEFORE, boot, uptime_ms, date_time(BIRTH + shows_ms))
        time = self.timeline.time_of(stamped(BIRTH + 24 * HOUR - SECOND), 3, HOUR + 1, can_store=True)
        self.assertTrue(self.timeline.clock_disproved())
        self.assertEqual(time.latest_ms, self.timebase.time_of(3, HOUR + 1).latest_ms)

    def test_a_clock_that_may_have_stopped_at_once_is_not_taken_for_running(self):
        self.read(0, 0, CLOCK_SET)
        self.read(100, 0, CLOCK_AFTER)
        time = self.taken(0, MINUTE)
        self.assertTrue(time.earliest_ms <= BIRTH and time.latest_ms >= BIRTH + MINUTE)

    def test_a_running_clock_is_not_disproved(self):
        for hour in range(30):
            self.read(hour * HOUR, 5 * HOUR + hour * (HOUR + SECOND))
        self.assertFalse(self.timeline.clock_disproved())

    def test_a_clock_that_was_lost_is_not_disproved_and_not_believed(self):
        self.read(0, 0)
        self.timeline.drained(1, MINUTE)
        self.timeline.clock_read(CLOCK_BEFORE, 1, 10 * HOUR, (2010, 1, 1, 3, 0, 0))
        self.assertFalse(self.timeline.clock_disproved())
        reading = stamped(BIRTH + 2 * HOUR, clock_set=False)
        time = self.timeline.time_of(reading, 1, 10 * HOUR + 1, can_store=True)
        self.assertEqual(time.quality, "bracketed")
        self.assertTrue(abs(time.earliest_ms - (BIRTH + MINUTE)) < 100)
        self.timeline.clock_read(CLOCK_BEFORE, 1, 11 * HOUR, None)
        self.timeline.clock_read(CLOCK_SET, 1, 11 * HOUR + 100, None)
        self.read(12 * HOUR, 12 * HOUR)
        self.assertFalse(self.timeline.clock_disproved())

    def test_a_single_read_proves_no_earlier_timestamp(self):
        self.read(10 * HOUR, 10 * HOUR)
        time = self.taken(9 * HOUR, 10 * HOUR + 1)
        self.assertEqual(time.quality, "bracketed")
        self.assertTrue(time.earliest_ms <= BIRTH)

    def test_a_value_soon_after_a_read_is_corrected_by_it(self):
        self.read(10 * HOUR, 5 * HOUR)
        self.corrected(self.taken(5 * HOUR + 30 * SECOND, 10 * HOUR + 31 * SECOND), 10 * HOUR + 30 * SECOND)

    def test_a_timestamp_after_its_receipt_is_not_believed(self):
        self.read(10 * HOUR, 5 * HOUR)
        self.assertEqual(self.taken(6 * HOUR, 10 * HOUR + SECOND).quality, "bracketed")

    def test_a_clock_that_nobody_has_read_since_is_not_believed_alone(self):
        self.read(0, 0)
        self.read(10 * HOUR, 10 * HOUR)
        time = self.taken(5 * HOUR, 15 * HOUR)  # by a clock set back 8 h after the last read?
        self.assertEqual(time.quality, "bracketed")
        self.assertTrue(time.earliest_ms <= BIRTH + 5 * HOUR and time.latest_ms >= BIRTH + 13 * HOUR)

    def test_a_timestamp_older_than_the_reads_that_are_remembered_is_not_believed(self):
        for hour in range(MAX_READS + 12):
            self.read(hour * HOUR, hour * HOUR)
        taken = 11 * HOUR + 30 * MINUTE  # between the last read that is forgotten and the first that is not
        time = self.taken(taken, (MAX_READS + 11) * HOUR + MINUTE)
        self.assertEqual(time.quality, "bracketed")
        self.assertTrue(time.earliest_ms <= BIRTH)

    def test_reads_after_the_receipt_do_not_count(self):
        self.read(0, 0)
        self.read(10 * HOUR, 10 * HOUR)
        before = self.taken(5 * HOUR, 10 * HOUR + 1)
        self.read(20 * HOUR, 15 * HOUR)
        self.timeline.drained(1, 20 * HOUR)
        self.assertEqual(self.taken(5 * HOUR, 10 * HOUR + 1), before)

    def test_a_later_read_that_agrees_proves_a_timestamp_that_came_before_it(self):
        self.read(0, 0)
        self.read(10 * HOUR, 10 * HOUR)
        self.assertEqual(self.taken(12 * HOUR, 15 * HOUR).quality, "bracketed")
        self.read(20 * HOUR, 20 * HOUR)
        self.corrected(self.taken(12 * HOUR, 15 * HOUR), 12 * HOUR)

    def test_a_later_read_does_not_widen_what_came_soon_after_a_read(self):
        self.read(0, 0)
        self.read(10 * HOUR, 10 * HOUR)
        before = self.taken(10 * HOUR + 30 * SECOND, 10 * HOUR + 31 * SECOND)
        self.read(20 * HOUR, 20 * HOUR + 15 * SECOND)
        self.assertEqual(self.taken(10 * HOUR + 30 * SECOND, 10 * HOUR + 31 * SECOND), before)

    def test_a_later_read_that_disagrees_leaves_a_timestamp_that_came_before_it_in_doubt(self):
        self.read(0, 0)
        self.read(10 * HOUR, 10 * HOUR)
        before = self.taken(12 * HOUR, 15 * HOUR)
        self.read(20 * HOUR, 17 * HOUR)
        self.assertEqual(self.taken(12 * HOUR, 15 * HOUR), before)

    def test_a_corrected_value_is_not_older_than_the_sensor_was_empty(self):
        self.read(0, 0)
        self.timeline.drained(1, HOUR)
        self.read(10 * HOUR, 10 * HOUR)
        time = self.taken(HOUR + SECOND, 10 * HOUR + 1)
        self.assertEqual(time.quality, "sensor_corrected")
        self.assertTrue(time.earliest_ms >= BIRTH + HOUR - SECOND)
        older = self.taken(HOUR - MINUTE, 10 * HOUR + 1)  # it was not empty after all
        self.assertTrue(older.latest_ms < BIRTH + HOUR)

    def test_without_a_timestamp_a_value_waited_since_the_sensor_was_last_empty(self):
        self.timeline.drained(1, 3 * HOUR)
        self.timeline.drained(1, 8 * HOUR)
        time = self.timeline.time_of(plain(), 1, 5 * HOUR, can_store=True)
        self.assertEqual(time.quality, "bracketed")
        self.assertTrue(abs(time.earliest_ms - (BIRTH + 3 * HOUR)) < 2 * SECOND)
        self.assertTrue(abs(time.latest_ms - (BIRTH + 5 * HOUR)) < 2 * SECOND)

    def test_what_becomes_known_of_when_the_sensor_was_empty_counts_from_then_on(self):
        self.timeline.drained(1, 3 * HOUR)
        first = self.timeline.time_of(plain(), 1, 5 * HOUR, can_store=True)
        self.timebase.add_anchor(1, 3 * HOUR, BIRTH + 3 * HOUR, 20)
        second = self.timeline.time_of(plain(), 1, 5 * HOUR, can_store=True)
        self.timeline.drained(1, 4 * HOUR)
        third = self.timeline.time_of(plain(), 1, 5 * HOUR, can_store=True)
        self.assertTrue(first.earliest_ms < second.earliest_ms < BIRTH + 3 * HOUR < third.earliest_ms)

    def test_a_sensor_that_was_never_empty_may_hold_values_since_provisioning(self):
        timeline = SensorTimeline(self.timebase)
        time = timeline.time_of(plain(), 1, 5 * HOUR, can_store=True)
        self.assertEqual(time.earliest_ms, BIRTH - DAY)

    def test_a_sensor_that_stores_nothing_has_just_measured(self):
        received = self.timebase.time_of(1, 5 * HOUR)
        time = self.timeline.time_of(plain(), 1, 5 * HOUR, can_store=False)
        self.assertEqual(time, Time(received.earliest_ms - MINUTE, received.latest_ms, received.quality))

    def test_a_sensor_that_was_just_empty_has_measured_since(self):
        self.timeline.drained(1, 5 * HOUR - 10 * SECOND)
        empty = self.timebase.time_of(1, 5 * HOUR - 10 * SECOND)
        time = self.timeline.time_of(plain(), 1, 5 * HOUR, can_store=False)
        self.assertEqual(time.earliest_ms, empty.earliest_ms)

    def test_a_streamed_value_is_seconds_old(self):
        received = self.timebase.time_of(1, 5 * HOUR)
        time = self.timeline.time_of(plain(CONTINUOUS), 1, 5 * HOUR, can_store=False)
        self.assertEqual(time, Time(received.earliest_ms - 4 * SECOND, received.latest_ms, received.quality))

    def test_no_time_of_receipt_no_time(self):
        self.timebase.seen(2, 0)
        self.assertIsNone(self.timeline.time_of(plain(), 2, 0, can_store=False))

    def test_what_was_asked_before_changes_no_answer(self):
        for hour in range(24):
            self.taken(hour * HOUR - MINUTE, hour * HOUR)
            self.read(hour * HOUR, hour * HOUR)
            for taken in (
                hour * HOUR - MINUTE,
                0,
                (hour - MAX_READS) * HOUR + 30 * MINUTE,
                hour * HOUR - MINUTE,
            ):
                time = self.taken(taken, hour * HOUR + MINUTE)
                self.timeline._near = None  # as when it is asked for the first time
                self.assertEqual(self.taken(taken, hour * HOUR + MINUTE), time)

    def test_old_reads_are_forgotten(self):
        for hour in range(70):
            self.read(hour * HOUR, hour * HOUR)
            self.read(hour * HOUR + 1, hour * HOUR)
        self.corrected(self.taken(69 * HOUR - MINUTE, 69 * HOUR + 2), 69 * HOUR - MINUTE)
        self.assertEqual(self.taken(HOUR, 69 * HOUR + 2).quality, "bracketed")

    def test_old_reads_are_forgotten_also_while_the_newest_have_no_time(self):
        for hour in range(64):
            self.read(hour * HOUR, hour * HOUR)
            self.read(hour * HOUR + 1, hour * HOUR)
        before = self.taken(63 * HOUR - MINUTE, 63 * HOUR + 2)
        for uptime_ms in (1, 2):  # of a boot that nothing is known of
            self.timeline.clock_read(CLOCK_BEFORE, 2, uptime_ms, date_time(BIRTH))
        self.assertEqual(self.taken(63 * HOUR - MINUTE, 63 * HOUR + 2), before)


if __name__ == "__main__":
    unittest.main()
