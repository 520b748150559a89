"""Which Sensors a Kit's Gateway has bonded: by the Records of its newest Journal, not by the bench's word.

A value that came in pairing mode proves no bond; a session that began after the Sensor was off does. So each
Sensor is told with the number of its sessions since its bond was made.

A bond that has changed may be another Sensor's, or that of one whose batteries were changed: what it sends is
held until the operator, who has asked, accepts it.
"""

import sqlite3
from dataclasses import dataclass
from typing import Any

from gateway import record
from gateway.errors import FormatError
from gateway.record import Event, Sensor, SensorClock, decode_body
from sync_service import life
from sync_service.context import BOND_CHANGED
from sync_service.life import LifeError

MAX_RECORDS = 20_000
"""Of a Kit at the bench there are some hundred; a month with a patient has 10,000 that are no Frames."""


@dataclass
class _Bond:
    address: bytes
    serial: bytes = b""
    bonded: bool = False
    changed: bool = False
    clock_reads: int = 0  # one begins each session, where there is a clock
    drained: int = 0  # times that it went quiet


def told(db: sqlite3.Connection, kit: str) -> list[dict[str, Any]]:
    """The Sensors that the Kit has told of since its last wipe. Raises LifeError: no such Kit."""
    life.of(db, kit)
    row = db.execute(_NEWEST, (kit, kit)).fetchone()
    bonds: dict[int, _Bond] = {}
    for type, version, body in db.execute(_RECORDS, (*row, MAX_RECORDS)) if row else ():
        try:
            _learn(bonds, decode_body(type, version, body))
        except FormatError:
            continue  # quarantined where it was derived
    return [
        {
            "sensor": one.address.hex(":").upper(),
            "serial": one.serial.decode(errors="replace").strip("\0 \t\r\n"),
            "bonded": one.bonded,
            "changed": one.changed,
            "sessions": one.clock_reads or one.drained,
        }
        for one in bonds.values()
    ]


def accept(db: sqlite3.Connection, kit: str, sensor: str, now_ms: int) -> int:
    """Accept the changed bonds of a Sensor, as `held` names it; return how many Readings wait for that.

    Raises LifeError: no such Kit, or nothing of this Sensor is held for that.
    """
    life.of(db, kit)
    held = db.execute(_HELD, (kit, sensor, BOND_CHANGED)).fetchall()
    if not held:
        raise LifeError(
            f"nothing of {sensor} is held for a changed bond of Kit {kit}: see `homeward-sync held`"
        )
    # What has changed after the newest of them nobody has seen yet.
    newest = {(journal, body[0]): sequence for journal, sequence, body in held}
    for (journal, reference), last in newest.items():
        changed = [
            sequence
            for sequence, version, body in db.execute(_EVENTS, (journal, record.EVENT, last))
            if _is_changed(version, body, reference)
        ]
        db.executemany(_ACCEPT, [(journal, sequence, now_ms) for sequence in changed])
        db.execute(_DERIVE_AGAIN, (min(changed) - 1, journal))
    return len(held)


def _is_changed(version: int, body: bytes, sensor: int) -> bool:
    try:
        event = decode_body(record.EVENT, version, body)
    except FormatError:
        return False
    return isinstance(event, Event) and event.code == record.BOND_CHANGED and event.sensor == sensor


def _learn(bonds: dict[int, _Bond], body: object) -> None:
    if isinstance(body, Sensor):
        one = bonds.get(body.sensor)
        if one is None or one.address != body.address:
            one = bonds[body.sensor] = _Bond(body.address)
        one.serial = dict(body.items).get(record.SERIAL, one.serial)
    elif isinstance(body, (Event, SensorClock)) and (one := bonds.get(body.sensor)):
        if isinstance(body, SensorClock):
            one.clock_reads += body.kind == record.CLOCK_BEFORE
        elif body.code in (record.BOND_MADE, record.BOND_CHANGED):
            one.bonded, one.changed = True, body.code == record.BOND_CHANGED
            one.clock_reads = one.drained = 0
        elif body.code == record.SENSOR_DRAINED:
            one.drained += 1


_NEWEST = """
    select journal, through from journal
    where kit = ? and created_ms >= coalesce((select wiped_ms from kit where kit = ?), 0)
    order by created_ms desc, journal desc limit 1"""
_RECORDS = """
    select type, version, body from record
    where journal = ? and sequence <= ? and type <> 1 order by sequence limit ?"""
_HELD = """
    select reading.journal, reading.sequence, record.body
    from reading join journal using (journal)
    join record on record.journal = reading.journal and record.sequence = reading.sequence
    where journal.kit = ? and reading.sensor = ? and reading.state = 'held' and reading.reason = ?
    order by reading.sequence"""
_EVENTS = "select sequence, version, body from record where journal = ? and type = ? and sequence < ?"
_ACCEPT = "insert into accepted_bond values (?, ?, ?) on conflict do nothing"
_DERIVE_AGAIN = "update journal set derived_through = min(derived_through, ?) where journal = ?"
