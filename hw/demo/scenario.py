"""What happens in one home, from one seed: who measures what, before and after the hand-over. Pure."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Action = Literal["spot_check", "blood_pressure", "failed", "repeat", "clock_lost", "simple", "simple_repeat"]

MUST_HAPPEN: tuple[tuple[Action, ...], ...] = (
    ("failed", "simple", "blood_pressure"),  # for the first patient
    ("repeat", "clock_lost", "simple_repeat"),  # for the second
)
"""What every run contains, per Kit: a failed cuff measurement (NaN), a repeat on reconnect, a Sensor without
timestamps, an unset Sensor clock. The hand-over lies between the two."""
LEAST_STEPS = sum(len(actions) for actions in MUST_HAPPEN)
_USUAL: tuple[Action, ...] = ("spot_check", "blood_pressure", "spot_check", "blood_pressure", "simple")


@dataclass(frozen=True)
class Step:
    """One measurement. `gap_s`: how long after the one before."""

    action: Action
    numbers: dict[str, int]
    gap_s: float


def steps(seed: int, kit: int, total: int | None) -> tuple[Iterator[Step], Iterator[Step]]:
    """The measurements of a Kit's first and second patient; `total` of both, None: the second never ends."""
    chance = random.Random(f"{seed}/{kit}")
    before, after = ([*actions] for actions in MUST_HAPPEN)
    extra = 8 if total is None else max(0, total - LEAST_STEPS)
    for i in range(extra):
        (before if i % 2 else after).append(chance.choice(_USUAL))
    chance.shuffle(before)
    chance.shuffle(after)
    endless = itertools.chain(after, (chance.choice(_USUAL) for _ in itertools.count()))
    second = iter(after) if total is not None else endless
    return (_step(action, chance) for action in before), (_step(action, chance) for action in second)


def _step(action: Action, chance: random.Random) -> Step:
    if action in ("spot_check", "simple", "simple_repeat"):
        numbers = {"spo2": chance.randint(86, 99), "pulse": chance.randint(48, 130)}
    else:
        systolic = chance.randint(95, 185)
        diastolic = systolic - chance.randint(30, 60)
        numbers = {
            "systolic": systolic,
            "diastolic": diastolic,
            "mean": diastolic + (systolic - diastolic) // 3,
            "pulse": chance.randint(48, 130),
        }
    return Step(action, numbers, chance.uniform(0.2, 1.8))
