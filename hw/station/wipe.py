"""`homeward-station wipe`: nothing of the last patient is on a Kit that leaves it, and here is the proof.

    read what it holds -> nothing unsent? -> erase the whole flash -> read all of it back -> search -> receipt

What is unsent is not taken from the Kit's word: the Records in its flash are compared with what the service
holds. The whole flash is erased, application and all, since a home's network may stand anywhere in it; so
what is read back has to be 0xFF to the last byte. The rules: refused before anything is erased, or done to
the end; and the receipt is on disk before the service is told, so that it can be sent again.
"""

import argparse
import hashlib
import shutil
import time
from typing import TYPE_CHECKING, Any

from hw.station import StationError, bench, board, contents, receipt, secret
from hw.station.bench import Bench
from hw.station.contents import Contents
from hw.station.loader import Found, Loader, Progress
from hw.station.ports import AUTO, one_port
from hw.station.provision import check_kit
from hw.station.register import Register
from hw.station.report import Report
from hw.station.service import Service
from sync_service.life import STEPS

if TYPE_CHECKING:
    from argparse import _SubParsersAction

ERASED = ("Journal", "bonds", "Wi-Fi networks", "keys", "application")
DRAIN_WITHIN_S = 900.0
"""110 days of a patient are 20,000 Records; an old Kit on a slow link sends some hundred a second."""
_ASK_EVERY_S = 2.0
_ANY_BYTES = 4
_REASON_LETTERS = 10
"""A reason is a sentence: "x" is none."""


def add(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-command `wipe`."""
    parser = commands.add_parser("wipe", help="erase a Kit that came back, and prove it")
    parser.add_argument("kit", help="HW-0001-Z")
    parser.add_argument("--port", default=AUTO, help="serial port of the board (auto: the one on USB)")
    parser.add_argument("--drain", action="store_true", help="first wait until the Kit has sent all it holds")
    parser.add_argument("--give-up-unsent", metavar="REASON", help="wipe although Records were not sent")
    parser.add_argument(
        "--send", action="store_true", help="only send the receipt of a wipe to the service again"
    )
    bench.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Wipe a Kit, or send the receipt of a wipe. Raises StationError."""
    here = bench.load(options.bench)
    check_kit(options.kit)
    report = Report(json=options.json, dry_run=options.dry_run)
    if options.send:
        if report.plan(f"Receipt of Kit {options.kit}", [f"send {here.papers(options.kit)} to the service"]):
            _send(here, Service(here), receipt.read(here.papers(options.kit)), report)
        return
    reason = options.give_up_unsent
    if reason is not None and len(reason.strip()) < _REASON_LETTERS:
        raise StationError("--give-up-unsent needs a reason in words: it stands in the audit log")
    steps = [
        f"read what the board on {options.port} holds, and compare its Records with the service's",
        *(["wait until the Kit has sent the rest"] if options.drain else []),
        "erase the whole flash: " + ", ".join(ERASED),
        "read the whole flash back and search it",
        f"write the receipt into {here.papers(options.kit)}, mark the Sensors, revoke the certificate",
    ]
    if report.plan(f"Wipe of Kit {options.kit}", steps):
        loader = Loader(one_port(options.port))
        wipe(here, Service(here), options.kit, loader, report, drain=options.drain, reason=reason)


def wipe(
    here: Bench,
    service: Service,
    kit: str,
    loader: Loader,
    report: Report,
    *,
    drain: bool = False,
    reason: str | None = None,
) -> dict[str, Any]:
    """Wipe the Kit on this board; return the receipt. Raises StationError, and then nothing was erased."""
    operator, register = service.status()["technician"], Register(here.folder)
    _may_be_wiped(service.kit(kit))
    chip = loader.identify()
    held = _look(here, loader, report)
    _is_the_kit(held.kit or register.kit_of(chip.mac), kit, reason)
    if drain and held.missing(service.kit(kit)["journals"]):
        _drain(service, held, loader, kit, report)
        held = _look(here, loader, report)
    told = service.kit(kit)  # the last question before the receipt is on disk
    given_up = _given_up(held, told, reason)
    proof = _erase(loader, chip, held, report)
    written: dict[str, Any] = {
        "kit": kit,
        "at_ms": time.time_ns() // 1_000_000,
        "operator": operator,
        "service": here.service,
        "chip": chip.chip,
        "mac": chip.mac,
        "flash_bytes": chip.flash_bytes,
        "before": _before(held),
        "erased": list(ERASED),
        "unsent_given_up": given_up,
        "sensors": _sensors(held, told),
        **proof,
    }
    receipt.write(written, here.papers(kit))
    if written["residue_bytes"]:
        raise StationError(
            f"{written['residue_bytes']} bytes of Kit {kit} could not be erased: do not use this board again"
        )
    return _send(here, service, written, report)


# --- Before anything is erased ------------------------------------------------------------------------------


def _may_be_wiped(told: dict[str, Any]) -> None:
    if told["assigned"]:
        raise StationError(f"Kit {told['kit']} is still with a patient: the operator ends that first")
    if told["life"] not in STEPS["wipe"][0]:
        raise StationError(f"Kit {told['kit']} is {told['life']}: run `homeward-station receive` first")


def _look(here: Bench, loader: Loader, report: Report) -> Contents:
    report.say("reading what it holds ...")
    return contents.read(loader, board.load(here.board).partitions)


def _is_the_kit(found: str | None, kit: str, reason: str | None) -> None:
    """By the board's own word, else by the bench's register."""
    if found and found != kit:
        raise StationError(f"the board on the bench is Kit {found}, not {kit}: look at the label")
    if not found and reason is None:
        raise StationError(
            f"the board does not say that it is Kit {kit}; if you are sure: --give-up-unsent and the reason"
        )


def _given_up(held: Contents, told: dict[str, Any], reason: str | None) -> dict[str, Any] | None:
    """What will be lost, None: nothing."""
    missing = max(held.missing(told["journals"]), told["unsent"], not held.readable)
    if not missing:
        return None
    if reason is None:
        what = (
            f"{missing} Records have" if held.readable else "the flash is damaged, and what it holds may have"
        )
        raise StationError(
            f"Kit {told['kit']}: {what} not reached the service. Run this again with --drain, or, if nothing "
            "can be saved, with --give-up-unsent and the reason"
        )
    return {"records": missing, "reason": reason}


def _drain(service: Service, held: Contents, loader: Loader, kit: str, report: Report) -> None:
    """Let the board begin a boot; wait until the service holds what was in its flash."""
    loader.read(0, _ANY_BYTES, reset=True)
    report.say("the Kit sends what it holds; it needs one of its networks ...")
    until = time.monotonic() + DRAIN_WITHIN_S
    whole = held.missing(service.kit(kit)["journals"])
    while missing := held.missing(service.kit(kit)["journals"]):
        if time.monotonic() > until:
            raise StationError(
                f"{missing} Records of Kit {kit} are still unsent: is one of its networks on the air? "
                "Its own router beside it is the surest"
            )
        report.progress("sent", whole - missing, whole)
        time.sleep(_ASK_EVERY_S)
    report.progress("sent", whole, whole)


# --- The erase and its proof --------------------------------------------------------------------------------


def _erase(loader: Loader, chip: Found, held: Contents, report: Report) -> dict[str, Any]:
    """Erase, read back, search; return what was found."""

    def told(what: str) -> Progress:
        return lambda done, of: report.progress(what, done, of)

    report.say("erasing ...")
    loader.erase(chip.flash_bytes, told("erased"))
    report.say(f"reading all {chip.flash_bytes >> 20} MB back ...")
    after = loader.read(0, chip.flash_bytes, told("read back"))
    residue_bytes = len(after) - after.count(contents.ERASED)
    return {
        "sha256": hashlib.sha256(after).hexdigest(),
        "residue_bytes": residue_bytes,
        # In what is 0xFF to the last byte nothing can stand.
        "known_found": len(secret.places(after, held.secrets)) if residue_bytes else 0,
    }


def _before(held: Contents) -> dict[str, int]:
    return {
        "records": held.records,
        "bonds": len(held.sensors),
        "known": len(held.secrets),
        "places": held.places,
    }


def _sensors(held: Contents, told: dict[str, Any]) -> list[dict[str, str]]:
    """Those that travelled with the Kit. One that nobody has emptied is marked: it still remembers."""
    marks = {row["sensor"]: row["mark"] for row in told["sensors"]}
    known = dict.fromkeys([*held.sensors, *marks])
    return [
        {"sensor": one, "mark": marks[one] if marks.get(one) == "emptied" else "cannot be emptied"}
        for one in known
    ]


# --- The service --------------------------------------------------------------------------------------------


def _send(here: Bench, service: Service, written: dict[str, Any], report: Report) -> dict[str, Any]:
    """Tell the service; then the Kit's key leaves the bench too."""
    kit = written["kit"]
    for sensor in written["sensors"]:
        if sensor["mark"] != "emptied":
            service.post(kit, "sensors", sensor | {"note": "not emptied at the wipe"})
    body: dict[str, Any] = {"receipt": written}
    if written["unsent_given_up"]:
        given_up = written["unsent_given_up"]
        body["given_up"] = f"{given_up['records']} Records: {given_up['reason']}"[:280]
    written["number"] = service.post(kit, "wipe", body)["number"]
    receipt.write(written, here.papers(kit))
    shutil.rmtree(here.kit_folder(kit), ignore_errors=True)
    Register(here.folder).release(written["mac"])
    report.result(written, receipt.text(written))
    return written
