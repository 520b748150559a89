"""`homeward-station flash`: writes a Kit's image to a board and proves it; one board, or one after the other.

    which board    one port, one board; its chip, its flash, its MAC
    whose is it    the bench's register, and what the board itself says: NVS and Journal
    write          the whole flash, or with --repair all but table, identity, bonds and Journal
    prove          the chip's own digest, in a session after the write
    note           the register: this MAC is this Kit

The one rule: nothing is written before all is known to be right. An interrupted write is done again by
running the same command again. A Journal that holds anything is never overwritten here: `wipe` does that, and
knows when.
"""

import argparse
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hw.station import StationError, bench, board, image, inspection, kit_folder, micropython, occupant
from hw.station.bench import BenchError
from hw.station.board import Board
from hw.station.kit_folder import KitFolder
from hw.station.loader import BAUD, BAUDS, Found, Loader
from hw.station.partitions import SECTOR_BYTES
from hw.station.ports import AUTO, one_port, plugged_in, ports, taken_out
from hw.station.register import BEGUN, FLASHED, Register
from hw.station.report import Report
from hw.station.service import Service

if TYPE_CHECKING:
    from argparse import _SubParsersAction


class FlashError(StationError):
    """A board that must not be written, or that is not there; one sentence that says what to do."""


@dataclass(frozen=True)
class Job:
    """One image for one Kit's board."""

    board: Board
    kit: str
    flash: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.flash).hexdigest()


def add(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-command `flash`."""
    parser = commands.add_parser("flash", help="write a Kit's image to a board, and prove it")
    parser.add_argument("--board", metavar="NAME", required=True, help=f"one of {', '.join(board.names())}")
    parser.add_argument("--image", metavar="FILE", type=Path, help="made by `homeward-station image`")
    parser.add_argument(
        "--port",
        metavar="PORT",
        default=AUTO,
        help="serial port, or a pattern of ports (auto: the one on USB)",
    )
    parser.add_argument("--kit", metavar="KIT", help="refuse an image of another Kit than this one")
    parser.add_argument(
        "--repair", action="store_true", help="keep identity, bonds and Journal; write all the rest anew"
    )
    parser.add_argument(
        "--batch",
        metavar="KIT",
        nargs="*",
        help="these Kits, one board after the other (none: all not yet flashed)",
    )
    parser.add_argument(
        "--micropython", metavar="FILE", type=Path, help="with --batch: stock binary of the chip"
    )
    parser.add_argument(
        "--allow-unknown", action="store_true", help="take a binary of a release not known here"
    )
    parser.add_argument("--baud", type=int, choices=BAUDS, default=BAUD, help=f"speed of the port ({BAUD})")
    kit_folder.add_bench(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Flash one board or many. Raises StationError."""
    report = Report(json=options.json, dry_run=options.dry_run)
    if options.batch is None:
        _one(options, report)
    else:
        _batch(options, report)


def _one(options: argparse.Namespace, report: Report) -> None:
    if options.image is None:
        raise FlashError("--image is missing (or --batch)")
    job = read_job(options.image, board.load(options.board), options.kit)
    if report.plan(f"Flash Kit {job.kit}", _steps(job, options)):
        register = Register(kit_folder.bench_folder(options.bench))
        done = flash(job, one_port(options.port), register, report, repair=options.repair, baud=options.baud)
        _tell(options.bench, job.kit, report)
        report.result(done, f"{job.kit} is flashed and verified; label it {job.kit} now")


def read_job(path: Path, chosen: Board, kit: str | None) -> Job:
    """The job of an image's file, for this board and, if one is named, this Kit. Raises StationError."""
    content = image.load(path)
    found = inspection.inspect(content)
    inspection.accept(found)
    about = inspection.describe(content, found)
    if about["board"] != chosen.name or found.rows != chosen.partitions:
        raise FlashError(f"{path} is an image for board {about['board']}, not for {chosen.name}")
    if about["kit"] is None or kit not in (None, about["kit"]):
        raise FlashError(f"{path} is an image of Kit {about['kit']}, not of {kit}")
    return Job(chosen, about["kit"], content)


def flash(
    job: Job, port: str, register: Register, report: Report, *, repair: bool = False, baud: int = BAUD
) -> dict[str, Any]:
    """Write the job to the board on a port, prove it, and note it. Raises StationError."""
    began = time.monotonic()
    loader = Loader(port, baud=baud)
    found = loader.identify()
    _check_board(found, job.board)
    register.check(found.mac, job.kit)
    if repair:
        occupant.check_repair(loader, job.board, job.kit)
        pieces = occupant.repair_pieces(job.board, job.flash)
    else:
        occupant.check(loader, job.board, job.kit)
        pieces = {0: job.flash}
        register.claim(found.mac, job.kit, image=job.sha256, state=BEGUN)
    loader.write(pieces, lambda done, of: report.progress(f"writing {job.kit}", done, of))
    report.say("written; asking the chip for its digest")
    if not loader.holds(pieces, reset=True):
        raise FlashError(
            f"the board on {port} does not hold what was written: run this again with another cable; if it "
            "comes back, put the board aside"
        )
    register.claim(found.mac, job.kit, image=job.sha256, state=FLASHED)
    return {
        "kit": job.kit,
        "board": job.board.name,
        "port": port,
        "chip": found.chip,
        "mac": found.mac,
        "image_sha256": job.sha256,
        "bytes": sum(len(piece) for piece in pieces.values()),
        "flashed": True,
        "verified": True,
        "stub": loader.has_stub,
        "seconds": round(time.monotonic() - began, 1),
    }


def _tell(place: Path, kit: str, report: Report) -> None:
    """The service keeps the Kit's life; a bench without its bench.toml has none."""
    try:
        here = bench.load(place)
    except BenchError as problem:
        report.say(f"the service was not told: {problem}")
        return
    Service(here).step(kit, "flash")


# --- Which board --------------------------------------------------------------------------------------------


def _check_board(found: Found, wanted: Board) -> None:
    if found.chip != wanted.chip.name:
        raise FlashError(
            f"the board has an {found.chip}, but {wanted.name} an {wanted.chip.name}: take the right board, "
            "or name another with --board"
        )
    if found.flash_bytes < wanted.flash_bytes:
        raise FlashError(
            f"the board has {found.flash_bytes >> 20} MB of flash, {wanted.name} needs {wanted.flash_size}: "
            "take the right board"
        )


# --- One after the other ------------------------------------------------------------------------------------


def _batch(options: argparse.Namespace, report: Report) -> None:
    chosen, folder = board.load(options.board), kit_folder.bench_folder(options.bench)
    if options.micropython is None or options.image or options.repair:
        raise FlashError(
            "--batch makes its images itself: it takes --micropython FILE, not --image nor --repair"
        )
    stock = micropython.read(options.micropython, chosen, allow_unknown=options.allow_unknown)
    register = Register(folder)
    kits = list(_kits(options.batch, folder, chosen, register))
    if not kits:
        raise FlashError(f"no Kit in {folder / kit_folder.KITS} waits to be flashed; provision some first")
    steps = [f"plug in a board, write Kit {kit.kit} to it, prove it, take it out" for kit in kits]
    if not report.plan(f"Flash {len(kits)} Kits, one after the other", steps):
        return
    done = []
    for number, kit in enumerate(kits, 1):
        report.say(f"[{number}/{len(kits)}] plug in the board of Kit {kit.kit}")
        port = plugged_in(options.port)
        job = Job(chosen, kit.kit, image.compose(chosen, stock, kit))
        done.append(flash(job, port, register, report, baud=options.baud))
        _tell(options.bench, kit.kit, report)
        report.say(
            f"[{number}/{len(kits)}] {kit.kit} is flashed and verified; label it {kit.kit}, and take it out"
        )
        if number < len(kits):
            taken_out(port, options.port)
    report.result({"flashed": done}, f"{len(done)} Kits flashed and verified")


def _kits(names: list[str], place: Path, chosen: Board, register: Register) -> Iterator[KitFolder]:
    """The Kits that are named, else all of this board that have not been flashed, in their order."""
    if names:
        for name in names:
            yield KitFolder.load(kit_folder.locate(name, place))
        return
    for folder in sorted((place / kit_folder.KITS).glob("*")):
        if (folder / kit_folder.CARD).is_file() and not register.is_flashed(folder.name):
            kit = KitFolder.load(folder)
            if kit.board == chosen.name:
                yield kit


def _steps(job: Job, options: argparse.Namespace) -> list[str]:
    pieces = occupant.repair_pieces(job.board, job.flash) if options.repair else {0: job.flash}
    size = sum(map(len, pieces.values()))
    found = ports(options.port)
    return [
        f"take the board on {found[0] if len(found) == 1 else f'{options.port} ({len(found)} there now)'}",
        f"refuse it unless it has an {job.board.chip.name}, {job.board.flash_size} of flash, is no other Kit "
        + ("and is this one" if options.repair else "and has an empty Journal"),
        f"write {size // SECTOR_BYTES * SECTOR_BYTES >> 10} KiB, image {job.sha256[:16]}"
        + (", and keep identity, bonds and Journal" if options.repair else ""),
        "have the chip make the digest of its flash, in a new session, and compare it",
        f"note in the bench's register that this board is Kit {job.kit}",
    ]
