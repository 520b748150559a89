"""What a Sensor says of itself, what is wrong with that in plain words, and what to do about it."""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from gateway import sensors
from gateway.errors import FormatError
from gateway.reading import Clock, Feature, seconds_of
from gateway.record import FEATURE, FIRMWARE, MANUFACTURER, MODEL, SERIAL, SYSTEM_ID
from hw.station.guest import ClockRead, Found

MAX_CLOCK_DIFFERENCE_S = 60
"""Of a clock that runs: what the home's own clocks differ by. The Gateway corrects it all the same."""
MAX_SET_DIFFERENCE_S = 3
"""Right after it was set: a Date Time has whole seconds, the write and the read a second each."""
LOW_BATTERY = 20
"""Percent; a Sensor is with a patient for a month, and does not come back for its batteries."""
_MANY_BONDS = "multiple bonds"
NO_CLOCK, NOT_TOLD, UNSET, SET = "none", "not told", "not set", "set"
_TEXTS = (("manufacturer", MANUFACTURER), ("model", MODEL), ("serial", SERIAL), ("firmware", FIRMWARE))


class Amiss(NamedTuple):
    """What is wrong, and what to do."""

    what: str
    advice: str


def description(found: Found) -> dict[str, Any]:
    """What it says of itself. A text that it does not tell is None."""
    told: dict[str, Any] = {name: text(found, tag) or None for name, tag in _TEXTS}
    return told | {
        "system_id": found.item(SYSTEM_ID).hex("-").upper() or None,
        "battery": found.battery,
        "features": features(found),
        "clock": clock(found),
    }


def amiss(found: Found) -> Iterator[Amiss]:
    """Everything that is wrong with it."""
    state = clock(found)
    if found.kept_back:
        yield Amiss(
            "it tells some things only to whom it is bonded",
            "run this again with --pair and the Sensor in pairing mode; one that keeps a single bond then "
            "forgets its Gateway, and must be bonded anew",
        )
    if state["state"] == UNSET:
        yield Amiss("its clock is not set", "`homeward-station sensors bond` sets it")
    elif state["state"] == SET and abs(state["difference_s"]) > MAX_CLOCK_DIFFERENCE_S:
        yield Amiss(
            f"its clock is {state['difference_s']:+} s from the home's time",
            "`homeward-station sensors bond` sets it; if that does not last, change its batteries",
        )
    if found.battery is not None and found.battery <= LOW_BATTERY:
        yield Amiss(f"its battery is at {found.battery} %", "change its batteries, then set its clock")
    if not text(found, SERIAL) and not found.item(SYSTEM_ID):
        yield Amiss(
            "it has neither serial number nor System ID",
            "nothing to do: it is known by its address, so look that no other one has the same label",
        )


def keeps_one_bond(found: Found) -> bool:
    """It says what it can do, and more than one bond is not among that."""
    can = features(found)
    return can is not None and _MANY_BONDS not in can


def features(found: Found) -> list[str] | None:
    """The specification's words for what it can do; None: it does not tell."""
    words: list[str] = []
    told = False
    for tag, value in found.items:
        if tag == FEATURE and len(value) > 2:
            decoded = _decoded(struct.unpack_from("<H", value)[0], value[2:])
            told = told or isinstance(decoded, Feature)
            words += decoded.supported if isinstance(decoded, Feature) else ()
    return words if told else None


def clock(found: Found, kind: int | None = None) -> dict[str, Any]:
    """Its clock at the last read (`kind`: CLOCK_BEFORE, CLOCK_AFTER), against the time of the home."""
    reads = [one for one in found.clocks if one.value and kind in (None, one.kind)]
    if not reads:
        return {"state": NOT_TOLD if found.kept_back else NO_CLOCK, "difference_s": None}
    difference_s = _difference_s(reads[-1])
    return {"state": UNSET if difference_s is None else SET, "difference_s": difference_s}


def text(found: Found, tag: int) -> str:
    """One of its texts, as a person reads it."""
    return found.item(tag).decode(errors="replace").strip("\0 \t\r\n")


def _difference_s(read: ClockRead) -> int | None:
    """Seconds it is ahead; None: not set, or what is no time."""
    decoded = _decoded(read.characteristic, read.value)
    if not isinstance(decoded, Clock) or decoded.date_time is None or not decoded.clock_set:
        return None
    return round(seconds_of(decoded.date_time) - read.local_ms / 1000)


def _decoded(characteristic: int, value: bytes) -> object:
    try:
        return sensors.decode(characteristic, value)
    except FormatError:
        return None
