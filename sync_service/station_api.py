"""The Station's API: what a technician's bench may ask and do. HTTPS, JSON, below /station/1/.

It listens only when `[station]` stands in sync.toml, with a certificate of the project CA. Every request
carries a technician's token. A request is checked whole before the Store is asked; one that is refused is one
sentence and changes nothing. It tells whether a Kit is with a patient, never with whom.

    GET  status                     the service's clock, and who the token says one is
    POST kits                       {series, count} -> {kits}: the next numbers, state `made`
    GET  kits/KIT                   life, access, self-test, Sensors, Journals, what is known to be unsent
    GET  kits/KIT/history           all that the bench has done with it
    POST kits/KIT/provision         {request} -> {certificate, ca, host, port}: signs a CSR, revokes what was
    POST kits/KIT/steps             {step, note}: flash, ready, ship, receive, lose, retire, revoke
    POST kits/KIT/label             {}: its label was printed
    POST kits/KIT/self-tests        {checks, journal, sequence}: passed or failed, check by check
    GET  kits/KIT/sensors           which Sensors its Gateway has bonded, by its own Records
    POST kits/KIT/sensors           {sensor, mark, note}
    POST kits/KIT/wipe              {receipt, given_up} -> {number}: revokes, keeps the receipt
"""

import asyncio
import json
import logging
import re
import sqlite3
import ssl
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from sync_service import identity, life, sensor_bonds, technicians
from sync_service.arrival import KIT
from sync_service.config import Config, StationApi
from sync_service.identity import IdentityError
from sync_service.life import LifeError, Step
from sync_service.store import Store, StoreError

T = TypeVar("T")
log = logging.getLogger(__name__)

PREFIX = "/station/1"
MAX_BODY_BYTES = 64 * 1024
"""A receipt with a self-test has 4 kB; a certificate request 500 bytes."""
MAX_NOTE = 300
MAX_CHECKS = 32
MAX_DEPTH = 8
"""Of a receipt: json would recurse as deep as it is told to."""
MAX_SEQUENCE = 2**32 - 1
BURST = 400
PER_MINUTE = 600
"""Of one technician: a hundred Kits take 300 requests, as fast as they are answered."""
REFUSALS_PER_MINUTE = 10
"""Of one address with wrong tokens: a person mistypes twice, a program does not get to try."""
REMEMBERED = 4_096
"""Addresses and technicians whose rate is kept, 100 bytes each; the oldest are forgotten."""
BY_HAND = ("flash", "ready", "ship", "receive", "lose", "retire", "revoke")
_REVOKES = ("revoke", "retire")
"""Whose certificate goes into the CRL, for good. A lost Kit is refused by ingest alone: it may be found,
with Records that are its patient's."""

_ADDRESS = re.compile(r"[0-9A-F]{2}(:[0-9A-F]{2}){5}")
_JOURNAL = re.compile(r"[0-9a-f]{16}")
_SERIES = re.compile(r"[A-Z]{2,4}")


_WHO: ContextVar[str] = ContextVar("technician")
"""Who asks, in the task of a request: `bench/NAME`, for the operators have names of their own."""


class Refused(Exception):
    """A request that is answered with a status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Rate:
    """A bucket for each name: full at the start, filled again at a steady rate."""

    def __init__(self, burst: float, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._per_s, self._clock = burst, per_minute / 60, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # name: (left, as of)

    def left(self, name: str) -> float:
        """How many more are allowed now."""
        before, at = self._buckets.get(name, (self._burst, 0.0))
        return min(self._burst, before + (self._clock() - at) * self._per_s)

    def take(self, name: str) -> bool:
        """Take one; False: there is none left."""
        left = self.left(name)
        if left < 1:
            return False
        self._buckets[name] = (left - 1, self._clock())
        self._buckets.move_to_end(name)
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        return True


class StationService:
    """The requests, over one Store and one project folder."""

    def __init__(
        self,
        store: Store,
        config: Config,
        station: StationApi,
        *,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._store, self._folder, self._station = store, config.folder, station
        self._broker_port = config.broker.port
        self._ca: Path = config.broker.ca
        self._clock_ms = clock_ms
        self._allowed = Rate(BURST, PER_MINUTE)
        self._refused = Rate(REFUSALS_PER_MINUTE, REFUSALS_PER_MINUTE)

    def application(self) -> web.Application:
        """The aiohttp application."""
        made = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._guard])
        made.router.add_get(f"{PREFIX}/status", self._status)
        made.router.add_post(f"{PREFIX}/kits", self._make)
        made.router.add_get(f"{PREFIX}/kits/{{kit}}", self._describe)
        made.router.add_get(f"{PREFIX}/kits/{{kit}}/history", self._history)
        made.router.add_get(f"{PREFIX}/kits/{{kit}}/sensors", self._sensors)
        for name, act in (
            ("provision", self._provision),
            ("steps", self._step),
            ("label", self._label),
            ("self-tests", self._self_test),
            ("sensors", self._mark),
            ("wipe", self._wipe),
        ):
            made.router.add_post(f"{PREFIX}/kits/{{kit}}/{name}", act)
        return made

    # --- Who asks -------------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            _WHO.set(f"bench/{await self._who(request)}")
            return await handler(request)
        except Refused as refused:
            return _problem(refused.status, str(refused))
        except (LifeError, IdentityError) as refused:
            unknown = str(refused).endswith("is not known")
            return _problem(404 if unknown else 409, str(refused))
        except web.HTTPException as refused:
            return _problem(refused.status, _HTTP.get(refused.status, refused.reason))
        except StoreError:
            return _problem(503, "the service can't write its Store just now: try again")

    async def _who(self, request: web.Request) -> str:
        """The technician. Raises Refused."""
        address = request.remote or "?"
        if self._refused.left(address) < 1:
            raise Refused(429, "too many wrong tokens from this address: wait a minute")
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        who = None
        if kind.lower() == "bearer" and token:
            who = await self._store.read(lambda db: technicians.whose(db, token.strip()))
        if who is None:
            self._refused.take(address)
            raise Refused(
                401, "the token is not known: ask the operator for one (`homeward-sync technician add`)"
            )
        if not self._allowed.take(who):
            raise Refused(429, f"technician {who} asks more than {PER_MINUTE} times a minute: wait a little")
        return who

    # --- Requests -------------------------------------------------------------------------------------------

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"now_ms": self._clock_ms(), "technician": _WHO.get().partition("/")[2], "version": 1}
        )

    async def _make(self, request: web.Request) -> web.Response:
        body = await _body(request, {"series": str, "count": int})
        if not _SERIES.fullmatch(body["series"]):
            raise Refused(400, "series must be 2 to 4 letters, like HW")
        who, now_ms = _WHO.get(), self._clock_ms()
        made = await self._store.write(
            lambda db: life.make(db, body["series"], body["count"], who=who, now_ms=now_ms)
        )
        return web.json_response({"kits": made}, status=201)

    async def _describe(self, request: web.Request) -> web.Response:
        kit = _kit(request)
        return web.json_response(await self._store.read(lambda db: life.describe(db, kit)))

    async def _history(self, request: web.Request) -> web.Response:
        kit = _kit(request)
        rows = await self._store.read(lambda db: life.history(db, kit, of_patients=False))
        return web.json_response({"history": rows})

    async def _sensors(self, request: web.Request) -> web.Response:
        kit = _kit(request)
        return web.json_response({"sensors": await self._store.read(lambda db: sensor_bonds.told(db, kit))})

    async def _provision(self, request: web.Request) -> web.Response:
        body = await _body(request, {"request": str})
        step = self._wanted(request, "provision")

        def provision(db: sqlite3.Connection) -> str:
            life.take(db, step)
            return identity.sign_kit(self._folder, step.kit, body["request"])

        certificate = await self._store.write(provision)
        return web.json_response(
            {
                "life": life.PROVISIONED,
                "certificate": certificate,
                "ca": self._ca.read_text(),
                "host": self._station.kit_host,
                "port": self._broker_port,
            }
        )

    async def _step(self, request: web.Request) -> web.Response:
        body = await _body(request, {"step": str}, {"note": str})
        if body["step"] not in BY_HAND:
            raise Refused(400, f"step must be one of {', '.join(BY_HAND)}")
        step = self._wanted(request, body["step"], body.get("note", ""))

        def take(db: sqlite3.Connection) -> str:
            now = life.take(db, step)
            if step.name in _REVOKES:
                self._revoke(step.kit)
            return now

        return await self._answer_life(take)

    async def _label(self, request: web.Request) -> web.Response:
        await _body(request, {})
        kit, who, now_ms = _kit(request), _WHO.get(), self._clock_ms()

        def label(db: sqlite3.Connection) -> str:
            life.label(db, kit, who=who, now_ms=now_ms)
            return life.of(db, kit)

        return await self._answer_life(label)

    async def _self_test(self, request: web.Request) -> web.Response:
        body = await _body(request, {"checks": list}, {"journal": str, "sequence": int})
        checks = _checks(body["checks"])
        passed = all(check["passed"] for check in checks)
        journal, sequence = body.get("journal", ""), body.get("sequence", 0)
        if passed and not (_JOURNAL.fullmatch(journal) and 0 < sequence <= MAX_SEQUENCE):
            raise Refused(400, "a passed self-test names the journal and sequence of its test Reading")
        step = self._wanted(request, "pass" if passed else "fail")

        def test(db: sqlite3.Connection) -> str:
            if passed and not life.holds_frame(db, step.kit, bytes.fromhex(journal), sequence):
                raise LifeError(
                    f"the test Reading of Kit {step.kit} has not come here: the self-test has not passed"
                )
            return life.record_test(db, step, checks)

        return await self._answer_life(test)

    async def _mark(self, request: web.Request) -> web.Response:
        body = await _body(request, {"sensor": str, "mark": str}, {"note": str})
        kit, who, now_ms = _kit(request), _WHO.get(), self._clock_ms()
        if not _ADDRESS.fullmatch(body["sensor"]):
            raise Refused(400, "sensor must be its address, like C0:FF:EE:00:00:01")
        note = _note(body.get("note", ""))

        def mark(db: sqlite3.Connection) -> str:
            life.mark(db, kit, body["sensor"], body["mark"], note, who=who, now_ms=now_ms)
            return life.of(db, kit)

        return await self._answer_life(mark)

    async def _wipe(self, request: web.Request) -> web.Response:
        body = await _body(request, {"receipt": dict}, {"given_up": str})
        given_up = _note(body.get("given_up", ""))
        step = self._wanted(request, "wipe", f"unsent given up: {given_up}" if given_up else "")
        receipt = body["receipt"]
        if receipt.get("kit") != step.kit or receipt.get("residue_bytes") != 0:
            raise Refused(400, "the receipt is not that of this Kit with residue_bytes 0")
        _check_depth(receipt)

        def wipe(db: sqlite3.Connection) -> int:
            missing = life.unsent(db, step.kit)
            if missing and not given_up:
                raise LifeError(f"Kit {step.kit} still has {missing} unsent Records by its own last word")
            number = life.wipe(db, step, receipt)
            self._revoke(step.kit)
            return number

        return web.json_response({"life": life.WIPED, "number": await self._store.write(wipe)}, status=201)

    # --- What they share ------------------------------------------------------------------------------------

    def _wanted(self, request: web.Request, name: str, note: str = "") -> Step:
        days = self._station.self_test_days
        return Step(_kit(request), name, _WHO.get(), self._clock_ms(), _note(note), days)

    def _revoke(self, kit: str) -> None:
        """Its certificate, when it has one."""
        if (self._folder / f"ca/issued/{kit}.pem").exists():
            identity.revoke_kit(self._folder, kit)

    async def _answer_life(self, work: Callable[[sqlite3.Connection], str]) -> web.Response:
        return web.json_response({"life": await self._store.write(work)})


async def run(store: Store, config: Config, station: StationApi) -> None:
    """Serve until cancelled. Raises OSError when the address is taken or the certificate can't be read."""
    runner = web.AppRunner(StationService(store, config, station).application(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, station.host, station.port, ssl_context=tls_context(station)).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def tls_context(station: StationApi) -> ssl.SSLContext:
    """Of the listener. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(station.certificate, station.key)
    return context


# --- What a request holds -----------------------------------------------------------------------------------

_HTTP = {
    404: "there is no such path: this service speaks /station/1/",
    405: "this path does not take that method",
    413: f"the body is larger than {MAX_BODY_BYTES} bytes",
}
_WORDS = {str: "a text", int: "a whole number", list: "a list", dict: "an object", bool: "true or false"}


def _problem(status: int, sentence: str) -> web.Response:
    return web.json_response({"problem": sentence}, status=status)


def _kit(request: web.Request) -> str:
    kit = request.match_info["kit"]
    if not KIT.fullmatch(kit):
        raise Refused(400, "a Kit's name looks like HW-0001-Z (2 to 16 of A-Z, 0-9 and '-')")
    return kit


async def _body(
    request: web.Request, needed: dict[str, type], optional: dict[str, type] | None = None
) -> dict[str, Any]:
    """The body: an object with exactly these keys and kinds. Raises Refused."""
    if request.content_type != "application/json":
        raise Refused(415, "the body must be application/json")
    try:
        body = json.loads(await request.read(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body is not an object")
    kinds = needed | (optional or {})
    for key in body:
        if key not in kinds:
            raise Refused(400, f"the body has an unknown key {key[:40]!r}")
        if type(body[key]) is not kinds[key]:
            raise Refused(400, f"{key} must be {_WORDS[kinds[key]]}")
    for key in needed:
        if key not in body:
            raise Refused(400, f"{key} is missing")
    return body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _note(note: str) -> str:
    if len(note) > MAX_NOTE or not note.isprintable():
        raise Refused(400, f"a note is one line of at most {MAX_NOTE} characters")
    return note


def _checks(rows: list[Any]) -> list[dict[str, Any]]:
    if not 0 < len(rows) <= MAX_CHECKS:
        raise Refused(400, f"a self-test has 1 to {MAX_CHECKS} checks")
    for row in rows:
        if not isinstance(row, dict) or row.keys() != {"name", "passed", "detail"}:
            raise Refused(400, "a check has name, passed and detail, and nothing else")
        if not isinstance(row["passed"], bool) or not isinstance(row["name"], str):
            raise Refused(400, "a check's name is a text, and passed is true or false")
        if not isinstance(row["detail"], str):
            raise Refused(400, "a check's detail is a text")
        _note(row["name"])
        _note(row["detail"])
    return rows


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise Refused(400, "the receipt is nested too deeply")
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(one, depth + 1)
