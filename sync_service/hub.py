"""The Hub: a FHIR R4 server over HTTP. Says what it answered, entry by entry; `retry` decides what follows.

The one rule: only an answer in exactly the form that FHIR gives it counts as one. A proxy's error page with
status 200, a batch-response that is one entry short, an entry without a status: each is no answer, and a
delivery without an answer is repeated. Repeating is safe, since every create is conditional on an identifier.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote, unquote

import aiohttp
import orjson

from sync_service.clock import Clock, Look
from sync_service.codes import (
    CUFF_PROFILE,
    GATEWAY_TYPE,
    KIT_ID,
    READING_ID,
    SENSOR_ID,
    SENSOR_TYPE,
    SPECIALIZATIONS,
    Code,
)
from sync_service.retry import NO_ANSWER, Answer

Json = dict[str, Any]

ANSWER_S = 30.0
"""A batch of 50 Readings takes a busy server seconds; after half a minute its answer is as good as lost."""
CONNECT_S = 5.0
MAX_ANSWER_BYTES = 4 << 20
"""150 entries with an OperationOutcome each are far below."""
DIAGNOSTICS_CHARS = 300
SEARCH_KEYS = 40
"""Identifiers per search: about 4 kB of URL, which every server and proxy takes."""

WITNESS = "the Hub"
DATE_MS = 1000
"""Resolution of a Date header."""
NOT_UPDATED = frozenset({404, 405, 410, 501})
"""Of an update: the server does not update, or this one is gone. Parked, and shown."""

FHIR_JSON = "application/fhir+json"
# The one thing that says who it is in what we send, and so in what a server may quote of it.
_PATIENT = re.compile(r"Patient/[\w.-]+")


class Held(NamedTuple):
    """One Observation as the Hub holds it."""

    key: str  # the Hub's own id
    version: str | None
    resource: Json


class Hub:
    """One Hub. Use as an async context manager; raises nothing that the Hub can cause.

    `session` is for who brings connections of their own (a proxy, another transport), and closes them.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        connections: int = 16,
        answer_s: float = ANSWER_S,
        clock: Clock | None = None,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Accept": FHIR_JSON}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._connections, self._answer_s = connections, answer_s
        self._clock = clock or Clock()
        self._session = session
        self._references: dict[str, str] = {}  # Kit or Sensor identity -> 'Device/7'
        # Two deliveries that meet the same new Sensor would race in the Hub's conditional create.
        self._making = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            timeout=aiohttp.ClientTimeout(total=self._answer_s, connect=min(CONNECT_S, self._answer_s)),
            headers=self._headers,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()

    async def deliver(self, entries: Sequence[bytes]) -> list[Answer] | Answer:
        """Send the entries as one batch Bundle; return an Answer for each, or one for the whole request."""
        answer, content = await self._request("POST", "", batch(entries))
        return entry_answers(content, len(entries)) if answer.ok else answer

    async def gateway(self, kit: str) -> Answer:
        """The Kit's Gateway as a Device: ok with its reference, or why not."""
        return await self._device(f"kit {kit}", lambda: gateway_device(kit))

    async def sensor(self, identity: str, characteristic: int) -> Answer:
        """The Sensor as a Device: ok with its reference, or why not."""
        return await self._device(f"sensor {identity}", lambda: sensor_device(identity, characteristic))

    def forget_devices(self) -> None:
        """Ask for every Device again: the Hub may have been restored to a time before it knew them."""
        self._references.clear()

    async def find(self, values: Sequence[str]) -> dict[str, int] | Answer:
        """How many Observations the Hub holds for each of these identifier values, or why it doesn't say."""
        found: dict[str, int] = dict.fromkeys(values, 0)
        for at in range(0, len(values), SEARCH_KEYS):
            content = await self._search(values[at : at + SEARCH_KEYS])
            if isinstance(content, Answer):
                return content
            for value in _reading_ids(content):
                if value in found:
                    found[value] += 1
        return found

    async def held(self, values: Sequence[str]) -> list[Held] | Answer:
        """The Observations with one of these (few) identifier values, or why the Hub doesn't say."""
        content = await self._search(values)
        if isinstance(content, Answer):
            return content
        try:
            return held_in(content, values)
        except (AttributeError, KeyError, TypeError):
            return _no_answer("the searchset has entries without a resource")

    async def update(self, held: Held, resource: bytes) -> Answer:
        """Put this in the place of what the Hub holds, unless that has changed meanwhile."""
        match = {"If-Match": f'W/"{held.version}"'} if held.version else {}
        path = f"/Observation/{quote(held.key, safe='')}"
        answer, _ = await self._request("PUT", path, resource, headers=match)
        if answer.status == 412:
            return Answer(409, "somebody else has changed it: to be looked at again")
        # That this one can't be updated says nothing about the Hub's address.
        return answer._replace(whole=False) if answer.status in NOT_UPDATED else answer

    async def _search(self, values: Sequence[str]) -> Any:
        """The searchset of these identifier values, or the Answer that is none."""
        condition = quote(",".join(f"{READING_ID}|{value}" for value in values), safe=":/,")
        path = f"/Observation?identifier={condition}&_count={4 * len(values)}"
        answer, content = await self._request("GET", path)
        if answer.ok and not _is_bundle(content, "searchset"):
            return _no_answer("the search did not return a searchset")
        return content if answer.ok else answer

    async def ask_time(self) -> None:
        """Look at the Hub's clock: any answer shows it, a refusal too."""
        await self._request("HEAD", "/metadata")

    def _look(self, response: aiohttp.ClientResponse, before_ms: int) -> None:
        """An answer of a cache (RFC 9111: it has an Age) shows when that was filled: it says nothing."""
        at = http_date(response.headers.get("Date", ""))
        if "Age" in response.headers:
            return
        if at is None:
            self._clock.silent(WITNESS)
        else:
            shown_ms = int(at.timestamp()) * 1000
            self._clock.heard(WITNESS, Look(before_ms, self._clock.now_ms(), shown_ms, DATE_MS))

    async def _device(self, name: str, make: Callable[[], Json]) -> Answer:
        async with self._making:
            if name in self._references:
                return Answer(200, location=self._references[name])
            device = make()
            answers = await self.deliver([_device_entry(device)])
            answer = answers[0] if isinstance(answers, list) else answers
            if answer.ok and not answer.reference:
                answer = await self._find_device(device["identifier"][0])
            if answer.reference:
                self._references[name] = answer.reference
            return answer

    async def _find_device(self, identifier: Json) -> Answer:
        # FHIR lets a server answer a conditional create that matched without saying where.
        condition = quote(f"{identifier['system']}|{identifier['value']}", safe="")
        answer, content = await self._request("GET", f"/Device?identifier={condition}")
        if not answer.ok:
            return answer
        try:
            return Answer(200, location=f"Device/{content['entry'][0]['resource']['id']}")
        except (IndexError, KeyError, TypeError):
            return _no_answer("the Hub holds the Device but does not say where")

    async def _request(
        self, method: str, path: str, body: bytes | None = None, *, headers: dict[str, str] | None = None
    ) -> tuple[Answer, Any]:
        assert self._session, "use `async with Hub(...)`"
        if body:
            headers = {"Content-Type": FHIR_JSON, **(headers or {})}
        before_ms = self._clock.now_ms()
        # A redirected POST would come back as a GET: a redirect is an Answer, and means a wrong address.
        sending = self._session.request(
            method, self._url + path, data=body, headers=headers, allow_redirects=False
        )
        try:
            async with sending as response:
                self._look(response, before_ms)
                content = await _read(response)
                return _whole_answer(response, content), content
        except TimeoutError:
            return _no_answer("the Hub did not answer in time"), None
        except (aiohttp.ClientError, OSError) as error:
            return _no_answer(f"the Hub is not reached: {type(error).__name__}"), None


def batch(entries: Sequence[bytes]) -> bytes:
    """The entries as a Bundle, in one join: it has 200 kB, and each copy takes longer than an Observation."""
    parts = list(entries)
    parts[0] = b'{"resourceType":"Bundle","type":"batch","entry":[' + parts[0]
    parts[-1] += b"]}"
    return b",".join(parts)


def entry_answers(content: Any, count: int) -> list[Answer] | Answer:
    """The entries of a batch-response as Answers; one Answer for the whole when it is not exactly that."""
    if not _is_bundle(content, "batch-response"):
        return _no_answer("the answer is not a batch-response")
    entries = content.get("entry", [])
    if not isinstance(entries, list) or len(entries) != count:
        return _no_answer("the batch-response has not as many entries as the batch")
    return [_entry_answer(entry) for entry in entries]


def gateway_device(kit: str) -> Json:
    """The Kit's Gateway as a FHIR Device."""
    return {
        "resourceType": "Device",
        "identifier": [{"system": KIT_ID, "value": kit}],
        "deviceName": [{"name": f"Homeward Gateway {kit}", "type": "user-friendly-name"}],
        "type": {"coding": [_coding(GATEWAY_TYPE)], "text": "Gateway"},
    }


def sensor_device(identity: str, characteristic: int) -> Json:
    """The Sensor as a FHIR Device. `identity` is of `derive.sensor_identity`: 'kind:part/part/...'."""
    kind, _, rest = identity.partition(":")
    device: Json = {
        "resourceType": "Device",
        "identifier": [{"system": SENSOR_ID, "value": identity}],
        "type": {"coding": [_coding(SENSOR_TYPE)], "text": "Sensor"},
    }
    if characteristic == 0x2A35:
        device["meta"] = {"profile": [CUFF_PROFILE]}
    if kind == "serial":
        names, texts = ("manufacturer", "modelNumber", "serialNumber"), map(unquote, rest.split("/"))
        device |= {name: text for name, text in zip(names, texts, strict=True) if text}
    if characteristic in SPECIALIZATIONS:
        code = SPECIALIZATIONS[characteristic]
        device["specialization"] = [{"systemType": {"coding": [_coding(code)]}}]
    return device


def _coding(code: Code) -> Json:
    return {"system": code.system, "code": code.code, "display": code.display}


def _device_entry(device: Json) -> bytes:
    identifier = device["identifier"][0]
    condition = "identifier=" + quote(f"{identifier['system']}|{identifier['value']}", safe=":/|")
    request = {"method": "POST", "url": "Device", "ifNoneExist": condition}
    return orjson.dumps({"request": request, "resource": device})


async def _read(response: aiohttp.ClientResponse) -> Any:
    """The body as JSON; None when it is none, or too long to be an answer."""
    body = b""
    async for part in response.content.iter_any():
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            return None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _whole_answer(response: aiohttp.ClientResponse, content: Any) -> Answer:
    retry_after_ms = _retry_after_ms(response.headers.get("Retry-After", ""), datetime.now(UTC))
    return Answer(response.status, _diagnostics(content), retry_after_ms, whole=True)


def _entry_answer(entry: Any) -> Answer:
    try:
        response = entry["response"]
        status = int(response["status"][:3])
        if not 100 <= status < 600:
            raise ValueError(status)
        location = response.get("location", "")
        return Answer(status, _diagnostics(response.get("outcome")), None, location)
    except (AttributeError, KeyError, TypeError, ValueError):
        return Answer(NO_ANSWER, "the entry's answer has no status")


def _diagnostics(content: Any) -> str:
    """What an OperationOutcome says, in one line and without who the patient is; empty for anything else."""
    if not isinstance(content, dict) or content.get("resourceType") != "OperationOutcome":
        return ""
    issues = content.get("issue")
    said = (
        "; ".join(_said(issue) for issue in issues if isinstance(issue, dict))
        if isinstance(issues, list)
        else ""
    )
    return _PATIENT.sub("Patient/...", said)[:DIAGNOSTICS_CHARS]


def _said(issue: Json) -> str:
    details = issue.get("details")
    text = issue.get("diagnostics") or (details.get("text") if isinstance(details, dict) else "") or ""
    return f"{issue.get('code', '')} {text}".strip()


def _retry_after_ms(text: str, now: datetime) -> int | None:
    """Seconds or an HTTP date (RFC 9110 section 10.2.3), as ms from now."""
    if text.isascii() and text.isdecimal() and len(text) < 9:
        return int(text) * 1000
    at = http_date(text)
    return max(0, int((at - now).total_seconds() * 1000)) if at else None


def http_date(text: str) -> datetime | None:
    """A date of a header (RFC 9110 section 5.6.7)."""
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _no_answer(why: str) -> Answer:
    return Answer(NO_ANSWER, why, whole=True)


def _is_bundle(content: Any, kind: str) -> bool:
    return (
        isinstance(content, dict) and content.get("resourceType") == "Bundle" and content.get("type") == kind
    )


def held_in(searchset: Json, values: Sequence[str]) -> list[Held]:
    """The Observations with one of these identifier values. Raises AttributeError, KeyError, TypeError.

    A server that does not know a search parameter may leave it out and answer with all that it has, and any
    may add an OperationOutcome (FHIR R4, 3.1.1): what we did not ask for is never to be changed.
    """
    found = [entry["resource"] for entry in searchset.get("entry", ())]
    return [_held(one) for one in found if not set(values).isdisjoint(values_of(one))]


def _held(resource: Json) -> Held:
    version = resource.get("meta", {}).get("versionId")
    return Held(str(resource["id"]), None if version is None else str(version), resource)


def _reading_ids(bundle: Json) -> Iterator[str]:
    for entry in bundle.get("entry", ()):
        yield from values_of(entry.get("resource", {}))


def values_of(resource: Json) -> Iterator[str]:
    """The values of our identifiers of an Observation."""
    for identifier in resource.get("identifier", ()):
        if identifier.get("system") == READING_ID:
            yield identifier.get("value", "")
