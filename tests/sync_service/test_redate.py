"""What becomes known later of a time goes into its Reading; to the Hub only if what it was told is wrong."""

from typing import Any

import pytest
from kit_journal import BIRTH_MS, BP, CUFF, DAY, HOUR, MINUTE, OXIMETER, SPOT, KitJournal, spot
from ward import NOW, Ward

from gateway import record
from sync_service.assignments import assign, end, episode_of_journal, take_back, unbind
from sync_service.codes import READING_ID
from sync_service.derive import Deriver
from sync_service.outbox import claim, replay, settle
from sync_service.redate import MOVED

# aiohttp warns the development Hub of a key that is a plain string.
pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web.NotAppKeyWarning")

SPO2 = "http://loinc.org|2708-6"
GOOD_BP = bytes.fromhex("04780050006000" + "4800")
QUESTIONABLE = spot()[:-2] + bytes.fromhex("0040")  # measurement status: questionable data
KIT = "HW-0001"


async def times(ward: Ward) -> list[tuple[Any, ...]]:
    columns = "select quality, latest_ms - earliest_ms, state, assignment from reading order by reading"
    return await ward.store.read(lambda db: db.execute(columns).fetchall())


async def observed(ward: Ward, **query: str) -> dict[str, Any]:
    (one,) = await ward.server.held(code=SPO2, **query)
    return one


def version(resource: dict[str, Any]) -> str:
    return str(resource["meta"]["versionId"])


async def lie(ward: Ward, kit: KitJournal, by_ms: int = 2 * HOUR) -> None:
    """An ANCHOR that excludes the ones before it: from now on no time of this boot is sure."""
    kit.uptime_ms += MINUTE
    kit.anchor(BIRTH_MS + kit.uptime_ms + by_ms)
    await ward.settled()


async def test_a_later_anchor_of_the_boot_releases_what_was_held_at_the_edge_of_an_assignment(
    ward: Ward,
) -> None:
    kit = await ward.kit(KIT, start_ms=BIRTH_MS + 2 * DAY - 10_000)
    kit.uptime_ms += 2 * DAY  # and a minute, in which it may have been measured; a day's drift is 9 s
    kit.frame(OXIMETER, SPOT, spot())
    await ward.settled()
    ((quality, width_ms, state, _),) = await times(ward)
    assert (quality, state) == ("extrapolated", "held") and width_ms > 20_000
    kit.uptime_ms += MINUTE
    kit.anchor()
    await ward.settled()
    ((quality, width_ms, state, _),) = await times(ward)
    assert (quality, state) == ("synced", "queued") and width_ms < 61_000
    assert version(await observed(ward)) == "1"


async def test_a_reading_that_waits_for_the_hub_is_dated_again_before_it_goes(ward: Ward) -> None:
    kit = await ward.kit(KIT)
    kit.event(record.SENSOR_DRAINED, OXIMETER)
    kit.uptime_ms += 2 * DAY
    kit.frame(OXIMETER, SPOT, spot())
    await ward.taken()
    kit.uptime_ms += MINUTE
    kit.anchor()
    await ward.settled()
    found = await observed(ward)
    bound = next(
        one["valueQuantity"]["value"]
        for extension in found["extension"]
        for one in extension.get("extension", ())
        if one["url"] == "bound"
    )
    assert version(found) == "1" and bound < 31_000, "a minute in which it may have been measured, no drift"


async def test_a_read_of_the_sensors_clock_corrects_what_came_before_it(ward: Ward) -> None:
    kit = await ward.kit(KIT)
    kit.clock(CUFF, record.CLOCK_BEFORE, (2026, 7, 10, 5, 1, 0))  # five hours fast
    kit.uptime_ms += 13 * HOUR
    stamped = bytes([GOOD_BP[0] | 2]) + GOOD_BP[1:7] + bytes.fromhex("EA07070A0C0000") + GOOD_BP[7:]
    kit.frame(CUFF, BP, stamped)  # by its clock at 12:00
    await ward.taken()
    assert [(quality, state) for quality, _, state, _ in await times(ward)] == [("bracketed", "held")]
    kit.uptime_ms += MINUTE
    kit.clock(CUFF, record.CLOCK_BEFORE, (2026, 7, 10, 18, 2, 0))
    await ward.taken()
    ((quality, width_ms, state, _),) = await times(ward)
    assert (quality, state) == ("sensor_corrected", "queued") and width_ms < 2 * MINUTE


async def test_what_the_hub_was_told_stays_while_it_holds(ward: Ward) -> None:
    kit = await ward.kit(KIT)
    kit.uptime_ms += 2 * DAY
    kit.frame(OXIMETER, SPOT, spot())
    await ward.settled()
    before = await observed(ward)
    kit.uptime_ms += MINUTE
    kit.anchor()
    await ward.settled()
    assert await observed(ward) == before
    assert await ward.counter("amended") == 0


@pytest.mark.parametrize(("value", "status"), [(spot(), "amended"), (QUESTIONABLE, "preliminary")])
async def test_a_broken_bound_is_amended_under_the_same_key(ward: Ward, value: bytes, status: str) -> None:
    kit = await ward.kit(KIT)
    kit.frame(OXIMETER, SPOT, value)
    await ward.settled()
    before, keys = await observed(ward), await ward.at_hub()
    await lie(ward, kit)
    after = await observed(ward)
    assert (after["id"], version(after), after["status"]) == (before["id"], "2", status)
    assert after["valueQuantity"] == before["valueQuantity"]
    assert after["effectiveDateTime"] > before["effectiveDateTime"]
    assert await ward.at_hub() == keys
    assert await ward.rows("kind, state") == [("amend", "done")]
    assert await ward.counter("amended") == 1


async def test_a_time_that_leaves_every_assignment_is_retracted_and_held(ward: Ward) -> None:
    kit = await ward.kit(KIT)
    kit.frame(OXIMETER, SPOT, spot())
    kit.frame(CUFF, BP, GOOD_BP)
    await ward.settled()
    keys = await ward.at_hub()
    await lie(ward, kit, -5 * HOUR)  # before the Assignment
    found = await ward.server.held()
    assert [(one["status"], version(one)) for one in found] == [("entered-in-error", "2")] * len(keys)
    assert not set(await ward.at_hub()) & set(keys), "its key is free for the right patient"
    assert [state for *_, state, _ in await times(ward)] == ["held", "held"]
    assert await ward.rows("reading") == []
    assert await ward.counter("retracted") == 2


async def given_on(ward: Ward, at_ms: int) -> str:
    """The Kit has been with somebody else since then, as the operator finds out now."""
    other = await ward.server.patient("other")
    await ward.store.write(lambda db: end(db, KIT, at_ms))
    await ward.store.write(lambda db: assign(db, KIT, "other", other, at_ms, now_ms=NOW, max_bracket_ms=DAY))
    return other


async def test_what_was_delivered_to_the_wrong_patient_goes_to_the_right_one(ward: Ward) -> None:
    kit = await ward.kit(KIT)
    kit.frame(OXIMETER, SPOT, spot())
    await ward.settled()
    keys = await ward.at_hub()
    other = await given_on(ward, BIRTH_MS - MINUTE)
    await ward.settled()
    wrong, right = await observed(ward, patient="Patient/1"), await observed(ward, patient=other)
    assert (wrong["status"], right["status"]) == ("entered-in-error", "final")
    assert right["identifier"][0]["value"] in keys
    assert await ward.rows("kind, state, patient") == [("amend", "done", other)]


async def test_what_was_never_sent_is_retracted_without_a_trace(ward: Ward) -> None:
    kit = await ward.kit(KIT)
    kit.frame(OXIMETER, SPOT, spot())
    await ward.taken()
    other = await given_on(ward, BIRTH_MS - MINUTE)
    await ward.settled()
    assert await ward.server.held(code=SPO2, patient="Patient/1") == []
    assert (await observed(ward, patient=other))["status"] == "final"


async def test_an_answer_that_was_lost_leaves_nothing_with_the_wrong_patient(ward: Ward) -> None:
    """The Hub has it, and the Store does not know."""
    kit = await ward.kit(KIT)
    kit.frame(OXIMETER, SPOT, spot())
    await ward.settled()
    await ward.store.write(lambda db: db.execute("update outbox set state = 'queued', attempts = 1") and None)
    other = await given_on(ward, BIRTH_MS - MINUTE)
    await ward.settled()
    assert (await observed(ward, patient="Patient/1"))["status"] == "entered-in-error"
    assert (await observed(ward, patient=other))["status"] == "final"


async def test_what_is_taken_back_while_it_is_under_way_is_retracted_after_it(ward: Ward) -> None:
    kit = await ward.kit(KIT)
    kit.frame(CUFF, BP, GOOD_BP)
    await ward.settled()  # the Devices are known
    kit.frame(OXIMETER, SPOT, spot())
    await ward.taken()
    await ward.server.fault("slow", method="POST", seconds=0.1)
    async with ward.delivering():
        await ward.until(ward.server.faults_left)
        other = await given_on(ward, BIRTH_MS - MINUTE)
        await ward.until(ward.queued)
    assert (await observed(ward, patient="Patient/1"))["status"] == "entered-in-error"
    assert (await observed(ward, patient=other))["status"] == "final"


@pytest.mark.parametrize("given", [False, True])
async def test_what_another_worker_delivers_after_it_was_taken_back_is_retracted_all_the_same(
    ward: Ward, given: bool
) -> None:
    kit = await ward.kit(KIT)
    kit.frame(OXIMETER, SPOT, spot())
    await ward.taken()
    claimed = await ward.store.read(
        lambda db: claim(db, now_ms=NOW, busy=frozenset(), patients=1)[0]
    )  # by the other worker, which is slow
    ((patient, rows),) = claimed.items()
    if given:
        other = await given_on(ward, BIRTH_MS - MINUTE)
    else:
        await ward.store.write(lambda db: end(db, KIT, BIRTH_MS - MINUTE))
    await ward.settled()
    async with ward.delivering() as slow:
        answered = await slow._attempt(patient, rows)
        decisions = slow._decide(answered)
        await ward.store.write(lambda db: settle(db, decisions=decisions, now_ms=NOW))
        await ward.until(ward.queued)
    found = await ward.server.held(code=SPO2)
    assert ("final" in [one["status"] for one in found]) == given
    assert all(one["status"] == "entered-in-error" for one in found if one["subject"]["reference"] == patient)
    if given:
        assert (await observed(ward, patient=other))["status"] == "final"


async def test_what_arrives_after_it_was_retracted_is_retracted_too(ward: Ward) -> None:
    """A worker that was killed has sent it; the Hub does it a little later."""
    kit = await ward.kit(KIT)
    kit.frame(OXIMETER, SPOT, spot())
    await ward.settled()
    late = await observed(ward)
    other = await given_on(ward, BIRTH_MS - MINUTE)
    async with ward.delivering(unheard_ms=150):
        await ward.until(lambda: ward.still("final"))
        del late["id"], late["meta"]["versionId"], late["meta"]["lastUpdated"]
        await ward.server.post(late)
        await ward.until(ward.queued)
    assert {one["status"] for one in await ward.server.held(code=SPO2, patient="Patient/1")} == {
        "entered-in-error"
    }
    assert (await observed(ward, patient=other))["status"] == "final"


async def test_what_is_not_found_is_looked_for_again_before_it_goes_to_another(ward: Ward) -> None:
    """A worker that was killed may have sent it a moment ago."""
    kit = await ward.kit(KIT)
    kit.frame(OXIMETER, SPOT, spot())
    await ward.taken()
    other = await given_on(ward, BIRTH_MS - MINUTE)
    await ward.settled()
    assert (await observed(ward))["subject"]["reference"] == other
    assert await ward.counter("delivery retried") == 1


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("close_after_commit", {}),
        ("close_before_commit", {}),
        ("status", {"status": 503}),
        ("status", {"status": 409}),
        ("status", {"status": 412}),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "GET"])
async def test_a_correction_survives_what_the_hub_does_to_it(
    ward: Ward, kind: str, more: dict[str, Any], method: str
) -> None:
    kit = await ward.kit(KIT)
    kit.frame(OXIMETER, SPOT, spot())
    await ward.settled()
    if (method, more.get("status")) == ("GET", 412):
        return  # of a search that is a final no
    other = await given_on(ward, BIRTH_MS - MINUTE)
    await ward.server.fault(kind, method=method, times=2, **more)
    await ward.settled()
    assert await ward.server.faults_left() == 0
    assert (await observed(ward, patient="Patient/1"))["status"] == "entered-in-error"
    assert (await observed(ward, patient=other))["status"] == "final"


async def test_a_hub_that_does_not_update_has_the_correction_parked(ward: Ward) -> None:
    kit = await ward.kit(KIT)
    kit.frame(OXIMETER, SPOT, spot())
    await ward.settled()
    await ward.server.fault("status", status=405, method="PUT", times=2)
    await lie(ward, kit)
    ((kind, state, answer),) = await ward.rows("kind, state, answer")
    assert (kind, state) == ("amend", "parked") and answer.startswith("405")


async def test_what_cannot_be_corrected_is_parked_alone(ward: Ward) -> None:
    """Somebody has added to it what we can't take back, and who waits behind it must not suffer for that."""
    kit = await ward.kit(KIT)
    kit.frame(OXIMETER, SPOT, spot())
    await ward.settled()
    found = await observed(ward)
    odd = found["identifier"] + [{"system": READING_ID}]
    await ward.server.put(found | {"identifier": odd, "meta": {}, "status": "amended"})
    other = await given_on(ward, BIRTH_MS - MINUTE)
    kit.frame(OXIMETER, SPOT, spot(93))
    await ward.settled()
    assert await ward.rows("kind, state") == [("retract", "parked"), ("create", "done")]
    assert (await observed(ward, patient=other))["valueQuantity"]["value"] == 93


async def test_an_amendment_makes_what_the_hub_has_lost(ward: Ward) -> None:
    kit = await ward.kit(KIT)
    kit.frame(OXIMETER, SPOT, spot())
    await ward.taken()
    await ward.store.write(lambda db: db.execute("update outbox set state = 'done'") and None)
    await lie(ward, kit)
    assert (await observed(ward))["status"] == "final"
    assert await ward.rows("kind, state") == [("amend", "done")]


async def test_what_somebody_has_marked_as_an_error_is_not_brought_back(ward: Ward) -> None:
    kit = await ward.kit(KIT)
    kit.frame(OXIMETER, SPOT, spot())
    await ward.settled()
    await ward.server.put(await observed(ward) | {"status": "entered-in-error", "meta": {}})
    await lie(ward, kit)
    assert (await observed(ward))["status"] == "entered-in-error"
    assert await ward.rows("kind, state") == [("amend", "done")]


async def test_a_bound_that_breaks_while_it_is_under_way_is_amended_after_it(ward: Ward) -> None:
    kit = await ward.kit(KIT)
    kit.frame(OXIMETER, SPOT, spot(98))
    await ward.settled()
    kit.frame(OXIMETER, SPOT, spot(97))
    await ward.taken()
    await ward.server.fault("slow", method="POST", seconds=0.1)
    async with ward.delivering():
        await ward.until(ward.server.faults_left)
        kit.uptime_ms += MINUTE
        kit.anchor(BIRTH_MS + kit.uptime_ms + 2 * HOUR)
        await ward.taken()
        await ward.until(ward.queued)
    found = await ward.server.held(code=SPO2)
    assert [one["status"] for one in found] == ["amended", "amended"]


@pytest.mark.parametrize("state", ["queued", "parked"])
async def test_what_was_sent_without_an_answer_gets_the_time_that_is_known_by_now(
    ward: Ward, state: str
) -> None:
    """A conditional create alone would find it, and leave it as it is."""
    kit = await ward.kit(KIT)
    kit.frame(OXIMETER, SPOT, spot())
    await ward.settled()
    before = await observed(ward)
    await ward.store.write(lambda db: db.execute("update outbox set state = ?", (state,)) and None)
    await lie(ward, kit)
    await ward.store.write(lambda db: replay(db, [1], NOW) and None)
    await ward.settled()
    after = await observed(ward)
    assert after["effectiveDateTime"] > before["effectiveDateTime"]
    assert after["status"] == "amended"


async def test_what_comes_back_to_its_patient_before_it_was_taken_out_gets_the_time_of_now(
    ward: Ward,
) -> None:
    """The operator ended the wrong Assignment, and mends that; meanwhile an ANCHOR has come."""
    kit = await ward.kit(KIT)
    kit.uptime_ms += HOUR
    kit.frame(OXIMETER, SPOT, spot())
    await ward.settled()
    before, ended_ms = await observed(ward), BIRTH_MS + MINUTE
    await ward.store.write(lambda db: end(db, KIT, ended_ms))
    kit.uptime_ms += MINUTE
    kit.anchor(BIRTH_MS + kit.uptime_ms + 2 * HOUR)
    await ward.taken()
    await ward.store.write(
        lambda db: assign(db, KIT, KIT, "Patient/1", ended_ms, now_ms=NOW, max_bracket_ms=DAY)
    )
    await ward.settled()
    after = await observed(ward, patient="Patient/1")
    assert after["effectiveDateTime"] > before["effectiveDateTime"]


async def test_what_is_barred_is_shown_with_its_true_time_and_stays_barred(ward: Ward) -> None:
    kit = await ward.kit(KIT)
    kit.event(record.BOND_CHANGED, OXIMETER)
    kit.frame(OXIMETER, SPOT, spot())
    await ward.taken()
    ((_, before_ms, state, _),) = await times(ward)
    await lie(ward, kit)
    ((_, width_ms, state, assignment),) = await times(ward)
    assert width_ms > before_ms + HOUR and (state, assignment) == ("held", None)
    assert await ward.rows("reading") == []


async def test_a_journal_keeps_its_episode_while_another_assignment_of_it_holds_a_reading(ward: Ward) -> None:
    kit = await ward.kit(KIT)
    kit.frame(OXIMETER, SPOT, spot())
    await ward.settled()
    await ward.store.write(lambda db: end(db, KIT, BIRTH_MS + 2 * HOUR))
    again_ms = BIRTH_MS + 3 * HOUR
    await ward.store.write(
        lambda db: assign(db, KIT, KIT, "Patient/1", again_ms, now_ms=NOW, max_bracket_ms=DAY)
    )
    kit.boot, kit.uptime_ms = 2, 0
    kit.anchor(BIRTH_MS + 4 * HOUR)
    kit.uptime_ms += MINUTE
    kit.frame(OXIMETER, SPOT, spot(93))
    await ward.taken()
    assert [(state, assignment) for *_, state, assignment in await times(ward)] == [
        ("queued", 1),
        ("queued", 2),
    ]
    await ward.store.write(lambda db: take_back(db, [1], MOVED))
    await ward.store.write(lambda db: unbind(db, 1))
    assert await ward.store.read(lambda db: episode_of_journal(db, kit.number)) == KIT


async def test_only_times_that_the_news_can_concern_are_dated_again(ward: Ward) -> None:
    kit = await ward.kit(KIT)
    for _ in range(3):
        kit.uptime_ms += 2 * HOUR
        kit.frame(OXIMETER, SPOT, spot())
        await ward.taken()
    assert await ward.counter("dated again") == 0
    kit.uptime_ms += MINUTE
    kit.anchor()
    await ward.taken()
    assert await ward.counter("dated again") == 3
    kit.uptime_ms += 2 * HOUR
    kit.anchor()
    await ward.taken()
    assert await ward.counter("dated again") == 3


async def test_what_an_sntp_server_says_dates_nothing(ward: Ward) -> None:
    # Right before a boot and after it, it may have been wrong in it (found by the simulation).
    kit = await ward.kit(KIT)
    kit.hint(BIRTH_MS + kit.uptime_ms)
    kit.boot, kit.uptime_ms = 2, HOUR
    kit.hint(BIRTH_MS + 5 * HOUR)
    kit.frame(OXIMETER, SPOT, spot())
    await ward.taken()
    assert await times(ward) == []
    kit.boot, kit.uptime_ms = 3, 0
    kit.anchor(BIRTH_MS + 20 * HOUR)
    kit.hint(BIRTH_MS + 20 * HOUR)
    await ward.taken()
    ((quality, width_ms, _, _),) = await times(ward)
    assert quality == "bracketed" and width_ms > 18 * HOUR


async def test_a_service_that_is_killed_before_it_has_drawn_the_conclusion_draws_it_after(ward: Ward) -> None:
    kit = await ward.kit(KIT)
    kit.frame(OXIMETER, SPOT, spot())
    await ward.settled()
    kit.uptime_ms += MINUTE
    kit.anchor(BIRTH_MS + kit.uptime_ms + 2 * HOUR)
    await ward.store.write(kit.store)
    ward.deriver = Deriver()  # here it was killed
    await ward.settled()
    assert (await observed(ward))["status"] == "amended"
