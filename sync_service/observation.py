"""A Reading as FHIR R4 Observations. Pure; the one rule is P7: what is no measurement never looks like one.

    trust           becomes
    good            one Observation per part of `codes.PARTS`, claiming and meeting its UK Core profile
    questionable    the same, preliminary and with an interpretation; UK Core has no room for that: no profile
    never           one Observation without a value: dataAbsentReason, no category, no LOINC code (which by
                    FHIR's own rule would make it a vital sign)

Most Observations differ in little: numbers, times, whose they are. So each kind is written once as JSON with
blanks for these (a form), and a Reading only fills them in. Values keep their precision (2.0 is not 2): they
go as JSON text, never through a float.
"""

import re
from datetime import datetime, tzinfo
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from operator import itemgetter
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
)

Json = dict[str, Any]

MMHG_PER_KPA = Decimal("7.50062")
"""DOMAIN 1.4. UK Core takes blood pressure in mm[Hg] only."""

ERROR = "entered-in-error"
"""Status of what was said of the wrong patient."""
FORMS = 512
"""Kinds kept, 10 kB each. Whose a Reading is makes no new one: a dozen serve all Sensors of a sort."""
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
    amended: bool = False  # the Hub was told another time before


class _Kind(NamedTuple):
    """All that Readings of one form have in common."""

    characteristic: int
    trust: str
    values: tuple[tuple[str, str, str | None], ...]  # of each its name, unit and special
    status: tuple[str, ...]
    user: int | None
    quality: str
    host_confirmed: bool
    possible_repeat: bool
    amended: bool

    def has_numbers(self, names: tuple[str, ...]) -> bool:
        """Whether each of these values is there and is a number."""
        numbers = [name for name, _, special in self.values if special is None]
        return all(name in numbers for name in names)


class _Template:
    """JSON with blanks."""

    def __init__(self, json: Json) -> None:
        text = orjson.dumps(json)
        self._pick = itemgetter(*_BLANK.findall(text))
        self._text = _BLANK.sub(b"%b", text.replace(b"%", b"%%"))

    def filled(self, blanks: dict[bytes, bytes]) -> bytes:
        filled: bytes = self._text % self._pick(blanks)
        return filled


class _Form(NamedTuple):
    """One Observation, for what `_blanks` returns."""

    suffix: str  # of its identifier, after the key
    resource: _Template
    entry: _Template  # of a batch Bundle, with the resource


def entries(characteristic: int, reading: Reading, about: About, zone: tzinfo) -> dict[str, bytes]:
    """The Reading as entries of a batch Bundle, each a conditional create, by their identifier's value."""
    blanks = _blanks(reading, about, zone)
    forms = _forms(_kind(characteristic, reading, about))
    return {about.key + form.suffix: form.entry.filled(blanks) for form in forms}


def observations(characteristic: int, reading: Reading, about: About, zone: tzinfo) -> dict[str, bytes]:
    """The Reading's Observations as JSON, at least one, by their identifier's value: the key and the part.

    `zone` is the home's: a FHIR time tells its UTC offset. Raises KeyError for a characteristic that is no
    measurement of a patient.
    """
    blanks = _blanks(reading, about, zone)
    forms = _forms(_kind(characteristic, reading, about))
    return {about.key + form.suffix: form.resource.filled(blanks) for form in forms}


def _kind(characteristic: int, reading: Reading, about: About) -> _Kind:
    return _Kind(
        characteristic,
        reading.trust,
        tuple([(value.name, value.unit, value.special) for value in reading.values]),
        reading.status,
        reading.user,
        about.quality,
        about.host_confirmed,
        about.possible_repeat,
        about.amended,
    )


def identifiers(characteristic: int, key: str) -> list[str]:
    """The values of every identifier that a Reading with this key may have at the Hub."""
    return [key + _STATUS] + [f"{key}-{part.name}" for part in PARTS[characteristic]]


def with_id(resource: bytes, key: str) -> bytes:
    """An Observation of ours as the update of Observation/`key`."""
    return b'{"id":"%b",%b' % (key.encode(), resource[1:])


def retracted(held: Json) -> bytes:
    """An Observation that the Hub holds as one entered in error, and its identifier given up.

    So the same Reading can be created for the right patient, under the identifier that it always had. It
    claims no profile any more: those of UK Core want it final.
    """
    meta = {name: value for name, value in held.get("meta", {}).items() if name in ("tag", "security")}
    identifier = [
        {**one, "value": f"{one['value']}-retracted-{held['id']}"} if one.get("system") == READING_ID else one
        for one in held["identifier"]
    ]
    return orjson.dumps({**held, "meta": meta, "status": ERROR, "identifier": identifier})


# --- What is filled in --------------------------------------------------------------------------------------


def _blanks(reading: Reading, about: About, zone: tzinfo) -> dict[bytes, bytes]:
    """Of each blank that a form may have its JSON text."""
    earliest_ms, latest_ms = about.earliest_ms, about.latest_ms
    blanks = {
        b"key": about.key.encode(),
        b"patient": orjson.dumps(about.patient),
        b"sensor": orjson.dumps(about.sensor),
        b"gateway": orjson.dumps(about.gateway),
        b"kit": orjson.dumps(about.kit),
        b"journal": orjson.dumps(about.journal),
        b"sequence": b"%d" % about.sequence,
        b"bound_ms": b"%d" % ((latest_ms - earliest_ms + 1) // 2),
    }
    if about.quality == "bracketed":
        blanks[b"start"], blanks[b"end"] = _instant(earliest_ms, zone), _instant(latest_ms, zone)
    else:
        blanks[b"instant"] = _instant((earliest_ms + latest_ms) // 2, zone)
    for value in reading.values:
        if value.special is None:
            blanks[value.name.encode()] = _number(value)
            if value.unit == KPA:
                blanks[value.name.encode() + b"_kpa"] = str(text(value)).encode()
    return blanks


def _number(value: Value) -> bytes:
    return (_mmhg(value) if value.unit == KPA else str(text(value))).encode()


def _mmhg(value: Value) -> str:
    """kPa in mm[Hg], with as many digits as were measured: 0.1 kPa is 0.75 mm[Hg]."""
    exact = Decimal(value.mantissa).scaleb(value.exponent) * MMHG_PER_KPA
    return format(exact.quantize(Decimal(1).scaleb(min(0, value.exponent + 1)), ROUND_HALF_UP), "f")


def _instant(ms: int, zone: tzinfo) -> bytes:
    return datetime.fromtimestamp(ms / 1000, zone).isoformat(timespec="milliseconds").encode()


# --- Forms --------------------------------------------------------------------------------------------------

_STATUS = "-status"
_BLANK = re.compile(rb"\0(\w+)\0")
"""Between NULs. Nothing else brings one into the JSON: inside a string it is escaped."""


@lru_cache(FORMS)
def _forms(kind: _Kind) -> list[_Form]:
    """The Observations of a kind, at least one. Raises KeyError for what is no measurement of a patient."""
    parts = PARTS[kind.characteristic]
    if kind.trust == NEVER:
        # Its identifier is not that of a measurement: should a mended decoder find a value in these bytes
        # after all, that one must not be taken for delivered.
        return [_form(_STATUS, _failed(parts[0], kind), kind)]
    shown = [part for part in parts if kind.has_numbers(part.values)]
    assert shown, "a Reading that is trusted has a value"
    return [_form("-" + part.name, _measured(part, kind), kind) for part in shown]


def _form(suffix: str, own: Json, kind: _Kind) -> _Form:
    resource = {
        "resourceType": "Observation",
        "identifier": [{"system": READING_ID, "value": _string(f"\0key\0{suffix}")}],
        **own,
        **_shared(kind),
    }
    condition = _string(f"identifier={READING_ID}|\0key\0{suffix}")
    request = {"method": "POST", "url": "Observation", "ifNoneExist": condition}
    return _Form(suffix, _Template(resource), _Template({"request": request, "resource": resource}))


def _blank(name: str) -> orjson.Fragment:
    """A number or a whole string to be filled in."""
    return orjson.Fragment(f"\0{name}\0")


def _string(text: str) -> orjson.Fragment:
    """A string with blanks, otherwise plain."""
    return orjson.Fragment(f'"{text}"')


def _measured(part: Part, kind: _Kind) -> Json:
    """What only one part has, with its value. UK Core has no room for what is amended either."""
    good = kind.trust == GOOD
    return {
        **_meta(part.measure.profile if good and not kind.amended else "", kind, test=False),
        "status": _final(kind) if good else "preliminary",
        "category": _VITAL_SIGNS,
        "code": _concept(part.measure, vital=True),
        **_marks(part, kind),
        **_value(part),
    }


def _final(kind: _Kind) -> str:
    return "amended" if kind.amended else "final"


def _value(part: Part) -> Json:
    if not part.components:
        return {"valueQuantity": _quantity(part.values[0], part.measure)}
    components = [
        {"code": _concept(measure, vital=True), "valueQuantity": _quantity(name, measure)}
        for name, measure in zip(part.values, part.components, strict=True)
    ]
    return {"component": components}


def _failed(part: Part, kind: _Kind) -> Json:
    """What stands where there is no measurement."""
    reason = {"system": ABSENT_REASONS, "code": _absent_reason(part, kind)}
    return {
        **_meta("", kind, test=not _TEST_WORDS.isdisjoint(kind.status)),
        "status": _final(kind),
        "code": _concept(part.measure, vital=False),
        "dataAbsentReason": {"coding": [reason]},
    }


def _absent_reason(part: Part, kind: _Kind) -> str:
    if not _NOT_PERFORMED.isdisjoint(kind.status):
        return "not-performed"
    specials = {name: special for name, _, special in kind.values}
    found = [special for name in part.values if (special := specials.get(name))]
    return ABSENT.get(found[0], "error") if found else "error"


def _shared(kind: _Kind) -> Json:
    """The members that all Observations of a Reading have in common."""
    period = {"effectivePeriod": {"start": _string("\0start\0"), "end": _string("\0end\0")}}
    moment = {"effectiveDateTime": _string("\0instant\0")}
    bound = {"value": _blank("bound_ms"), "unit": "ms", "system": UCUM, "code": "ms"}
    time = [{"url": "quality", "valueCode": kind.quality}, {"url": "bound", "valueQuantity": bound}]
    provenance: list[Json] = [
        {"url": "kit", "valueString": _blank("kit")},
        {"url": "journal", "valueString": _blank("journal")},
        {"url": "sequence", "valueUnsignedInt": _blank("sequence")},
    ]
    if kind.host_confirmed:
        provenance.append({"url": "host-confirmed", "valueBoolean": True})
    notes = _notes(kind)
    return {
        "subject": {"reference": _blank("patient")},
        "device": {"reference": _blank("sensor")},
        **(period if kind.quality == "bracketed" else moment),
        "extension": [
            {"url": GATEWAY_DEVICE, "valueReference": {"reference": _blank("gateway")}},
            {"url": READING_TIME, "extension": time},
            {"url": READING_PROVENANCE, "extension": provenance},
        ],
        **({"note": [{"text": note} for note in notes]} if notes else {}),
    }


def _notes(kind: _Kind) -> list[str | orjson.Fragment]:
    """What a clinician has to see beside the value."""
    notes: list[str | orjson.Fragment] = []
    if said := [word for word in kind.status if word not in _ROUTINE_WORDS]:
        notes.append(f"The Sensor reported: {', '.join(said)}.")
    if kind.user is not None:
        notes.append(f"Measured in user slot {kind.user} of the Sensor.")
    if kind.possible_repeat:
        notes.append(
            "Possible repeat: the same value came before, and the Sensor gave no time to tell them apart."
        )
    kpa = [f"{name} \0{name}_kpa\0" for name, unit, special in kind.values if unit == KPA and special is None]
    if kpa and kind.trust != NEVER:
        notes.append(_string(f"Measured in kPa: {', '.join(kpa)}."))
    return notes


def _marks(part: Part, kind: _Kind) -> Json:
    """The interpretations."""
    marks = []
    # An irregular pulse is a finding about the patient, not a fault of the measurement (DOMAIN 1.4).
    if "irregular pulse" in kind.status and part.name in ("bp", "hr"):
        marks.append({"coding": [_coding(IRREGULAR_PULSE)], "text": "Irregular pulse"})
    if kind.trust != GOOD:
        code = next((code for word, code in _MARKS.items() if word in kind.status), "questionable")
        coding = {"system": MEASUREMENT_STATUS, "code": code}
        marks.append({"coding": [coding], "text": code.replace("-", " ")})
    return {"interpretation": marks} if marks else {}


def _meta(profile: str, kind: _Kind, *, test: bool) -> Json:
    meta: Json = {"profile": [profile]} if profile else {}
    if kind.possible_repeat:
        meta["tag"] = [{"system": TAGS, "code": "possible-repeat", "display": "Possible repeat"}]
    if test:
        meta["security"] = [{"system": ACT_REASONS, "code": "HTEST", "display": "test health data"}]
    return {"meta": meta} if meta else {}


def _concept(measure: Measure, *, vital: bool) -> Json:
    codes = (measure.loinc, measure.snomed, measure.mdc) if vital else (measure.snomed, measure.mdc)
    return {"coding": [_coding(code) for code in codes], "text": measure.text}


def _quantity(name: str, measure: Measure) -> Json:
    assert measure.unit, "a panel has no number of its own"
    return {"value": _blank(name), "unit": measure.unit.name, "system": UCUM, "code": measure.unit.code}


def _coding(code: Code) -> Json:
    return {"system": code.system, "code": code.code, "display": code.display}


_VITAL_SIGNS = [
    {
        "coding": [{"system": CATEGORIES, "code": "vital-signs", "display": "Vital Signs"}],
        "text": "Vital Signs",
    }
]
_MARKS = {"early estimated data": "early-indication", "calibration ongoing": "calibration-ongoing"}
