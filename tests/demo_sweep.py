"""
make sim-demo: the demo over many seeds, each with every kill and an outage; ends at the first broken promise.

    python -m tests.demo_sweep --seeds 10

The last line of stdout is JSON: the figures of all runs added up, and per part how many kills met anything in
flight. Exit code 1 with the command that replays the seed when one fails.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from typing import Any

from hw.demo.kit import GATEWAYS

ARGUMENTS = ["--until", "40", "--offline", "20", "--json"]
ADDED = ("taken", "at_hub", "missing", "duplicates", "possible_repeats", "wrong_patient", "false_vitals")


def arguments(seed: int, gateway: str) -> list[str]:
    """What the demo is started with. Only the firmware's plug may be pulled (P1)."""
    kill = "broker,service,hub" if gateway == "linux" else "gateway,broker,service,hub"
    return [*ARGUMENTS, "--gateway", gateway, "--kill", kill, "--seed", str(seed)]


def run(seed: int, gateway: str) -> tuple[int, dict[str, Any]]:
    """Exit code and closing line of one run."""
    command = [sys.executable, "-m", "hw.demo.main", *arguments(seed, gateway)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}


def sweep(seeds: range, gateway: str) -> int:
    """Run every seed; return the exit code."""
    total: Counter[str] = Counter()
    in_flight: Counter[str] = Counter()
    for seed in seeds:
        code, line = run(seed, gateway)
        print(f"seed {seed}: {json.dumps(line)}", flush=True)
        if code:
            print(f"replay: make demo ARGS='{' '.join(arguments(seed, gateway))}'", file=sys.stderr)
            return code
        total.update({name: line[name] for name in (*ADDED, "offline_kept")})
        in_flight.update({part: kill["in_flight"] > 0 for part, kill in line["kills"].items()})
    print(json.dumps({"seeds": len(seeds), **total, "kills_with_something_in_flight": in_flight}))
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="The demo over many seeds.")
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--gateway", choices=GATEWAYS, default=GATEWAYS[0])
    options = parser.parse_args()
    return sweep(range(options.first, options.first + options.seeds), options.gateway)


if __name__ == "__main__":
    sys.exit(main())
