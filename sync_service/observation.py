"""A Reading as FHIR R4 Observations. Pure; the one rule is P7: what is no measurement never looks like one.

    trust           becomes
    good            one Observation per part of `codes.PARTS`, claiming and meeting its UK Core profile
    questionable    the same, preliminary and with an interpretation; UK Core has no room for that: no profile
    never           one Observation without a value: dataAbsentReason, no category, no LOINC code (which by
                    FHIR's own rule would make it a vital sign)

Constant parts are serialised once. Values keep their precision (2.0 is not 2): they go as JSON text, never
through a float.
"""

from datetime import datetime, tzinfo
from decimal import ROUND_HALF_UP, Decimal
from functools import cache, lru_cache
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

FORMS = 4096
"""Forms kept: one for each Sensor, Journal and quality of time under delivery, 1 kB each."""
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
    found = observations(characteristic, reading, about, zone)
    return {value: _ENTRY % (_READING_ID, value.encode(), resource) for value, resource in found.items()}


def observations(characteristic: int, reading: Reading, about: About, zone: tzinfo) -> dict[str, bytes]:
    """The Reading's Observations as JSON, at least one, by their identifier's value: the key and the part.

    `zone` is the home's: a FHIR time tells its UTC offset. Raises KeyError for a characteristic that is no
    measurement of a patient.
    """
    parts = PARTS[characteristic]
    values = {value.name: value for value in reading.values}
    shared = _shared(reading, about, zone)
    if reading.trust == NEVER:
        # Its identifier is not that of a measurement: should a mended decoder find a value in these bytes
        # after all, that one must not be taken for delivered.
        value = about.key + "-status"
        return {value: _resource(_failed_head(parts[0], reading, values, about), value, shared)}
    found = {}
    for part in parts:
        if all(name in values and values[name].special is None for name in part.values):
            value = f"{about.key}-{part.name}"
            head = _head(part, reading.trust == GOOD, about.possible_repeat)
            found[value] = _resource(head, value, shared, _marks(part, reading), _measured(part, values))
    assert found, "a Reading that is trusted has a value"
    return found


def _resource(head: bytes, identifier: str, *members: bytes) -> bytes:
    """One Observation; each of `members` is empty or begins with its comma."""
    return b'{%b,"identifier":[{"system":"%b","value":"%b"}]%b}' % (
        head,
        _READING_ID,
        identifier.encode(),
        b"".join(members),
    )


def _measured(part: Part, values: dict[str, Value]) -> bytes:
    if not part.components:
        return b',"valueQuantity":' + _quantity(values[part.values[0]], part.measure)
    return b',"component":[%b]' % b",".join(
        b'{"code":%b,"valueQuantity":%b}' % (_concept(measure, True), _quantity(values[name], measure))
        for name, measure in zip(part.values, part.components, strict=True)
    )


def _failed_head(part: Part, reading: Reading, values: dict[str, Value], about: About) -> bytes:
    test = not _TEST_WORDS.isdisjoint(reading.status)
    reason = {"coding": [{"system": ABSENT_REASONS, "code": _absent_reason(part, reading, values)}]}
    return _members(
        {
            "resourceType": "Observation",
            **_meta("", about.possible_repeat, test),
            "status": "final",
            "code": orjson.Fragment(_concept(part.measure, False)),
            "dataAbsentReason": reason,
        }
    )


def _shared(reading: Reading, about: About, zone: tzinfo) -> bytes:
    """The members that all Observations of a Reading have in common."""
    form = _form(
        about.patient,
        about.sensor,
        about.gateway,
        about.kit,
        about.journal,
        about.quality,
        about.host_confirmed,
    )
    bound_ms = (about.latest_ms - about.earliest_ms + 1) // 2
    if about.quality == "bracketed":
        start, end = _instant(about.earliest_ms, zone), _instant(about.latest_ms, zone)
        shared = form % (start, end, bound_ms, about.sequence)
    else:
        shared = form % (_instant((about.earliest_ms + about.latest_ms) // 2, zone), bound_ms, about.sequence)
    if notes := _notes(reading, about):
        shared += b"," + _members({"note": [{"text": text} for text in notes]})
    return shared


def _notes(reading: Reading, about: About) -> list[str]:
    """What a clinician has to see beside the value."""
    notes = []
    if said := [word for word in reading.status if word not in _ROUTINE_WORDS]:
        notes.append(f"The Sensor reported: {', '.join(said)}.")
    if reading.user is not None:
        notes.append(f"Measured in user slot {reading.user} of the Sensor.")
    if about.possible_repeat:
        notes.append(
            "Possible repeat: the same value came before, and the Sensor gave no time to tell them apart."
        )
    if reading.values[0].unit == KPA and reading.trust != NEVER:
        kpa = [f"{value.name} {text(value)}" for value in reading.values if _in_kpa(value)]
        notes.append(f"Measured in kPa: {', '.join(kpa)}.")
    return notes


def _marks(part: Part, reading: Reading) -> bytes:
    """The interpretations."""
    marks = []
    # An irregular pulse is a finding about the patient, not a fault of the measurement (DOMAIN 1.4).
    if "irregular pulse" in reading.status and part.name in ("bp", "hr"):
        marks.append({"coding": [_coding(IRREGULAR_PULSE)], "text": "Irregular pulse"})
    if reading.trust != GOOD:
        code = next((code for word, code in _MARKS.items() if word in reading.status), "questionable")
        coding = {"system": MEASUREMENT_STATUS, "code": code}
        marks.append({"coding": [coding], "text": code.replace("-", " ")})
    return b"," + _members({"interpretation": marks}) if marks else b""


def _absent_reason(part: Part, reading: Reading, values: dict[str, Value]) -> str:
    if not _NOT_PERFORMED.isdisjoint(reading.status):
        return "not-performed"
    specials = (values[name].special for name in part.values if name in values)
    return next((ABSENT.get(special, "error") for special in specials if special), "error")


def _quantity(value: Value, measure: Measure) -> bytes:
    assert measure.unit and value.special is None, "a special value has no number"
    number = _mmhg(value) if value.unit == KPA else str(text(value))
    return b'{"value":%b,%b}' % (number.encode(), _unit(measure.unit))


def _mmhg(value: Value) -> str:
    """kPa in mm[Hg], with as many digits as were measured: 0.1 kPa is 0.75 mm[Hg]."""
    exact = Decimal(value.mantissa).scaleb(value.exponent) * MMHG_PER_KPA
    return format(exact.quantize(Decimal(1).scaleb(min(0, value.exponent + 1)), ROUND_HALF_UP), "f")


def _in_kpa(value: Value) -> bool:
    return value.unit == KPA and value.special is None


def _instant(ms: int, zone: tzinfo) -> bytes:
    return datetime.fromtimestamp(ms / 1000, zone).isoformat(timespec="milliseconds").encode()


# --- Constant parts, serialised once -----------------------------------------------------------------------


@cache
def _head(part: Part, good: bool, possible_repeat: bool) -> bytes:
    """The first members of a measured Observation."""
    return _members(
        {
            "resourceType": "Observation",
            **_meta(part.measure.profile if good else "", possible_repeat, False),
            "status": "final" if good else "preliminary",
            "category": _VITAL_SIGNS,
            "code": orjson.Fragment(_concept(part.measure, True)),
        }
    )


@lru_cache(FORMS)
def _form(
    patient: str, sensor: str, gateway: str, kit: str, journal: str, quality: str, host_confirmed: bool
) -> bytes:
    """A form for `%` with blanks for the time (a period has two), half its bound in ms, and the sequence."""
    instant, number = orjson.Fragment(b'"\0b"'), orjson.Fragment(b"\0d")
    period = {"effectivePeriod": {"start": instant, "end": instant}}
    bound = {"value": number, "unit": "ms", "system": UCUM, "code": "ms"}
    provenance = [
        {"url": "kit", "valueString": kit},
        {"url": "journal", "valueString": journal},
        {"url": "sequence", "valueUnsignedInt": number},
        {"url": "host-confirmed", "valueBoolean": host_confirmed},
    ]
    form = {
        "subject": {"reference": patient},
        "device": {"reference": sensor},
        **(period if quality == "bracketed" else {"effectiveDateTime": instant}),
        "extension": [
            {"url": GATEWAY_DEVICE, "valueReference": {"reference": gateway}},
            {
                "url": READING_TIME,
                "extension": [
                    {"url": "quality", "valueCode": quality},
                    {"url": "bound", "valueQuantity": bound},
                ],
            },
            {"url": READING_PROVENANCE, "extension": provenance if host_confirmed else provenance[:3]},
        ],
    }
    return b"," + _members(form).replace(b"%", b"%%").replace(b"\0", b"%")


def _meta(profile: str, possible_repeat: bool, test: bool) -> Json:
    meta: Json = {"profile": [profile]} if profile else {}
    if possible_repeat:
        meta["tag"] = [{"system": TAGS, "code": "possible-repeat", "display": "Possible repeat"}]
    if test:
        meta["security"] = [{"system": ACT_REASONS, "code": "HTEST", "display": "test health data"}]
    return {"meta": meta} if meta else {}


@cache
def _concept(measure: Measure, vital: bool) -> bytes:
    codes = (measure.loinc, measure.snomed, measure.mdc) if vital else (measure.snomed, measure.mdc)
    return orjson.dumps({"coding": [_coding(code) for code in codes], "text": measure.text})


@cache
def _unit(unit: Unit) -> bytes:
    return _members({"unit": unit.name, "system": UCUM, "code": unit.code})


def _coding(code: Code) -> Json:
    return {"system": code.system, "code": code.code, "display": code.display}


def _members(resource: Json) -> bytes:
    """The JSON of an object without its braces, to be joined with more."""
    return orjson.dumps(resource)[1:-1]


_READING_ID = READING_ID.encode()
_ENTRY = b'{"request":{"method":"POST","url":"Observation","ifNoneExist":"identifier=%b|%b"},"resource":%b}'
_VITAL_SIGNS = [
    {
        "coding": [{"system": CATEGORIES, "code": "vital-signs", "display": "Vital Signs"}],
        "text": "Vital Signs",
    }
]
_MARKS = {"early estimated data": "early-indication", "calibration ongoing": "calibration-ongoing"}
