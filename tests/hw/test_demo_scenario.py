"""What patients do: every run has in it all that the demo promises to show, and a seed is a run."""

import itertools

import pytest

from hw.demo.scenario import LEAST_STEPS, Step, steps

SEEDS = range(200)
KITS = range(2)
PROMISED = {"failed", "repeat", "clock_lost", "simple", "simple_repeat", "blood_pressure"}
"""Per Kit: a failed cuff measurement, a repeat on reconnect, a Sensor without timestamps, an unset clock."""


def lives(seed: int, kit: int, total: int | None) -> tuple[list[Step], list[Step]]:
    """Both patients of a Kit; of an endless second one the first 60 steps."""
    before, after = steps(seed, kit, total)
    return list(before), list(itertools.islice(after, 60))


@pytest.mark.parametrize("total", [None, 1, LEAST_STEPS, 7, 10, 20])
def test_every_kit_meets_everything_and_is_handed_over_once(total: int | None) -> None:
    for seed, kit in itertools.product(SEEDS, KITS):
        before, after = lives(seed, kit, total)
        assert before and after
        assert {step.action for step in before + after} >= PROMISED
        assert total is None or len(before) + len(after) == max(total, LEAST_STEPS)


def test_the_same_seed_is_the_same_run_and_another_is_another() -> None:
    runs = [[lives(seed, kit, 20) for kit in KITS] for seed in SEEDS]
    assert runs == [[lives(seed, kit, 20) for kit in KITS] for seed in SEEDS]
    assert all(first != second for first, second in runs)
    assert len({repr(run) for run in runs}) == len(runs)


def test_numbers_are_such_as_patients_have() -> None:
    for seed in SEEDS:
        for step in itertools.chain(*lives(seed, 0, 20)):
            numbers = step.numbers
            assert 0 < step.gap_s < 2
            if "spo2" in numbers:
                assert 80 <= numbers["spo2"] <= 100
            else:
                assert 30 < numbers["diastolic"] < numbers["mean"] < numbers["systolic"] < 200
            assert 40 <= numbers["pulse"] <= 140
