"""The development Hub refuses what is malformed and a UK Core claim that is not met, with all reasons."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from hw.virtual.hub_validation import Refusal, Resource, check_rules, form, model_check

UK_CORE = "https://fhir.hl7.org.uk/StructureDefinition/UKCore-Observation-VitalSigns"
CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
LOINC, SNOMED, UCUM = "http://loinc.org", "http://snomed.info/sct", "http://unitsofmeasure.org"

check_model = model_check()


def vital_sign(profile: str, loinc: str, snomed: str, **rest: Any) -> Resource:
    return {
        "resourceType": "Observation",
        "meta": {"profile": [UK_CORE + profile]},
        "identifier": [{"system": "urn:test", "value": "1"}],
        "status": "final",
        "category": [{"coding": [{"system": CATEGORY, "code": "vital-signs"}]}],
        "code": {"coding": [{"system": LOINC, "code": loinc}, {"system": SNOMED, "code": snomed}]},
        "subject": {"reference": "Patient/1"},
        "effectiveDateTime": "2025-01-01T12:00:00.000Z",
        **rest,
    }


def quantity(value: float, unit: str, code: str) -> Resource:
    return {"value": value, "unit": unit, "system": UCUM, "code": code}


def part(text: str, loinc: str, snomed: str, value: float) -> Resource:
    coding = [{"system": LOINC, "code": loinc, "display": text}, {"system": SNOMED, "code": snomed}]
    return {
        "code": {"text": text, "coding": coding},
        "valueQuantity": quantity(value, "millimeter of mercury", "mm[Hg]"),
    }


SPO2 = vital_sign("-OxygenSaturation", "2708-6", "431314004", valueQuantity=quantity(97, "percent", "%"))
HEART_RATE = vital_sign(
    "-HeartRate", "8867-4", "364075005", valueQuantity=quantity(61.5, "per minute", "/min")
)
BLOOD_PRESSURE = vital_sign(
    "-BloodPressure",
    "85354-9",
    "75367002",
    component=[
        part("Systolic blood pressure", "8480-6", "72313002", 120),
        part("Diastolic blood pressure", "8462-4", "1091811000000102", 80),
    ],
)


def changed(resource: Resource, change: Callable[[Resource], object]) -> Resource:
    copied = copy.deepcopy(resource)
    change(copied)
    return copied


def reasons(resource: Resource) -> str:
    with pytest.raises(Refusal) as refusal:
        check_rules(resource)
    assert refusal.value.status == 422
    return "\n".join(issue.diagnostics for issue in refusal.value.issues)


@pytest.mark.parametrize(
    "resource", [SPO2, HEART_RATE, BLOOD_PRESSURE], ids=["spo2", "heart rate", "blood pressure"]
)
def test_a_vital_sign_that_meets_its_profile_is_accepted(resource: Resource) -> None:
    check_model(resource)
    check_rules(resource)


@pytest.mark.parametrize(
    ("base", "change", "reason"),
    [
        (SPO2, lambda r: r.update(status="preliminary"), "status has to be final"),
        (SPO2, lambda r: r["category"].append({"text": "phd"}), "exactly one, vital-signs"),
        (SPO2, lambda r: r.pop("category"), "exactly one, vital-signs"),
        (
            SPO2,
            lambda r: r["code"]["coding"].append({"system": LOINC, "code": "59408-5"}),
            "one LOINC coding, not 2",
        ),
        (SPO2, lambda r: r["code"]["coding"].pop(0), "one LOINC coding, not 0"),
        (SPO2, lambda r: r["code"]["coding"][0].update(code="59408-5"), "LOINC code has to be 2708-6"),
        (SPO2, lambda r: r["code"]["coding"].pop(1), "SNOMED CT coding is missing"),
        (SPO2, lambda r: r.pop("subject"), "subject is missing"),
        (SPO2, lambda r: r.pop("effectiveDateTime"), "effective[x] is missing"),
        (SPO2, lambda r: r.pop("valueQuantity"), "valueQuantity with a value is missing"),
        (SPO2, lambda r: r["valueQuantity"].update(unit="%"), "unit has to be 'percent'"),
        (SPO2, lambda r: r["valueQuantity"].update(code="percent"), "unit code has to be %"),
        (HEART_RATE, lambda r: r["valueQuantity"].update(code="{beats}/min"), "unit code has to be /min"),
        (BLOOD_PRESSURE, lambda r: r.update(valueQuantity=quantity(93, "x", "y")), "no value[x] of its own"),
        (BLOOD_PRESSURE, lambda r: r["component"].pop(), "components have to be exactly"),
        (
            BLOOD_PRESSURE,
            lambda r: r["component"].append(part("Mean blood pressure", "8478-0", "6797001", 93)),
            "components have to be exactly",
        ),
        (BLOOD_PRESSURE, lambda r: r["component"][0]["code"].pop("text"), "by code.text"),
        (
            BLOOD_PRESSURE,
            lambda r: r["component"][0]["code"]["coding"][0].update(display="Systolic"),
            "display 'Systolic blood pressure'",
        ),
        (
            BLOOD_PRESSURE,
            lambda r: r["component"][1]["valueQuantity"].update(unit="mmHg"),
            "Diastolic blood pressure: unit has to be 'millimeter of mercury'",
        ),
        (BLOOD_PRESSURE, lambda r: r["code"]["coding"][0].update(display="BP"), "display of 85354-9"),
        (
            SPO2,
            lambda r: r["meta"].update(profile=[UK_CORE + "-Oximetry"]),
            "not one that this hub can check",
        ),
    ],
)
def test_a_claim_that_is_not_met_is_refused(
    base: Resource, change: Callable[[Resource], object], reason: str
) -> None:
    assert reason in reasons(changed(base, change))


def test_all_reasons_come_at_once() -> None:
    def spoil(resource: Resource) -> None:
        resource.update(status="amended", category=[])
        resource.pop("subject")

    assert len(reasons(changed(SPO2, spoil)).splitlines()) == 3


def test_what_claims_nothing_need_not_meet_it() -> None:
    check_rules(
        changed(SPO2, lambda r: (r.pop("meta"), r.pop("category"), r["valueQuantity"].update(unit="%")))
    )


def test_a_failed_measurement_shows_no_number() -> None:
    failed = changed(SPO2, lambda r: (r.pop("meta"), r.update(dataAbsentReason={"text": "error"})))
    assert "obs-6" in reasons(failed)
    check_rules(changed(failed, lambda r: r.pop("valueQuantity")))


@pytest.mark.parametrize("value", ["97", True, None, {"value": 97}])
def test_a_value_that_is_no_number_is_refused(value: object) -> None:
    assert "not a JSON number" in reasons(changed(SPO2, lambda r: r["valueQuantity"].update(value=value)))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda r: r.pop("code"), "Observation.code"),
        (lambda r: r.update(code="2708-6"), "Observation.code"),
        (lambda r: r.update(effectiveDateTime="2025-13-01"), "Observation.effectiveDateTime"),
        (lambda r: r.update(colour="red"), "Observation.colour"),
    ],
)
def test_a_malformed_resource_is_refused_and_the_element_named(
    change: Callable[[Resource], object], where: str
) -> None:
    with pytest.raises(Refusal) as refusal:
        check_model(changed(SPO2, change))
    assert refusal.value.status == 400
    assert where in [issue.expression for issue in refusal.value.issues]


def test_a_refusal_does_not_repeat_what_the_element_held() -> None:
    with pytest.raises(Refusal) as refusal:
        check_model({"resourceType": "Patient", "birthDate": "Adam Smith"})
    assert "Adam" not in repr(refusal.value.issues)


def test_resources_of_one_form_differ_in_numbers_and_names_only() -> None:
    other = changed(
        SPO2, lambda r: (r["valueQuantity"].update(value=-3.5e-2), r["identifier"][0].update(value="2"))
    )
    assert form(other) == form(SPO2)
    for change in (
        lambda r: r.update(status="amended"),
        lambda r: r["valueQuantity"].update(value="97"),
        lambda r: r["valueQuantity"].update(unit="%"),
        lambda r: r.pop("effectiveDateTime"),
        lambda r: r.update(dataAbsentReason={"text": "error"}),
    ):
        assert form(changed(SPO2, change)) != form(SPO2)
