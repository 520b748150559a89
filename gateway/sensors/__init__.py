"""Decoders of the SIG's characteristics: one for Gateway and service, so that both see the same Reading."""

from gateway.errors import Unknown
from gateway.reading import Clock, Feature, Racp, Reading
from gateway.sensors.blood_pressure import (
    BLOOD_PRESSURE_FEATURE,
    BLOOD_PRESSURE_MEASUREMENT,
    INTERMEDIATE_CUFF_PRESSURE,
    decode_cuff_pressure,
    decode_feature,
    decode_measurement,
)
from gateway.sensors.clock import (
    CURRENT_TIME,
    DATE_TIME_CHARACTERISTIC,
    decode_current_time,
    decode_date_time,
)
from gateway.sensors.pulse_oximeter import (
    PLX_CONTINUOUS,
    PLX_FEATURES,
    PLX_SPOT_CHECK,
    STORAGE,
    as_measured,
    decode_continuous,
    decode_features,
    decode_spot_check,
)
from gateway.sensors.racp import RECORD_ACCESS_CONTROL_POINT, decode_racp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = {
    BLOOD_PRESSURE_MEASUREMENT: "Blood Pressure Measurement",
    INTERMEDIATE_CUFF_PRESSURE: "Intermediate Cuff Pressure",
    BLOOD_PRESSURE_FEATURE: "Blood Pressure Feature",
    PLX_SPOT_CHECK: "PLX Spot-Check Measurement",
    PLX_CONTINUOUS: "PLX Continuous Measurement",
    PLX_FEATURES: "PLX Features",
    RECORD_ACCESS_CONTROL_POINT: "Record Access Control Point",
    DATE_TIME_CHARACTERISTIC: "Date Time",
    CURRENT_TIME: "Current Time",
}

_DECODERS: "dict[int, Callable[[bytes | memoryview], Reading | Feature | Clock | Racp]]" = {
    BLOOD_PRESSURE_MEASUREMENT: decode_measurement,
    INTERMEDIATE_CUFF_PRESSURE: decode_cuff_pressure,
    BLOOD_PRESSURE_FEATURE: decode_feature,
    PLX_SPOT_CHECK: decode_spot_check,
    PLX_CONTINUOUS: decode_continuous,
    PLX_FEATURES: decode_features,
    RECORD_ACCESS_CONTROL_POINT: decode_racp,
    DATE_TIME_CHARACTERISTIC: decode_date_time,
    CURRENT_TIME: decode_current_time,
}


def decode(characteristic: int, value: "bytes | memoryview") -> "Reading | Feature | Clock | Racp":
    """Return what a raw value means. Raises Unknown (characteristic) or Truncated."""
    decoder = _DECODERS.get(characteristic)
    if decoder is None:
        raise Unknown(f"no decoder for characteristic 0x{characteristic:04X}")
    return decoder(value)


def is_measurement(characteristic: int) -> bool:
    """Whether its values become Readings. The pressure in an inflating cuff does not: nobody's vital."""
    return characteristic in (PLX_SPOT_CHECK, BLOOD_PRESSURE_MEASUREMENT, PLX_CONTINUOUS)


def can_store(characteristic: int, feature: "Feature | None" = None) -> bool:
    """Whether a value may have waited in the Sensor before it was sent. `feature`: 0x2A60, for an oximeter.

    A cuff does not say whether it stores, and most do; an oximeter whose features are not known may.
    """
    if characteristic == PLX_CONTINUOUS:
        return False
    return characteristic != PLX_SPOT_CHECK or feature is None or STORAGE in feature.supported


def essence(characteristic: int, value: bytes) -> bytes:
    """Return the bytes by which a measurement is known again, however it came."""
    return as_measured(value) if characteristic == PLX_SPOT_CHECK else value
