"""`homeward-station decode`: what one raw GATT value means, in a table for people or as JSON for programs.

It shows what the Gateway's own decoder says, nothing more: a value without a number has none here either.
"""

import argparse
import json
import re
from typing import TYPE_CHECKING, Any

from gateway.errors import FormatError
from gateway.reading import NEVER, Clock, Feature, Racp, Reading, Value, text
from gateway.sensors import NAMES, decode
from hw.station import StationError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_MAX_VALUE_BYTES = 512  # of an attribute (Core specification, volume 3 part F, 3.2.9)
_BASE_UUID = "-0000-1000-8000-00805F9B34FB"
_SHORT = re.compile(r"(?:0X)?(?:0000)?([0-9A-F]{4})")
_FILLERS = re.compile(r"\b0[xX]|[\s:,.\-]")
_SPECIALS = {
    "nan": "not a number",
    "nres": "not at this resolution",
    "+inf": "above the Sensor's range",
    "-inf": "below the Sensor's range",
    "reserved": "a reserved value",
    "impossible": "a number that no patient has",
}
_UNITS = {"mm[Hg]": "mmHg"}


def add(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-command `decode`."""
    parser = commands.add_parser("decode", help="what one raw GATT value means")
    parser.add_argument("characteristic", help="2A35, its 128-bit UUID, or its name")
    parser.add_argument(
        "value", metavar="HEX", nargs="+", help="the bytes; spaces, colons and 0x are allowed"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print what the value means. Raises StationError."""
    characteristic = parse_characteristic(options.characteristic)
    value = parse_value(" ".join(options.value))
    meaning = describe(characteristic, value)
    print(json.dumps(meaning, indent=2, ensure_ascii=False) if options.json else table(meaning))


def parse_characteristic(written: str) -> int:
    """Return the 16-bit UUID of a characteristic given so, in 128 bits, or by name. Raises StationError."""
    short = _SHORT.fullmatch(written.strip().upper().removesuffix(_BASE_UUID))
    characteristic = int(short[1], 16) if short else _by_name(written)
    if characteristic not in NAMES:
        known = ", ".join(f"{number:04X} {name}" for number, name in sorted(NAMES.items()))
        raise StationError(f"unknown characteristic {written!r}; known are {known}")
    return characteristic


def parse_value(written: str) -> bytes:
    """Return the bytes of hexadecimal text. Raises StationError."""
    digits = _FILLERS.sub("", written)
    wrong = re.search(r"[^0-9A-Fa-f]", digits)
    if wrong:
        raise StationError(f"{wrong[0]!r} is no hexadecimal digit")
    if len(digits) % 2:
        raise StationError(f"{len(digits)} hexadecimal digits are no whole number of bytes")
    if len(digits) > 2 * _MAX_VALUE_BYTES:
        raise StationError(f"{len(digits) // 2} bytes; a GATT value has at most {_MAX_VALUE_BYTES}")
    return bytes.fromhex(digits)


def describe(characteristic: int, value: bytes) -> dict[str, Any]:
    """Return all that a value means, ready for JSON. Raises StationError for bytes that can't be decoded."""
    try:
        meaning = decode(characteristic, value)
    except FormatError as problem:
        raise StationError(str(problem)) from problem
    about: dict[str, Any] = {
        "characteristic": f"{characteristic:04X}",
        "name": NAMES[characteristic],
        "raw": value.hex(),
    }
    about.update(_DESCRIBERS[type(meaning)](meaning))
    return about


def table(meaning: dict[str, Any]) -> str:
    """Return aligned lines: first the values, then what is said about them."""
    rows = [("characteristic", f"{meaning['characteristic']} {meaning['name']}")]
    if "trust" in meaning:
        rows.append(("trust", _trust_line(meaning)))
    rows += [(value["name"].replace("_", " "), value_line(value)) for value in meaning.get("values", ())]
    for key, said in meaning.items():
        if key not in ("characteristic", "name", "kind", "trust", "failed", "values") and said is not None:
            rows.append((key.replace("_", " "), _said(said)))
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {said}" for label, said in rows)


def _by_name(written: str) -> int | None:
    wanted = re.sub(r"[\W_]+", "", written).lower()
    return next(
        (number for number, name in NAMES.items() if re.sub(r"\W+", "", name).lower() == wanted), None
    )


def _reading(reading: Reading) -> dict[str, Any]:
    return {
        "kind": reading.kind,
        "trust": reading.trust,
        "failed": _failed(reading),
        "values": [_value(value) for value in reading.values],
        "status": list(reading.status),
        "timestamp": _date_time(reading.timestamp),
        "clock_set": reading.clock_set,
        "stored": reading.stored,
        "user": reading.user,
    }


def _failed(reading: Reading) -> bool:
    """The Sensor tried to measure and has no number for what it is there to measure."""
    required = ("systolic", "diastolic") if reading.kind == "blood_pressure" else (reading.values[0].name,)
    return any(value.special is not None for value in reading.values if value.name in required)


def _value(value: Value) -> dict[str, Any]:
    """`value` for arithmetic, `text` with the precision that the Sensor gave; both None without a number."""
    shown = text(value)
    number = None if shown is None else float(shown) if "." in shown else int(shown)
    return {"name": value.name, "value": number, "text": shown, "unit": value.unit, "special": value.special}


def _feature(feature: Feature) -> dict[str, Any]:
    return {
        "kind": feature.kind,
        "supported": list(feature.supported),
        "measurement_status": _listed(feature.measurement_status),
        "sensor_status": _listed(feature.sensor_status),
    }


def _clock(clock: Clock) -> dict[str, Any]:
    return {
        "kind": "clock",
        "date_time": _date_time(clock.date_time),
        "clock_set": clock.clock_set,
        "fraction_256": clock.fraction_256,
        "status": list(clock.status),
    }


def _racp(racp: Racp) -> dict[str, Any]:
    return {
        "kind": "record_access",
        "procedure": racp.procedure,
        "operator": racp.operator,
        "operand": racp.operand.hex() or None,
        "request": racp.request,
        "response": racp.response,
        "count": racp.count,
    }


_DESCRIBERS: dict[type, Any] = {Reading: _reading, Feature: _feature, Clock: _clock, Racp: _racp}


def _listed(words: tuple[str, ...] | None) -> list[str] | None:
    return None if words is None else list(words)


def _date_time(date_time: tuple[int, ...] | None) -> str | None:
    if date_time is None:
        return None
    return "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}".format(*date_time)


def _trust_line(meaning: dict[str, Any]) -> str:
    if meaning["failed"]:
        return "never: the measurement failed"
    return "never a vital sign" if meaning["trust"] == NEVER else str(meaning["trust"])


def value_line(value: dict[str, Any]) -> str:
    if value["special"]:
        return f"no value ({_SPECIALS[value['special']]})"
    return f"{value['text']} {_UNITS.get(value['unit'], value['unit'])}"


def _said(said: Any) -> str:
    if isinstance(said, bool):
        return "yes" if said else "no"
    return ", ".join(said) or "none" if isinstance(said, list) else str(said)
