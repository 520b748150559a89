"""The checker finds what it is there for: each way in which a Hub can be wrong, one at a time."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from hw.demo.checker import HEART_RATE, MEAN, PANEL, SPO2, Seen, Verdict, _seen, compare
from hw.virtual.ledger import BLOOD_PRESSURE, SPOT_CHECK, Measurement

NOON_MS = 1_783_684_800_000.0
MINUTE_MS = 60_000.0
PATIENTS = {"E-1": "Patient/1", "E-2": "Patient/2"}
OTHER = "Patient/2"
FOUND = ("missing", "duplicates", "possible_repeats", "wrong_patient", "false_vitals")


def taken(number: int, kind: str = SPOT_CHECK, *, failed: bool = False, **values: int) -> Measurement:
    """A measurement of the first patient, `number` minutes after noon."""
    at = datetime.fromtimestamp((NOON_MS + number * MINUTE_MS) / 1000, UTC)
    return Measurement(
        number=number,
        sensor="C0:00:00:00:00:01",
        serial="CUFF" if kind == BLOOD_PRESSURE else "OX",
        kind=kind,
        taken_at=at.isoformat(timespec="microseconds"),
        episode="E-1",
        values=dict(values),
        unit="",
        failed=failed,
        status=None,
        sensor_status=None,
        timestamped=True,
        clock="set",
        shown_at=None,
    )


OXYGEN = taken(1, spo2=97, pulse=72)
PRESSURE = taken(2, BLOOD_PRESSURE, systolic=128, diastolic=82, mean=97, pulse=64)
FAILED = taken(3, BLOOD_PRESSURE, failed=True)
LEDGER = [OXYGEN, PRESSURE, FAILED]


def seen(id: str, measurement: Measurement, code: str, *values: int | None) -> Seen:
    """What the Hub holds of a measurement, known to the minute."""
    at = datetime.fromisoformat(measurement.taken_at).timestamp() * 1000
    numbers = tuple(None if value is None else Decimal(value) for value in values)
    return Seen(
        id, code, "Patient/1", measurement.serial, numbers, at - MINUTE_MS / 2, at + MINUTE_MS / 2, False
    )


HUB = [
    seen("oxygen", OXYGEN, SPO2, 97),
    seen("pulse", OXYGEN, HEART_RATE, 72),
    seen("pressure", PRESSURE, PANEL, 128, 82),
    seen("mean", PRESSURE, MEAN, 97),
    seen("failed", FAILED, PANEL, None, None),
]


def held(**changed: dict[str, Any] | None) -> list[Seen]:
    """The Hub with fields of some Observations changed, or without them."""
    hub = [(one, changed.get(one.id, {})) for one in HUB]
    return [replace(one, **change) for one, change in hub if change is not None]


def again(id: str, **changed: Any) -> Seen:
    """An Observation once more, under another id."""
    return replace(next(one for one in HUB if one.id == id), **{"id": f"{id}-again", **changed})


def found(verdict: Verdict) -> dict[str, int]:
    return {name: n for name in FOUND if (n := getattr(verdict, name))}


def test_a_hub_that_holds_each_measurement_once_is_clean() -> None:
    verdict = compare(LEDGER, PATIENTS, HUB)
    assert (verdict.taken, verdict.at_hub, found(verdict), verdict.clean) == (3, 3, {}, True)
    assert verdict.arrived == {("OX", 1), ("CUFF", 2), ("CUFF", 3)}
    assert verdict.remarks == []


DECEMBER = {"earliest_ms": NOON_MS + 1e9, "latest_ms": NOON_MS + 1e9 + MINUTE_MS}


@pytest.mark.parametrize(
    ("hub", "wrong"),
    [
        pytest.param(held(oxygen=None), {"missing": 1}, id="missing"),
        pytest.param(held(failed=None), {"missing": 1}, id="a failed one missing"),
        pytest.param([], {"missing": 3}, id="all missing"),
        pytest.param([*HUB, again("oxygen")], {"duplicates": 1}, id="twice"),
        pytest.param([*HUB, again("failed")], {"duplicates": 1}, id="a failed one twice"),
        pytest.param([*HUB, again("pressure", possible_repeat=True)], {"possible_repeats": 1}, id="marked"),
        pytest.param(held(oxygen={"patient": OTHER}), {"missing": 1, "wrong_patient": 1}, id="wrong patient"),
        pytest.param([*HUB, again("oxygen", patient=OTHER)], {"wrong_patient": 1}, id="two patients"),
        pytest.param(held(mean={"patient": OTHER}), {"wrong_patient": 1}, id="wrong patient's mean"),
        pytest.param(held(oxygen=DECEMBER), {"missing": 1, "duplicates": 1}, id="misdated"),
        pytest.param(
            held(oxygen={"values": (Decimal(79),)}), {"missing": 1, "false_vitals": 1}, id="another number"
        ),
        pytest.param(
            held(failed={"values": (Decimal(2047), Decimal(2047))}),
            {"missing": 1, "false_vitals": 1},
            id="a number for a failed one",
        ),
        pytest.param([*HUB, again("pulse", values=(Decimal(2047),))], {"false_vitals": 1}, id="false pulse"),
        pytest.param([*HUB, again("oxygen", code=None)], {"false_vitals": 1}, id="no known code"),
        pytest.param(
            held(pressure={"values": (Decimal(82), Decimal(128))}),
            {"missing": 1, "false_vitals": 1},
            id="turned round",
        ),
        pytest.param(
            held(oxygen={"serial": "CUFF"}), {"missing": 1, "false_vitals": 1}, id="from another Sensor"
        ),
    ],
)
def test_what_is_wrong_at_the_hub_is_found_and_counted_as_what_it_is(
    hub: list[Seen], wrong: dict[str, int]
) -> None:
    verdict = compare(LEDGER, PATIENTS, hub)
    assert found(verdict) == wrong
    assert verdict.clean == (set(wrong) <= {"possible_repeats"})
    assert bool(verdict.remarks) != verdict.clean
    assert verdict.taken == 3 and verdict.at_hub == 3 - verdict.missing


def test_two_equal_measurements_need_two_observations() -> None:
    second = replace(OXYGEN, number=4, taken_at=OXYGEN.taken_at.replace("12:01", "12:02"))
    first_alone = compare([*LEDGER, second], PATIENTS, HUB)
    assert found(first_alone) == {"missing": 1}
    both = [*HUB, seen("second", second, SPO2, 97)]
    assert compare([*LEDGER, second], PATIENTS, both).clean
    marked = [*HUB, replace(seen("second", second, SPO2, 97), possible_repeat=True)]
    assert compare([*LEDGER, second], PATIENTS, marked).clean


def test_a_possible_repeat_never_stands_for_a_measurement_that_has_its_own() -> None:
    verdict = compare(LEDGER, PATIENTS, [again("oxygen", possible_repeat=True), *HUB])
    assert (verdict.at_hub, verdict.possible_repeats) == (3, 1)


def observation(**more: Any) -> dict[str, Any]:
    """An Observation as a Hub gives it."""
    return {
        "id": "1",
        "code": {"coding": [{"system": "http://loinc.org", "code": SPO2}]},
        "subject": {"reference": "Patient/1"},
        "device": {"reference": "Device/1"},
        "valueQuantity": {"value": 97.0},
        "effectiveDateTime": "2026-07-10T12:00:00+00:00",
        **more,
    }


def reading_time(bound_ms: float) -> dict[str, Any]:
    parts = [{"url": "bound", "valueQuantity": {"value": bound_ms}}]
    return {"url": "https://homeward.example/fhir/StructureDefinition/reading-time", "extension": parts}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, (0, 0)),
        ({"extension": [reading_time(2500)]}, (-2500, 2500)),
        (
            {
                "effectiveDateTime": None,
                "effectivePeriod": {"start": "2026-07-10T12:59:00+01:00", "end": "2026-07-10T12:02:00Z"},
            },
            (-60_000, 120_000),
        ),
    ],
)
def test_the_bound_of_a_time_is_what_the_resource_states(
    more: dict[str, Any], expected: tuple[int, int]
) -> None:
    one = _seen(observation(**more), {"Device/1": "OX"})
    slack = 50
    assert (one.earliest_ms - NOON_MS + slack, one.latest_ms - NOON_MS - slack) == expected


def test_an_observation_is_reduced_to_what_is_compared() -> None:
    tagged = observation(meta={"tag": [{"code": "possible-repeat"}]})
    one = _seen(tagged, {"Device/1": "OX"})
    assert (one.code, one.patient, one.serial, one.values) == (SPO2, "Patient/1", "OX", (Decimal(97),))
    assert one.possible_repeat
    failed = observation(code={"coding": [{"system": "urn:iso:std:iso:11073:10101", "code": "150020"}]})
    assert (_seen(failed, {}).code, _seen(failed, {}).values) == (PANEL, (None, None))
