"""What each measurement is called at the Hub: the mapping, as one table.

Sources: IEEE 11073-10101 (MDC), LOINC, SNOMED CT UK edition, UCUM; names, unit strings and displays as UK
Core fixes them (UKCore-Observation-VitalSigns 1.0.0 and its children): a unit that is printed otherwise is
refused.
"""

from dataclasses import dataclass
from typing import NamedTuple

MDC = "urn:iso:std:iso:11073:10101"
LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"
UCUM = "http://unitsofmeasure.org"

UK_CORE = "https://fhir.hl7.org.uk/StructureDefinition/"
VITAL_SIGNS = UK_CORE + "UKCore-Observation-VitalSigns"
CUFF_PROFILE = UK_CORE + "UKCore-Device-BloodPressure"
"""The only Device that the UK Core blood pressure may point at."""

OWN = "https://homeward.example/fhir/"
READING_ID = OWN + "reading"
SENSOR_ID = OWN + "sensor"
KIT_ID = OWN + "kit"
TAGS = OWN + "CodeSystem/reading-tag"
READING_TIME = OWN + "StructureDefinition/reading-time"
READING_PROVENANCE = OWN + "StructureDefinition/reading-provenance"
GATEWAY_DEVICE = "http://hl7.org/fhir/StructureDefinition/observation-gatewayDevice"

CATEGORIES = "http://terminology.hl7.org/CodeSystem/observation-category"
ABSENT_REASONS = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
ACT_REASONS = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
MEASUREMENT_STATUS = "http://hl7.org/fhir/uv/pocd/CodeSystem/measurement-status"


class Code(NamedTuple):
    """One coding."""

    system: str
    code: str
    display: str


class Unit(NamedTuple):
    """A UCUM unit, with the name that UK Core fixes for Quantity.unit."""

    name: str
    code: str


@dataclass(frozen=True, slots=True, eq=False)
class Measure:
    """One measured quantity. `text` is code.text: UK Core tells components of a panel by it."""

    text: str
    mdc: Code
    loinc: Code
    snomed: Code
    unit: Unit | None  # None: a panel
    profile: str


PERCENT = Unit("percent", "%")
PER_MINUTE = Unit("per minute", "/min")
MMHG = Unit("millimeter of mercury", "mm[Hg]")

_HEART_RATE = Code(LOINC, "8867-4", "Heart rate"), Code(SNOMED, "364075005", "Heart rate"), PER_MINUTE

SPO2 = Measure(
    "Oxygen saturation",
    Code(MDC, "150456", "MDC_PULS_OXIM_SAT_O2"),
    Code(LOINC, "2708-6", "Oxygen saturation in Arterial blood"),
    Code(SNOMED, "431314004", "Peripheral oxygen saturation"),
    PERCENT,
    VITAL_SIGNS + "-OxygenSaturation",
)
OXIMETER_PULSE = Measure(
    "Heart rate", Code(MDC, "149530", "MDC_PULS_OXIM_PULS_RATE"), *_HEART_RATE, VITAL_SIGNS + "-HeartRate"
)
CUFF_PULSE = Measure(
    "Heart rate", Code(MDC, "149546", "MDC_PULS_RATE_NON_INV"), *_HEART_RATE, VITAL_SIGNS + "-HeartRate"
)
BLOOD_PRESSURE = Measure(
    "Blood pressure",
    Code(MDC, "150020", "MDC_PRESS_BLD_NONINV"),
    Code(LOINC, "85354-9", "Blood pressure panel with all children optional"),
    Code(SNOMED, "75367002", "Blood pressure"),
    None,
    VITAL_SIGNS + "-BloodPressure",
)
SYSTOLIC = Measure(
    "Systolic blood pressure",
    Code(MDC, "150021", "MDC_PRESS_BLD_NONINV_SYS"),
    Code(LOINC, "8480-6", "Systolic blood pressure"),
    Code(SNOMED, "72313002", "Systolic arterial pressure"),
    MMHG,
    "",
)
DIASTOLIC = Measure(
    "Diastolic blood pressure",
    Code(MDC, "150022", "MDC_PRESS_BLD_NONINV_DIA"),
    Code(LOINC, "8462-4", "Diastolic blood pressure"),
    Code(SNOMED, "1091811000000102", "Diastolic arterial pressure"),
    MMHG,
    "",
)
MEAN_PRESSURE = Measure(  # UK Core's blood pressure is closed to a third component: an Observation of its own
    "Mean blood pressure",
    Code(MDC, "150023", "MDC_PRESS_BLD_NONINV_MEAN"),
    Code(LOINC, "8478-0", "Mean blood pressure"),
    Code(SNOMED, "6797001", "Mean blood pressure"),
    MMHG,
    VITAL_SIGNS,
)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One Observation of a Reading: the end of its identifier, and the values that it shows."""

    name: str
    values: tuple[str, ...]  # of the Reading; it has them all or this Observation is left out
    measure: Measure
    components: tuple[Measure, ...] = ()  # of a panel, in the order of its values


OXIMETRY = (Part("spo2", ("spo2",), SPO2), Part("hr", ("pulse_rate",), OXIMETER_PULSE))
PRESSURE = (
    Part("bp", ("systolic", "diastolic"), BLOOD_PRESSURE, (SYSTOLIC, DIASTOLIC)),
    Part("hr", ("pulse_rate",), CUFF_PULSE),
    Part("map", ("mean",), MEAN_PRESSURE),
)
PARTS = {0x2A5E: OXIMETRY, 0x2A5F: OXIMETRY, 0x2A35: PRESSURE}
"""By characteristic. What is not here never reaches the Hub: 0x2A36 is the pressure in the cuff."""

IRREGULAR_PULSE = Code(SNOMED, "361137007", "Irregular heart beat")

GATEWAY_TYPE = Code(MDC, "531981", "MDC_MOC_VMS_MDS_AHD")
SENSOR_TYPE = Code(MDC, "65573", "MDC_MOC_VMS_MDS_SIMP")
SPECIALIZATIONS = {
    0x2A5E: Code(MDC, "528388", "MDC_DEV_SPEC_PROFILE_PULS_OXIM"),
    0x2A5F: Code(MDC, "528388", "MDC_DEV_SPEC_PROFILE_PULS_OXIM"),
    0x2A35: Code(MDC, "528391", "MDC_DEV_SPEC_PROFILE_BP"),
}

ABSENT = {"nan": "not-a-number", "+inf": "positive-infinity", "-inf": "negative-infinity"}
"""dataAbsentReason of a special value (HL7 PHD IG 2.0.0); nres and reserved values are 'error'."""
