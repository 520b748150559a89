"""`homeward-station ship` and `receive`: a Kit goes to a patient's door, and comes back to the bench.

What has to hold before it leaves is the service's to judge (sync_service/life.py): a self-test that passed
and is not too old, a label, bonded Sensors. The bench only tells it which Sensors lie in the box.
"""

import argparse
from typing import TYPE_CHECKING

from hw.station import StationError, bench, kit_folder
from hw.station.kit_folder import KitFolder
from hw.station.provision import check_kit
from hw.station.report import Report
from hw.station.service import Service

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-commands `ship` and `receive`."""
    ship = commands.add_parser("ship", help="hand a Kit to the courier")
    ship.add_argument("kit", nargs="+", help="HW-0001-Z ...")
    ship.add_argument("--ready", action="store_true", help="only make it ready for the shelf")
    ship.add_argument("--without-sensors", metavar="REASON", help="ship it although no Sensor is bonded")
    bench.add_options(ship)
    ship.set_defaults(run=run_ship)
    receive = commands.add_parser("receive", help="take a Kit back from the courier")
    receive.add_argument("kit", nargs="+", help="HW-0001-Z ...")
    bench.add_options(receive)
    receive.set_defaults(run=run_receive)


def run_ship(options: argparse.Namespace) -> None:
    """Make Kits ready and ship them. Raises StationError."""
    here = bench.load(options.bench)
    _check(options.kit)
    report = Report(json=options.json, dry_run=options.dry_run)
    steps = [
        "tell the service which Sensors are bonded to each",
        "make each ready: self-test passed and recent, label printed, Sensors bonded",
        *([] if options.ready else ["hand each to the courier: shipped"]),
    ]
    if not report.plan(f"Ship {', '.join(options.kit)}", steps):
        return
    service = Service(here)
    lives = {}
    for kit in options.kit:
        for sensor in _sensors(here, kit):
            service.post(kit, "sensors", {"sensor": sensor, "mark": "bonded"})
        if service.kit(kit)["life"] != "ready":
            lives[kit] = service.step(kit, "ready", options.without_sensors or "")
        if not options.ready:
            lives[kit] = service.step(kit, "ship")
        report.say(f"{kit} {lives.get(kit, 'ready')}")
    report.result({"kits": lives}, "done")


def run_receive(options: argparse.Namespace) -> None:
    """Take Kits back. Raises StationError."""
    here = bench.load(options.bench)
    _check(options.kit)
    report = Report(json=options.json, dry_run=options.dry_run)
    if not report.plan(f"Receive {', '.join(options.kit)}", ["note at the service that each is back"]):
        return
    service = Service(here)
    lives, assigned = {}, []
    for kit in options.kit:
        lives[kit] = service.step(kit, "receive")
        report.say(f"{kit} {lives[kit]}")
        if service.kit(kit)["assigned"]:
            assigned.append(kit)
            report.say(
                f"  {kit} is still with a patient by the service: the operator ends that before the wipe"
            )
    report.result({"kits": lives, "still_assigned": assigned}, "wipe next")


def _check(kits: list[str]) -> None:
    for kit in kits:
        check_kit(kit)
    if len(set(kits)) < len(kits):
        raise StationError("a Kit is named twice")


def _sensors(here: bench.Bench, kit: str) -> list[str]:
    """Those of the Kit's list whose bond is proved, when this bench has its folder."""
    place = here.kit_folder(kit)
    if not (place / kit_folder.CARD).is_file():
        return []
    listed = KitFolder.load(place).sensors
    addresses = [sensor.get("address") for sensor in listed if sensor.get("proved", True)]
    return [bytes.fromhex(one).hex(":").upper() for one in addresses if isinstance(one, str)]
