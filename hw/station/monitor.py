"""`homeward-station monitor`: a Kit's life as it goes on: what it says on its port, what the service knows.

It only looks. Ctrl-C ends it.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hw.station import bench
from hw.station.console import Console
from hw.station.provision import check_kit
from hw.station.report import Report
from hw.station.service import Service, ServiceError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_WATCHED = ("life", "state", "assigned", "online", "release", "pending", "unsent", "seen_ms", "passed")
_ASK_EVERY_S = 2.0


def add(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-command `monitor`."""
    parser = commands.add_parser("monitor", help="follow a Kit: its port, and what the service knows of it")
    parser.add_argument("kit", help="HW-0001-Z")
    parser.add_argument("--port", help="serial port of the board, like /dev/ttyACM0")
    parser.add_argument("--seconds", type=float, help="end after so long (default: at Ctrl-C)")
    bench.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Follow a Kit until Ctrl-C. Raises StationError."""
    here = bench.load(options.bench)
    check_kit(options.kit)
    report = Report(json=options.json, dry_run=options.dry_run)
    steps = [
        f"ask the service every {_ASK_EVERY_S:.0f} s",
        *([f"listen on {options.port}"] if options.port else []),
    ]
    if not report.plan(f"Monitor of Kit {options.kit}", steps):
        return
    service = Service(here)
    until = time.monotonic() + (options.seconds if options.seconds is not None else float("inf"))
    with ExitStack() as open_ports:
        console = open_ports.enter_context(Console(options.port)) if options.port else None
        try:
            for event in follow(service, options.kit, console, until):
                print(json.dumps(event) if options.json else _line(event), flush=True)
        except KeyboardInterrupt:
            report.say("")  # after the ^C


def follow(service: Service, kit: str, console: Console | None, until: float) -> Iterator[dict[str, Any]]:
    """What is new, as it comes. Raises StationError when the Kit is not known or the board is gone."""
    known: dict[str, Any] = {}
    asked = float("-inf")
    while time.monotonic() < until:
        if time.monotonic() - asked >= _ASK_EVERY_S:
            asked = time.monotonic()
            now = _asked(service, kit)
            changed = {name: value for name, value in now.items() if known.get(name, ...) != value}
            known |= changed
            if changed:
                yield {"at": _utc(), "service": changed}
        wait_s = min(_ASK_EVERY_S, max(0.0, until - time.monotonic()))
        if console is None:
            time.sleep(wait_s)
        elif line := console.line(wait_s):
            yield {"at": _utc(), "board": line}


def _asked(service: Service, kit: str) -> dict[str, Any]:
    """What of the Kit is watched. A service that is away is news, not the end."""
    try:
        told = service.kit(kit)
    except ServiceError as problem:
        if problem.status and problem.status != 503:
            raise
        return {"reached": False}
    return {"reached": True} | {name: told[name] for name in _WATCHED}


def _line(event: dict[str, Any]) -> str:
    if "board" in event:
        return f"{event['at']}  board    {event['board']}"
    words = ", ".join(f"{name} {_word(name, value)}" for name, value in event["service"].items())
    return f"{event['at']}  service  {words}"


def _word(name: str, value: Any) -> str:
    if name.endswith("_ms") and value is not None:
        return datetime.fromtimestamp(value / 1000, UTC).strftime("%H:%M:%S")
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return str(value)


def _utc() -> str:
    return datetime.now(UTC).strftime("%H:%M:%S")
