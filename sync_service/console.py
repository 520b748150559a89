"""The console: one page on loopback with each Kit's latest Readings, their time and where they are.

It names Kits, Sensors and Episodes, never a patient, and its address carries nothing. It only reads.
"""

import asyncio
import json
import sqlite3
import time
from importlib import resources
from typing import Any

import orjson
from aiohttp import web

from gateway.errors import FormatError
from gateway.reading import Reading, text
from gateway.record import Frame, decode_body
from gateway.sensors import decode
from sync_service.store import Store

LATEST = 12
"""Readings shown of a Kit: two days of a usual patient, one screen of a phone."""
ATTENTION = 20
"""Held and parked Readings shown; the command line lists them all."""
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
_UNITS = {"%": "%", "/min": "/min", "mm[Hg]": "mmHg", "kPa": "kPa"}
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
_HELD = _READING + " where reading.state = 'held' order by reading.reading desc limit ?"
_PARKED = _READING + " where outbox.state = 'parked' order by reading.reading desc limit ?"
_TOTALS = """
    select (select count(*) from outbox where state = 'queued'),
        (select count(*) from outbox where state = 'parked'),
        (select count(*) from reading where state = 'held'),
        (select coalesce(sum(n), 0) from counter where kit = '' and name = 'delivered'),
        (select count(*) from conflict), (select count(*) from quarantine)"""
_COUNTERS = "select name, n from counter where kit = ? order by name"


STORE = web.AppKey("store", Store)


async def run(store: Store, *, host: str, port: int) -> None:
    """Serve until cancelled. Raises OSError when the address is taken."""
    console = web.Application()
    console[STORE] = store
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
    totals = ("waiting", "parked", "held", "delivered", "conflicts", "quarantined")
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
    said = json.loads(status) if status else {}
    return {
        "kit": kit,
        "state": state,
        "online": said.get("online"),
        "host_confirmed": said.get("host_confirmed", False),
        "pending": said.get("pending"),
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
        "sensor": sensor,
        "kind": kind,
        "values": values,
        "words": words,
        "trust": trust,
        "earliest_ms": earliest_ms,
        "latest_ms": latest_ms,
        "quality": quality,
        "state": delivery or state,
        "attempts": attempts or 0,
        "why": reason if state == "held" else answer if delivery == "parked" else None,
        "possible_repeat": bool(possible_repeat),
    }


def _meaning(type: int, version: int, body: bytes) -> tuple[str, list[list[str]], list[str]]:
    """Kind, [name, number, unit] of each value that is a number, and the Sensor's status words."""
    try:
        frame = decode_body(type, version, body)
        assert isinstance(frame, Frame)
        reading = decode(frame.characteristic, frame.value)
    except FormatError:
        return "Not decodable", [], []
    assert isinstance(reading, Reading)
    values = [
        [_NAMES[value.name], number, _UNITS.get(value.unit, value.unit)]
        for value in reading.values
        if value.name in _NAMES and (number := text(value)) is not None
    ]
    return _KINDS.get(reading.kind, reading.kind), values, list(reading.status)


async def _state(request: web.Request) -> web.Response:
    now_ms = time.time_ns() // 1_000_000
    shown = await request.app[STORE].read(lambda db: state(db, now_ms))
    return web.Response(body=orjson.dumps(shown), content_type="application/json", headers=HEADERS)


async def _file(request: web.Request) -> web.Response:
    name, kind = FILES[request.path]
    page = resources.files("sync_service").joinpath(name).read_bytes()
    return web.Response(body=page, content_type=kind, charset="utf-8", headers=HEADERS)
