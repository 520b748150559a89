"""`homeward-station selftest`: a Kit tests itself on the bench, and the service says whether it has.

The firmware (firmware/self_test.py) does the checks at the first boot after it was flashed. This listens on
the serial port, asks what only eyes can tell, and sends the outcome to the service with the operator's name.
The service takes a passed test only when it holds the test Reading itself. With --again the wish for a test
is written into the Kit's NVS once more; nothing else in its flash changes.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hw.station import StationError, bench, nvs, partitions
from hw.station.console import Console
from hw.station.loader import Loader
from hw.station.partitions import TABLE_BYTES, TABLE_OFFSET
from hw.station.provision import check_kit
from hw.station.report import Report
from hw.station.service import Service

if TYPE_CHECKING:
    from argparse import _SubParsersAction

NAMES = ("journal", "light", "button", "radio", "wifi", "tls", "ack")
"""Every check of the firmware. One that was never heard of has failed."""
WITHIN_S = 300.0
"""Five checks may take 45 s each, and the light 9 s."""
_ADVICE = {
    "journal": "the flash is faulty: take another board",
    "light": "look at the wiring of light and buzzer, then run this again with --again",
    "button": "press the button when asked; if you did, look at its wiring",
    "radio": "bring a Sensor that advertises near; if there is one, the antenna is faulty",
    "wifi": "is the bench's network in bench.toml, and on the air?",
    "tls": "does the Kit reach the broker from this network (port, firewall, name)?",
    "ack": "is the service running? `homeward-sync status` tells",
}
_PROMPTS = {
    "light": "  look at the light, and listen",
    "button": "  press the button now",
}


@dataclass
class Outcome:
    """What was found, check by check."""

    checks: list[dict[str, Any]] = field(default_factory=list)
    journal: str = ""
    sequence: int = 0

    @property
    def failed(self) -> list[str]:
        """The names of the checks that have not passed."""
        passed = {check["name"] for check in self.checks if check["passed"]}
        return [name for name in NAMES if name not in passed]

    def body(self) -> dict[str, Any]:
        """As the service takes it: a check that was not heard of is one that failed."""
        missing = [name for name in NAMES if name not in {check["name"] for check in self.checks}]
        silent = [{"name": name, "passed": False, "detail": "not heard of"} for name in missing]
        body: dict[str, Any] = {"checks": self.checks + silent}
        return body | ({"journal": self.journal, "sequence": self.sequence} if self.sequence else {})


def add(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-command `selftest`."""
    parser = commands.add_parser("selftest", help="let a flashed Kit test itself, and record the outcome")
    parser.add_argument("kit", help="HW-0001-Z")
    parser.add_argument("--port", required=True, help="serial port of the board, like /dev/ttyACM0")
    parser.add_argument("--again", action="store_true", help="the Kit was tested before: ask it once more")
    bench.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Listen to a self-test and record it. Raises StationError."""
    here = bench.load(options.bench)
    check_kit(options.kit)
    report = Report(json=options.json, dry_run=options.dry_run)
    steps = [
        *(["write into its NVS that it shall test itself again"] if options.again else []),
        f"reset the board on {options.port} and listen to its self-test: {', '.join(NAMES)}",
        "ask you what the light and the buzzer did",
        "record the outcome at the service, with your name",
    ]
    if not report.plan(f"Self-test of Kit {options.kit}", steps):
        return
    service = Service(here)
    if options.again:
        ask_again(Loader(options.port), options.kit)
    begun = time.monotonic()
    with Console(options.port) as console:
        if not console.reset():
            report.say("this port can't reset the board: plug it out and in again")
        outcome = listen(console.lines(WITHIN_S), report, ask)
    life = service.post(options.kit, "self-tests", outcome.body())["life"]
    if outcome.failed:
        name = outcome.failed[0]
        raise StationError(
            f"Kit {options.kit} has failed {', '.join(outcome.failed)}; {name}: {_ADVICE[name]}"
        )
    took_s = round(time.monotonic() - begun, 1)
    value = {"kit": options.kit, "life": life, "checks": outcome.checks, "took_s": took_s}
    report.result(value, f"{options.kit} has passed its self-test in {took_s} s")


def ask_again(loader: Loader, kit: str) -> None:
    """Write the wish into the Kit's NVS, and prove that it stands there. Raises StationError."""
    row = partitions.find(partitions.decode(loader.read(TABLE_OFFSET, TABLE_BYTES)), "nvs")
    values = nvs.decode(loader.read(row.offset, row.size))
    if values.get("kit") != kit.encode():
        raise StationError(f"the board on the bench does not say that it is Kit {kit}: look at the label")
    written = {row.offset: nvs.encode(values | {"selftest": 1}, row.size)}
    loader.write(written, lambda done, of: None)
    if not loader.holds(written, reset=True):
        raise StationError("the Kit's NVS could not be written: wipe it, provision and flash it again")


def listen(lines: Iterable[str], report: Report, ask: Callable[[str], bool]) -> Outcome:
    """Follow a self-test to its end, or until no more lines come."""
    outcome = Outcome()
    for line in lines:
        word, _, rest = line.partition(" ")
        if word != "TEST":
            continue
        kind, _, more = rest.partition(" ")
        if kind == "done":
            _end(outcome, _object(more), ask)
            break
        if rest.startswith("{"):
            _check(outcome, _object(rest), report)
        else:
            report.say(_PROMPTS.get(more if kind == "wait" else kind, f"  {more or kind} ..."))
    return outcome


def ask(question: str) -> bool:
    """A technician's word, at the keyboard."""
    try:
        return input(f"{question} [y/n] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _check(outcome: Outcome, said: dict[str, Any], report: Report) -> None:
    name, passed, detail = said.get("name"), said.get("passed"), said.get("detail")
    if name not in NAMES or not isinstance(passed, bool) or not isinstance(detail, str):
        return  # noise on the line
    outcome.checks = [check for check in outcome.checks if check["name"] != name]  # it has begun again
    outcome.checks.append({"name": name, "passed": passed, "detail": detail[:200]})
    report.say(f"{'ok    ' if passed else 'FAILED'} {name}: {detail}")


def _end(outcome: Outcome, said: dict[str, Any], ask: Callable[[str], bool]) -> None:
    journal, sequence = said.get("journal"), said.get("sequence")
    if isinstance(journal, str) and isinstance(sequence, int):
        outcome.journal, outcome.sequence = journal, sequence
    if any(check["name"] == "light" for check in outcome.checks):
        seen = ask("Did the light show red, green and blue, and did it beep with green?")
        light = {
            "name": "light",
            "passed": seen,
            "detail": "seen and heard" if seen else "not as it should be",
        }
        outcome.checks = [light if check["name"] == "light" else check for check in outcome.checks]


def _object(text: str) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
