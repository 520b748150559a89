"""
make sim: seeded worlds in virtual time; ends with the seeds that broke a promise, or with none.

    python -m tests.simulation --seeds 200
    python -m tests.simulation --seed 17 --days 14       one of them again

The last line of stdout is JSON. Exit code 1 when a promise was broken: then stderr has the promise's sentence
and the command that replays it.
"""

import argparse
import gc
import json
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from typing import Any, NamedTuple

from tests.simulation.checkers import MOST_REPORTED
from tests.simulation.faults import KINDS
from tests.simulation.world import World

REMEMBERED = (
    (2, 14, 5, "an oximeter's value that came new and then from storage stood twice at the Hub"),
    (3, 14, 5, "the service's clock was wrong and gave wrong anchors"),
    (6, 14, 5, "two workers upon a Hub that races: kept apart since, see faults.py"),
    (10, 14, 5, "a power cut after a Sensor's clock was set, before that was noted: off by half a second"),
    (29, 14, 5, "what a changed bond had barred was not dated again: shown with a false time"),
    (76, 14, 5, "the first of two Frames of one value was lost after it was sent: the second was unmarked"),
    (118, 14, 5, "a Sensor's clock that went back between two boots was believed: their brackets overlap"),
    (120, 14, 5, "reads of a Sensor's clock were forgotten, and an index into them was not"),
    (121, 14, 5, "after a restored backup a clock was disproved by more Records: values got other keys"),
    (174, 14, 5, "rotten Records with a good ACKED behind them: their sequences were given again"),
    (187, 14, 5, "an SNTP server a day behind dated a newest boot"),
    (197, 14, 5, "a restored backup had forgotten a retraction: what it called done was not at the Hub"),
    (477, 3, 2, "one rotten bit in the only header after a wipe: the Kit found no Journal any more"),
    (1916, 3, 2, "that a Sensor's clock was set stood in a Record that rotted: off by four seconds"),
    (6060, 3, 2, "an SNTP server that was wrong in one boot alone, where nothing excluded it, dated that"),
)
"""Every world (seed, days, Kits) that the code has ever failed in, and why. Each sweep has them as well.

A change of the world changes what a seed means. So each reason has a test of its own as well.
"""


class Job(NamedTuple):
    """One seed, and how large its world is."""

    seed: int
    days: int
    kits: int
    first_only: bool

    def __str__(self) -> str:
        return f"python -m tests.simulation --seed {self.seed} --days {self.days} --kits {self.kits}"


def run(job: Job) -> dict[str, Any]:
    """One seed: its figures and what it has broken."""
    gc.set_threshold(50_000, 20, 50)  # most of what a world makes it keeps
    began = time.process_time()
    world = World(job.seed, days=job.days, kits=job.kits)
    figures = world.run(first_only=job.first_only)
    figures["seed"] = job.seed
    figures["cpu_s"] = round(time.process_time() - began, 2)
    figures["violations"] = [tuple(one) for one in world.checks.violations]
    figures["replay"] = str(job)
    return figures


def report(figures: dict[str, Any]) -> None:
    """Say on stderr what a seed has broken, and how to see it again."""
    broken: list[tuple[str, str]] = figures["violations"]
    for promise in sorted({promise for promise, _ in broken}):
        details = [detail for each, detail in broken if each == promise]
        print(f"seed {figures['seed']}: {promise}", file=sys.stderr)
        for detail in details[:MOST_REPORTED]:
            print(f"    {detail}", file=sys.stderr)
        if len(details) > MOST_REPORTED:
            print(f"    and {len(details) - MOST_REPORTED} more", file=sys.stderr)
    print(f"    replay: {figures['replay']}", file=sys.stderr, flush=True)


def sweep(work: list[Job], jobs: int, *, first_only: bool) -> dict[str, Any]:
    """Run the seeds side by side; return the figures of all."""
    total: Counter[str] = Counter()
    faults: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    broken: list[int] = []
    # A process for each seed: what a seed leaves in memory is gone with it.
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        for figures in pool.imap_unordered(run, work):
            faults.update(figures["faults"])
            total.update({name: figures[name] for name in ("kit_days", "readings", "observations")})
            total.update({"seeds": 1, "power_cuts": figures["power_cuts"], "cpu_s": figures["cpu_s"]})
            if figures["violations"]:
                broken.append(figures["seed"])
                report(figures)
                total["violations"] += len(figures["violations"])
                if first_only:
                    pool.terminate()
                    break
    closing: dict[str, Any] = {
        name: total[name] for name in ("seeds", "kit_days", "readings", "observations", "power_cuts")
    }
    closing["cpu_s"] = round(total["cpu_s"], 1)
    if len(work) == 1:
        closing["digest"] = figures["digest"]
    return {**closing, "faults": dict(faults), "violations": total["violations"], "broken": sorted(broken)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Seeded worlds in virtual time.")
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--kits", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--first-only", action="store_true", help="end at the first broken promise")
    options = parser.parse_args()
    logging.disable()  # the service's own words about faults that we know of
    seeds = range(options.first, options.first + options.seeds)
    worlds = [(seed, options.days, options.kits) for seed in seeds]
    worlds += [one[:3] for one in REMEMBERED if one[:3] not in worlds]
    if options.seed is not None:
        worlds = [(options.seed, options.days, options.kits)]
    work = [Job(*world, options.first_only) for world in worlds]
    closing = sweep(work, options.jobs, first_only=options.first_only)
    print(json.dumps(closing), flush=True)
    sys.exit(1 if closing["violations"] else 0)


if __name__ == "__main__":
    main()
