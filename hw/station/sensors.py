"""`homeward-station sensors scan | check | bond | empty`: the Sensors of a Kit on the technician's bench.

    scan                      who is in reach
    check ADDRESS             what it says of itself, and what is wrong with it
    bond ADDRESS --kit KIT    hw/station/sensor_bond.py
    empty ADDRESS             one that comes back: nothing of its last patient stays in it

The Gateway of a Kit owns its Sensors' bonds; the bench keeps none. What the bench does to a Sensor stands in
the audit log of the service.
"""

import argparse
import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from hw.station import StationError, bench, kit_folder, sensor_bond, sensor_check
from hw.station.bench import Bench
from hw.station.guest import Found
from hw.station.kit_folder import KitFolder
from hw.station.provision import check_kit
from hw.station.radio import ADDRESS, Heard, Radio
from hw.station.report import Report
from hw.station.sensor_check import Amiss
from hw.station.service import Service

if TYPE_CHECKING:
    from argparse import _SubParsersAction

SCAN_S = 10.0
MOST_SCAN_S = 600.0
EMPTIED, NOT_EMPTIED = "emptied", "cannot be emptied"
_REASON_LETTERS = 10
"""A reason is a sentence: "x" is none."""
_KINDS = {0x1822: "oximeter", 0x1810: "cuff"}
_RACP_SUCCESS, _RACP_NO_RECORDS = 1, 6


def add(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-command `sensors` with its own."""
    parser = commands.add_parser("sensors", help="the Sensors of a Kit: scan, check, bond, empty")
    own = parser.add_subparsers(required=True, metavar="COMMAND")
    look = own.add_parser("scan", help="the Sensors in reach")
    look.add_argument("--seconds", type=float, default=SCAN_S, help="how long to listen (%(default)s)")
    look.set_defaults(run=run_scan)
    one = own.add_parser("check", help="what a Sensor says of itself, and what is wrong with it")
    one.add_argument("--pair", action="store_true", help="pair first: the Sensor is in pairing mode")
    one.set_defaults(run=run_check)
    bond = own.add_parser("bond", help="make a Sensor one of a Kit's: check, set the clock, prove the bond")
    bond.add_argument("--kit", required=True, help="HW-0001-Z")
    bond.add_argument(
        "--bench-only", action="store_true", help="leave out the Kit's own bond; it can't be shipped so"
    )
    bond.set_defaults(run=run_bond)
    empty = own.add_parser("empty", help="take everything out of a Sensor that comes back")
    empty.add_argument("--kit", help="the Kit that it came back with, when this bench's folders do not tell")
    empty.add_argument(
        "--cannot", metavar="REASON", help="do not try: mark it, so that its first session is held"
    )
    empty.set_defaults(run=run_empty)
    for each in (one, bond, empty):
        each.add_argument("address", help="C0:FF:EE:00:00:01, as `scan` shows it")
    for each in (one, bond):
        each.add_argument("--zone", help="time zone of the home, Europe/London (default: this computer's)")
    for each in (look, one, bond, empty):
        bench.add_options(each)


# --- The commands -------------------------------------------------------------------------------------------


def run_scan(options: argparse.Namespace) -> None:
    """Listen. Raises StationError."""
    here = bench.load(options.bench)
    if not 0 < options.seconds <= MOST_SCAN_S:
        raise StationError(f"--seconds takes more than 0 and at most {MOST_SCAN_S:.0f}")
    report = Report(json=options.json, dry_run=options.dry_run)
    if report.plan("Sensors in reach", [f"listen for {options.seconds:g} s; connect to none"]):
        asyncio.run(scan(here, Radio(), options.seconds, report))


def run_check(options: argparse.Namespace) -> None:
    """Check one Sensor. Raises StationError when something is amiss."""
    here, address, zone = bench.load(options.bench), _address(options.address), _zone(options.zone)
    report = Report(json=options.json, dry_run=options.dry_run)
    steps = [
        f"wait until {address} is on the air",
        *(["pair with it"] if options.pair else []),
        "read who it is, its battery, features and clock; leave every value where it is",
        *(["remove the bench's bond again"] if options.pair else []),
    ]
    if report.plan(f"Check of Sensor {address}", steps):
        asyncio.run(check(here, Radio(), address, report, pair=options.pair, zone=zone))


def run_bond(options: argparse.Namespace) -> None:
    """Bond a Sensor. Raises StationError."""
    here, address, zone = bench.load(options.bench), _address(options.address), _zone(options.zone)
    check_kit(options.kit)
    report = Report(json=options.json, dry_run=options.dry_run)
    steps = sensor_bond.plan(address, options.kit, bench_only=options.bench_only)
    if report.plan(f"Sensor {address} for Kit {options.kit}", steps):
        work = sensor_bond.bond(
            here,
            Service(here),
            Radio(),
            address,
            options.kit,
            report,
            zone=zone,
            bench_only=options.bench_only,
        )
        asyncio.run(work)


def run_empty(options: argparse.Namespace) -> None:
    """Empty a Sensor, or mark it. Raises StationError."""
    here, address = bench.load(options.bench), _address(options.address)
    reason = options.cannot
    if reason is not None and len(reason.strip()) < _REASON_LETTERS:
        raise StationError("--cannot needs a reason in words: it stands in the audit log")
    kit = _kit_of(here, address, options.kit)
    report = Report(json=options.json, dry_run=options.dry_run)
    act = [
        "pair with it in pairing mode",
        "delete what it has stored, where it can; else have it all reported, and keep none of it",
        "remove the bench's bond",
    ]
    steps = [*([] if reason else act), f"mark it at the service and take it off the list of Kit {kit}"]
    if report.plan(f"Sensor {address} is emptied", steps):
        service = Service(here)
        if reason is not None:
            mark(here, service, kit, address, NOT_EMPTIED, reason)
            report.result(
                {"sensor": address, "kit": kit, "mark": NOT_EMPTIED}, f"{address} is marked: {NOT_EMPTIED}"
            )
        else:
            asyncio.run(empty(here, service, Radio(), address, kit, report))


# --- What they do -------------------------------------------------------------------------------------------


async def scan(here: Bench, radio: Radio, seconds: float, report: Report) -> list[dict[str, Any]]:
    """Say which Sensors are in reach. Raises StationError."""
    owners = sensor_bond.owners(here)
    rows: list[dict[str, Any]] = [
        {
            "address": one.peer.address.upper(),
            "name": one.name,
            "services": _services(one),
            "signal_dbm": one.signal_dbm,
            "kit": owners.get(one.peer.address.upper()),
        }
        for one in await radio.scan(seconds)
    ]
    for row in rows:
        whose = f"Kit {row['kit']}" if row["kit"] else "no Kit of this bench"
        kinds = ", ".join(row["services"])
        report.say(f"{row['address']}  {row['signal_dbm']:4} dBm  {kinds:9}  {row['name']}  {whose}")
    report.result({"sensors": rows}, f"{len(rows)} Sensors" if rows else "no Sensor: wake one, bring it near")
    return rows


async def check(
    here: Bench,
    radio: Radio,
    address: str,
    report: Report,
    *,
    pair: bool = False,
    zone: ZoneInfo | None = None,
) -> dict[str, Any]:
    """Say what a Sensor is and what is wrong with it. Raises StationError, also when something is."""
    if pair:
        await radio.forget(address)
    heard = await radio.find(address)
    try:
        found = await radio.visit(heard, pair=pair, zone=zone, only_look=True)
    finally:
        await radio.forget(address)  # a read alone may have made BlueZ pair
    wrong = list(sensor_check.amiss(found))
    kit = sensor_bond.owners(here).get(address)
    if pair and sensor_check.keeps_one_bond(found):
        again = f"`homeward-station sensors bond {address} --kit {kit or 'KIT'}`"
        wrong.append(
            Amiss("it keeps a single bond, and this check has replaced it", f"bond it anew: {again}")
        )
    value = {
        "address": address,
        "name": heard.name,
        "services": _services(heard),
        "signal_dbm": heard.signal_dbm,
        "kit": kit,
        **sensor_check.description(found),
        "amiss": [one._asdict() for one in wrong],
    }
    for name in ("manufacturer", "model", "serial", "firmware", "system_id", "battery"):
        report.say(f"{name:13} {'-' if value[name] is None else value[name]}")
    report.say(f"{'features':13} {', '.join(value['features'] or ['-'])}")
    report.say(f"{'clock':13} {_clock_words(value['clock'])}")
    for one in wrong:
        report.say(f"AMISS  {one.what}\n       -> {one.advice}")
    report.result(value, "" if wrong else f"{address}: all is well")
    if wrong:
        raise StationError(f"{address}: {'; '.join(one.what for one in wrong)}")
    return value


async def empty(
    here: Bench, service: Service, radio: Radio, address: str, kit: str, report: Report
) -> dict[str, Any]:
    """Empty a Sensor that came back with this Kit. Raises StationError: not, and it is marked."""
    told = await asyncio.to_thread(service.kit, kit)
    if told["assigned"]:
        raise StationError(f"Kit {kit} is still with a patient: the operator ends that first")
    report.say(f"put {address} into pairing mode ...")
    await radio.forget(address)
    heard = await radio.find(address)
    try:
        found = await radio.visit(heard, pair=True, delete=True)
    finally:
        await radio.forget(address)
    problem = not_empty(found)
    word = NOT_EMPTIED if problem else EMPTIED
    note = problem or f"values taken and not kept: {found.values}"
    await asyncio.to_thread(mark, here, service, kit, address, word, note)
    value = {"sensor": address, "kit": kit, "mark": word, "values": found.values}
    report.result(
        value,
        f"{address} is empty (values taken and not kept: {found.values}); if it has a reset, do that now: "
        "it still holds the old Gateway's key",
    )
    if problem:
        raise StationError(f"{address} {problem}: it is marked, and its first session will be held")
    return value


def not_empty(found: Found) -> str:
    """Why nobody can say that it is empty, "" when it is."""
    if found.refused:
        return f"can't be asked for its values ({found.refused})"
    if found.record_access not in (None, _RACP_SUCCESS, _RACP_NO_RECORDS):
        return "does not give out what it has stored"
    if not found.drained:
        return "left before it had been quiet"
    return ""


def mark(here: Bench, service: Service, kit: str, address: str, word: str, note: str) -> None:
    """Tell the service, and take it off the Kit's list. Raises StationError."""
    service.post(kit, "sensors", {"sensor": address, "mark": word, "note": note})
    place = here.kit_folder(kit)
    if (place / kit_folder.CARD).is_file():
        folder = KitFolder.load(place)
        rest = tuple(one for one in folder.sensors if sensor_bond.address_of(one) != address)
        replace(folder, sensors=rest).save(place)


# --- What they are given ------------------------------------------------------------------------------------


def _address(written: str) -> str:
    address = written.upper().replace("-", ":")
    if not ADDRESS.fullmatch(address):
        raise StationError(f"{written!r} is no address: it looks like C0:FF:EE:00:00:01, as `scan` shows it")
    return address


def _zone(name: str | None) -> ZoneInfo | None:
    try:
        return ZoneInfo(name) if name else None
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise StationError(f"the time zone {name!r} is not known: it looks like Europe/London") from None


def _kit_of(here: Bench, address: str, given: str | None) -> str:
    if given is not None:
        check_kit(given)
    kit = given or sensor_bond.owners(here).get(address)
    if kit is None:
        raise StationError(f"{address} is on the list of no Kit of this bench: say --kit HW-0001-Z")
    return kit


def _services(heard: Heard) -> list[str]:
    return [_KINDS[uuid] for uuid in heard.services if uuid in _KINDS]


def _clock_words(clock: dict[str, Any]) -> str:
    if clock["difference_s"] is None:
        return str(clock["state"])
    return f"{clock['difference_s']:+} s from the home's time"
