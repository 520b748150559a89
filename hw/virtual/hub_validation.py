"""What the development Hub accepts: FHIR structure, UK Core vital signs, and nothing half right.

A resource is refused with every reason at once, so that a mapping is mended in one go. A reason names
elements and codes, never what a patient's element holds: OperationOutcomes end up in other people's logs.

Structure is checked with the models of `fhir.resources` 8. They are FHIR R4B (4.3.0): it has no R4 (4.0.1)
models. R4B reworked Evidence and the medication definitions and added types; the types served here (`TYPES`)
have the same elements in both. The models do not check required code bindings and take a numeral in quotes
for a number; the rules below check what a vital sign needs of both.

Sources: FHIR R4 Observation (invariant obs-6); UK Core StructureDefinitions UKCore-Observation-VitalSigns and
its -OxygenSaturation, -HeartRate and -BloodPressure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import orjson

Resource = dict[str, Any]

TYPES = ("Patient", "Device", "Observation", "Provenance", "Communication", "Flag")

LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"
UCUM = "http://unitsofmeasure.org"
CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"

UK_CORE = "https://fhir.hl7.org.uk/StructureDefinition/"
VITAL_SIGNS = UK_CORE + "UKCore-Observation-VitalSigns"
CUFF = UK_CORE + "UKCore-Device-BloodPressure"

# What the rules read, beside the names of the elements. A rule that reads more has to add it here.
_READ = ("resourceType", "meta", "status", "category", "code", "subject", "valueQuantity", "component")
_NUMBER = re.compile(rb'"value":-?[0-9][-+.0-9eE]*')

# http://hl7.org/fhir/ValueSet/observation-status
STATUSES = frozenset(
    ("registered", "preliminary", "final", "amended", "corrected", "cancelled", "entered-in-error", "unknown")
)


class Issue(NamedTuple):
    """One reason for a refusal: `code` of the value set issue-type, a sentence, and where (FHIRPath)."""

    code: str
    diagnostics: str
    expression: str


class Refusal(Exception):
    """The Hub says no: an HTTP status and why."""

    def __init__(self, status: int, issues: list[Issue], *, entry: int | None = None) -> None:
        super().__init__(status, issues)
        self.status, self.issues, self.entry = status, issues, entry


def refuse(status: int, code: str, diagnostics: str, expression: str = "") -> Refusal:
    """A Refusal with one Issue."""
    return Refusal(status, [Issue(code, diagnostics, expression)])


@dataclass(frozen=True, slots=True)
class Unit:
    """A Quantity with its unit fixed as UK Core fixes it: the printed name too, not only the UCUM code."""

    name: str
    code: str


@dataclass(frozen=True, slots=True)
class Part:
    """One component slice. The text is the discriminator, and the fixed display of the LOINC coding."""

    text: str
    loinc: str
    unit: Unit


@dataclass(frozen=True, slots=True)
class VitalSign:
    """What one UK Core profile fixes beyond UKCore-Observation-VitalSigns. A panel has parts and no value."""

    loinc: str
    display: str = ""
    unit: Unit | None = None
    parts: tuple[Part, ...] = ()


_MMHG = Unit("millimeter of mercury", "mm[Hg]")
BLOOD_PRESSURE = VITAL_SIGNS + "-BloodPressure"
PROFILES = {
    VITAL_SIGNS: VitalSign(""),
    VITAL_SIGNS + "-OxygenSaturation": VitalSign("2708-6", unit=Unit("percent", "%")),
    VITAL_SIGNS + "-HeartRate": VitalSign("8867-4", unit=Unit("per minute", "/min")),
    BLOOD_PRESSURE: VitalSign(
        "85354-9",
        display="Blood pressure panel with all children optional",
        parts=(
            Part("Systolic blood pressure", "8480-6", _MMHG),
            Part("Diastolic blood pressure", "8462-4", _MMHG),
        ),
    ),
}


def model_check() -> Callable[[Resource], None]:
    """The structural check by models: 100 to 300 us a resource, so not for the bench."""
    from pydantic import ValidationError

    models = {name: getattr(import_module(f"fhir.resources.R4B.{name.lower()}"), name) for name in TYPES}

    def check(resource: Resource) -> None:
        name = resource["resourceType"]
        try:
            models[name].model_validate(resource)
        except ValidationError as error:
            raise Refusal(400, [_model_issue(name, one) for one in error.errors()]) from None

    return check


def check_rules(resource: Resource) -> None:
    """The Hub's own rules: Refusal 422; AttributeError, KeyError or TypeError if not even shaped as FHIR."""
    if resource["resourceType"] == "Observation" and (issues := list(_observation_rules(resource))):
        raise Refusal(422, issues)


def form(resource: Resource) -> bytes:
    """All that `check_rules` and `hub_store.postings_of` read, with the numbers blanked.

    A feed sends the same few forms with other numbers in them: two resources of one form meet the same rules
    and are found by the same codes, so either is worked out once (2 us instead of 7).
    """
    return _NUMBER.sub(b'"value":0', orjson.dumps([[*resource], *map(resource.get, _READ)]))


def claims(resource: Resource) -> list[str]:
    """The profiles in `meta.profile`, version suffix taken off."""
    return [url.partition("|")[0] for url in resource.get("meta", {}).get("profile", ())]


def values(resource: Resource) -> list[str]:
    """The names of the value[x] elements present."""
    return [name for name in resource if name.startswith("value")]


def _model_issue(name: str, error: Any) -> Issue:
    # `msg` says what was expected; `input` is what the sender wrote and stays here.
    where = ".".join([name, *(str(step) for step in error["loc"])])
    code = "required" if error["type"] == "missing" else "structure"
    return Issue(code, f"{where}: {error['msg']}", where)


def _observation_rules(resource: Resource) -> Iterator[Issue]:
    if resource.get("status") not in STATUSES:
        yield Issue("code-invalid", "status is not one of the observation-status codes", "Observation.status")
    if not resource["code"]:
        yield Issue("required", "code is empty", "Observation.code")
    yield from _value_rules(resource, "Observation")
    for part in resource.get("component", ()):
        yield from _value_rules(part, "Observation.component")
    for url in claims(resource):
        if url in PROFILES:
            yield from _vital_sign_rules(resource, url.removeprefix(UK_CORE), PROFILES[url])
        elif url.startswith(VITAL_SIGNS):
            # A claim that nothing checks is how a misspelt profile passes for years.
            yield Issue(
                "not-supported",
                f"profile {url} is not one that this hub can check",
                "Observation.meta.profile",
            )


def _value_rules(element: Resource, path: str) -> Iterator[Issue]:
    present = values(element)
    if len(present) > 1:
        yield Issue("invariant", "more than one value[x]", f"{path}.value[x]")
    if present and "dataAbsentReason" in element:
        yield Issue("invariant", "obs-6: dataAbsentReason stands beside a value", f"{path}.dataAbsentReason")
    quantity = element.get("valueQuantity")
    if quantity is not None and type(quantity.get("value", 0)) not in (int, float):
        yield Issue("value", "value of a Quantity is not a JSON number", f"{path}.valueQuantity.value")


def _vital_sign_rules(resource: Resource, profile: str, sign: VitalSign) -> Iterator[Issue]:
    def broken(what: str, where: str) -> Issue:
        return Issue("invariant", f"{profile}: {what}", f"Observation.{where}")

    if resource.get("status") != "final":
        yield broken("status has to be final", "status")
    if not _is_vital_signs(resource.get("category", [])):
        yield broken("category has to be exactly one, vital-signs", "category")
    for what in _code_faults(resource["code"], sign.loinc, sign.display):
        yield broken(what, "code.coding")
    if not resource.get("subject"):
        yield broken("subject is missing", "subject")
    if not any(name.startswith("effective") for name in resource):
        yield broken("effective[x] is missing", "effective[x]")
    if sign.unit:
        for what in _quantity_faults(resource, sign.unit):
            yield broken(what, "valueQuantity")
    if sign.parts:
        for what in _panel_faults(resource, sign.parts):
            yield broken(what, "component")


def _is_vital_signs(category: list[Resource]) -> bool:
    return len(category) == 1 and any(
        coding.get("code") == "vital-signs" and coding.get("system") == CATEGORY
        for coding in category[0].get("coding", ())
    )


def _code_faults(code: Resource, loinc: str, display: str) -> Iterator[str]:
    """The loinc slice is 1..1 (ukcore-obs-vs-001) and fixed; SNOMED CT is 1..; other systems are open."""
    codings = code.get("coding", ())
    slices = [coding for coding in codings if coding.get("system") == LOINC]
    if len(slices) != 1:
        yield f"ukcore-obs-vs-001: exactly one LOINC coding, not {len(slices)}"
    elif loinc and slices[0].get("code") != loinc:
        yield f"the LOINC code has to be {loinc}"
    elif display and slices[0].get("display", display) != display:
        yield f"the display of {loinc} has to be '{display}' or absent"
    if not any(coding.get("system") == SNOMED and coding.get("code") for coding in codings):
        yield "a SNOMED CT coding is missing"


def _quantity_faults(element: Resource, unit: Unit) -> Iterator[str]:
    quantity = element.get("valueQuantity")
    if not quantity or "value" not in quantity:
        yield "valueQuantity with a value is missing"
        return
    if quantity.get("unit") != unit.name:
        yield f"unit has to be '{unit.name}'"
    if quantity.get("code") != unit.code or quantity.get("system") != UCUM:
        yield f"the unit code has to be {unit.code} of {UCUM}"


def _panel_faults(resource: Resource, parts: tuple[Part, ...]) -> Iterator[str]:
    if values(resource):
        yield "a panel has no value[x] of its own"
    components = {part["code"].get("text"): part for part in resource.get("component", ())}
    # The slicing is closed: a third component, such as the mean pressure, is another Observation.
    if len(resource.get("component", ())) != len(parts) or components.keys() != {part.text for part in parts}:
        yield (
            "components have to be exactly "
            + " and ".join(f"'{part.text}'" for part in parts)
            + ", by code.text"
        )
        return
    for part in parts:
        yield from _part_faults(components[part.text], part)


def _part_faults(component: Resource, part: Part) -> Iterator[str]:
    codings = component["code"].get("coding", ())
    if not any(coding.get("system") == LOINC and coding.get("display") == part.text for coding in codings):
        yield f"{part.text}: the LOINC coding needs the display '{part.text}'"
    for what in _code_faults(component["code"], part.loinc, ""):
        yield f"{part.text}: {what}"
    for what in _quantity_faults(component, part.unit):
        yield f"{part.text}: {what}"
