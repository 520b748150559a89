"""Delivery to a real Hub that misbehaves: all arrives, once, and nobody waits for a poisoned neighbour."""

import asyncio
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hub_server import serve_hub
from kit_journal import BIRTH_MS, BP, CUFF, MINUTE, OXIMETER, SPOT, spot
from ward import NOW, Ward

from gateway import record
from sync_service import outbox
from sync_service.assignments import end
from sync_service.hub import Hub
from sync_service.outbox import claim, look_again, replay, settle
from sync_service.retry import CONFLICT_ATTEMPTS, Done
from sync_service.store import Store

# aiohttp warns the development Hub of a key that is a plain string.
pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web.NotAppKeyWarning")

FAILED_BP = bytes.fromhex("16FF07FF07FF07E80706170E230AFF070000")
GOOD_BP = bytes.fromhex("04780050006000" + "4800")


async def test_readings_of_two_patients_arrive_each_at_its_own(ward: Ward) -> None:
    for name, spo2 in (("HW-0001", 97), ("HW-0002", 91)):
        kit = await ward.kit(name)
        kit.frame(OXIMETER, SPOT, spot(spo2))
        kit.frame(CUFF, BP, GOOD_BP)
        kit.frame(CUFF, BP, FAILED_BP)
    await ward.settled()
    assert len(await ward.at_hub()) == 2 * (2 + 3 + 1)
    for patient, spo2 in (("Patient/1", 97), ("Patient/2", 91)):
        (one,) = await ward.server.held(patient=patient, code="http://loinc.org|2708-6")
        assert one["valueQuantity"]["value"] == spo2
    assert [row[1:] for row in await ward.rows("reading, state, attempts")] == [("done", 1)] * 6
    assert await ward.counter("delivered") == 6


async def test_all_who_wait_have_their_turn_before_anybody_has_a_second(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "BUNDLE_READINGS", 1)
    for name in ("HW-0001", "HW-0002", "HW-0003"):
        kit = await ward.kit(name)
        kit.frame(OXIMETER, SPOT, spot(97))
        kit.frame(OXIMETER, SPOT, spot(98))
    await ward.taken()
    line: list[str] = []
    turns = []
    for _ in range(6):
        now = partial(claim, now_ms=NOW, busy=frozenset(), patients=1, line=line)
        rows, line, _ = await ward.store.read(now)
        turns += rows
        done = [(row, Done("")) for row in rows[turns[-1]]]
        await ward.store.write(partial(settle, decisions=done, now_ms=NOW))
    assert turns == ["Patient/1", "Patient/2", "Patient/3"] * 2


async def test_who_has_nothing_left_holds_nobody_up_in_the_line(ward: Ward) -> None:
    kit = await ward.kit("HW-0001")
    kit.frame(OXIMETER, SPOT, spot(97))
    await ward.taken()
    now = partial(claim, now_ms=NOW, busy=frozenset(), patients=1, line=["Patient/8", "Patient/9"])
    assert list((await ward.store.read(now)).rows) == ["Patient/1"]


@pytest.mark.parametrize(
    ("fault", "more"),
    [
        ("status", {"status": 409}),
        ("status", {"status": 429, "retry_after": 0}),
        ("status", {"status": 500}),
        ("status", {"status": 503}),
        ("status", {"status": 401}),
        ("status", {"status": 403}),
        ("status", {"status": 404}),
        ("status", {"status": 302}),
        ("hang", {}),
        ("close_before_commit", {}),
        ("close_after_commit", {}),
        ("entry", {"status": 429, "entry": 3}),
        ("entry", {"status": 500, "entry": 0}),
        ("entry", {"status": 409, "entry": 2}),
    ],
)
@pytest.mark.parametrize("times", [1, 3])
async def test_a_fault_that_passes_loses_nothing_and_doubles_nothing(
    ward: Ward, fault: str, more: dict[str, Any], times: int
) -> None:
    kit = await ward.kit("HW-0001")
    kit.frame(OXIMETER, SPOT, spot(97))
    await ward.settled()  # the Devices are known
    for n in range(3):
        kit.frame(OXIMETER, SPOT, spot(90 + n))
    await ward.server.fault(fault, times=times, **more)
    await ward.settled()
    if fault != "entry":  # a repetition may have no entry of that index
        assert await ward.server.faults_left() == 0
    assert len(await ward.at_hub()) == 8
    assert await ward.rows("reading", "where state <> 'done'") == []


async def test_faults_while_the_devices_are_made_lose_nothing(ward: Ward) -> None:
    kit = await ward.kit("HW-0001")
    kit.frame(OXIMETER, SPOT, spot(97))
    await ward.server.fault("close_after_commit", times=2)
    await ward.server.fault("status", status=500)
    await ward.settled()
    assert len(await ward.at_hub()) == 2
    assert len(await ward.server.held("Device")) == 2


@pytest.mark.parametrize("status", [400, 412, 422])
async def test_a_poisoned_entry_is_parked_with_its_reason_and_blocks_no_other(
    ward: Ward, status: int
) -> None:
    kit = await ward.kit("HW-0001")
    for n in range(4):
        kit.frame(OXIMETER, SPOT, spot(90 + n))
    await ward.taken()
    await ward.hub.gateway("HW-0001")
    await ward.hub.sensor("serial://501231", SPOT)
    await ward.server.fault("entry", status=status, entry=3)
    await ward.settled()
    assert await ward.rows("reading, answer", "where state = 'parked'") == [
        (2, (await ward.rows("answer", "where reading = 2"))[0][0])
    ]
    assert f"injected fault {status}" in (await ward.rows("answer", "where reading = 2"))[0][0]
    assert len(await ward.rows("reading", "where state = 'done'")) == 3
    assert await ward.counter("delivery parked") == 1


@pytest.mark.parametrize("status", [400, 412, 422])
async def test_a_bundle_refused_as_a_whole_is_halved_until_one_is_at_fault(ward: Ward, status: int) -> None:
    kit = await ward.kit("HW-0001")
    for n in range(5):
        kit.frame(OXIMETER, SPOT, spot(90 + n))
    await ward.taken()
    await ward.hub.gateway("HW-0001")
    await ward.hub.sensor("serial://501231", SPOT)
    await ward.server.fault("status", status=status, times=3)  # all five, the first two, the first
    await ward.settled()
    assert await ward.rows("state") == [("parked",), ("done",), ("done",), ("done",), ("done",)]
    assert len(await ward.at_hub()) == 8


async def test_a_parked_reading_can_be_replayed(ward: Ward) -> None:
    kit = await ward.kit("HW-0001")
    kit.frame(OXIMETER, SPOT, spot(90))
    await ward.taken()
    await ward.hub.gateway("HW-0001")
    await ward.hub.sensor("serial://501231", SPOT)
    await ward.server.fault("status", status=422)
    await ward.settled()
    assert await ward.rows("state") == [("parked",)]
    assert await ward.store.write(lambda db: replay(db, [1, 99], NOW)) == 1
    await ward.settled()
    assert await ward.rows("state") == [("done",)]
    assert await ward.store.write(lambda db: replay(db, [1], NOW)) == 0, "what is done stays done"


async def test_what_a_restored_store_calls_done_is_created_where_the_hub_lacks_it(ward: Ward) -> None:
    kit = await ward.kit("HW-0001")
    for n in range(3):
        kit.frame(OXIMETER, SPOT, spot(90 + n))
    await ward.settled()
    there = await ward.at_hub()
    lacking, *_ = await ward.server.held()  # retracted after the backup
    before = lacking["identifier"][0]["value"]
    identifier = [{**lacking["identifier"][0], "value": f"{before}-retracted-{lacking['id']}"}]
    await ward.server.put({**lacking, "status": "entered-in-error", "identifier": identifier, "meta": {}})
    assert before not in await ward.at_hub()
    assert await ward.store.write(lambda db: look_again(db, NOW, hub_restored=False)) == 3
    await ward.settled()
    assert set(there) < set(await ward.at_hub())
    assert await ward.rows("state") == [("done",)] * 3
    assert [int(one["meta"]["versionId"]) for one in await ward.server.held()] == [2, 1, 1, 1, 1, 1, 1]


async def test_what_a_restored_hub_has_again_is_retracted_again(ward: Ward) -> None:
    kit = await ward.kit("HW-0001")
    kit.frame(OXIMETER, SPOT, spot(90))
    await ward.settled()
    had = await ward.server.held()
    await ward.store.write(lambda db: end(db, "HW-0001", BIRTH_MS))
    await ward.settled()
    assert await ward.still("final") == 0 and await ward.rows("reading") == []
    for one in had:
        await ward.server.put({**one, "meta": {}})
    assert await ward.store.write(lambda db: look_again(db, NOW, hub_restored=False)) == 0
    assert await ward.store.write(lambda db: look_again(db, NOW, hub_restored=True)) == 1
    await ward.settled()
    assert await ward.still("final") == 0 and await ward.rows("reading") == []


async def test_a_hub_that_has_forgotten_a_device_is_told_of_it_again(ward: Ward) -> None:
    kit = await ward.kit("HW-0001")
    kit.frame(OXIMETER, SPOT, spot(90))
    await ward.settled()
    ward.hub._references.update(dict.fromkeys(ward.hub._references, "Device/999"))  # as after a restore
    kit.frame(OXIMETER, SPOT, spot(91))
    await ward.settled()
    assert await ward.rows("state") == [("done",), ("parked",)]
    await ward.store.write(lambda db: replay(db, [2], NOW))
    await ward.settled()
    assert await ward.rows("state") == [("done",), ("done",)]


async def test_a_conflict_that_stays_is_parked_in_the_end(ward: Ward) -> None:
    kit = await ward.kit("HW-0001")
    kit.frame(OXIMETER, SPOT, spot(90))
    await ward.taken()
    await ward.hub.gateway("HW-0001")
    await ward.hub.sensor("serial://501231", SPOT)
    await ward.server.fault("entry", status=409, times=CONFLICT_ATTEMPTS)
    await ward.settled()
    assert await ward.rows("state, attempts") == [("parked", CONFLICT_ATTEMPTS)]


async def test_a_wrong_sign_in_parks_nothing_and_is_counted(tmp_path: Path) -> None:
    async with (
        serve_hub(tmp_path, token="s3cret") as server,
        Store.open(tmp_path / "store.sqlite") as store,
    ):
        async with Hub(server.url, token="wrong") as stranger:
            ward = Ward(store, server, stranger)
            kit = await ward.kit("HW-0001")
            kit.frame(OXIMETER, SPOT, spot(90))
            await ward.taken()
            async with ward.delivering() as running:

                async def accepted() -> int:
                    return await ward.counter("hub refuses us") < 3

                await ward.until(accepted)
                assert running.trouble and running.trouble.startswith("401")
        assert await ward.rows("state") == [("queued",)]
        async with Hub(server.url, token="s3cret") as ward.hub:
            await ward.settled()
        assert len(await ward.at_hub()) == 2


async def test_what_the_hub_refuses_says_why_but_not_who(ward: Ward) -> None:
    kit = await ward.kit("HW-0001")
    await ward.store.write(lambda db: db.execute("update assignment set patient = 'Patient/999'") and None)
    kit.frame(OXIMETER, SPOT, spot(90))
    await ward.settled()
    ((state, answer),) = await ward.rows("state, answer")
    assert state == "parked" and answer.startswith("422: not-found")
    assert "999" not in answer


async def test_a_reading_that_cannot_be_mapped_is_parked_alone(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = await ward.kit("HW-0001")
    for n in range(3):
        kit.frame(OXIMETER, SPOT, spot(90 + n))
    mapped = outbox.entries

    def fails_for_91(characteristic: int, reading: Any, *more: Any) -> dict[str, bytes]:
        if reading.values[0].mantissa == 91:
            raise ZeroDivisionError
        return mapped(characteristic, reading, *more)

    monkeypatch.setattr(outbox, "entries", fails_for_91)
    await ward.settled()
    assert await ward.rows("state") == [("done",), ("parked",), ("done",)]


@pytest.mark.parametrize("races", [False, True])
async def test_a_service_killed_between_answer_and_commit_doubles_nothing(ward: Ward, races: bool) -> None:
    kit = await ward.kit("HW-0001")
    for n in range(3):
        kit.frame(OXIMETER, SPOT, spot(90 + n))
    await ward.settled()
    # What a kill there leaves: the Hub has them and the rows do not say so.
    await ward.store.write(lambda db: db.execute("update outbox set state = 'queued', attempts = 0") and None)
    ward.races = races
    await ward.settled()
    assert len(await ward.at_hub()) == 6
    expected = "200: found at the Hub" if races else "200"
    assert await ward.rows("state, answer") == [("done", expected)] * 3


async def test_a_retry_searches_first_where_conditional_create_races(ward: Ward) -> None:
    ward.races = True
    kit = await ward.kit("HW-0001")
    kit.frame(OXIMETER, SPOT, spot(90))
    await ward.settled()
    kit.frame(OXIMETER, SPOT, spot(91))
    await ward.server.fault("close_after_commit", method="POST")
    await ward.settled()
    assert (await ward.rows("answer"))[1] == ("200: found at the Hub",)
    assert len(await ward.at_hub()) == 4


async def test_for_one_patient_there_is_one_bundle_under_way(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "BUNDLE_READINGS", 2)
    under_way: list[str] = []
    deliver = Hub.deliver

    async def watched(hub: Hub, entries: Any) -> Any:
        patients = {text for text in ("Patient/1", "Patient/2") if text.encode() in b"".join(entries)}
        assert len(patients) < 2
        for patient in patients:
            assert patient not in under_way, "two Bundles for one patient at a time"
            under_way.append(patient)
        together.append(len(under_way))
        answer = await deliver(hub, entries)
        for patient in patients:
            under_way.remove(patient)
        return answer

    together: list[int] = []
    monkeypatch.setattr(Hub, "deliver", watched)
    for name in ("HW-0001", "HW-0002"):
        kit = await ward.kit(name)
        for n in range(10):
            kit.frame(OXIMETER, SPOT, spot(90 + n))
    await ward.server.fault("slow", seconds=0.02, times=20)
    await ward.settled()
    assert max(together) == 2, "two patients are served at once"
    assert len(await ward.at_hub()) == 40


async def test_a_hub_that_is_down_is_left_alone_and_caught_up_with(
    ward: Ward, caplog: pytest.LogCaptureFixture
) -> None:
    kit = await ward.kit("HW-0001")
    for n in range(120):
        kit.frame(OXIMETER, SPOT, spot(90 + n % 10))
        kit.uptime_ms += MINUTE
    await ward.server.fault("close_before_commit", times=6)
    await ward.taken()
    async with ward.delivering() as running:
        await ward.until(ward.queued)
    assert "the Hub is left alone" in caplog.text and not running.breaker.is_open
    assert len(await ward.at_hub()) == 240
    assert await ward.counter("hub failed") == 6


async def test_a_probe_that_was_cut_off_is_not_waited_for_when_the_outbox_begins_anew(ward: Ward) -> None:
    kit = await ward.kit("HW-0001")
    kit.frame(OXIMETER, SPOT, spot())
    await ward.taken()
    async with ward.delivering() as running:
        await ward.until(ward.queued)
        kit.frame(OXIMETER, SPOT, spot(93))
        await ward.server.fault("close_before_commit", method="POST", times=3)
        await ward.server.fault("hang", method="POST")
        await ward.taken()
        ward.wake.set()
        await ward.until(ward.server.faults_left)  # the probe is under way, and without an answer
        assert running.breaker.is_open
    again = asyncio.create_task(running.run())  # as the service does after a fault of ours
    await ward.until(ward.queued)
    again.cancel()


async def test_a_reading_withdrawn_while_it_is_under_way_is_counted(ward: Ward) -> None:
    kit = await ward.kit("HW-0001")
    kit.frame(OXIMETER, SPOT, spot(90))
    await ward.settled()
    kit.uptime_ms += MINUTE
    kit.anchor()
    kit.frame(OXIMETER, SPOT, spot(91))
    await ward.taken()
    await ward.server.fault("slow", seconds=0.1)
    async with ward.delivering():
        await ward.until(ward.server.faults_left)
        ended = await ward.store.write(lambda db: end(db, "HW-0001", BIRTH_MS + MINUTE + MINUTE // 2))
        assert ended == (1, 0)

        async def uncounted() -> int:
            return not await ward.counter("delivered after withdrawal")

        await ward.until(uncounted)


async def test_a_repeat_of_the_sensor_is_one_at_the_hub_and_a_value_without_time_two(ward: Ward) -> None:
    kit = await ward.kit("HW-0001")
    for _ in range(2):
        kit.frame(OXIMETER, SPOT, spot(97, at=(2026, 7, 10, 1, 1, 0)))
        kit.frame(OXIMETER, SPOT, spot(95))
        kit.event(record.SENSOR_DRAINED, OXIMETER)
    await ward.settled()
    found = await ward.server.held(code="http://loinc.org|2708-6")
    assert sorted((one["valueQuantity"]["value"], "tag" in one["meta"]) for one in found) == [
        (95, False),
        (95, True),
        (97, False),
    ]


def test_the_next_patient_is_found_without_walking_through_the_backlog_of_the_first(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "plan.sqlite")
    db.executescript((Path(outbox.__file__).parent / "schema.sql").read_text())
    plan = " ".join(row[3] for row in db.execute("explain query plan " + outbox._WAITING))
    assert "SCAN outbox" not in plan
    db.close()
