"""A Reading as Observations: valid FHIR, honest about its time, no vital sign that was not measured (P7)."""

import json
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import FormatError
from gateway.reading import Reading, text
from gateway.sensors import decode
from hw.virtual.hub_validation import VITAL_SIGNS, check_rules, claims, model_check
from sync_service.observation import About, entries, observations

LONDON = ZoneInfo("Europe/London")
JULY_ABOUT = About(
    key="0123456789abcdef0123456789abcdef",
    patient="Patient/7",
    sensor="Device/3",
    gateway="Device/2",
    kit="HW-0001",
    journal="a1b2c3d4e5f60718",
    sequence=42,
    earliest_ms=1_783_684_800_000,  # 2026-07-10T12:00:00Z
    latest_ms=1_783_684_802_000,
    quality="synced",
    host_confirmed=False,
    possible_repeat=False,
)
BP, SPOT, CONTINUOUS = 0x2A35, 0x2A5E, 0x2A5F

GOOD_BP = "16780050006000EA07070A0C00004800" + "0000"
GOOD_SPOT = "0261004800" + "0001"
FAILED_BP = "16FF07FF07FF07E80706170E230AFF070000"  # a real capture: NaN everywhere, every status bit clear

# One of each kind: characteristic, raw value.
KINDS = {
    "good blood pressure": (BP, GOOD_BP),
    "blood pressure without pulse": (BP, "10780050006000" + "0000"),
    "blood pressure in kPa": (BP, "01A0F06AF080F0"),
    "irregular pulse": (BP, "14780050006000" + "4800" + "0400"),
    "cuff too loose": (BP, "14780050006000" + "4800" + "0200"),
    "failed blood pressure": (BP, FAILED_BP),
    "user slot": (BP, "0878005000600002"),
    "good spot check": (SPOT, GOOD_SPOT),
    "early estimate": (SPOT, "0261004800" + "4000"),
    "weak signal": (SPOT, "0461004800" + "100000"),
    "demonstration": (SPOT, "0261004800" + "0004"),
    "for testing": (SPOT, "0261004800" + "0008"),
    "invalid": (SPOT, "0261004800" + "0080"),
    "unavailable": (SPOT, "02FF07FF07" + "0020"),
    "not at this resolution": (SPOT, "0000084800"),
    "infinite": (SPOT, "00FE074800"),
    "filler": (SPOT, "007F00FF00"),
    "pulse not a number": (SPOT, "006100FF07"),
    "good continuous": (CONTINUOUS, "0061004800"),
}
NEVER = [
    "failed blood pressure",
    "demonstration",
    "for testing",
    "invalid",
    "unavailable",
    "not at this resolution",
    "infinite",
    "filler",
]
QUESTIONABLE = ["cuff too loose", "early estimate", "weak signal"]

check_model = model_check()


def mapped(kind: str, about: About = JULY_ABOUT) -> dict[str, Any]:
    """The Observations of a kind by the part of their identifier, as the Hub would parse them."""
    characteristic, raw = KINDS[kind]
    reading = decode(characteristic, bytes.fromhex(raw))
    assert isinstance(reading, Reading)
    found = observations(characteristic, reading, about, LONDON)
    return {value.rpartition("-")[2]: json.loads(one, parse_float=Decimal) for value, one in found.items()}


def numbers(resource: dict[str, Any]) -> list[Any]:
    """Every measured number in an Observation."""
    parts = [resource, *resource.get("component", ())]
    return [part["valueQuantity"]["value"] for part in parts if "valueQuantity" in part]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_valid_fhir_and_meets_what_it_claims(kind: str) -> None:
    found = mapped(kind)
    assert found
    for one in found.values():
        plain = json.loads(json.dumps(one, default=float))
        check_model(plain)
        check_rules(plain)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(NEVER) - set(QUESTIONABLE)))
def test_every_part_of_a_good_reading_claims_its_uk_core_profile(kind: str) -> None:
    for one in mapped(kind).values():
        assert [url.startswith(VITAL_SIGNS) for url in claims(one)] == [True]
        assert one["status"] == "final"


@pytest.mark.parametrize("kind", NEVER)
def test_what_is_no_measurement_is_never_a_vital_sign(kind: str) -> None:
    (one,) = mapped(kind).values()
    assert numbers(one) == [] and "component" not in one
    assert "category" not in one and claims(one) == []
    assert all(coding["system"] != "http://loinc.org" for coding in one["code"]["coding"])
    assert one["dataAbsentReason"]["coding"][0]["code"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("failed blood pressure", "not-a-number"),
        ("infinite", "positive-infinity"),
        ("not at this resolution", "error"),
        ("invalid", "error"),
        ("unavailable", "not-performed"),
        ("demonstration", "not-performed"),
    ],
)
def test_the_absence_has_its_reason(kind: str, reason: str) -> None:
    (one,) = mapped(kind).values()
    assert one["dataAbsentReason"]["coding"][0]["code"] == reason


@pytest.mark.parametrize("kind", ["demonstration", "for testing"])
def test_demo_and_test_values_are_labelled_as_test_data(kind: str) -> None:
    (one,) = mapped(kind).values()
    assert one["meta"]["security"][0]["code"] == "HTEST"


@pytest.mark.parametrize(
    ("kind", "mark"),
    [
        ("cuff too loose", "questionable"),
        ("early estimate", "early-indication"),
        ("weak signal", "questionable"),
    ],
)
def test_questionable_values_arrive_marked_and_claim_nothing(kind: str, mark: str) -> None:
    for one in mapped(kind).values():
        assert numbers(one)
        assert one["status"] == "preliminary" and claims(one) == []
        assert one["interpretation"][-1]["coding"][0]["code"] == mark
        assert "The Sensor reported" in one["note"][0]["text"]


def test_blood_pressure_is_a_panel_of_two_with_pulse_and_mean_on_their_own() -> None:
    found = mapped("good blood pressure")
    assert {part: numbers(one) for part, one in found.items()} == {"bp": [120, 80], "hr": [72], "map": [96]}


def test_a_pulse_that_is_not_a_number_leaves_the_rest_as_it_is() -> None:
    assert list(mapped("pulse not a number")) == ["spo2"]
    assert list(mapped("blood pressure without pulse")) == ["bp", "map"]


def test_kpa_is_converted_in_decimal_and_the_original_kept() -> None:
    found = mapped("blood pressure in kPa")
    assert numbers(found["bp"]) == [120, 80]  # 16.0 and 10.6 kPa
    assert found["bp"]["note"][-1]["text"] == "Measured in kPa: systolic 16.0, diastolic 10.6, mean 12.8."


def test_an_irregular_pulse_is_kept_and_shown_on_pressure_and_pulse() -> None:
    found = mapped("irregular pulse")
    assert numbers(found["bp"]) == [120, 80]
    for part in ("bp", "hr"):
        assert found[part]["interpretation"] == [
            {
                "coding": [
                    {
                        "system": "http://snomed.info/sct",
                        "code": "361137007",
                        "display": "Irregular heart beat",
                    }
                ],
                "text": "Irregular pulse",
            }
        ]
    assert "interpretation" not in found["map"]


def test_a_number_keeps_the_precision_it_was_measured_with() -> None:
    reading = decode(SPOT, bytes.fromhex("00D4F3" + "20F3"))  # 98.0 %, 80.0 /min
    assert isinstance(reading, Reading)
    one, other = observations(SPOT, reading, JULY_ABOUT, LONDON).values()
    assert b'"value":98.0,' in one and b'"value":80.0,' in other


def test_the_time_has_the_offset_of_the_home_and_tells_its_quality_and_bound() -> None:
    one = mapped("good spot check")["spo2"]
    assert one["effectiveDateTime"] == "2026-07-10T13:00:01.000+01:00"
    quality, bound = one["extension"][1]["extension"]
    assert quality["valueCode"] == "synced" and bound["valueQuantity"]["value"] == 1000


def test_a_bracketed_time_is_a_period_not_a_moment() -> None:
    one = mapped("good spot check", JULY_ABOUT._replace(quality="bracketed"))["spo2"]
    assert "effectiveDateTime" not in one
    assert one["effectivePeriod"] == {
        "start": "2026-07-10T13:00:00.000+01:00",
        "end": "2026-07-10T13:00:02.000+01:00",
    }


def test_a_possible_repeat_is_tagged_and_says_why() -> None:
    one = mapped("good spot check", JULY_ABOUT._replace(possible_repeat=True))["spo2"]
    assert one["meta"]["tag"][0]["code"] == "possible-repeat"
    assert one["note"][0]["text"].startswith("Possible repeat")


def test_provenance_says_where_the_record_is_and_who_confirmed_it() -> None:
    about = JULY_ABOUT._replace(host_confirmed=True)
    gateway, _, provenance = mapped("good spot check", about)["spo2"]["extension"]
    assert gateway["valueReference"] == {"reference": "Device/2"}
    assert provenance["extension"] == [
        {"url": "kit", "valueString": "HW-0001"},
        {"url": "journal", "valueString": "a1b2c3d4e5f60718"},
        {"url": "sequence", "valueUnsignedInt": 42},
        {"url": "host-confirmed", "valueBoolean": True},
    ]


def test_the_user_slot_of_the_sensor_is_shown() -> None:
    assert "user slot 2" in mapped("user slot")["bp"]["note"][0]["text"]


def test_a_failed_reading_does_not_take_the_identifier_of_a_measurement() -> None:
    assert list(mapped("failed blood pressure")) == ["status"]


def test_what_a_hub_calls_a_patient_stays_what_it_is() -> None:
    odd = JULY_ABOUT._replace(patient='Patient/a"%b%%\0key\0', kit="%(key)b")
    one = mapped("good spot check", odd)["spo2"]
    assert one["subject"] == {"reference": odd.patient}
    assert one["extension"][2]["extension"][0]["valueString"] == odd.kit


def test_an_entry_creates_only_if_its_identifier_is_not_there() -> None:
    reading = decode(SPOT, bytes.fromhex(GOOD_SPOT))
    assert isinstance(reading, Reading)
    for value, entry in entries(SPOT, reading, JULY_ABOUT, LONDON).items():
        whole = orjson.loads(entry)
        identifier = whole["resource"]["identifier"][0]
        assert identifier["value"] == value
        assert whole["request"]["ifNoneExist"] == f"identifier={identifier['system']}|{value}"


def test_the_pressure_in_the_cuff_never_becomes_an_observation() -> None:
    reading = decode(0x2A36, bytes.fromhex("007800FF07FF07"))
    assert isinstance(reading, Reading)
    with pytest.raises(KeyError):
        observations(0x2A36, reading, JULY_ABOUT, LONDON)


@given(characteristic=st.sampled_from([BP, SPOT, CONTINUOUS]), raw=st.binary(min_size=0, max_size=24))
def test_whatever_a_sensor_sends_nothing_false_becomes_a_vital_sign(characteristic: int, raw: bytes) -> None:
    try:
        reading = decode(characteristic, raw)
    except FormatError:
        return
    assert isinstance(reading, Reading)
    shown = {value.name: text(value) for value in reading.values if value.special is None}
    for resource in observations(characteristic, reading, JULY_ABOUT, LONDON).values():
        one = json.loads(resource, parse_float=Decimal)
        check_rules(json.loads(resource))
        assert (reading.trust == "never") == ("dataAbsentReason" in one) == (numbers(one) == [])
        assert (reading.trust == "good") == (claims(one) != [])
        if "kPa" not in {value.unit for value in reading.values}:
            assert {str(number) for number in numbers(one)} <= set(shown.values())
