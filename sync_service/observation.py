"""A Reading as FHIR R4 Observations. Pure; the one rule is P7: what is no measurement never looks like one.

    trust           becomes
    good            one Observation per part of `codes.PARTS`, claiming and meeting its UK Core profile
    questionable    the same, preliminary and with an interpretation; UK Core has no room for that: no profile
    never           one Observation without a value: dataAbsentReason, no category, no LOINC code (which by
                    FHIR's own rule would make it a vital sign)

Constant parts are serialised once. Values keep their precision (2.0 is not 2): they go as JSON text, never
through a float.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from typing import Any, NamedTuple

import orjson

from gateway.reading import GOOD, KPA, NEVER, Reading, Value, text
from sync_service.codes import (
    ABSENT,
    ABSENT_REASONS,
    ACT_REASONS,
    CATEGORIES,
    GATEWAY_DEVICE,
    IRREGULAR_PULSE,
    MEASUREMENT_STATUS,
    PARTS,
    READING_ID,
    READING_PROVENANCE,
    READING_TIME,
    TAGS,
    UCUM,
    Code,
    Measure,
    Part,
    Unit,
)

Json = dict[str, Any]

MMHG_PER_KPA = Decimal("7.50062")
"""DOMAIN 1.4. UK Core takes blood pressure in mm[Hg] only."""

_ROUTINE_WORDS = frozenset(
    {
        "validated data",
        "fully qualified data",
        "data from measurement storage",
        "trailing bytes",
        "reserved bits set",
    }
)
"""Status words that a clinician need not read beside a good value."""
_TEST_WORDS = frozenset({"data for demonstration", "data for testing"})
_NOT_PERFORMED = _TEST_WORDS | {"measurement unavailable"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class About(NamedTuple):
    """What the Reading itself does not know: whose it is, when it was taken and how it came here."""

    key: str  # 32 hex digits; the identifier at the Hub is the key and the part
    patient: str  # 'Patient/7'
    sensor: str  # 'Device/3'
    gateway: str  # 'Device/2'
    kit: str
    journal: str  # Journal id, hex
    sequence: int
    earliest_ms: int
    latest_ms: int
    quality: str
    host_confirmed: bool  # P1 did not hold: a desktop's Bluetooth stack confirmed it
    possible_repeat: bool


def entries(characteristic: int, reading: Reading, about: About, zone: tzinfo) -> dict[str, bytes]:
    """The Reading as entries of a batch Bundle, each a conditional create, by their identifier's value."""
    return {
        one["identifier"][0]["value"]: _entry(one)
        for one in observations(characteristic, reading, about, zone)
    }


def observations(characteristic: int, reading: Reading, about: About, zone: tzinfo) -> list[Json]:
    """The Reading's Observations, at least one. `zone` is the home's: a FHIR time tells its UTC offset.

    Raises KeyError for a characteristic that is no measurement of a patient.
    """
    parts = PARTS[characteristic]
    values = {value.name: value for value in reading.values}
    shared = _shared(reading, values, about, zone)
    if reading.trust == NEVER:
        return [_failed(parts[0], reading, values, about, shared)]
    return [
        _measured(part, reading, values, about, shared)
        for part in parts
        if all(_is_number(values.get(name)) for name in _names(part))
    ]


def _entry(one: Json) -> bytes:
    condition = f"identifier={READING_ID}|{one['identifier'][0]['value']}"
    request = {"method": "POST", "url": "Observation", "ifNoneExist": condition}
    return orjson.dumps({"request": request, "resource": one})


def _measured(part: Part, reading: Reading, values: dict[str, Value], about: About, shared: Json) -> Json:
    good = reading.trust == GOOD
    one = {
        "resourceType": "Observation",
        "meta": _meta(part.measure.profile if good else "", about.possible_repeat, False),
        "identifier": [{"system": READING_ID, "value": f"{about.key}-{part.name}"}],
        "status": "final" if good else "preliminary",
        "category": _VITAL_SIGNS,
        "code": _concept(part.measure, True),
        **shared,
    }
    if marks := _interpretations(part, reading, good):
        one["interpretation"] = marks
    if part.components:
        one["component"] = [
            {"code": _concept(measure, True), "valueQuantity": _quantity(values[name], measure)}
            for name, measure in part.components
        ]
    else:
        one["valueQuantity"] = _quantity(values[part.value], part.measure)
    return one


def _failed(part: Part, reading: Reading, values: dict[str, Value], about: About, shared: Json) -> Json:
    # Its identifier is not that of the measurement: should a mended decoder find a value in these bytes after
    # all, that one must not be taken for delivered.
    return {
        "resourceType": "Observation",
        "meta": _meta("", about.possible_repeat, not _TEST_WORDS.isdisjoint(reading.status)),
        "identifier": [{"system": READING_ID, "value": f"{about.key}-status"}],
        "status": "final",
        "code": _concept(part.measure, False),
        "dataAbsentReason": _absent(_absent_reason(part, reading, values)),
        **shared,
    }


def _shared(reading: Reading, values: dict[str, Value], about: About, zone: tzinfo) -> Json:
    shared: Json = {"subject": {"reference": about.patient}, "device": {"reference": about.sensor}}
    if about.quality == "bracketed":
        start, end = _instant(about.earliest_ms, zone), _instant(about.latest_ms, zone)
        shared["effectivePeriod"] = {"start": start, "end": end}
    else:
        shared["effectiveDateTime"] = _instant((about.earliest_ms + about.latest_ms) // 2, zone)
    shared["extension"] = [
        {"url": GATEWAY_DEVICE, "valueReference": {"reference": about.gateway}},
        {"url": READING_TIME, "extension": _time_quality(about)},
        {"url": READING_PROVENANCE, "extension": _provenance(about)},
    ]
    if notes := list(_notes(reading, values, about)):
        shared["note"] = [{"text": text} for text in notes]
    return shared


def _time_quality(about: About) -> list[Json]:
    bound_ms = (about.latest_ms - about.earliest_ms + 1) // 2
    return [
        {"url": "quality", "valueCode": about.quality},
        {"url": "bound", "valueQuantity": {"value": bound_ms, "unit": "ms", "system": UCUM, "code": "ms"}},
    ]


def _provenance(about: About) -> list[Json]:
    found: list[Json] = [
        {"url": "kit", "valueString": about.kit},
        {"url": "journal", "valueString": about.journal},
        {"url": "sequence", "valueUnsignedInt": about.sequence},
    ]
    if about.host_confirmed:
        found.append({"url": "host-confirmed", "valueBoolean": True})
    return found


def _notes(reading: Reading, values: dict[str, Value], about: About) -> Iterator[str]:
    """What a clinician has to see beside the value."""
    if said := [word for word in reading.status if word not in _ROUTINE_WORDS]:
        yield f"The Sensor reported: {', '.join(said)}."
    if reading.user is not None:
        yield f"Measured in user slot {reading.user} of the Sensor."
    if about.possible_repeat:
        yield "Possible repeat: the same value came before, and the Sensor gave no time to tell them apart."
    kpa = [f"{name} {text(value)}" for name, value in values.items() if _in_kpa(value)]
    if kpa and reading.trust != NEVER:
        yield f"Measured in kPa: {', '.join(kpa)}."


def _interpretations(part: Part, reading: Reading, good: bool) -> list[orjson.Fragment]:
    # An irregular pulse is a finding about the patient, not a fault of the measurement (DOMAIN 1.4).
    marks = [_IRREGULAR] if "irregular pulse" in reading.status and part.name in ("bp", "hr") else []
    if not good:
        marks.append(_status_mark(reading.status))
    return marks


@cache
def _status_mark(status: tuple[str, ...]) -> orjson.Fragment:
    if "early estimated data" in status:
        code = "early-indication"
    elif "calibration ongoing" in status:
        code = "calibration-ongoing"
    else:
        code = "questionable"
    return _fragment(
        {"coding": [{"system": MEASUREMENT_STATUS, "code": code}], "text": code.replace("-", " ")}
    )


def _absent_reason(part: Part, reading: Reading, values: dict[str, Value]) -> str:
    if not _NOT_PERFORMED.isdisjoint(reading.status):
        return "not-performed"
    for name in _names(part):
        if name in values and values[name].special:
            return ABSENT.get(values[name].special, "error")
    return "error"


def _names(part: Part) -> tuple[str, ...]:
    return tuple(name for name, _ in part.components) or (part.value,)


def _is_number(value: Value | None) -> bool:
    return value is not None and value.special is None


def _quantity(value: Value, measure: Measure) -> orjson.Fragment:
    assert measure.unit and value.special is None, "a special value has no number"
    number = _mmhg(value) if value.unit == KPA else str(text(value))
    return orjson.Fragment(b'{"value":%b,%b' % (number.encode(), _quantity_end(measure.unit)))


def _mmhg(value: Value) -> str:
    """kPa in mm[Hg], with as many digits as were measured: 0.1 kPa is 0.75 mm[Hg]."""
    exact = Decimal(value.mantissa).scaleb(value.exponent) * MMHG_PER_KPA
    return format(exact.quantize(Decimal(1).scaleb(min(0, value.exponent + 1)), ROUND_HALF_UP), "f")


def _in_kpa(value: Value) -> bool:
    return value.unit == KPA and value.special is None


def _instant(ms: int, zone: tzinfo) -> str:
    return (_EPOCH + timedelta(milliseconds=ms)).astimezone(zone).isoformat(timespec="milliseconds")


# --- Constant parts, serialised once ------------------------------------------------------------------------


def _fragment(content: Any) -> orjson.Fragment:
    return orjson.Fragment(orjson.dumps(content))


def _coding(code: Code) -> Json:
    return {"system": code.system, "code": code.code, "display": code.display}


@cache
def _concept(measure: Measure, vital: bool) -> orjson.Fragment:
    codes = (measure.loinc, measure.snomed, measure.mdc) if vital else (measure.snomed, measure.mdc)
    return _fragment({"coding": [_coding(code) for code in codes], "text": measure.text})


@cache
def _meta(profile: str, possible_repeat: bool, test: bool) -> orjson.Fragment:
    meta: Json = {"profile": [profile]} if profile else {}
    if possible_repeat:
        meta["tag"] = [{"system": TAGS, "code": "possible-repeat", "display": "Possible repeat"}]
    if test:
        meta["security"] = [{"system": ACT_REASONS, "code": "HTEST", "display": "test health data"}]
    return _fragment(meta or {"tag": [{"system": TAGS, "code": "reading"}]})


@cache
def _absent(code: str) -> orjson.Fragment:
    return _fragment({"coding": [{"system": ABSENT_REASONS, "code": code}]})


@cache
def _quantity_end(unit: Unit) -> bytes:
    """The Quantity after its value, brace included."""
    return orjson.dumps({"unit": unit.name, "system": UCUM, "code": unit.code})[1:]


_VITAL_SIGNS = _fragment(
    [
        {
            "coding": [{"system": CATEGORIES, "code": "vital-signs", "display": "Vital Signs"}],
            "text": "Vital Signs",
        }
    ]
)
_IRREGULAR = _fragment({"coding": [_coding(IRREGULAR_PULSE)], "text": "Irregular pulse"})
