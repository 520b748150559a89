"""The promises in simulated worlds: fifty fortnights with every fault, and checks of the checks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.faults import KINDS
from tests.simulation.mutants.__main__ import hunks

ROOT = Path(__file__).parent.parent
PATCHES = sorted((ROOT / "tests/simulation/mutants").glob("*.patch"))
PROMISES = {f"P{number}" for number in range(1, 9)}
SEEDS, DAYS, KITS, SENSORS, A_DAY = 50, 14, 5, 2, 8


def simulate(*arguments: str, hash_seed: str = "0") -> dict[str, Any]:
    """Run the simulation's command line; return its closing line."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    closing: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return closing


@pytest.mark.timeout(2400)  # three minutes of two idle cores; others may be at work on them
def test_fifty_fortnights_with_every_fault_break_no_promise(say: list[str]) -> None:
    closing = simulate("--seeds", str(SEEDS), "--days", str(DAYS), "--kits", str(KITS))
    assert closing["violations"] == 0
    assert closing["seeds"] >= SEEDS and closing["kit_days"] >= SEEDS * DAYS * KITS
    assert closing["readings"] >= closing["kit_days"] * SENSORS * A_DAY
    assert not [kind for kind in KINDS if not closing["faults"][kind]], "a kind of fault never happened"
    say.append(f"simulation: {closing['seeds']} seeds, {closing['readings']} measurements, "
               f"{closing['power_cuts']} power cuts, {closing['cpu_s']} CPU s")  # fmt: skip


def test_one_seed_gives_one_run_whatever_the_interpreter_hashes_with() -> None:
    digests = [simulate("--seed", "3", "--days", "3", hash_seed=each)["digest"] for each in ("1", "2")]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_mutant_still_applies(patch: Path) -> None:
    """Else it tests nothing: write it anew for the code as it is now."""
    found = list(hunks(patch))
    assert found
    for path, before, _ in found:
        assert (ROOT / path).read_text().count(before) == 1, f"{path} has changed: {before}"


def test_each_promise_has_two_mutants_at_least() -> None:
    of = [patch.read_text()[:2] for patch in PATCHES]
    assert {promise for promise in PROMISES if of.count(promise) >= 2} == PROMISES
