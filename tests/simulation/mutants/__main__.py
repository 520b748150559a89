"""
make sim-mutants: known mistakes, each applied to a copy of the tree; the simulation has to catch every one.

    python -m tests.simulation.mutants --seeds 200
    python -m tests.simulation.mutants append-without-lock

Each `*.patch` beside this file is a unified diff; its first line names the promise and the mistake. The last
line of stdout is JSON. Exit code 1 when one is not caught.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent
COPIED = ("gateway", "firmware", "sync_service", "tests/simulation")
SEEDS = 200


class PatchError(Exception):
    """A patch does not fit the code any more: write it anew, or drop it."""


class Hunk(NamedTuple):
    path: str
    before: str
    after: str


def hunks(patch: Path) -> Iterator[Hunk]:
    """The hunks of a unified diff."""
    path, before, after = "", "", ""
    for line in [*patch.read_text().splitlines(keepends=True)[1:], "@@"]:
        if line.startswith(("--- ", "+++ ")):
            path = line[6:].strip() if line.startswith("+++ ") else path
            if not line.startswith("--- "):
                continue
        if line.startswith(("@@", "--- ")):
            if before or after:
                yield Hunk(path, before, after)
            before = after = ""
            continue
        before += line[1:] if line[0] in " -" else ""
        after += line[1:] if line[0] in " +" else ""


def apply(patch: Path, root: Path) -> None:
    """Apply without fuzz: what a hunk replaces stands in its file exactly once. Raises PatchError."""
    for path, before, after in hunks(patch):
        text = (root / path).read_text()
        if text.count(before) != 1:
            raise PatchError(f"{patch.name}: a hunk stands {text.count(before)} times in {path}")
        (root / path).write_text(text.replace(before, after))


def copy(target: Path) -> None:
    """What the simulation needs of the tree."""
    for part in COPIED:
        ignored = shutil.ignore_patterns("__pycache__", "mutants")
        shutil.copytree(ROOT / part, target / part, ignore=ignored)


def caught(patch: Path, seeds: int, jobs: int) -> tuple[int, str]:
    """Number of seeds that it took (0: it was not caught), and the first promise that was broken."""
    with tempfile.TemporaryDirectory() as folder:
        copy(Path(folder))
        apply(patch, Path(folder))
        command = [sys.executable, "-m", "tests.simulation", "--first-only"]
        command += ["--seeds", str(seeds), "--jobs", str(jobs)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    closing = json.loads(lines[-1]) if lines else {}
    if "violations" not in closing:
        raise PatchError(f"{patch.name}: the simulation did not run: {done.stderr[-500:]}")
    said = done.stderr.splitlines()
    return (int(closing["seeds"]), said[0] if said else "") if closing["violations"] else (0, "")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Known mistakes that the simulation has to catch.")
    parser.add_argument("names", nargs="*", help="of patches (default: all)")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    patches = sorted(HERE.glob("*.patch"))
    if options.names:
        patches = [HERE / f"{name}.patch" for name in options.names]
    took: dict[str, int] = {}
    for patch in patches:
        took[patch.stem], how = caught(patch, options.seeds, options.jobs)
        print(f"{patch.stem:28} {took[patch.stem] or 'NOT CAUGHT':>10}  {how}", flush=True)
    found = [seeds for seeds in took.values() if seeds]
    closing = {"mutants": len(took), "caught": len(found), "most_seeds": max(found, default=0), "took": took}
    print(json.dumps(closing))
    sys.exit(0 if len(found) == len(took) else 1)


if __name__ == "__main__":
    main()
