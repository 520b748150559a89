"""The console: one page on loopback with each Kit's latest Readings, their time and where they are.

It names Kits, Sensors and Episodes, never a patient, and its address carries nothing. It only reads.
"""

import asyncio
import sqlite3
import time
from importlib import resources
from typing import Any
from urllib.parse import unquote

import orjson
from aiohttp import web

from gateway.errors import FormatError
from gateway.reading import NEVER, Reading, text
from gateway.record import Frame, decode_body
from gateway.sensors import decode
from sync_service.clock import Clock
from sync_service.context import SELF_TEST
from sync_service.derive import COUNT_UNDATED
from sync_service.store import Store, StoreError

LATEST = 12
"""Readings shown of a Kit: two days of a usual patient, one screen of a phone."""
ATTENTION = 20
"""Parked and held Readings shown, of each; the command line lists them all."""
FILES = {
    "/": ("console.html", "text/html"),
    "/console.css": ("console.css", "text/css"),
    "/console.js": ("console.js", "text/javascript"),
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_NAMES = {
    "spo2": "SpO₂",
    "pulse_rate": "pulse",
    "systolic": "systolic",
    "diastolic": "diastolic",
    "mean": "mean",
}
_UNITS = {"mm[Hg]": "mmHg"}
"""UCUM as people read it, where that differs."""
_USUAL = {"fully qualified data", "validated data"}
"""Status words that only say that all is well."""
_KINDS = {"spot_check": "Oxygen", "continuous": "Oxygen, streamed", "blood_pressure": "Blood pressure"}

_KITS = """
    select kit.kit, kit.state, kit.status, kit.status_ms, kit.seen_ms,
        (select episode from assignment where assignment.kit = kit.kit and end_ms is null
            order by start_ms desc limit 1),
        (select max(journal) from journal where journal.kit = kit.kit)
    from kit order by kit.kit"""
_READING = """
    select reading.reading, reading.sensor, reading.trust, reading.earliest_ms, reading.latest_ms,
        reading.quality, reading.state, reading.reason, reading.possible_repeat,
        record.type, record.version, record.body, outbox.state, outbox.attempts, outbox.answer, journal.kit
    from reading
    join journal using (journal)
    join record on record.journal = reading.journal and record.sequence = reading.sequence
    left join outbox using (reading)"""
_LATEST = _READING + " where reading.journal = ? order by reading.sequence desc limit ?"
# A parked one is shown as that: it is still to be taken back from a patient. A self-test waits for nobody.
_IS_HELD = f"reading.state = 'held' and reading.reason <> '{SELF_TEST}'"
_HELD = (
    _READING
    + f"""
    where {_IS_HELD} and coalesce(outbox.state, '') <> 'parked' order by reading.reading desc limit ?"""
)
_PARKED = _READING + " where outbox.state = 'parked' order by reading.reading desc limit ?"
_TOTALS = f"""
    select (select count(*) from outbox where state = 'queued'),
        (select count(*) from outbox where state = 'parked'),
        (select count(*) from reading where {_IS_HELD}),
        (select coalesce(sum(n), 0) from counter where kit = '' and name = 'delivered'),
        (select count(*) from conflict), (select count(*) from quarantine), ({COUNT_UNDATED})"""
_COUNTERS = "select name, n from counter where kit = ? order by name"


STORE = web.AppKey("store", Store)
CLOCK: web.AppKey[Clock | None] = web.AppKey("clock")


async def run(store: Store, *, host: str, port: int, clock: Clock | None = None) -> None:
    """Serve until cancelled. Raises OSError when the address is taken."""
    console = web.Application()
    console[STORE] = store
    console[CLOCK] = clock
    console.on_response_prepare.append(_add_headers)
    for path in FILES:
        console.router.add_get(path, _file)
    console.router.add_get("/state.json", _state)
    runner = web.AppRunner(console, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def state(db: sqlite3.Connection, now_ms: int) -> dict[str, Any]:
    """Everything that the page shows, as JSON values. Times are UTC ms; texts are for people."""
    totals = ("waiting", "parked", "held", "delivered", "conflicts", "quarantined", "undated")
    return {
        "now_ms": now_ms,
        "totals": dict(zip(totals, db.execute(_TOTALS).fetchone(), strict=True)),
        "kits": [_kit(db, *row) for row in db.execute(_KITS).fetchall()],
        "attention": [
            *_readings(db, _PARKED, (ATTENTION,)),
            *_readings(db, _HELD, (ATTENTION,)),
        ],
    }


def _kit(
    db: sqlite3.Connection,
    kit: str,
    state: str,
    status: str | None,
    status_ms: int | None,
    seen_ms: int | None,
    episode: str | None,
    journal: int | None,
) -> dict[str, Any]:
    said = orjson.loads(status) if status else {}  # an object; what is in it is the Kit's word alone
    pending = said.get("pending")
    return {
        "kit": kit,
        "state": state,
        "online": said.get("online"),
        "host_confirmed": said.get("host_confirmed") is True,
        "pending": pending if isinstance(pending, int) else None,
        "status_ms": status_ms,
        "seen_ms": seen_ms,
        "episode": episode,
        "readings": _readings(db, _LATEST, (journal, LATEST)) if journal else [],
        "counters": dict(db.execute(_COUNTERS, (kit,)).fetchall()),
    }


def _readings(db: sqlite3.Connection, query: str, arguments: tuple[int, ...]) -> list[dict[str, Any]]:
    return [_reading(*row) for row in db.execute(query, arguments)]


def _reading(
    number: int,
    sensor: str,
    trust: str,
    earliest_ms: int | None,
    latest_ms: int | None,
    quality: str | None,
    state: str,
    reason: str | None,
    possible_repeat: int,
    type: int,
    version: int,
    body: bytes,
    delivery: str | None,
    attempts: int | None,
    answer: str | None,
    kit: str,
) -> dict[str, Any]:
    kind, values, words = _meaning(type, version, body)
    return {
        "reading": number,
        "kit": kit,
        "sensor": sensor_name(sensor),
        "kind": kind,
        "values": values,
        "words": words,
        "trust": trust,
        "earliest_ms": earliest_ms,
        "latest_ms": latest_ms,
        "quality": quality,
        "state": delivery if delivery and (state == "queued" or delivery == "parked") else state,
        "attempts": attempts or 0,
        "why": _why(state, reason, delivery, answer),
        "possible_repeat": bool(possible_repeat),
    }


def _why(state: str, reason: str | None, delivery: str | None, answer: str | None) -> str | None:
    if state == "held" and delivery != "parked":
        return reason
    return answer if delivery in ("queued", "parked") else None


def _meaning(type: int, version: int, body: bytes) -> tuple[str, list[list[str]], list[str]]:
    """Kind, [name, number, unit] of each value that counts as one (P7), and the Sensor's status words."""
    try:
        frame = decode_body(type, version, body)
        assert isinstance(frame, Frame)
        reading = decode(frame.characteristic, frame.value)
    except FormatError:
        return "Not decodable", [], []
    assert isinstance(reading, Reading)
    words = [word for word in reading.status if word not in _USUAL]
    return _KINDS.get(reading.kind, reading.kind), _values(reading), words


def _values(reading: Reading) -> list[list[str]]:
    """A blood pressure is one value: 128/82."""
    if reading.trust == NEVER:
        return []
    values = [
        [_NAMES[value.name], number, _UNITS.get(value.unit, value.unit)]
        for value in reading.values
        if value.name in _NAMES and (number := text(value)) is not None
    ]
    if [name for name, _, _ in values[:2]] == ["systolic", "diastolic"]:
        (_, systolic, unit), (_, diastolic, _) = values[:2]
        values[:2] = [["BP", f"{systolic}/{diastolic}", unit]]
    return values


def sensor_name(identity: str) -> str:
    """A Sensor's identity as people write it: maker, model and serial as printed on it, else its address."""
    kind, _, rest = identity.partition(":")
    if kind == "serial":
        return " ".join(unquote(part) for part in rest.split("/") if part)
    if kind == "unknown":
        return f"unknown Sensor {rest.rpartition('/')[2]}"
    return f"{kind} {rest}"


async def _state(request: web.Request) -> web.Response:
    now_ms = time.time_ns() // 1_000_000
    try:
        shown = await request.app[STORE].read(lambda db: state(db, now_ms))
    except StoreError:
        raise web.HTTPServiceUnavailable from None
    clock = request.app[CLOCK]
    shown["clock_doubt"] = clock.doubt if clock else None
    return web.Response(body=orjson.dumps(shown), content_type="application/json")


async def _file(request: web.Request) -> web.Response:
    name, kind = FILES[request.path]
    page = resources.files("sync_service").joinpath(name).read_bytes()
    return web.Response(body=page, content_type=kind, charset="utf-8")


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
