"""The development Hub: a small FHIR R4 server over HTTP for the demo, the tests and the bench.

    python -m hw.virtual.hub --store hub.sqlite [--port N] [--ready-file F] [--token-file F] [--faults]

It stands for the hospital's Hub and is stricter than most: it refuses malformed resources, claims of UK Core
profiles that are not met, references to nobody, and Observations that it already holds. The one rule: what it
has answered is on disk (`hub_store`). It never logs a URL, a body or a diagnostic: any of them may name a
patient.

    GET  /metadata
    GET  /Type?identifier= patient= subject= code= _id= _profile= _count= _offset= _sort= _summary=count
    GET  /Type/ID
    POST /Type      create; with If-None-Exist: conditional
    PUT  /Type/ID   update; ids are the Hub's own; with If-Match: only of that version
    POST /          Bundle: transaction (all or nothing, urn:uuid resolved) or batch (each entry for itself)

Left out, because nothing here needs it: history, delete, patch, XML, chained search, conditional update.
Decimals pass through a binary float: 97.10 comes back as 97.1.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hmac
import json
import logging
import re
import signal
import sqlite3
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode

import orjson
from aiohttp import web

from hw.virtual.hub_store import Store, Token, Tokens, identifiers_of, postings_of
from hw.virtual.hub_validation import (
    BLOOD_PRESSURE,
    CUFF,
    TYPES,
    Issue,
    Refusal,
    Resource,
    check_rules,
    claims,
    form,
    model_check,
    refuse,
)

FHIR_JSON = "application/fhir+json"

# A Bundle of 5,000 Observations; more in one request only delays the commit of everybody else.
MAX_BODY_BYTES = 8 << 20
# The default of 64 KiB pauses the socket seven times in a Bundle of 500.
READ_BYTES = 1 << 20
PAGE, MAX_PAGE = 50, 1000

# Good forms remembered (`hub_validation.form`). A feed has about a dozen for each patient.
FORMS = 10_000

# Objects made between two looks for garbage in cycles: one Bundle parsed is 10,000, and none of them is one.
COLLECT_EVERY = 100_000

# Requests that a fault leaves hanging are cut off this long after the Hub is told to stop.
SHUTDOWN_S = 0.5

# Every Reference.reference in a serialised resource. Inside a JSON string the quotes would be escaped, so
# this finds no text; it costs 0.7 us where walking the tree costs 6.
_REFERENCE = re.compile(rb'"reference":"([^"]*)"')

_REASONS = {200: "200 OK", 201: "201 Created"}
_ISSUE_OF_STATUS = {
    409: "conflict",
    412: "multiple-matches",
    429: "throttled",
    503: "transient",
    400: "invalid",
}

log = logging.getLogger("hub")


@dataclass(slots=True)
class Write:
    """One create or update, as asked for: alone or as an entry of a Bundle."""

    kind: str
    key: str | None  # the id in the URL of an update
    resource: Resource
    condition: str | None = None  # If-None-Exist
    match: str | None = None  # If-Match: the version that an update is of, W/"2"
    full_url: str | None = None
    at: int = 0  # which entry of its Bundle


@dataclass(slots=True)
class Change:
    """One Write, decided: what will be answered, and the resource to append unless it exists already."""

    status: int
    key: int
    version: int
    write: Write
    tokens: Tokens
    appends: bool = True  # False: exists already
    line: bytes = b""

    @property
    def reference(self) -> str:
        return f"{self.write.kind}/{self.key}"


class Hub:
    """Decides and applies Writes, and searches. No HTTP, no waiting: `settle` comes before the answer."""

    def __init__(self, store: Store, *, models: bool = True) -> None:
        self.store = store
        self._check_model = model_check() if models else None
        self._good_forms: dict[bytes, tuple[Token, ...]] = {}  # -> postings
        self._there: set[bytes] = set()  # Patients and Devices that were referred to; nothing is ever deleted

    def apply(self, writes: list[Write], taken: set[str], *, now: str) -> list[Change]:
        """Apply all or, raising Refusal that says at which entry, none.

        `taken` holds the keys that this request has used so far. A key twice in one request is a mistake of
        the sender that a real server, racing with itself, may turn into two resources: refused, not resolved.
        """
        changes: list[Change] = []
        sequence = self.store.next_key
        try:
            for write in writes:
                changes.append(self._decide(write, taken, sequence))
                # Each appended version takes one sequence, and a created resource has it as its key.
                sequence += changes[-1].appends
            renamed = {c.write.full_url.encode(): c.reference.encode() for c in changes if c.write.full_url}
            planned = {change.reference: change.write.resource for change in changes if change.appends}
            for change in changes:
                write = change.write
                if change.appends:
                    self._finish(change, renamed, planned, now)
        except Refusal as refusal:
            refusal.entry = write.at
            raise
        for change in changes:
            if change.appends:
                self.store.append(change.line, change.write.resource, change.tokens)
        return changes

    def search(self, kind: str, query: list[tuple[str, str]]) -> Sequence[int]:
        """Ascending keys that match every parameter; a comma means or. Refusal 400 for one not known."""
        if len(query) == 1 and "," not in query[0][1]:
            return self._match(kind, *query[0])
        found: set[int] | None = None
        for name, value in query:
            one = {key for each in value.split(",") for key in self._match(kind, name, each)}
            found = one if found is None else found & one
        return self.store.of_type(kind) if found is None else sorted(found)

    def find(self, kind: str, text: str) -> int:
        """The key behind an id in a URL. Refusal 404."""
        if self.store.has(kind, _key(text)):
            return _key(text)
        raise refuse(404, "not-found", f"there is no {kind} with this id")

    def _match(self, kind: str, name: str, value: str) -> Sequence[int]:
        if name == "identifier":
            system, _, token = value.rpartition("|")
            return self.store.identified(kind, system, token)
        if name in ("patient", "subject"):
            return self.store.posted(kind, "patient", value if "/" in value else f"Patient/{value}")
        if name == "code":
            return self.store.posted(kind, name, value if "|" in value else f"|{value}")
        if name == "_profile":
            return self.store.posted(kind, name, value)
        if name == "_id":
            return [_key(value)] if self.store.has(kind, _key(value)) else []
        raise refuse(400, "not-supported", f"this hub cannot search {kind} by {name!r}")

    def _decide(self, write: Write, taken: set[str], next_key: int) -> Change:
        tokens = self._check(write)
        if write.key is not None:
            return self._decide_update(write, tokens, taken)
        if write.condition is not None:
            existing = self._existing(write, write.condition, tokens, taken)
            if existing is not None:
                return Change(200, existing, self.store.version(existing), write, tokens, False)
        self._refuse_duplicate(tokens, taken, None)
        return Change(201, next_key, 1, write, tokens)

    def _check(self, write: Write) -> Tokens:
        resource = write.resource
        if not isinstance(resource, dict) or resource.get("resourceType") != write.kind:
            raise refuse(400, "structure", f"the resource is not a {write.kind}", "resourceType")
        if self._check_model:
            self._check_model(resource)
        try:
            identifiers = identifiers_of(resource)
            shape = form(resource)
            if shape not in self._good_forms:
                check_rules(resource)
                self._remember(shape, postings_of(resource))
            return Tokens(identifiers, self._good_forms[shape])
        except (AttributeError, KeyError, TypeError):
            # Without the models only: a string, a list or nothing where FHIR has something else.
            raise refuse(
                400, "structure", "an element has not the shape that FHIR gives it", write.kind
            ) from None

    def _remember(self, shape: bytes, postings: tuple[Token, ...]) -> None:
        if len(self._good_forms) >= FORMS:
            self._good_forms.clear()
        self._good_forms[shape] = postings

    def _decide_update(self, write: Write, tokens: Tokens, taken: set[str]) -> Change:
        text = write.key or ""
        if write.resource.get("id") != text:
            raise refuse(
                400, "invalid", "the id in the resource is not the id in the URL", f"{write.kind}.id"
            )
        key = _key(text)
        if not self.store.has(write.kind, key):
            raise refuse(
                405, "not-supported", "ids are given by this hub: update cannot create", f"{write.kind}.id"
            )
        if write.match is not None and write.match != f'W/"{self.store.version(key)}"':
            raise refuse(412, "conflict", "the resource has another version by now", "If-Match")
        if f"{write.kind}/{text}" in taken:
            raise refuse(409, "duplicate", "one Bundle updates this resource twice")
        taken.add(f"{write.kind}/{text}")
        self._refuse_duplicate(tokens, taken, key)
        return Change(200, key, self.store.version(key) + 1, write, tokens)

    def _existing(self, write: Write, condition: str, tokens: Tokens, taken: set[str]) -> int | None:
        name = f"{write.kind}?{condition}"
        if name in taken:
            raise refuse(409, "duplicate", "one Bundle has this condition twice", "entry.request.ifNoneExist")
        taken.add(name)
        query = _condition(condition)
        matches = self.search(write.kind, query)
        if len(matches) > 1:
            raise refuse(412, "multiple-matches", f"the condition matches {len(matches)} resources")
        if matches:
            return matches[0]
        for parameter, value in query:
            # A resource that does not meet its own condition would be created anew at each repetition.
            if parameter == "identifier" and not _carries(tokens, value):
                raise refuse(
                    422, "business-rule", "the resource lacks the identifier of its condition", parameter
                )
        return None

    def _refuse_duplicate(self, tokens: Tokens, taken: set[str], own: int | None) -> None:
        for kind, system, value in tokens.identifiers:
            # Patients and Devices may share an identifier in a real hospital; a measurement is itself alone.
            if kind != "Observation":
                return
            name = f"{system}|{value}"
            if name in taken or self.store.identified(kind, system, value) not in ((), (own,)):
                raise refuse(
                    409, "duplicate", "an Observation with this identifier exists", "Observation.identifier"
                )
            taken.add(name)

    def _finish(
        self, change: Change, renamed: dict[bytes, bytes], planned: dict[str, Resource], now: str
    ) -> None:
        """Give the resource its id and meta, resolve and check its references."""
        resource = change.write.resource
        resource["id"] = str(change.key)
        meta = resource.setdefault("meta", {})
        meta["versionId"], meta["lastUpdated"] = str(change.version), now
        change.line = orjson.dumps(resource)
        if b'"reference":"urn:' in change.line:
            change.line = _REFERENCE.sub(lambda m: b'"reference":"%b"' % renamed.get(m[1], m[1]), change.line)
            change.write.resource = resource = orjson.loads(change.line)
            change.tokens = Tokens.of(resource)
        for target in _REFERENCE.findall(change.line):
            if target not in self._there:
                self._check_reference(target.decode(), planned)
        if "device" in resource and ("Observation", "_profile", BLOOD_PRESSURE) in change.tokens.postings:
            self._check_cuff(resource["device"].get("reference", ""), planned)

    def _check_reference(self, target: str, planned: dict[str, Resource]) -> None:
        kind, _, key = target.partition("/")
        if target in planned:
            return
        if kind in TYPES and self.store.has(kind, _key(key)):
            if kind in ("Patient", "Device"):
                self._there.add(target.encode())
        elif kind in TYPES or target.startswith("urn:") or "?" in target:
            raise refuse(
                422,
                "not-found",
                f"a reference to {kind.partition('?')[0]} leads to nothing here",
                "reference",
            )

    def _check_cuff(self, target: str, planned: dict[str, Resource]) -> None:
        """UK Core: device only DeviceMetric (not served here) or UKCore-Device-BloodPressure."""
        if target in planned:
            meets = CUFF in claims(planned[target])
        else:
            meets = _key(target.removeprefix("Device/")) in self.store.posted("Device", "_profile", CUFF)
        if not meets:
            raise refuse(
                422, "invariant", f"device has to be a Device that claims {CUFF}", "Observation.device"
            )


def _key(text: str) -> int:
    """The key that an id stands for; 0, which no resource has, if it is none of this hub's."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


def _condition(text: str) -> list[tuple[str, str]]:
    """The query of an If-None-Exist. One that says nothing would match everything: Refusal 400."""
    if text.startswith("identifier=") and not any(sign in text for sign in "&%+"):
        query = [("identifier", text[11:])]
    else:
        query = parse_qsl(text.rpartition("?")[2], keep_blank_values=True)
    if not query or not all(value for _, value in query):
        raise refuse(400, "invalid", "the condition is empty", "entry.request.ifNoneExist")
    return query


def _carries(tokens: Tokens, identifier: str) -> bool:
    system, _, value = identifier.rpartition("|")
    return any(value == held[2] and system in ("", held[1]) for held in tokens.identifiers)


def entry_write(entry: Any, at: int) -> Write:
    """One Bundle.entry as a Write. Refusal 400, 404 or 405, with the number of the entry."""
    try:
        return _entry_write(entry, at)
    except Refusal as refusal:
        refusal.entry = at
        raise


def _entry_write(entry: Any, at: int) -> Write:
    try:
        request, resource = entry["request"], entry["resource"]
        method, url = request["method"], request["url"]
        kind, key = _split_url(url)
        condition, full_url = request.get("ifNoneExist"), entry.get("fullUrl")
    except (AttributeError, KeyError, TypeError):
        raise refuse(
            400, "structure", "an entry needs request.method, request.url and resource", "entry"
        ) from None
    if method == "POST" and key is None:
        return Write(kind, None, resource, condition, None, full_url, at)
    if method == "PUT" and key is not None:
        return Write(kind, key, resource, None, request.get("ifMatch"), full_url, at)
    raise refuse(405, "not-supported", "an entry has to be POST Type or PUT Type/ID", "entry.request")


def _split_url(url: str) -> tuple[str, str | None]:
    kind, slash, key = url.partition("/")
    if kind not in TYPES:
        raise refuse(404, "not-supported", f"this hub serves {', '.join(TYPES)}", "entry.request.url")
    return kind, key if slash else None


def run_bundle(hub: Hub, bundle: Any, *, now: str, spoiled: dict[int, int]) -> bytes:
    """Apply a Bundle and return the response Bundle as JSON; Refusal for a transaction that is not possible.

    `spoiled` makes entries fail by fault injection: index -> status.
    """
    kind, entries = _bundle_parts(bundle)
    if kind == "transaction":
        answers = [_entry_answer(change, now) for change in _transact(hub, entries, now, spoiled)]
    else:
        taken: set[str] = set()
        answers = [_run_entry(hub, entry, at, taken, now, spoiled) for at, entry in enumerate(entries)]
    return b'{"resourceType":"Bundle","type":"%b-response","entry":[%b]}' % (
        kind.encode(),
        b",".join(answers),
    )


def _bundle_parts(bundle: Any) -> tuple[str, list[Any]]:
    if not isinstance(bundle, dict) or bundle.get("resourceType") != "Bundle":
        raise refuse(400, "structure", "the root of this hub takes a Bundle", "resourceType")
    if bundle.get("type") not in ("batch", "transaction"):
        raise refuse(400, "not-supported", "a Bundle has to be a batch or a transaction", "Bundle.type")
    entries = bundle.get("entry", [])
    if not isinstance(entries, list):
        raise refuse(400, "structure", "entry has to be a list", "Bundle.entry")
    return bundle["type"], entries


def _transact(hub: Hub, entries: list[Any], now: str, spoiled: dict[int, int]) -> list[Change]:
    try:
        for at in spoiled:
            raise _injected(spoiled[at], at)
        return hub.apply([entry_write(entry, at) for at, entry in enumerate(entries)], set(), now=now)
    except Refusal as refusal:
        where = f"entry[{refusal.entry}]"
        issues = [Issue(one.code, f"{where}: {one.diagnostics}", f"Bundle.{where}") for one in refusal.issues]
        raise Refusal(refusal.status, issues) from None


def _run_entry(hub: Hub, entry: Any, at: int, taken: set[str], now: str, spoiled: dict[int, int]) -> bytes:
    try:
        if at in spoiled:
            raise _injected(spoiled[at], at)
        (change,) = hub.apply([entry_write(entry, at)], taken, now=now)
    except Refusal as refusal:
        return b'{"response":{"status":"%d","outcome":%b}}' % (refusal.status, outcome(refusal.issues))
    return _entry_answer(change, now)


def _entry_answer(change: Change, now: str) -> bytes:
    return (
        f'{{"response":{{"status":"{_REASONS[change.status]}","etag":"W/\\"{change.version}\\"",'
        f'"location":"{change.reference}/_history/{change.version}","lastModified":"{now}"}}}}'
    ).encode()


def _injected(status: int, at: int | None = None) -> Refusal:
    code = _ISSUE_OF_STATUS.get(status, "exception")
    return Refusal(status, [Issue(code, f"injected fault {status}", "")], entry=at)


def outcome(issues: list[Issue]) -> bytes:
    """An OperationOutcome as JSON."""
    return orjson.dumps({"resourceType": "OperationOutcome", "issue": [_issue(one) for one in issues]})


def _issue(issue: Issue) -> Resource:
    found = {"severity": "error", "code": issue.code, "diagnostics": issue.diagnostics}
    return found | {"expression": [issue.expression]} if issue.expression else found


@dataclass(slots=True)
class Fault:
    """One misbehaviour, for the next `times` requests (of `method`, if given). What each is for:

    status                answers `status` (400, 429, 503, ...), with Retry-After if given; stores nothing
    entry                 one entry (index `entry`) of a Bundle fails with `status`: it must block no other
    slow                  waits `seconds` before it begins: deadlines and concurrent deliveries overlap
    hang                  never answers: only the client's own deadline ends it
    close_before_commit   reads the request, stores nothing, closes: the repetition has to create
    close_after_commit    stores, then closes without an answer: the sender cannot tell it from the one above,
                          and its repetition has to find instead of create
    """

    kind: str
    times: int = 1
    method: str = ""
    status: int = 500
    retry_after: int | None = None
    entry: int = 0
    seconds: float = 1.0


FAULTS = ("status", "entry", "slow", "hang", "close_before_commit", "close_after_commit")


def parse_fault(wish: Any) -> Fault:
    """A Fault from its JSON. Refusal 400."""
    kinds = {
        field.name: (str,) if field.name in ("kind", "method") else (int, float) for field in fields(Fault)
    }
    if (
        not isinstance(wish, dict)
        or wish.get("kind") not in FAULTS
        or not all(isinstance(wish[name], kinds.get(name, ())) for name in wish)
    ):
        raise refuse(400, "invalid", f"a fault has a kind ({', '.join(FAULTS)}) and of {', '.join(kinds)}")
    return Fault(**wish)


def take_fault(faults: list[Fault], method: str) -> Fault | None:
    """The first fault that is meant for this request, used up by one."""
    for at, fault in enumerate(faults):
        if fault.method in ("", method):
            fault.times -= 1
            if fault.times <= 0:
                del faults[at]
            return fault
    return None


class Server:
    """The HTTP rim: routes, sign-in, faults, and errors as OperationOutcome."""

    def __init__(self, hub: Hub, *, token: str | None = None, faults: bool = False) -> None:
        self._hub, self._token = hub, token
        self._faults: list[Fault] = []
        # Outermost first: whatever goes wrong further in is answered as an OperationOutcome.
        wrappers = [self._explain, self._sign_in] + [self._misbehave] * faults
        self.app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=wrappers)
        self.app.add_routes(self._routes(faults))

    def _routes(self, faults: bool) -> Iterator[web.RouteDef]:
        if faults:
            yield web.post("/$faults", self._post_fault)
            yield web.get("/$faults", self._get_faults)
            yield web.delete("/$faults", self._delete_faults)
        yield web.get("/metadata", self._metadata)
        yield web.post("/", self._bundle)
        yield web.post("/{kind}", self._create)
        yield web.get("/{kind}", self._search)
        yield web.get("/{kind}/{key}", self._read)
        yield web.put("/{kind}/{key}", self._update)

    async def _metadata(self, request: web.Request) -> web.Response:
        return _fhir(orjson.dumps(CAPABILITY))

    async def _bundle(self, request: web.Request) -> web.Response:
        fault = request.get(FAULT)
        spoiled = {fault.entry: fault.status} if fault else {}
        answer = run_bundle(self._hub, await _body(request), now=_now(), spoiled=spoiled)
        await self._hub.store.settle()
        return _fhir(answer)

    async def _create(self, request: web.Request) -> web.Response:
        condition = request.headers.get("If-None-Exist")
        return await self._write(request, Write(_kind(request), None, await _body(request), condition))

    async def _update(self, request: web.Request) -> web.Response:
        key, match = request.match_info["key"], request.headers.get("If-Match")
        return await self._write(request, Write(_kind(request), key, await _body(request), match=match))

    async def _write(self, request: web.Request, write: Write) -> web.Response:
        (change,) = self._hub.apply([write], set(), now=_now())
        (line,) = self._hub.store.lines([change.key])
        await self._hub.store.settle()
        return _single(request, change.reference, line, change.version, change.status)

    async def _read(self, request: web.Request) -> web.Response:
        kind = _kind(request)
        key = self._hub.find(kind, request.match_info["key"])
        (line,) = self._hub.store.lines([key])
        version = self._hub.store.version(key)
        await self._hub.store.settle()
        return _single(request, f"{kind}/{key}", line, version, 200)

    async def _search(self, request: web.Request) -> web.Response:
        kind, store = _kind(request), self._hub.store
        page = _Page.parse(request.query)
        keys = self._hub.search(kind, page.query)
        if page.sort:
            keys = store.by_update(keys)[:: -1 if page.sort.startswith("-") else 1]
        shown = keys[page.offset : page.offset + page.count]
        base = str(request.url.origin())
        entries = [
            b'{"fullUrl":"%b/%b/%d","resource":%b,"search":{"mode":"match"}}'
            % (base.encode(), kind.encode(), key, line)
            for key, line in zip(shown, store.lines(shown), strict=True)
        ]
        answer = {"resourceType": "Bundle", "type": "searchset", "total": len(keys)}
        answer["link"] = page.links(f"{base}/{kind}", len(keys))
        await store.settle()
        tail = b',"entry":[%b]}' % b",".join(entries) if entries else b"}"
        return _fhir(orjson.dumps(answer)[:-1] + tail)

    async def _post_fault(self, request: web.Request) -> web.Response:
        self._faults.append(parse_fault(await _body(request)))
        return await self._get_faults(request)

    async def _get_faults(self, request: web.Request) -> web.Response:
        return web.json_response(body=orjson.dumps(self._faults))

    async def _delete_faults(self, request: web.Request) -> web.Response:
        self._faults.clear()
        return await self._get_faults(request)

    @web.middleware
    async def _explain(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refusal as refusal:
            return _fhir(outcome(refusal.issues), status=refusal.status)
        except web.HTTPException as error:
            return _fhir(
                outcome([Issue("processing", f"{error.status}: {error.reason}", "")]), status=error.status
            )
        except sqlite3.Error as error:
            log.error(
                "the store has refused a commit (%s): every answer is 500 until a restart",
                type(error).__name__,
            )
            return _fhir(outcome([Issue("exception", "the hub cannot store anything now", "")]), status=500)
        except Exception as error:
            # Not as a traceback: the text of a KeyError or ValueError is what somebody sent.
            place = traceback.extract_tb(error.__traceback__)[-1]
            log.error("%s in %s, line %s", type(error).__name__, place.name, place.lineno)
            return _fhir(outcome([Issue("exception", "the hub has failed on this request", "")]), status=500)

    @web.middleware
    async def _sign_in(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        # What a server can do is public (FHIR: /metadata needs no sign-in).
        if (
            self._token
            and request.path != "/metadata"
            and not hmac.compare_digest(given, f"Bearer {self._token}".encode())
        ):
            answer = _fhir(outcome([Issue("login", "a valid bearer token is needed", "")]), status=401)
            answer.headers["WWW-Authenticate"] = "Bearer"
            return answer
        return await handler(request)

    @web.middleware
    async def _misbehave(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        fault = None if request.path == "/$faults" else take_fault(self._faults, request.method)
        if fault is None:
            return await handler(request)
        await request.read()
        if fault.kind == "status":
            answer = _fhir(outcome(_injected(fault.status).issues), status=fault.status)
            if fault.retry_after is not None:
                answer.headers["Retry-After"] = str(fault.retry_after)
            return answer
        if fault.kind == "slow":
            await asyncio.sleep(fault.seconds)
        elif fault.kind == "hang":
            await asyncio.Event().wait()
        elif fault.kind == "close_before_commit":
            return _hang_up(request)
        elif fault.kind == "entry":
            request[FAULT] = fault
        done = await handler(request)
        return _hang_up(request) if fault.kind == "close_after_commit" else done


FAULT = web.RequestKey("fault", Fault)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class _Page:
    """A search's query without what concerns the page, and that."""

    query: list[tuple[str, str]]
    count: int
    offset: int
    sort: str

    @classmethod
    def parse(cls, raw: Any) -> Self:
        plain = [
            (name, value)
            for name, value in raw.items()
            if name not in ("_count", "_offset", "_sort", "_summary")
        ]
        sort = raw.get("_sort", "")
        if sort not in ("", "_lastUpdated", "-_lastUpdated") or raw.get("_summary", "count") != "count":
            raise refuse(400, "not-supported", "this hub sorts by _lastUpdated and summarises by count only")
        count = 0 if "_summary" in raw else min(_natural(raw.get("_count", str(PAGE)), "_count"), MAX_PAGE)
        return cls(plain, count, _natural(raw.get("_offset", "0"), "_offset"), sort)

    def links(self, url: str, total: int) -> list[dict[str, str]]:
        """self, next and previous where there are such pages. New resources come last, so pages stay put."""
        offsets = {"self": self.offset}
        if self.count and self.offset + self.count < total:
            offsets["next"] = self.offset + self.count
        if self.count and self.offset:
            offsets["previous"] = max(0, self.offset - self.count)
        sort = [("_sort", self.sort)] if self.sort else []
        return [
            {
                "relation": name,
                "url": f"{url}?{urlencode([*self.query, *sort, ('_count', self.count), ('_offset', at)])}",
            }
            for name, at in offsets.items()
        ]


def _natural(text: str, name: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise refuse(400, "invalid", f"{name} has to be a number from 0 on")
    return int(text)


def _kind(request: web.Request) -> str:
    kind = request.match_info["kind"]
    if kind not in TYPES:
        raise refuse(404, "not-supported", f"this hub serves {', '.join(TYPES)}")
    return kind


async def _body(request: web.Request) -> Any:
    if request.content_type not in (FHIR_JSON, "application/json"):
        raise refuse(415, "not-supported", f"the body has to be {FHIR_JSON}")
    try:
        return orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise refuse(
            400, "structure", f"not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fhir(body: bytes, *, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type=FHIR_JSON, charset="utf-8")


def _single(request: web.Request, reference: str, line: bytes, version: int, status: int) -> web.Response:
    """One resource with its headers; none of it in the body if the sender prefers."""
    minimal = request.method != "GET" and "return=minimal" in request.headers.get("Prefer", "")
    answer = _fhir(b"" if minimal else line, status=status)
    answer.headers["ETag"] = f'W/"{version}"'
    if request.method != "GET":
        answer.headers["Location"] = f"{request.url.origin()}/{reference}/_history/{version}"
    return answer


def _hang_up(request: web.Request) -> web.Response:
    if request.transport:
        request.transport.close()
    return web.Response()


CAPABILITY: Resource = {
    "resourceType": "CapabilityStatement",
    "status": "active",
    "date": "2025-01-01",
    "kind": "instance",
    "software": {"name": "Homeward development hub"},
    "implementation": {"description": "For demo and tests. Not for patients."},
    "fhirVersion": "4.0.1",
    "format": ["json"],
    "rest": [
        {
            "mode": "server",
            "interaction": [{"code": "transaction"}, {"code": "batch"}],
            "resource": [
                {
                    "type": kind,
                    "interaction": [{"code": code} for code in ("read", "create", "update", "search-type")],
                    "conditionalCreate": True,
                    "updateCreate": False,
                    "searchParam": [
                        {"name": "identifier", "type": "token"},
                        {"name": "patient", "type": "reference"},
                        {"name": "subject", "type": "reference"},
                        {"name": "code", "type": "token"},
                        {"name": "_id", "type": "token"},
                        {"name": "_profile", "type": "uri"},
                    ],
                }
                for kind in TYPES
            ],
        }
    ],
}


async def serve(options: argparse.Namespace, token: str | None) -> None:
    """Run until SIGTERM or SIGINT."""
    gc.freeze()  # what was imported stays, and a Bundle leaves nothing behind that only a collection finds
    gc.set_threshold(COLLECT_EVERY)
    hub = Hub(Store(options.store), models=options.validate == "full")
    server = Server(hub, token=token, faults=options.faults)
    # No access log: a URL holds identifiers.
    runner = web.AppRunner(server.app, access_log=None, read_bufsize=READ_BYTES, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    site = web.TCPSite(runner, options.host, options.port)
    await site.start()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    _announce(runner.addresses[0], options.ready_file)
    await stop.wait()
    await runner.cleanup()
    hub.store.close()


def _announce(address: tuple[str, int], ready_file: str | None) -> None:
    """One JSON line in the ready file, in one step so that nobody reads half of it, and on stdout."""
    line = json.dumps({"port": address[1], "url": f"http://{address[0]}:{address[1]}"}) + "\n"
    if ready_file:
        part = Path(ready_file + ".part")
        part.write_text(line)
        part.replace(ready_file)
    print(line, end="", flush=True)


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hw.virtual.hub", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one, told on stdout")
    parser.add_argument("--store", required=True, metavar="FILE", help="SQLite file, made if missing")
    parser.add_argument("--ready-file", metavar="FILE", help="gets the line of stdout when the hub listens")
    parser.add_argument("--token-file", metavar="FILE", help="bearer token that every request has to carry")
    parser.add_argument(
        "--validate", choices=("full", "rules"), default="full", help="rules: no models (bench only)"
    )
    parser.add_argument("--faults", action="store_true", help="take faults at POST /$faults (tests only)")
    return parser.parse_args(arguments)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="hub: %(message)s")
    options = parse_options()
    token = Path(options.token_file).read_text().strip() if options.token_file else None
    asyncio.run(serve(options, token))


if __name__ == "__main__":
    main()
