"""What virtual Sensors encode: numbers, clocks, and the ledger that the checker trusts."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from hw.virtual import sfloat
from hw.virtual.clock import (
    SensorClock,
    decode_current_time,
    decode_date_time,
    encode_current_time,
    encode_date_time,
)
from hw.virtual.ledger import CONFIRMED, SENT, SPOT_CHECK, Ledger, Measurement
from hw.virtual.sfloat import Quantity, Special

NOON = datetime(2026, 3, 1, 12, 0, 0)


@pytest.mark.parametrize(
    ("quantity", "word"),
    [
        (2, 0x0002),
        (Decimal("2.0"), 0xF014),
        (Decimal("2.00"), 0xE0C8),
        (Decimal("2E1"), 0x1002),
        (Decimal("2E2"), 0x2002),
        (1234, 0x04D2),
        (-1234, 0x0B2E),
        (Decimal("17.6"), 0xF0B0),  # kPa, as a UA-651BLE sends it
        (Special.NAN, 0x07FF),
        (Special.NRES, 0x0800),
        (Special.PLUS_INFINITY, 0x07FE),
        (Special.MINUS_INFINITY, 0x0802),
        (Special.RESERVED, 0x0801),
    ],
)
def test_sfloat_is_the_word_of_the_standard(quantity: Quantity, word: int) -> None:
    assert sfloat.word(quantity) == word
    assert sfloat.encode(quantity) == word.to_bytes(2, "little")


@pytest.mark.parametrize("quantity", [2046, -2046, Decimal("204.80"), Decimal("1E8"), Decimal("NaN")])
def test_a_number_that_would_change_or_collide_with_a_special_is_refused(quantity: Quantity) -> None:
    with pytest.raises(ValueError):
        sfloat.encode(quantity)


class World:
    """A monotonic time that stands until told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_clock_drifts_with_its_rate() -> None:
    world = World()
    clock = SensorClock(NOON, monotonic=world, rate=1.01)
    world.now += 100
    assert clock.read() == NOON + timedelta(seconds=101)


def test_stopped_clock_shows_the_same_until_it_runs_again() -> None:
    world = World()
    clock = SensorClock(NOON, monotonic=world)
    world.now += 10
    clock.stop()
    world.now += 50
    assert (clock.read(), clock.state) == (NOON + timedelta(seconds=10), "stopped")
    clock.run()
    world.now += 1
    assert clock.read() == NOON + timedelta(seconds=11)


def test_lost_clock_counts_from_the_factory_date_and_says_it_is_unset() -> None:
    world = World()
    clock = SensorClock(NOON, monotonic=world, factory=datetime(2010, 1, 1))
    clock.lose()
    world.now += 5
    assert (clock.read(), clock.state, clock.is_set) == (datetime(2010, 1, 1, 0, 0, 5), "unset", False)


def test_clock_without_factory_date_shows_nothing_until_set() -> None:
    clock = SensorClock(monotonic=World())
    assert clock.read() is None
    clock.set(NOON)
    assert (clock.read(), clock.state) == (NOON, "set")


def test_stepped_clock_jumps() -> None:
    clock = SensorClock(NOON, monotonic=World())
    clock.step(-3600)
    assert clock.read() == NOON - timedelta(hours=1)


def test_clock_that_ignores_setting_keeps_its_own() -> None:
    clock = SensorClock(monotonic=World(), factory=datetime(2010, 1, 1), ignores_setting=True)
    clock.set(NOON)
    assert (clock.read(), clock.is_set) == (datetime(2010, 1, 1), False)


def test_date_time_is_seven_bytes_and_zero_when_unknown() -> None:
    wall = datetime(2024, 6, 23, 14, 35, 10)
    assert encode_date_time(wall).hex() == "e80706170e230a"
    assert decode_date_time(encode_date_time(wall)) == wall
    assert encode_date_time(None) == bytes(7)


def test_current_time_carries_weekday_and_fraction() -> None:
    wall = datetime(2024, 6, 23, 14, 35, 10, 500_000)  # a Sunday
    assert encode_current_time(wall).hex() == "e80706170e230a078000"
    assert decode_current_time(encode_current_time(wall)) == wall


@pytest.mark.parametrize("value", [b"", bytes(7), bytes.fromhex("e8070d170e230a"), bytes(8)])
def test_no_date_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError):
        decode_date_time(value)


def take(ledger: Ledger, spo2: Quantity) -> Measurement:
    return ledger.take(
        {"spo2": spo2, "pulse": 60},
        sensor="C0:00:00:00:00:01",
        serial="1",
        kind=SPOT_CHECK,
        unit="%",
        failed=False,
        status=None,
        sensor_status=None,
        timestamped=False,
        clock="none",
        shown_at=None,
    )


def test_ledger_tells_the_same_when_read_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, utc=lambda: datetime(2026, 1, 2, 3, 4, 5, 6, UTC), episode="A")
    first = take(ledger, Decimal("97.5"))
    ledger.episode = "B"
    take(ledger, Special.NAN)
    for event in (SENT, SENT, CONFIRMED):
        ledger.mark(first, event)

    again = Ledger.read(path)
    assert again.measurements == ledger.measurements
    assert [m.episode for m in again.taken] == ["A", "B"]
    assert [(m.state, m.sent) for m in again.taken] == [("confirmed", 2), ("taken", 0)]
    assert [m.values["spo2"] for m in again.taken] == [97.5, None]
    assert [m.number for m in again.held] == [2]
    assert first.taken_at == "2026-01-02T03:04:05.000006+00:00"


def test_a_measurement_ends_only_once() -> None:
    ledger = Ledger()
    measurement = take(ledger, 97)
    ledger.mark(measurement, CONFIRMED)
    with pytest.raises(AssertionError):
        ledger.mark(measurement, CONFIRMED)
