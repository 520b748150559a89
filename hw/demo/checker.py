"""
Compares what the Sensors measured (their ledgers) with what the Hub holds (FHIR searches over HTTP).

It knows neither the Gateway nor the Sync Service: it imports nothing of theirs, so that a mistake there can't
hide here. A measurement is at the Hub when exactly one primary Observation (blood-pressure panel or SpO2)
stands under the right patient, from the right Sensor, with the right numbers, at a time whose stated bound
holds the true one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

import aiohttp

from hw.virtual.ledger import BLOOD_PRESSURE, Measurement

LOINC = "http://loinc.org"
MDC = "urn:iso:std:iso:11073:10101"
PANEL, SYSTOLIC, DIASTOLIC, SPO2, HEART_RATE, MEAN = (
    "85354-9",
    "8480-6",
    "8462-4",
    "2708-6",
    "8867-4",
    "8478-0",
)
PRIMARY = (PANEL, SPO2)
NO_VITAL = {"150020": PANEL, "150456": SPO2}
"""A failed measurement is no vital sign, so it carries no LOINC code: it is known by its MDC code."""
READING_TIME = "https://homeward.example/fhir/StructureDefinition/reading-time"
POSSIBLE_REPEAT = "possible-repeat"
CLOCK_SLACK_MS = 50
"""Ledger and service read the same clock of this machine, the ledger a moment after the measurement."""


@dataclass(frozen=True)
class Seen:
    """One Observation as the Hub gives it, reduced to what is compared."""

    id: str
    code: str | None
    patient: str
    serial: str
    values: tuple[Decimal | None, ...]
    earliest_ms: float
    latest_ms: float
    possible_repeat: bool


@dataclass
class Verdict:
    """What the comparison found. The first six are figures of the demo's closing line."""

    taken: int = 0
    at_hub: int = 0
    missing: int = 0
    duplicates: int = 0
    possible_repeats: int = 0
    wrong_patient: int = 0
    false_vitals: int = 0
    remarks: list[str] = field(default_factory=list)
    arrived: set[tuple[str, int]] = field(default_factory=set)  # (serial, number) of what is at the Hub

    @property
    def clean(self) -> bool:
        return not (self.missing or self.duplicates or self.wrong_patient or self.false_vitals)


async def observations(http: aiohttp.ClientSession, hub: str, patients: Iterable[str]) -> list[Seen]:
    """Every Observation of these patients ("Patient/<id>"), with its Sensor's serial number."""
    found: list[dict[str, Any]] = []
    for patient in patients:
        found += await _search(http, f"{hub}/Observation?patient={patient}&_count=500")
    references = {o["device"]["reference"] for o in found if "device" in o}
    serials = {reference: await _serial(http, f"{hub}/{reference}") for reference in references}
    return [_seen(o, serials) for o in found]


def compare(measurements: Iterable[Measurement], patients: dict[str, str], seen: list[Seen]) -> Verdict:
    """Match ledgers and Hub. `patients` maps a ledger's episode to the Hub's "Patient/<id>"."""
    verdict = Verdict()
    unmatched = [s for s in seen if s.code in PRIMARY]
    for measurement in measurements:
        verdict.taken += 1
        match = _match(measurement, patients[measurement.episode or ""], unmatched)
        if match is None:
            verdict.missing += 1
            verdict.remarks.append(f"missing: {_name(measurement)}")
        else:
            unmatched.remove(match)
            verdict.at_hub += 1
            verdict.arrived.add((measurement.serial, measurement.number))
    known = [(m, patients[m.episode or ""]) for m in measurements]
    for extra in unmatched:
        _judge_extra(extra, known, verdict)
    _judge_secondary([s for s in seen if s.code not in PRIMARY], known, verdict)
    return verdict


def _match(measurement: Measurement, patient: str, candidates: list[Seen]) -> Seen | None:
    """The one that fits; an unmarked one before one marked as a possible repeat."""
    fits = [
        s
        for s in candidates
        if s.patient == patient
        and _same_values(measurement, s)
        and s.earliest_ms <= _taken_ms(measurement) <= s.latest_ms
    ]
    return min(fits, key=lambda s: (s.possible_repeat, s.latest_ms), default=None)


def _judge_extra(extra: Seen, known: list[tuple[Measurement, str]], verdict: Verdict) -> None:
    same = [(m, patient) for m, patient in known if _same_values(m, extra)]
    if not same:
        verdict.false_vitals += 1
        verdict.remarks.append(f"false vital: Observation/{extra.id} {extra.values} from {extra.serial}")
    elif all(patient != extra.patient for _, patient in same):
        verdict.wrong_patient += 1
        verdict.remarks.append(f"wrong patient: Observation/{extra.id}")
    elif extra.possible_repeat:
        verdict.possible_repeats += 1
    else:
        verdict.duplicates += 1
        verdict.remarks.append(f"duplicate or misdated: Observation/{extra.id} from {extra.serial}")


def _judge_secondary(secondary: list[Seen], known: list[tuple[Measurement, str]], verdict: Verdict) -> None:
    """Pulse and mean pressure must be numbers that the Sensor measured for that patient."""
    for seen in secondary:
        name = {HEART_RATE: "pulse", MEAN: "mean"}.get(seen.code or "")
        numbers = [
            (_number(m, name), patient)
            for m, patient in known
            if name and m.serial == seen.serial and not m.failed
        ]
        if (seen.values[0], seen.patient) in numbers:
            continue
        if seen.values[0] in [number for number, _ in numbers]:
            verdict.wrong_patient += 1
        else:
            verdict.false_vitals += 1
        verdict.remarks.append(f"not measured: Observation/{seen.id} {seen.code} {seen.values}")


def _same_values(measurement: Measurement, seen: Seen) -> bool:
    if measurement.serial != seen.serial:
        return False
    if measurement.kind == BLOOD_PRESSURE:
        code, names = PANEL, ["systolic", "diastolic"]
    else:
        code, names = SPO2, ["spo2"]
    expected = tuple(None if measurement.failed else _number(measurement, name) for name in names)
    return seen.code == code and seen.values == expected


def _number(measurement: Measurement, name: str) -> Decimal | None:
    value = measurement.values.get(name)
    return None if value is None else Decimal(str(value)).normalize()


def _taken_ms(measurement: Measurement) -> float:
    return datetime.fromisoformat(measurement.taken_at).timestamp() * 1000


def _name(measurement: Measurement) -> str:
    which = f"{measurement.kind} {measurement.number} of {measurement.serial}"
    return f"{which} ({measurement.state}, clock {measurement.clock})"


async def _search(http: aiohttp.ClientSession, url: str | None) -> list[dict[str, Any]]:
    found = []
    while url:
        async with http.get(url) as answer:
            answer.raise_for_status()
            page = await answer.json(content_type=None)
        found += [entry["resource"] for entry in page.get("entry", ())]
        url = next((link["url"] for link in page.get("link", ()) if link["relation"] == "next"), None)
    return found


async def _serial(http: aiohttp.ClientSession, url: str) -> str:
    async with http.get(url) as answer:
        answer.raise_for_status()
        return str((await answer.json(content_type=None)).get("serialNumber", ""))


def _seen(observation: dict[str, Any], serials: dict[str, str]) -> Seen:
    code = _code(observation)
    earliest, latest = _bounds(observation)
    tags = [tag.get("code") for tag in observation.get("meta", {}).get("tag", ())]
    return Seen(
        id=observation["id"],
        code=code,
        patient=observation["subject"]["reference"],
        serial=serials.get(observation.get("device", {}).get("reference", ""), ""),
        values=_values(observation, code),
        earliest_ms=earliest - CLOCK_SLACK_MS,
        latest_ms=latest + CLOCK_SLACK_MS,
        possible_repeat=POSSIBLE_REPEAT in tags,
    )


def _loinc(resource: dict[str, Any]) -> str | None:
    codings = resource.get("code", {}).get("coding", ())
    return next((c["code"] for c in codings if c.get("system") == LOINC), None)


def _code(observation: dict[str, Any]) -> str | None:
    codings = observation["code"]["coding"]
    mdc = next((c["code"] for c in codings if c.get("system") == MDC), "")
    return _loinc(observation) or NO_VITAL.get(mdc)


def _values(observation: dict[str, Any], code: str | None) -> tuple[Decimal | None, ...]:
    if code != PANEL:
        return (_quantity(observation),)
    parts = {_loinc(component): component for component in observation.get("component", ())}
    return tuple(_quantity(parts.get(name, {})) for name in (SYSTOLIC, DIASTOLIC))


def _quantity(holder: dict[str, Any]) -> Decimal | None:
    value = holder.get("valueQuantity", {}).get("value")
    return None if value is None else Decimal(str(value)).normalize()


def _bounds(observation: dict[str, Any]) -> tuple[float, float]:
    """Earliest and latest ms: the period, or the instant widened by the bound that the resource states."""
    if "effectivePeriod" in observation:
        period = observation["effectivePeriod"]
        return _ms(period["start"]), _ms(period["end"])
    at = _ms(observation["effectiveDateTime"])
    bound = 0.0
    for extension in observation.get("extension", ()):
        if extension["url"] == READING_TIME:
            parts = {part["url"]: part for part in extension["extension"]}
            bound = float(parts["bound"]["valueQuantity"]["value"])
    return at - bound, at + bound


def _ms(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp() * 1000
