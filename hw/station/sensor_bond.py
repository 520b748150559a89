"""`sensors bond`: a Sensor becomes one of a Kit's. The Gateway must hold the bond, so two proofs are needed.

    1. at the bench   pair, read the clock, collect until quiet, set the clock, read it; then off and on, out
                      of pairing mode, and the same key must still serve. The bench's bond is removed.
    2. on the list    address and serial go into the Kit's folder: what its Gateway is expected to bond.
    3. at the Kit     its own button opens its window and it bonds; then off and on again, and the service
                      must hold Records of a session that began after that.

A value that came in pairing mode proves no bond (DOMAIN 1.7). What the Kit has already bonded is not paired
with again: a Sensor with a single bond would forget its Gateway.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from zoneinfo import ZoneInfo

from gateway.record import CLOCK_AFTER, CLOCK_BEFORE, SERIAL
from hw.station import StationError, kit_folder, sensor_check
from hw.station.bench import Bench
from hw.station.guest import Found
from hw.station.kit_folder import KitFolder
from hw.station.radio import BondLost, Heard, Radio
from hw.station.report import Report
from hw.station.service import Service

GATEWAY_S = 180.0
"""The button's window is two minutes; then a session, and a Batch that is acked."""
ASK_EVERY_S = 2.0


def plan(address: str, kit: str, *, bench_only: bool) -> list[str]:
    """What will be done, for people."""
    steps = [
        f"pair with {address} in pairing mode, unless the Kit has bonded it already",
        "read its clock, take from it what it still holds (counted, not kept), set the clock, read it again",
        "have you switch it off and on: it must still know the key; then remove the bench's bond",
        f"write it into the list of Sensors of Kit {kit}",
    ]
    if not bench_only:
        steps += [
            "have you open the Kit's window with its button: its Gateway makes its own bond",
            "have you switch the Sensor off and on again; the service must see it come back",
        ]
    return steps


async def bond(
    here: Bench,
    service: Service,
    radio: Radio,
    address: str,
    kit: str,
    report: Report,
    *,
    zone: ZoneInfo | None = None,
    bench_only: bool = False,
    within_s: float = GATEWAY_S,
) -> dict[str, Any]:
    """Make the Sensor one of the Kit's; return its row of the Kit's list. Raises StationError."""
    folder = await asyncio.to_thread(_may_be_bonded, here, service, kit, address)
    row = next((one for one in folder.sensors if address_of(one) == address), None)
    bonded = await asyncio.to_thread(_seen, service, kit, address)
    if row is None or bonded is None:
        row, values = await _at_the_bench(radio, address, report, zone)
        note = f"values taken and not kept: {values}"
        body = {"sensor": address, "mark": "emptied", "note": note}
        await asyncio.to_thread(service.post, kit, "sensors", body)
        _write(here, kit, row)
    else:
        report.say(f"Kit {kit} has bonded it already: only that is proved")
    proved = False
    if not bench_only:
        await _at_the_kit(service, radio, kit, address, report, within_s)
        row = row | {"proved": True}
        proved = True
        _write(here, kit, row)
        await asyncio.to_thread(service.post, kit, "sensors", {"sensor": address, "mark": "bonded"})
    rest = "" if proved else "; its Gateway has yet to bond it: run this again without --bench-only"
    report.result({"kit": kit, "sensor": row}, f"{address} is on the list of Kit {kit}{rest}")
    return row


def owners(here: Bench) -> dict[str, str]:
    """Which Kit of this bench has a Sensor on its list. Raises StationError."""
    found = {}
    for card in sorted((here.folder / kit_folder.KITS).glob(f"*/{kit_folder.CARD}")):
        folder = KitFolder.load(card.parent)
        found.update({address_of(one): folder.kit for one in folder.sensors})
    return found


def address_of(row: dict[str, Any]) -> str:
    """The address of a row of a Kit's list, as people write it; "" where it has none."""
    try:
        return bytes.fromhex(row["address"]).hex(":").upper()
    except (KeyError, TypeError, ValueError):
        return ""


def _may_be_bonded(here: Bench, service: Service, kit: str, address: str) -> KitFolder:
    folder = KitFolder.load(here.kit_folder(kit))
    if service.kit(kit)["assigned"]:
        raise StationError(f"Kit {kit} is with a patient: its Sensors stay as they are")
    owner = owners(here).get(address, kit)
    if owner != kit:
        raise StationError(
            f"{address} is on the list of Kit {owner}: run `homeward-station sensors empty {address}` first"
        )
    return folder


# --- 1. At the bench ----------------------------------------------------------------------------------------


async def _at_the_bench(
    radio: Radio, address: str, report: Report, zone: ZoneInfo | None
) -> tuple[dict[str, Any], int]:
    """Bond, empty, set, and prove it; return its row of the list, and how many values it still held."""
    report.say(f"put {address} into pairing mode ...")
    await radio.forget(address)
    heard = await radio.find(address)
    try:
        first = await radio.visit(heard, pair=True, zone=zone, set_clock=True)
        _check_first(address, first, report)
        if sensor_check.keeps_one_bond(first):
            report.say(
                "it keeps a single bond: the Kit's will replace the bench's; pair it with nothing after"
            )
        report.say(f"now switch {address} off, or take its batteries out ...")
        await radio.wait_until_gone(address)
        report.say("and on again: wake it, NOT in pairing mode ...")
        again = await radio.visit(await radio.find(address), zone=zone)
    except BondLost:
        raise StationError(
            f"{address} has not kept the bond: what came in pairing mode proves nothing. Put in fresh "
            "batteries and try again; if it forgets again, take another Sensor"
        ) from None
    finally:
        await radio.forget(address)
    if again.kept_back or not again.drained or _serial(again) != _serial(first):
        raise StationError(f"{address} does not serve after it was switched off: take another Sensor")
    report.say("the bond has lasted; the bench's own is removed")
    return _row(address, heard, first), first.values


def _check_first(address: str, found: Found, report: Report) -> None:
    """What the session in pairing mode must have shown. Raises StationError."""
    if found.refused or not found.drained:
        why = f" ({found.refused})" if found.refused else ""
        raise StationError(
            f"{address} was not empty and quiet before it left{why}: run this again; if that does not help, "
            f"`homeward-station sensors empty {address}`"
        )
    if found.values:
        report.say(f"values that it still held, taken from it and not kept: {found.values}")
    before, after = (sensor_check.clock(found, kind) for kind in (CLOCK_BEFORE, CLOCK_AFTER))
    if before["state"] == sensor_check.NO_CLOCK:
        report.say("it has no clock: each value has the time of its coming")
        return
    difference_s = after["difference_s"]
    if difference_s is None or abs(difference_s) > sensor_check.MAX_SET_DIFFERENCE_S:
        raise StationError(
            f"the clock of {address} does not take the time: set it by hand if it has buttons for that, else "
            "take another Sensor"
        )
    report.say("its clock is set")


def _serial(found: Found) -> str:
    return sensor_check.text(found, SERIAL)


def _row(address: str, heard: Heard, found: Found) -> dict[str, Any]:
    return {
        "address": address.replace(":", "").lower(),
        "address_type": heard.address_type,
        "name": heard.name,
        "serial": _serial(found),
        "proved": False,  # by the Kit's own Gateway
    }


# --- 2. The list --------------------------------------------------------------------------------------------


def _write(here: Bench, kit: str, row: dict[str, Any]) -> None:
    place = here.kit_folder(kit)
    folder = KitFolder.load(place)
    others = tuple(one for one in folder.sensors if address_of(one) != address_of(row))
    replace(folder, sensors=(*others, row)).save(place)


# --- 3. At the Kit ------------------------------------------------------------------------------------------


async def _at_the_kit(
    service: Service, radio: Radio, kit: str, address: str, report: Report, within_s: float
) -> None:
    """Its Gateway bonds the Sensor, and has it back after it was off. Raises StationError."""
    if not await asyncio.to_thread(_seen, service, kit, address):
        report.say(
            f"hold the button of Kit {kit} until its light is blue, then put {address} into pairing mode"
        )
        await _until(
            service,
            kit,
            address,
            lambda seen: seen > 0,
            within_s,
            f"Kit {kit} has not bonded {address}: is it on line, its light blue, and the Sensor in pairing "
            "mode? One that keeps a single bond must first be reset, as its manual says",
        )
    report.say(f"the Kit has bonded it. Now switch {address} off, or take its batteries out ...")
    await radio.wait_until_gone(address)
    before = await asyncio.to_thread(_seen, service, kit, address) or 0
    report.say("and on again: wake it, NOT in pairing mode ...")
    await _until(
        service,
        kit,
        address,
        lambda seen: seen > before,
        within_s,
        f"Kit {kit} has not had {address} back after it was off: the bond does not last. Fresh batteries, "
        "and again; else take another Sensor",
    )
    report.say("the Kit has it back: its bond is proved")


async def _until(
    service: Service,
    kit: str,
    address: str,
    good: Callable[[int], bool],
    within_s: float,
    else_: str,
) -> None:
    """Ask the service until it has seen enough. Raises StationError."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                seen = await asyncio.to_thread(_seen, service, kit, address)
                if seen is not None and good(seen):
                    return
                await asyncio.sleep(ASK_EVERY_S)
    except TimeoutError:
        raise StationError(else_) from None


def _seen(service: Service, kit: str, address: str) -> int | None:
    """How many sessions of the Sensor the service holds since the Kit bonded it; None: it has not."""
    for row in service.sensors(kit):
        if row["sensor"] == address and row["bonded"]:
            sessions: int = row["sessions"]
            return sessions
    return None
