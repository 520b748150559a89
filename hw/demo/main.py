"""
homeward-demo: the main job on one machine, with faults on demand and a verdict.

Reading order: `play` is the run; scenario.py says what patients do, world.py starts the parts, checker.py
compares the Sensors' ledgers with the Hub, table.py draws.
"""

import argparse
import asyncio
import contextlib
import json
import random
import secrets
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from hw.demo.checker import Verdict
from hw.demo.kit import GATEWAYS, describe
from hw.demo.part import PartFailed
from hw.demo.scenario import LEAST_STEPS, Step, steps
from hw.demo.table import Table
from hw.demo.world import World, world_folder
from hw.virtual.ledger import CONFIRMED
from hw.virtual.programs import ProgramMissing

KITS = ["HW-0001", "HW-0002"]
PARTS = ("gateway", "broker", "service", "hub")
CHECK_EVERY_S = 0.5
ARRIVE_S = 90.0
"""After the last measurement and the last fault everything must be at the Hub within this time: no resend or
retry has had the time to back off any further."""
LINGER_S = 2.0
"""Then it is looked at once more, so that a duplicate that comes late is seen."""
LONGEST_OFFLINE_S = 3600
GIVE_UP_S = 10.0
"""After Ctrl-C: how long what is under way may still arrive."""


@dataclass
class Faults:
    """What was done to the parts."""

    kills: dict[str, dict[str, int]] = field(default_factory=dict)
    kept_offline: set[tuple[str, int]] = field(default_factory=set)  # (serial, number)
    offline: bool = False


@dataclass
class Run:
    """The state of one run, for the table and the closing line."""

    options: argparse.Namespace
    world: World
    gateway: str  # with its interpreter's version
    chance: random.Random
    faults: Faults = field(default_factory=Faults)
    verdict: Verdict = field(default_factory=Verdict)
    started: float = field(default_factory=time.monotonic)
    measuring: bool = True

    @property
    def total(self) -> int:
        """How many measurements there will be; without --until faults are spread over the first 60."""
        until = self.options.until or 60
        return len(KITS) * max(LEAST_STEPS, -(-until // len(KITS)))

    @property
    def taken(self) -> int:
        return len(self.world.measurements())

    async def look(self) -> None:
        """Compare ledgers and Hub anew; while the Hub is down the last verdict stands."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            self.verdict = await self.world.check()

    async def arrived(self, kit: str) -> None:
        """Wait until everything that was measured with the Kit is at the Hub."""
        measured = {(m.serial, m.number) for m in self.world.homes[kit].measurements()}
        while measured - self.verdict.arrived:  # noqa: ASYNC110 - `look` changes it
            await asyncio.sleep(CHECK_EVERY_S)

    async def reach(self, part_of_all: float) -> None:
        """Wait until this part of all measurements is taken."""
        while self.taken < part_of_all * self.total:  # noqa: ASYNC110 - the ledgers are files
            await asyncio.sleep(0.1)


async def play(run: Run, table: Table) -> None:
    """Patients measure and parts are killed, until all is done and everything has arrived."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        lives = [group.create_task(_live(run, i), name=f"life of {kit}") for i, kit in enumerate(KITS)]
        faults = [group.create_task(_kill(run, part), name=f"kill {part}") for part in run.options.kill]
        if run.options.offline:
            faults.append(group.create_task(_offline(run), name="offline"))
        watching = group.create_task(_watch(run, table), name="watch")
        stopped = group.create_task(_waited(stop), name="Ctrl-C")
        finished = group.create_task(_all(lives + faults), name="finished")
        await asyncio.wait((finished, stopped), return_when=asyncio.FIRST_COMPLETED)
        run.measuring = False
        for task in (*lives, *faults):
            task.cancel()
        await finished
        await _arrive(run, GIVE_UP_S if stop.is_set() else ARRIVE_S)
        stopped.cancel()
        watching.cancel()


async def _waited(event: asyncio.Event) -> None:
    await event.wait()


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)


async def _live(run: Run, index: int) -> None:
    """Two patients, one after the other, with the same Kit."""
    kit = KITS[index]
    home = run.world.homes[kit]
    before, after = steps(run.options.seed, index, run.total // len(KITS) if run.options.until else None)
    for number, course in enumerate((before, after), start=1):
        if number > 1:
            await home.ask("drain")
            await run.arrived(kit)
            await run.world.hand_back(kit)
        episode = f"{kit}-{number}"
        await run.world.admit(kit, episode, 10 * index + number)
        await home.ask("begin", episode=episode)
        for step in course:
            await _measure(home.ask, step)


async def _measure(ask: Any, step: Step) -> None:
    await asyncio.sleep(step.gap_s)
    await ask("measure", action=step.action, numbers=step.numbers)


async def _kill(run: Run, name: str) -> None:
    """kill -9 at a random moment, and a restart. In flight is what was measured and not yet at the Hub."""
    part = run.world.part(name, run.chance)
    await run.reach(run.chance.uniform(0.2, 0.85))
    await asyncio.sleep(run.chance.uniform(0.0, 0.5))
    await run.look()
    in_flight = run.taken - run.verdict.at_hub
    await part.kill()
    run.faults.kills[name] = {"count": part.kills, "in_flight": in_flight}
    try:
        await asyncio.sleep(run.chance.uniform(0.2, 2.0))
    finally:  # after Ctrl-C as well: what is under way is still to arrive
        await part.start()


async def _offline(run: Run) -> None:
    """The homes lose their network for a while and go on measuring."""
    await run.reach(run.chance.uniform(0.1, 0.2))
    before = {(m.serial, m.number) for m in run.world.measurements()}
    await _network(run, on=False)
    try:
        await asyncio.sleep(run.options.offline)
        kept = {(m.serial, m.number) for m in run.world.measurements() if m.end == CONFIRMED}
        run.faults.kept_offline = kept - before
    finally:
        await _network(run, on=True)


async def _network(run: Run, *, on: bool) -> None:
    run.faults.offline = not on
    await asyncio.gather(*(home.ask("online", on=on) for home in run.world.homes.values()))


async def _watch(run: Run, table: Table) -> None:
    while True:
        await run.look()
        table.draw(run)
        await asyncio.sleep(CHECK_EVERY_S)


async def _arrive(run: Run, patience_s: float) -> None:
    """Wait until nothing is missing at the Hub, then a little more."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience_s):
            while run.verdict.missing or run.verdict.taken < run.taken:  # noqa: ASYNC110 - as above
                await asyncio.sleep(CHECK_EVERY_S)
    await asyncio.sleep(LINGER_S)
    await run.look()


def closing_line(run: Run) -> dict[str, Any]:
    """The figures of the run, as --json prints them."""
    verdict = run.verdict
    return {
        "taken": verdict.taken,
        "at_hub": verdict.at_hub,
        "missing": verdict.missing,
        "duplicates": verdict.duplicates,
        "possible_repeats": verdict.possible_repeats,
        "wrong_patient": verdict.wrong_patient,
        "false_vitals": verdict.false_vitals,
        "offline_kept": len(run.faults.kept_offline & verdict.arrived),
        "kills": run.faults.kills,
        "seconds": round(time.monotonic() - run.started, 1),
        "gateway": run.gateway,
    }


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="homeward-demo", description=(__doc__ or "").strip().partition("\n")[0]
    )
    parser.add_argument("--until", type=_count, metavar="N", help="stop when N measurements are at the Hub")
    parser.add_argument(
        "--offline", type=_seconds, default=0.0, metavar="SECONDS", help="cut the homes' network once"
    )
    parser.add_argument(
        "--kill", type=_parts, default=[], metavar="PART,...", help=f"kill -9 each once: {','.join(PARTS)}"
    )
    parser.add_argument("--seed", type=int, help="the same seed, the same patients and faults")
    parser.add_argument("--json", action="store_true", help="close with one line of JSON on stdout")
    parser.add_argument("--folder", type=_folder, help="keep the files of the run here (new or empty)")
    parser.add_argument(
        "--gateway",
        choices=GATEWAYS,
        default=GATEWAYS[0],
        help="firmware on a virtual ESP32, or the Linux one",
    )
    options = parser.parse_args(arguments)
    if "gateway" in options.kill and options.gateway == "linux":
        parser.error(
            "--kill gateway: the Linux Gateway can't keep promise P1 (its system confirms by itself)"
        )
    if options.seed is None:
        options.seed = secrets.randbelow(1_000_000)
    return options


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of measurements")
    return int(word)


def _seconds(word: str) -> float:
    if not word.isdecimal() or int(word) > LONGEST_OFFLINE_S:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of seconds up to {LONGEST_OFFLINE_S}")
    return float(word)


def _folder(word: str) -> Path:
    path = Path(word)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise argparse.ArgumentTypeError(f"{word!r} is there and is not an empty folder")
    return path


def _parts(words: str) -> list[str]:
    parts = words.split(",")
    for part in parts:
        if part not in PARTS:
            raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(PARTS)}")
    return sorted(set(parts))


def _first(group: BaseException | None) -> BaseException | None:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _gateway(options: argparse.Namespace) -> str:
    """Describe the Gateway; take the Linux one where no MicroPython can be had."""
    try:
        return describe(options.gateway)
    except ProgramMissing as missing:
        if "gateway" in options.kill:
            raise
        print(f"homeward-demo: {missing} Taking the Linux Gateway instead.", file=sys.stderr)
        options.gateway = "linux"
        return describe(options.gateway)


async def _main(options: argparse.Namespace) -> Run:
    gateway = _gateway(options)
    with world_folder(options.folder) as folder:
        async with World(folder, KITS, options.gateway) as world:
            run = Run(options, world, gateway, random.Random(f"faults/{options.seed}"))
            with Table(world.console_url, seed=options.seed) as table:
                await play(run, table)
        return run


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; exit code 0 only if nothing is missing, doubled, misattributed or false."""
    options = _options(arguments)
    try:
        run = asyncio.run(_main(options))
    except KeyboardInterrupt:  # while the parts were starting
        return 130
    except (PartFailed, ProgramMissing, OSError) as error:
        print(f"homeward-demo: {error}", file=sys.stderr)
        return 1
    except BaseExceptionGroup as errors:
        known, unknown = errors.split((PartFailed, ProgramMissing, OSError))
        if unknown:
            raise unknown from None
        print(f"homeward-demo: {_first(known)}", file=sys.stderr)
        return 1
    for remark in run.verdict.remarks:
        print(f"homeward-demo: seed {options.seed}: {remark}", file=sys.stderr)
    line = closing_line(run)
    print(
        json.dumps(line) if options.json else "\n".join(f"{name:18}{value}" for name, value in line.items())
    )
    return 0 if run.verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main())
