"""The development Hub over real HTTP, as a real process: what it takes, finds, refuses and survives."""

import asyncio
import json
import resource
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

KEYS = "https://homeward.example/fhir/reading"
UK_CORE = "https://fhir.hl7.org.uk/StructureDefinition/UKCore-Observation-VitalSigns"

Answer = tuple[int, Any, Mapping[str, str]]


class HubProcess:
    """One Hub as a process of its own, and an HTTP client for it."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self._command = [
            sys.executable,
            "-m",
            "hw.virtual.hub",
            "--store",
            str(folder / "hub.sqlite"),
            *flags,
        ]
        self._headers = {"Content-Type": "application/fhir+json"}

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(*self._command, stdout=asyncio.subprocess.PIPE)
        assert self._process.stdout
        self.url = json.loads(await self._process.stdout.readline())["url"]
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=aiohttp.ClientTimeout(20))

    async def stop(self, number: int = signal.SIGTERM) -> int:
        await self._session.close()
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()

    def forbid_writing(self) -> None:
        """Like a full disk: from now on no file of the Hub may grow (EFBIG)."""
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (0, 0))

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        async with self._session.request(method, self.url + path, data=raw, headers=named) as answer:
            text = await answer.read()
            return answer.status, json.loads(text) if text else {}, answer.headers

    async def create(self, resource: dict[str, Any], **headers: str) -> str:
        status, created, _ = await self.call("POST", "/" + resource["resourceType"], resource, **headers)
        assert status in (200, 201), created
        return f"{resource['resourceType']}/{created['id']}"

    async def bundle(self, kind: str, *entries: dict[str, Any]) -> Answer:
        return await self.call("POST", "/", {"resourceType": "Bundle", "type": kind, "entry": list(entries)})

    async def total(self, query: str) -> int:
        total: int = (await self.call("GET", f"/{query}&_summary=count"))[1]["total"]
        return total


MISSHAPEN: list[dict[str, Any]] = [
    {"code": "2708-6"},
    {"meta": []},
    {"identifier": 7},
    {"subject": "Patient/1"},
    {"identifier": [7]},
]
NO_FAULTS: list[Any] = [
    {"kind": "fire"},
    {"kind": "status", "colour": "red"},
    {"kind": "slow", "seconds": "long"},
    [],
]


@asynccontextmanager
async def running(folder: Path, *flags: str) -> AsyncIterator[HubProcess]:
    hub = HubProcess(folder, *flags)
    await hub.start()
    try:
        yield hub
    finally:
        await hub.stop()


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[HubProcess]:
    async with running(tmp_path, "--faults") as process:
        yield process


def observation(value: str, patient: str = "", **rest: Any) -> dict[str, Any]:
    subject = {"subject": {"reference": patient}} if patient else {}
    return {
        "resourceType": "Observation",
        "identifier": [{"system": KEYS, "value": value}],
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "2708-6"}]},
        "valueQuantity": {"value": 97, "unit": "%"},
        **subject,
        **rest,
    }


def blood_pressure(patient: str) -> dict[str, Any]:
    mmhg = {"unit": "millimeter of mercury", "system": "http://unitsofmeasure.org", "code": "mm[Hg]"}

    def code(loinc: str, snomed: str, **display: str) -> dict[str, Any]:
        loinc_coding = {"system": "http://loinc.org", "code": loinc, **display}
        return {"coding": [loinc_coding, {"system": "http://snomed.info/sct", "code": snomed}]}

    def part(text: str, loinc: str, snomed: str, value: int) -> dict[str, Any]:
        named = code(loinc, snomed, display=text) | {"text": text}
        return {"code": named, "valueQuantity": {"value": value, **mmhg}}

    category = {"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "vital-signs"}
    return {
        "resourceType": "Observation",
        "meta": {"profile": [UK_CORE + "-BloodPressure"]},
        "status": "final",
        "category": [{"coding": [category]}],
        "code": code("85354-9", "75367002"),
        "subject": {"reference": patient},
        "effectiveDateTime": "2025-01-01T12:00:00Z",
        "component": [
            part("Systolic blood pressure", "8480-6", "72313002", 120),
            part("Diastolic blood pressure", "8462-4", "1091811000000102", 80),
        ],
    }


def entry(resource: dict[str, Any], *, full_url: str = "", condition: str | None = None) -> dict[str, Any]:
    request = {"method": "POST", "url": resource["resourceType"]}
    if condition is None and resource.get("identifier"):
        condition = f"identifier={resource['identifier'][0]['system']}|{resource['identifier'][0]['value']}"
    found: dict[str, Any] = {
        "resource": resource,
        "request": request | ({"ifNoneExist": condition} if condition else {}),
    }
    return found | ({"fullUrl": full_url} if full_url else {})


def statuses(answer: Answer) -> list[str]:
    return [one["response"]["status"][:3] for one in answer[1]["entry"]]


def said(answer: Answer) -> str:
    assert answer[1]["resourceType"] == "OperationOutcome"
    issue = answer[1]["issue"][0]
    assert issue["severity"] == "error" and issue["code"]
    return str(issue["diagnostics"])


async def test_what_was_created_is_read_as_it_was_sent(hub: HubProcess) -> None:
    patient = await hub.create({"resourceType": "Patient", "name": [{"family": "Brontë"}]})
    sent = observation("a", patient)
    status, created, headers = await hub.call("POST", "/Observation", sent)
    assert status == 201 and headers["Location"].endswith(f"/Observation/{created['id']}/_history/1")
    status, read, headers = await hub.call("GET", f"/Observation/{created['id']}")
    assert status == 200 and headers["ETag"] == 'W/"1"'
    assert headers["Content-Type"].startswith("application/fhir+json")
    assert {name: read[name] for name in sent} == sent and read["meta"]["versionId"] == "1"


async def test_the_capability_statement_is_served(hub: HubProcess) -> None:
    status, found, _ = await hub.call("GET", "/metadata")
    assert (
        status == 200 and found["resourceType"] == "CapabilityStatement" and found["fhirVersion"] == "4.0.1"
    )


async def test_kill_9_after_201_keeps_the_resource(hub: HubProcess) -> None:
    patient = await hub.create({"resourceType": "Patient"})
    answer = await hub.bundle("batch", *(entry(observation(str(n), patient)) for n in range(20)))
    assert statuses(answer) == ["201"] * 20
    await hub.stop(signal.SIGKILL)
    await hub.start()
    assert await hub.total(f"Observation?patient={patient}") == 20
    again = await hub.bundle("batch", *(entry(observation(str(n), patient)) for n in range(20)))
    assert [one["response"]["location"] for one in again[1]["entry"]] == [
        one["response"]["location"] for one in answer[1]["entry"]
    ]


async def test_kill_9_in_a_stream_of_writes_loses_no_answered_one(hub: HubProcess) -> None:
    answered: list[str] = []
    enough = asyncio.Event()

    async def write(writer: int) -> None:
        for number in range(10_000):
            answered.append(await hub.create(observation(f"{writer}-{number}")))
            if len(answered) >= 100:
                enough.set()

    writers = [asyncio.create_task(write(writer)) for writer in range(8)]
    await enough.wait()
    assert await hub.stop(signal.SIGKILL) == -signal.SIGKILL
    await asyncio.gather(*writers, return_exceptions=True)
    await hub.start()
    for reference in answered:
        assert (await hub.call("GET", "/" + reference))[0] == 200


async def test_a_repeated_conditional_create_gives_200_and_the_same_id(hub: HubProcess) -> None:
    condition = {"If_None_Exist": f"identifier={KEYS}|a"}
    first = await hub.call("POST", "/Observation", observation("a"), **condition)
    second = await hub.call("POST", "/Observation", observation("a"), **condition)
    assert (first[0], second[0]) == (201, 200) and first[1]["id"] == second[1]["id"]


async def test_concurrent_conditional_creates_of_one_key_give_one_resource(hub: HubProcess) -> None:
    condition = {"If_None_Exist": f"identifier={KEYS}|a"}
    answers = await asyncio.gather(
        *(hub.call("POST", "/Observation", observation("a"), **condition) for _ in range(20)),
        *(hub.bundle("batch", entry(observation("a"))) for _ in range(20)),
    )
    assert sorted(answer[0] for answer in answers[:20]) in ([200] * 20, [200] * 19 + [201])
    assert await hub.total("Observation?") == 1


async def test_a_condition_that_matches_many_gives_412(hub: HubProcess) -> None:
    patient = {"resourceType": "Patient", "identifier": [{"system": "urn:nhs", "value": "1"}]}
    await hub.create(patient)
    await hub.create(patient)
    answer = await hub.call("POST", "/Patient", patient, If_None_Exist="identifier=urn:nhs|1")
    assert answer[0] == 412 and "matches 2" in said(answer)


async def test_a_resource_without_the_identifier_of_its_condition_is_refused(hub: HubProcess) -> None:
    answer = await hub.call("POST", "/Observation", observation("a"), If_None_Exist=f"identifier={KEYS}|b")
    assert answer[0] == 422 and "identifier of its condition" in said(answer)


async def test_an_unconditional_duplicate_observation_is_refused(hub: HubProcess) -> None:
    await hub.create(observation("a"))
    answer = await hub.call("POST", "/Observation", observation("a"))
    assert answer[0] == 409 and "exists" in said(answer)


async def test_update_makes_a_new_version_that_is_found_by_what_it_says_now(hub: HubProcess) -> None:
    one, other = await hub.create({"resourceType": "Patient"}), await hub.create({"resourceType": "Patient"})
    key = await hub.create(observation("a", one))
    await hub.create(observation("b", one))
    status, _, headers = await hub.call("PUT", "/" + key, observation("c", other) | {"id": key.split("/")[1]})
    assert status == 200 and headers["ETag"] == 'W/"2"'
    await hub.stop(signal.SIGKILL)
    await hub.start()
    assert [await hub.total(f"Observation?patient={patient}") for patient in (one, other)] == [1, 1]
    assert [await hub.total(f"Observation?identifier={KEYS}|{value}") for value in "abc"] == [0, 1, 1]
    assert (await hub.call("GET", "/" + key))[1]["meta"]["versionId"] == "2"
    answer = await hub.call("PUT", "/" + key, observation("b", other) | {"id": key.split("/")[1]})
    assert answer[0] == 409


async def test_an_update_of_another_version_is_refused(hub: HubProcess) -> None:
    key = await hub.create(observation("a"))
    resource = observation("a") | {"id": key.split("/")[1], "status": "amended"}
    request = {"method": "PUT", "url": key, "ifMatch": 'W/"2"'}
    assert (await hub.call("PUT", "/" + key, resource, If_Match='W/"2"'))[0] == 412
    stale = {"resource": resource, "request": request}
    assert (await hub.bundle("batch", stale))[1]["entry"][0]["response"]["status"] == "412"
    assert (await hub.call("PUT", "/" + key, resource, If_Match='W/"1"'))[0] == 200
    assert (await hub.call("GET", "/" + key))[1]["status"] == "amended"


async def test_update_cannot_choose_an_id(hub: HubProcess) -> None:
    answer = await hub.call("PUT", "/Patient/77", {"resourceType": "Patient", "id": "77"})
    assert answer[0] == 405 and "update cannot create" in said(answer)


async def test_search_finds_by_identifier_patient_code_and_profile(hub: HubProcess) -> None:
    patient = await hub.create({"resourceType": "Patient"})
    await hub.create(observation("a", patient))
    await hub.create(observation("b", code={"coding": [{"system": "urn:mdc", "code": "150456"}]}))
    found = {
        "identifier": [f"{KEYS}|a", "a", f"{KEYS}|x", f"{KEYS}|a,{KEYS}|b"],
        "patient": [patient, patient.split("/")[1], "Patient/999"],
        "subject": [patient],
        "code": ["http://loinc.org|2708-6", "150456", "urn:mdc|2708-6"],
        "_profile": [UK_CORE],
        "_id": ["2", "999"],
    }
    counted = {
        name: [await hub.total(f"Observation?{name}={value}") for value in found[name]] for name in found
    }
    assert counted == {
        "identifier": [1, 1, 0, 2],
        "patient": [1, 1, 0],
        "subject": [1],
        "code": [1, 1, 0],
        "_profile": [0],
        "_id": [1, 0],
    }
    assert await hub.total(f"Observation?patient={patient}&code=2708-6") == 1
    assert await hub.total(f"Observation?patient={patient}&code=150456") == 0


async def test_a_search_by_something_else_is_refused_and_not_ignored(hub: HubProcess) -> None:
    answer = await hub.call("GET", "/Observation?value-quantity=97")
    assert answer[0] == 400 and "value-quantity" in said(answer)


async def test_paging_shows_each_resource_once(hub: HubProcess) -> None:
    await hub.bundle("batch", *(entry(observation(str(n))) for n in range(23)))
    url, seen, pages = "/Observation?_count=5", [], 0
    while url:
        _, page, _ = await hub.call("GET", url)
        assert page["total"] == 23
        seen += [one["resource"]["identifier"][0]["value"] for one in page["entry"]]
        links = {link["relation"]: link["url"] for link in page["link"]}
        url, pages = links.get("next", "").removeprefix(hub.url), pages + 1
    assert seen == [str(n) for n in range(23)] and pages == 5
    _, newest, _ = await hub.call("GET", "/Observation?_count=1&_sort=-_lastUpdated")
    assert newest["entry"][0]["resource"]["identifier"][0]["value"] == "22"


async def test_a_transaction_resolves_references_between_its_entries(hub: HubProcess) -> None:
    patient, gateway = "urn:uuid:7e1c7a6e-0001", "urn:uuid:7e1c7a6e-0002"
    answer = await hub.bundle(
        "transaction",
        entry(observation("a", patient, device={"reference": gateway}), full_url="urn:uuid:7e1c7a6e-0003"),
        entry({"resourceType": "Patient"}, full_url=patient),
        entry({"resourceType": "Device"}, full_url=gateway),
    )
    assert answer[0] == 200 and statuses(answer) == ["201"] * 3
    where = [one["response"]["location"].split("/_history")[0] for one in answer[1]["entry"]]
    _, read, _ = await hub.call("GET", "/" + where[0])
    assert (read["subject"]["reference"], read["device"]["reference"]) == (where[1], where[2])
    assert await hub.total(f"Observation?patient={where[1]}") == 1


async def test_a_transaction_finds_what_exists_and_refers_to_it(hub: HubProcess) -> None:
    patient = {"resourceType": "Patient", "identifier": [{"system": "urn:nhs", "value": "1"}]}
    known = await hub.create(patient)
    answer = await hub.bundle(
        "transaction", entry(patient, full_url="urn:uuid:p"), entry(observation("a", "urn:uuid:p"))
    )
    assert statuses(answer) == ["200", "201"]
    assert await hub.total(f"Observation?patient={known}") == 1


async def test_a_transaction_with_one_bad_entry_stores_nothing(hub: HubProcess) -> None:
    answer = await hub.bundle(
        "transaction",
        entry(observation("a")),
        entry(observation("b", "Patient/999")),
        entry(observation("c")),
    )
    assert answer[0] == 422 and said(answer).startswith("entry[1]:")
    assert await hub.total("Observation?") == 0
    assert statuses(await hub.bundle("transaction", entry(observation("a")))) == ["201"]


async def test_a_batch_with_one_bad_entry_stores_the_others(hub: HubProcess) -> None:
    bad = observation("b") | {"status": "perfect"}
    answer = await hub.bundle(
        "batch", entry(observation("a")), entry(bad), {"request": 1}, entry(observation("c"))
    )
    assert answer[0] == 200 and statuses(answer) == ["201", "422", "400", "201"]
    outcome = answer[1]["entry"][1]["response"]["outcome"]
    assert outcome["issue"][0]["expression"] == ["Observation.status"]
    assert await hub.total("Observation?") == 2


async def test_a_key_twice_in_one_bundle_is_refused(hub: HubProcess) -> None:
    twice = (entry(observation("a")), entry(observation("a")))
    refused = await hub.bundle("transaction", *twice)
    assert refused[0] == 409 and said(refused).startswith("entry[1]:")
    assert await hub.total("Observation?") == 0
    assert statuses(await hub.bundle("batch", *twice)) == ["201", "409"]
    unconditional = [entry(observation("b"), condition=""), entry(observation("b"), condition="")]
    assert (await hub.bundle("transaction", *unconditional))[0] == 409


@pytest.mark.parametrize("element", ["subject", "device"])
async def test_a_reference_to_nobody_is_refused(hub: HubProcess, element: str) -> None:
    target = {"subject": "Patient/999", "device": "Device/999"}[element]
    answer = await hub.call("POST", "/Observation", observation("a") | {element: {"reference": target}})
    assert answer[0] == 422 and "leads to nothing" in said(answer)


async def test_a_profile_that_is_not_met_is_refused_with_understandable_reasons(hub: HubProcess) -> None:
    claimed = observation("a", meta={"profile": [UK_CORE + "-OxygenSaturation"]})
    answer = await hub.call("POST", "/Observation", claimed)
    reasons = [issue["diagnostics"] for issue in answer[1]["issue"]]
    assert answer[0] == 422 and len(reasons) == 6
    assert "UKCore-Observation-VitalSigns-OxygenSaturation: unit has to be 'percent'" in reasons


async def test_the_cuff_of_a_blood_pressure_has_to_claim_its_profile(hub: HubProcess) -> None:
    reading = blood_pressure(await hub.create({"resourceType": "Patient"}))
    plain = await hub.create({"resourceType": "Device"})
    profile = "https://fhir.hl7.org.uk/StructureDefinition/UKCore-Device-BloodPressure"
    cuff = await hub.create({"resourceType": "Device", "meta": {"profile": [profile]}})
    answer = await hub.call("POST", "/Observation", reading | {"device": {"reference": plain}})
    assert answer[0] == 422 and profile in said(answer)
    answer = await hub.call("POST", "/Observation", reading | {"device": {"reference": cuff}})
    assert answer[0] == 201


REFUSED: list[tuple[str, str, bytes | None, int]] = [
    ("POST", "/Observation", b"{", 400),
    ("POST", "/Observation", b"[]", 400),
    ("POST", "/Observation", b'{"resourceType":"Patient"}', 400),
    ("POST", "/Observation", b'{"resourceType":"Observation","status":"final"}', 400),
    ("POST", "/Medication", b'{"resourceType":"Medication"}', 404),
    ("POST", "/", b'{"resourceType":"Bundle","type":"document"}', 400),
    ("POST", "/", b'{"resourceType":"Bundle","type":"batch","entry":7}', 400),
    ("GET", "/Observation/999", None, 404),
    ("GET", "/Observation/%C2%B2", None, 404),
    ("GET", "/Observation/" + "9" * 60, None, 404),
    ("GET", "/Observation?_count=-1", None, 400),
    ("GET", "/Observation?_sort=date", None, 400),
    ("GET", "/nothing/here/at/all", None, 404),
    ("DELETE", "/Observation/1", None, 405),
]


async def test_every_refusal_is_an_operation_outcome(hub: HubProcess) -> None:
    for method, path, body, status in REFUSED:
        answer = await hub.call(method, path, body)
        assert answer[0] == status and said(answer), (method, path, body)


async def test_another_content_type_is_refused(hub: HubProcess) -> None:
    answer = await hub.call("POST", "/Patient", b"<Patient/>", Content_Type="application/fhir+xml")
    assert answer[0] == 415 and "application/fhir+json" in said(answer)


async def test_without_the_models_a_misshapen_resource_is_still_refused(tmp_path: Path) -> None:
    async with running(tmp_path, "--validate", "rules") as hub:
        for spoiled in MISSHAPEN:
            answer = await hub.call("POST", "/Observation", observation("a") | spoiled)
            assert answer[0] in (400, 422), spoiled
        assert await hub.total("Observation?") == 0


async def test_a_failure_of_the_hub_is_answered_and_logged_without_what_was_sent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with running(tmp_path, "--validate", "rules") as hub:
        reading = blood_pressure(await hub.create({"resourceType": "Patient"}))
        answer = await hub.call("POST", "/Observation", reading | {"device": "Adam Smith"})
        assert answer[0] == 500 and said(answer)
    logged = capfd.readouterr().err
    assert "AttributeError in _finish" in logged and "Adam" not in logged


async def test_without_the_token_nothing_but_metadata_is_answered(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    async with running(tmp_path, "--token-file", str(tmp_path / "token")) as hub:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = await hub.call("GET", "/Patient", **headers)
            assert answer[0] == 401 and answer[2]["WWW-Authenticate"] == "Bearer" and said(answer)
        assert (await hub.call("GET", "/Patient", Authorization="Bearer s3cret"))[0] == 200
        assert (await hub.call("GET", "/metadata"))[0] == 200


async def test_the_ready_file_says_where_it_listens(tmp_path: Path) -> None:
    async with running(tmp_path, "--ready-file", str(tmp_path / "ready")) as hub:
        assert json.loads((tmp_path / "ready").read_text())["url"] == hub.url


async def test_a_hub_that_cannot_write_answers_500_and_claims_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as hub:
        kept = await hub.create({"resourceType": "Patient"})
        hub.forbid_writing()
        for call in (
            ("POST", "/Patient", {"resourceType": "Patient"}),
            ("GET", "/Patient"),
            ("GET", "/" + kept),
        ):
            answer = await hub.call(*call)
            assert answer[0] == 500 and said(answer)
    async with running(tmp_path) as hub:
        assert await hub.total("Patient?") == 1


async def fault(hub: HubProcess, **wish: Any) -> None:
    assert (await hub.call("POST", "/$faults", wish))[0] == 200


async def test_a_status_fault_answers_so_often_and_stores_nothing(hub: HubProcess) -> None:
    await fault(hub, kind="status", status=429, retry_after=7, times=2, method="POST")
    assert (await hub.call("GET", "/Patient"))[0] == 200
    for _ in range(2):
        answer = await hub.call("POST", "/Patient", {"resourceType": "Patient"})
        assert answer[0] == 429 and answer[2]["Retry-After"] == "7" and said(answer)
    assert await hub.total("Patient?") == 0
    await hub.create({"resourceType": "Patient"})


async def test_an_entry_fault_spoils_one_entry(hub: HubProcess) -> None:
    entries = [entry(observation(str(n))) for n in range(3)]
    await fault(hub, kind="entry", entry=1, status=503)
    assert statuses(await hub.bundle("batch", *entries)) == ["201", "503", "201"]
    await fault(hub, kind="entry", entry=0, status=500)
    assert (await hub.bundle("transaction", entries[1]))[0] == 500
    assert await hub.total("Observation?") == 2


@pytest.mark.parametrize(("kind", "stored"), [("close_before_commit", 0), ("close_after_commit", 1)])
async def test_a_connection_closed_around_the_commit(hub: HubProcess, kind: str, stored: int) -> None:
    await fault(hub, kind=kind)
    with pytest.raises(aiohttp.ClientConnectionError):
        await hub.bundle("batch", entry(observation("a")))
    assert await hub.total("Observation?") == stored
    assert statuses(await hub.bundle("batch", entry(observation("a")))) == ["200" if stored else "201"]


async def test_a_hanging_request_blocks_neither_the_others_nor_the_end(hub: HubProcess) -> None:
    await fault(hub, kind="hang")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(hub.create({"resourceType": "Patient"}), 0.2)
    assert await hub.total("Patient?") == 0
    assert await asyncio.wait_for(hub.stop(), 5) == 0


async def test_a_slow_answer_comes(hub: HubProcess) -> None:
    await fault(hub, kind="slow", seconds=0.3)
    began = asyncio.get_running_loop().time()
    await hub.create({"resourceType": "Patient"})
    assert asyncio.get_running_loop().time() - began >= 0.3


async def test_faults_can_be_seen_and_cleared(hub: HubProcess) -> None:
    await fault(hub, kind="status", status=500, times=9)
    assert (await hub.call("GET", "/$faults"))[1][0]["times"] == 9
    await hub.call("DELETE", "/$faults")
    assert (await hub.call("GET", "/Patient"))[0] == 200
    for wrong in NO_FAULTS:
        assert (await hub.call("POST", "/$faults", wrong))[0] == 400


async def test_faults_are_off_unless_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path) as hub:
        assert (await hub.call("POST", "/$faults", {"kind": "hang"}))[0] == 404
