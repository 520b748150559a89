"""homeward-sync: the operator's command line. Every change is written to the audit log with who made it."""

import argparse
import asyncio
import getpass
import json
import logging
import secrets
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from sync_service import assignments, identity, life, outbox, sensor_bonds, store, technicians
from sync_service.app import STATE_FILE, is_running, serve
from sync_service.assignments import AssignmentError
from sync_service.config import FILE_NAME, Config, ConfigError, load
from sync_service.context import SELF_TEST
from sync_service.derive import COUNT_UNDATED
from sync_service.identity import IdentityError
from sync_service.life import LifeError
from sync_service.store import StoreError, audit, connect
from sync_service.technicians import TechnicianError

T = TypeVar("T")
Row = dict[str, Any]

_REFUSALS = (ConfigError, IdentityError, StoreError, AssignmentError, LifeError, TechnicianError)
_STATION = """
[station]
host = "{listen}"
port = {port}
kit_host = "{kit_host}"
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 for what can't be done, 2 for a wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (*_REFUSALS, sqlite3.Error, OSError) as error:
        print(f"homeward-sync: {error}", file=sys.stderr)
        return 1
    return 0


# --- Commands -----------------------------------------------------------------------------------------------


def _init(options: argparse.Namespace) -> None:
    folder: Path = options.folder
    identity.init(
        folder,
        names=options.name,
        listen=options.listen,
        port=options.port,
        console_port=options.console_port,
        hub=options.hub,
        zone=options.time_zone,
    )
    config = load(folder)
    _change(config, "init", "", lambda db: None)
    print(f"made {folder}; the broker will listen on {options.listen} port {config.broker.port}")
    print(f"  mosquitto -c {folder}/broker/mosquitto.conf")
    print(f"  homeward-sync --dir {folder} serve")


def _serve(options: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(serve(load(options.dir)))


def _kit_add(options: argparse.Namespace) -> None:
    config = load(options.dir)

    def add(db: sqlite3.Connection) -> Path:
        life.add(db, options.kit, life.PROVISIONED, who=getpass.getuser(), now_ms=_now_ms())
        return identity.add_kit(config.folder, options.kit)

    print(f"made {_written(config, add)}")


def _kit_revoke(options: argparse.Namespace) -> None:
    config = load(options.dir)
    step = life.Step(options.kit, "revoke", getpass.getuser(), _now_ms())

    def revoke(db: sqlite3.Connection) -> None:
        life.take(db, step)
        if (config.folder / f"ca/issued/{options.kit}.pem").exists():  # else it has never had one
            identity.revoke_kit(config.folder, options.kit)

    _written(config, revoke)
    print(f"Kit {options.kit} is revoked: nothing more of it is stored.")
    print("Send SIGHUP to Mosquitto and it can't connect again either.")


def _kit_history(options: argparse.Namespace) -> None:
    config = load(options.dir)
    with closing(connect(config.store)) as db:
        _show(options, life.history(db, options.kit))


def _technician_add(options: argparse.Namespace) -> None:
    config = load(options.dir)
    token = _change(
        config, "technician add", options.name, lambda db: technicians.add(db, options.name, _now_ms())
    )
    print(token)
    print(f"The token of {options.name}, shown this once. It goes into a file of mode 0600.", file=sys.stderr)


def _technician_revoke(options: argparse.Namespace) -> None:
    config = load(options.dir)
    _change(
        config, "technician revoke", options.name, lambda db: technicians.revoke(db, options.name, _now_ms())
    )
    print(f"the token of {options.name} is refused from now on")


def _technician_list(options: argparse.Namespace) -> None:
    with closing(connect(load(options.dir).store)) as db:
        _show(options, technicians.everybody(db))


def _station(options: argparse.Namespace) -> None:
    config = load(options.dir)
    if config.station is not None:
        raise ConfigError(f"{config.folder / FILE_NAME} has a [station] already")
    listen, port = options.listen, options.port or identity.free_port(options.listen)
    identity.station_pair(config.folder, [*options.name, listen])
    text = _STATION.format(listen=listen, port=port, kit_host=options.kit_host or config.broker.host)
    _change(config, "station", f"{listen} port {port}", lambda db: None)
    with (config.folder / FILE_NAME).open("a") as file:
        file.write(text)
    print(f"the Station's API will listen on {listen} port {port} from the next `homeward-sync serve` on")


def _kit_list(options: argparse.Namespace) -> None:
    _show(options, _rows(load(options.dir), _KITS))


def _assign(options: argparse.Namespace) -> None:
    config = load(options.dir)
    start_ms = _time(options.start, config.zone)
    episode = options.episode or f"E-{secrets.token_hex(4)}"

    def assign(db: sqlite3.Connection) -> int:
        return assignments.assign(
            db,
            options.kit,
            episode,
            options.patient,
            start_ms,
            now_ms=_now_ms(),
            max_bracket_ms=config.max_bracket_ms,
        )

    detail = f"{options.kit} {episode} {options.patient} from {_utc(start_ms)}"
    number = _change(config, "assign", detail, assign, options.kit)
    _show(options, [{"assignment": number, "kit": options.kit, "episode": episode, "start": _utc(start_ms)}])


def _return(options: argparse.Namespace) -> None:
    config = load(options.dir)
    end_ms = _time(options.at, config.zone)
    detail = f"{options.kit} at {_utc(end_ms)}"
    ended = _change(
        config, "return", detail, lambda db: assignments.end(db, options.kit, end_ms), options.kit
    )
    _show(options, [{"kit": options.kit, "end": _utc(end_ms), **ended._asdict()}])


def _readings(options: argparse.Namespace) -> None:
    where, values = ("where journal.kit = ?", (options.kit,)) if options.kit else ("", ())
    query = f"{_READINGS} {where} order by reading.reading desc limit ?"
    _show(options, _rows(load(options.dir), query, (*values, options.limit)))


def _held(options: argparse.Namespace) -> None:
    _show(options, _rows(load(options.dir), _HELD))


def _accept_bond(options: argparse.Namespace) -> None:
    config = load(options.dir)
    waiting = _change(
        config,
        "accept-bond",
        f"{options.kit} {options.sensor}",
        lambda db: sensor_bonds.accept(db, options.kit, options.sensor, _now_ms()),
        options.kit,
    )
    _show(options, [{"released": waiting}])


def _parked(options: argparse.Namespace) -> None:
    _show(options, _rows(load(options.dir), _PARKED))


def _replay(options: argparse.Namespace) -> None:
    def replay(db: sqlite3.Connection) -> int:
        wanted = options.reading or [row[0] for row in db.execute(_PARKED_READINGS)]
        return outbox.replay(db, wanted, _now_ms())

    detail = " ".join(map(str, options.reading)) or "all"
    replayed = _change(load(options.dir), "replay", detail, replay)
    _show(options, [{"replayed": replayed}])


def _backup(options: argparse.Namespace) -> None:
    config = load(options.dir)
    store.copy(config.store, options.file)
    _change(config, "backup", str(options.file), lambda db: None)
    print(f"copied the Store to {options.file}; the keys are in {config.folder / 'ca'}")


def _restore(options: argparse.Namespace) -> None:
    config = load(options.dir)
    if is_running(config.store):
        raise StoreError("the service is running: stop it first")
    issued, who = identity.issued(config.folder), getpass.getuser()  # before anything is moved
    replaced = store.restore(config.store, options.file, f".before-{_now_ms()}")
    recall = partial(life.recall, issued=issued, who=who, now_ms=_now_ms())
    for kit in _change(config, "restore", str(options.file), recall):
        print(f"Kit {kit} is {'revoked' if issued[kit].revoked else 'there'} again, by its certificate")
    if replaced:
        print(f"the Store as it was is now {replaced}")
    print("Now enter again what was entered since that backup: assign, return, steps of a Kit's life.")
    print("Then `homeward-sync recheck`, and start the service: the Kits send what it lacks.")


def _recheck(options: argparse.Namespace) -> None:
    config = load(options.dir)
    action = "recheck of a restored Hub" if options.hub_restored else "recheck"
    looked_at = _change(
        config,
        action,
        "all that is delivered",
        lambda db: outbox.look_again(db, _now_ms(), hub_restored=options.hub_restored),
    )
    if options.hub_restored and is_running(config.store):
        print("Restart the service: it remembers Devices that the Hub may have lost.", file=sys.stderr)
    _show(options, [{"looked_at": looked_at}])


def _counters(options: argparse.Namespace) -> None:
    _show(options, _rows(load(options.dir), "select kit, name, n from counter order by kit, name"))


def _status(options: argparse.Namespace) -> None:
    config = load(options.dir)
    running = is_running(config.store)
    state = _service_state(config.folder) if running else {}
    totals = _rows(config, _TOTALS)[0]
    if options.json:
        print(json.dumps({"running": running, "service": state, **totals}))
        return
    about = {"service": f"running, process {state.get('pid')}" if running else "not running"}
    about |= {name: state[name] for name in ("broker", "store", "clock", "console") if name in state}
    for name, value in {**about, **state.get("restarts", {}), **totals}.items():
        print(f"{name:12} {value}")


# --- The Store ----------------------------------------------------------------------------------------------

_KITS = """
    select kit.kit, kit.state, kit.life, kit.created_ms, kit.seen_ms, kit.status_ms, assignment.episode
    from kit left join assignment on assignment.kit = kit.kit and assignment.end_ms is null
    order by kit.kit"""
_READINGS = """
    select reading.reading, journal.kit, reading.sensor, reading.trust, reading.earliest_ms,
        reading.latest_ms, reading.quality, coalesce(outbox.state, reading.state) as state, reading.repeat_of,
        reading.possible_repeat, outbox.attempts
    from reading join journal using (journal) left join outbox using (reading)"""
_HELD = f"""
    select reading.reading, journal.kit, reading.sensor, reading.earliest_ms, reading.latest_ms,
        reading.reason
    from reading join journal using (journal)
    where reading.state = 'held' and reading.reason <> '{SELF_TEST}' order by reading.reading"""
_PARKED = """
    select outbox.reading, journal.kit, outbox.attempts, outbox.answer
    from outbox join reading using (reading) join journal using (journal)
    where outbox.state = 'parked' order by outbox.reading"""
_PARKED_READINGS = "select reading from outbox where state = 'parked'"
_TOTALS = f"""
    select (select count(*) from kit where state = 'active') as kits,
        (select count(*) from record) as records,
        (select count(*) from reading) as readings,
        (select count(*) from reading where state = 'held' and reason <> '{SELF_TEST}') as held,
        (select count(*) from outbox where state = 'queued') as waiting,
        (select count(*) from outbox where state = 'parked') as parked,
        (select count(*) from outbox where state = 'done') as delivered,
        (select count(*) from conflict) as conflicts,
        (select count(*) from quarantine) as quarantined,
        ({COUNT_UNDATED}) as undated"""


def _change(
    config: Config,
    action: str,
    detail: str,
    work: Callable[[sqlite3.Connection], T],
    kit: str | None = None,
) -> T:
    """Run `work` and note it in the audit log, in one transaction. Raises what `work` raises, StoreError."""

    def change(db: sqlite3.Connection) -> T:
        result = work(db)
        audit(db, _now_ms(), getpass.getuser(), action, detail, kit)
        return result

    return _written(config, change)


def _written(config: Config, work: Callable[[sqlite3.Connection], T]) -> T:
    """Run `work` in one transaction. Raises what it raises, StoreError."""
    with closing(connect(config.store)) as db:
        db.execute("begin immediate")
        try:
            result = work(db)
        except BaseException:
            db.rollback()
            raise
        db.commit()
        return result


def _rows(config: Config, query: str, values: Sequence[object] = ()) -> list[Row]:
    with closing(connect(config.store)) as db:
        found = db.execute(query, values)
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found]


def _service_state(folder: Path) -> Row:
    try:
        state: Row = json.loads((folder / STATE_FILE).read_text())
    except (OSError, ValueError):
        return {}  # it is starting
    return state


# --- What people read and write -----------------------------------------------------------------------------


def _show(options: argparse.Namespace, rows: list[Row]) -> None:
    """As JSON, else as a table with times that people can read."""
    if options.json:
        print(json.dumps(rows))
    elif rows:
        lines = [[name.removesuffix("_ms") for name in rows[0]]]
        lines += [[_cell(name, value) for name, value in row.items()] for row in rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    return _utc(value) if name.endswith("_ms") and isinstance(value, int) else str(value)


def _utc(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(text: str, zone: ZoneInfo) -> int:
    """UTC in ms of an ISO 8601 time; without an offset it is the homes' local time. Raises ConfigError."""
    if text == "now":
        return _now_ms()
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a time like 2026-03-31T14:30 or 2026-03-31T13:30Z") from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=zone)
        if when.utcoffset() != when.replace(fold=1).utcoffset():
            raise ConfigError(f"the clocks change at {text}: give it with its offset, like {text}+01:00")
    return round(when.timestamp() * 1000)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# --- Usage --------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="homeward-sync", description=__doc__)
    about = "made by `init` (default: the current folder)"
    parser.add_argument("--dir", type=Path, default=Path(), help=about)
    # Also after the command, where it must not bring its default.
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--dir", type=Path, default=argparse.SUPPRESS, help=about)
    form = argparse.ArgumentParser(add_help=False)
    form.add_argument("--json", action="store_true", help="for programs")
    commands = parser.add_subparsers(required=True, metavar="command")

    init = _command(commands, "init", _init, "make the CA, the broker's configuration and sync.toml", [])
    init.add_argument("folder", type=Path, metavar="DIR")
    init.add_argument(
        "--name", action="append", default=[], help="host name or address of the broker; repeat"
    )
    init.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS", help="that the broker listens on")
    init.add_argument("--port", type=int, default=0, help="of the broker (default: a free one)")
    init.add_argument("--console-port", type=int, default=0, help="of the page (default: a free one)")
    init.add_argument("--hub", default="http://127.0.0.1:8080", metavar="URL", help="FHIR R4 base address")
    init.add_argument("--time-zone", default="Europe/London", help="of the homes")

    _command(commands, "serve", _serve, "run the service", [where])
    kit = commands.add_parser("kit", help="add, revoke or list Kits").add_subparsers(
        required=True, metavar="add|revoke|list|history"
    )
    _command(kit, "add", _kit_add, "make a Kit's certificate", [where]).add_argument("kit")
    _command(kit, "revoke", _kit_revoke, "store nothing more of a Kit", [where]).add_argument("kit")
    _command(kit, "list", _kit_list, "every Kit and whom it is with", [where, form])
    _command(kit, "history", _kit_history, "all that was done with a Kit", [where, form]).add_argument("kit")
    _station_commands(commands, where, form)

    assign = _command(commands, "assign", _assign, "give a Kit to a patient", [where, form])
    assign.add_argument("kit")
    assign.add_argument("--patient", required=True, metavar="Patient/ID", help="the Hub's reference")
    assign.add_argument("--episode", help="name of the monitoring period (default: a new one)")
    assign.add_argument("--from", dest="start", default="now", metavar="TIME", help="ISO 8601 (default: now)")
    back = _command(commands, "return", _return, "end a Kit's Assignment", [where, form])
    back.add_argument("kit")
    back.add_argument("--at", default="now", metavar="TIME", help="ISO 8601 (default: now)")

    readings = _command(commands, "readings", _readings, "the newest Readings", [where, form])
    readings.add_argument("--kit")
    readings.add_argument("--limit", type=int, default=50)
    _command(commands, "held", _held, "Readings that belong to nobody yet, and why", [where, form])
    about = "a Sensor whose bond has changed is the one that it was: release what is held for that"
    bond = _command(commands, "accept-bond", _accept_bond, about, [where, form])
    bond.add_argument("kit")
    bond.add_argument("sensor", help="as `held` names it")
    _command(commands, "parked", _parked, "Readings that the Hub refused, and why", [where, form])
    replay = _command(commands, "replay", _replay, "deliver parked Readings again", [where, form])
    replay.add_argument("reading", type=int, nargs="*", help="numbers (default: all that are parked)")
    backup = _command(commands, "backup", _backup, "copy the Store while the service runs", [where])
    backup.add_argument("file", type=Path, metavar="FILE", help="a new file")
    restore = _command(commands, "restore", _restore, "put a copy in the place of the Store", [where])
    restore.add_argument("file", type=Path, metavar="FILE", help="made by `backup`")
    about = "after a restored backup: compare everything delivered with what the Hub holds"
    recheck = _command(commands, "recheck", _recheck, about, [where, form])
    recheck.add_argument("--hub-restored", action="store_true", help="it was the Hub's backup")
    _command(commands, "counters", _counters, "what was refused or repeated", [where, form])
    _command(commands, "status", _status, "how the service is", [where, form])
    return parser


def _station_commands(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    where: argparse.ArgumentParser,
    form: argparse.ArgumentParser,
) -> None:
    """What lets the technicians' bench in."""
    station = _command(commands, "station", _station, "let the technicians' bench in: its API", [where])
    station.add_argument(
        "--name", action="append", default=[], help="host name or address that the bench knows; repeat"
    )
    station.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS", help="that the API listens on")
    station.add_argument("--port", type=int, default=0, help="of the API (default: a free one)")
    station.add_argument(
        "--kit-host", metavar="HOST", help="the broker as Kits know it (default: broker.host)"
    )
    people = commands.add_parser("technician", help="who may use the bench").add_subparsers(
        required=True, metavar="add|revoke|list"
    )
    _command(people, "add", _technician_add, "make a token; it is shown once", [where]).add_argument("name")
    _command(people, "revoke", _technician_revoke, "refuse a token", [where]).add_argument("name")
    _command(people, "list", _technician_list, "everybody who has or had a token", [where, form])


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], None],
    about: str,
    parents: Iterable[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=about, description=about, parents=list(parents))
    parser.set_defaults(run=run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
