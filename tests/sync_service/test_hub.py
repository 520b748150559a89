"""What the Hub says is believed only in the form that FHIR gives it."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hub_server import HubServer, serve_hub

from gateway.reading import Reading
from gateway.sensors import decode
from hw.virtual.hub_validation import check_rules, model_check
from sync_service.codes import READING_ID
from sync_service.hub import (
    DIAGNOSTICS_CHARS,
    Hub,
    _diagnostics,
    _retry_after_ms,
    entry_answers,
    gateway_device,
    held_in,
    sensor_device,
)
from sync_service.observation import About, entries
from sync_service.retry import NO_ANSWER, Answer

# aiohttp warns the development Hub of a key that is a plain string.
pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web.NotAppKeyWarning")

CUFF = "serial:A%26D/UA-651BLE/5180700123"
BP = 0x2A35


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[HubServer]:
    async with serve_hub(tmp_path) as server:
        yield server


@pytest.fixture
async def hub(server: HubServer) -> AsyncIterator[Hub]:
    async with Hub(server.url, answer_s=0.5) as hub:
        yield hub


async def pressure(hub: Hub, patient: str, key: str = "00" * 16) -> dict[str, bytes]:
    """The entries of one blood pressure, with its Devices at the Hub."""
    sensor, gateway = await hub.sensor(CUFF, BP), await hub.gateway("HW-0001")
    assert sensor.reference and gateway.reference
    reading = decode(BP, bytes.fromhex("04780050006000" + "4800"))
    assert isinstance(reading, Reading)
    about = About(
        key=key,
        patient=patient,
        sensor=sensor.reference,
        gateway=gateway.reference,
        kit="HW-0001",
        journal="00" * 8,
        sequence=1,
        earliest_ms=0,
        latest_ms=2_000,
        quality="synced",
        host_confirmed=False,
        possible_repeat=False,
    )
    return entries(BP, reading, about, ZoneInfo("Europe/London"))


async def test_a_reading_is_created_once_however_often_it_is_delivered(server: HubServer, hub: Hub) -> None:
    sent = await pressure(hub, await server.patient("a"))
    for statuses in ([201, 201, 201], [200, 200, 200]):
        answers = await hub.deliver(list(sent.values()))
        assert isinstance(answers, list)
        assert [answer.status for answer in answers] == statuses
    assert len(await server.held()) == 3
    assert await hub.find([*sent, "never-sent"]) == {**dict.fromkeys(sent, 1), "never-sent": 0}


async def test_devices_are_made_once_and_known_afterwards(server: HubServer, hub: Hub) -> None:
    first = await hub.sensor(CUFF, BP)
    await server.fault("status", status=500)
    assert (await hub.sensor(CUFF, BP)).reference == first.reference
    assert await server.faults_left() == 1, "a known Device is not asked for again"
    async with Hub(server.url) as restarted:
        assert (await restarted.sensor(CUFF, BP)).status == 500
        assert (await restarted.sensor(CUFF, BP)).reference == first.reference
    (device,) = await server.held("Device")
    assert (device["manufacturer"], device["modelNumber"], device["serialNumber"]) == (
        "A&D",
        "UA-651BLE",
        "5180700123",
    )


@pytest.mark.parametrize("identity", [CUFF, "system-id:00-A0-50-FF-FE-12-34-56", "address:C0:FF:EE:00:00:01"])
def test_devices_are_valid_fhir(identity: str) -> None:
    for device in (sensor_device(identity, BP), sensor_device(identity, 0x2A5E), gateway_device("HW-0001")):
        model_check()(device)
        check_rules(device)


@pytest.mark.parametrize("status", [400, 401, 409, 412, 429, 500, 503])
async def test_a_refused_request_is_one_answer_for_all(server: HubServer, hub: Hub, status: int) -> None:
    sent = await pressure(hub, await server.patient("a"))
    await server.fault("status", status=status, retry_after=7)
    answer = await hub.deliver(list(sent.values()))
    assert isinstance(answer, Answer)
    assert (answer.status, answer.whole, answer.retry_after_ms) == (status, True, 7_000)
    assert answer.diagnostics.endswith(f"injected fault {status}")


@pytest.mark.parametrize("fault", ["hang", "close_before_commit", "close_after_commit"])
async def test_a_hub_that_falls_silent_is_no_answer(server: HubServer, hub: Hub, fault: str) -> None:
    sent = await pressure(hub, await server.patient("a"))
    await server.fault(fault)
    answer = await hub.deliver(list(sent.values()))
    assert isinstance(answer, Answer) and answer.status == NO_ANSWER and answer.whole


async def test_a_hub_that_is_not_there_is_no_answer() -> None:
    async with Hub("http://127.0.0.1:1") as hub:
        answer = await hub.gateway("HW-0001")
    assert answer.status == NO_ANSWER and answer.reference is None


async def test_one_poisoned_entry_does_not_spoil_the_others(server: HubServer, hub: Hub) -> None:
    sent = await pressure(hub, await server.patient("a"))
    await server.fault("entry", entry=1, status=412)
    answers = await hub.deliver(list(sent.values()))
    assert isinstance(answers, list)
    assert [answer.status for answer in answers] == [201, 412, 201]
    assert answers[1].diagnostics == "multiple-matches injected fault 412"


async def test_the_bearer_token_is_sent(tmp_path: Path) -> None:
    async with serve_hub(tmp_path, token="s3cret") as server:
        async with Hub(server.url) as stranger:
            assert (await stranger.gateway("HW-0001")).status == 401
        async with Hub(server.url, token="s3cret") as hub:
            assert (await hub.gateway("HW-0001")).ok


GOOD = {"response": {"status": "201 Created", "location": "Observation/7/_history/1"}}


@pytest.mark.parametrize(
    "content",
    [
        None,
        "<html>",
        {},
        {"resourceType": "Bundle", "type": "searchset", "entry": [GOOD, GOOD]},
        {"resourceType": "Bundle", "type": "batch-response", "entry": [GOOD]},
        {"resourceType": "Bundle", "type": "batch-response", "entry": [GOOD, GOOD, GOOD]},
        {"resourceType": "Bundle", "type": "batch-response", "entry": {"0": GOOD, "1": GOOD}},
        {"resourceType": "Bundle", "type": "batch-response"},
    ],
)
def test_an_answer_in_another_form_is_no_answer(content: Any) -> None:
    answer = entry_answers(content, 2)
    assert isinstance(answer, Answer) and answer.status == NO_ANSWER


@pytest.mark.parametrize(
    "entry",
    [None, {}, {"response": None}, {"response": {"status": 201}}, {"response": {"status": "fine"}}, "201"],
)
def test_an_entry_without_a_status_is_no_answer_for_that_entry(entry: Any) -> None:
    answers = entry_answers({"resourceType": "Bundle", "type": "batch-response", "entry": [GOOD, entry]}, 2)
    assert isinstance(answers, list)
    assert [answer.status for answer in answers] == [201, NO_ANSWER]
    assert answers[0].reference == "Observation/7"


@pytest.mark.parametrize(
    ("text", "wait_ms"),
    [
        ("7", 7_000),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("Fri, 10 Jul 2026 12:00:09 GMT", 9_000),
        ("Fri, 10 Jul 2026 11:00:00 GMT", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, wait_ms: int | None) -> None:
    assert _retry_after_ms(text, datetime(2026, 7, 10, 12, tzinfo=UTC)) == wait_ms


def test_what_we_did_not_ask_for_is_not_ours_to_change() -> None:
    """A server may leave out a search parameter, and add an OperationOutcome."""
    mine = {"id": "1", "identifier": [{"system": READING_ID, "value": "key-spo2"}]}
    theirs = {"id": "2", "identifier": [{"system": "urn:other", "value": "key-spo2"}]}
    outcome = {"resourceType": "OperationOutcome", "issue": []}
    searchset = {"entry": [{"resource": one} for one in (theirs, mine, {"id": "3"}, outcome)]}
    assert [held.key for held in held_in(searchset, ["key-spo2", "key-pulse_rate"])] == ["1"]


def test_diagnostics_say_why_but_not_who() -> None:
    issue = {"code": "not-found", "diagnostics": "Resource Patient/9000000009 not found" + "!" * 1000}
    said = _diagnostics({"resourceType": "OperationOutcome", "issue": [issue]})
    assert said.startswith("not-found Resource Patient/... not found")
    assert len(said) == DIAGNOSTICS_CHARS


@pytest.mark.parametrize("issues", [None, {}, ["x"], [{}], [{"details": "x"}]])
def test_a_strange_operation_outcome_breaks_nothing(issues: Any) -> None:
    assert isinstance(_diagnostics({"resourceType": "OperationOutcome", "issue": issues}), str)
