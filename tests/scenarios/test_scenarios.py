"""Every Sensor scenario, through every kind of Gateway: from the Sensor's measurement to the service.

What is asserted is what reached the service (Frames as raw bytes, the Readings that they decode to, Records
of the Sensor) and what became of each measurement at the Sensor (its ledger). `Home.check` adds what holds
for all: nothing confirmed is missing, no sequence stands for two Records.
"""

import asyncio
import random
from datetime import UTC, datetime, timedelta

import pytest
from home import BRIEF, CUFF, FACTORY, OXIMETER, PATIENT, Home, name_of, numbers

from gateway.reading import GOOD, NEVER
from gateway.record import (
    BOND_CHANGED,
    BOND_MADE,
    BOOTED,
    CLOCK_AFTER,
    CLOCK_BEFORE,
    CLOCK_SET,
    FROM_STORAGE,
    HOST_CONFIRMED,
    INDICATED,
    NOTIFIED,
    RACP_ENDED,
    SENSOR_DRAINED,
    SERIAL,
    Frame,
    Sensor,
    SensorClock,
)
from gateway.sensors import decode
from hw.demo.kit import GATEWAYS
from hw.hil.service import OFFSET_MIN
from hw.virtual import clock
from hw.virtual.cuff import Cuff
from hw.virtual.oximeter import INVALID, ONGOING, Oximeter
from hw.virtual.sensor import Label

LEAVING_SEEDS = (1, 7)


async def test_spot_check_arrives_with_the_time_that_the_sensor_gave_it(home: Home) -> None:
    oximeter = await home.oximeter()
    await home.plug_in()
    taken = oximeter.measure_spot_check(97, 61)
    await home.frames(1)
    (reading,) = home.service.readings()
    assert (reading.kind, reading.trust, reading.clock_set) == ("spot_check", GOOD, True)
    assert numbers(reading) == {"spo2": 97, "pulse_rate": 61}
    assert datetime(*reading.timestamp).isoformat() == taken.shown_at.split(".")[0]
    (frame,) = home.service.frames()
    assert (frame.characteristic, frame.flags & ~HOST_CONFIRMED) == (0x2A5E, INDICATED)
    bodies = home.service.bodies()
    described = [body for body in bodies[: bodies.index(frame)] if isinstance(body, Sensor)]
    assert (SERIAL, b"OX-1") in described[-1].items  # a Reading's Sensor is known before it


async def test_stored_spot_checks_come_by_racp_oldest_first(home: Home) -> None:
    oximeter = await home.oximeter(PATIENT)
    for spo2 in (94, 95, 96):
        oximeter.measure_spot_check(spo2, 60)
    await home.plug_in()
    await home.until(lambda: home.service.events(SENSOR_DRAINED))
    values = [numbers(reading)["spo2"] for reading in home.service.readings()]
    stored = [bool(frame.flags & FROM_STORAGE) for frame in home.service.frames()]
    assert list(zip(values, stored, strict=True)) == [(96, False), (94, True), (95, True)]
    assert [reading.stored for reading in home.service.readings()] == stored  # the Sensor says so too
    assert [event.detail for event in home.service.events(RACP_ENDED)] == [b"\x01"]
    assert not oximeter.ledger.held


async def test_oximeter_without_timestamps_is_served_and_never_asked_for_a_clock(home: Home) -> None:
    clip = Oximeter.simple(home.room, OXIMETER, label=Label("Clip"), habits=PATIENT)
    await home.add(clip)
    await home.plug_in()
    clip.measure_spot_check(93, 72)
    await home.until(lambda: home.service.events(SENSOR_DRAINED))
    (reading,) = home.service.readings()
    assert (numbers(reading), reading.timestamp) == ({"spo2": 93, "pulse_rate": 72}, None)
    assert home.service.all_of(SensorClock) == []
    assert len(clip.ledger.confirmed) == 1


async def test_streamed_values_are_thinned_to_one_per_window_and_each_change_of_class(home: Home) -> None:
    oximeter = await home.oximeter(PATIENT)
    await home.plug_in()
    oximeter.start_continuous([(97, 60 + i) for i in range(100)], period_s=0.03)
    await home.frames(2)  # more than a window
    await oximeter.stop_continuous()
    good = len(oximeter.ledger.streamed)
    oximeter.start_continuous([(97, 160)] * 3, period_s=0.03, status=ONGOING | INVALID)
    await home.until(lambda: any(reading.trust == NEVER for reading in home.service.readings()))
    await oximeter.stop_continuous()
    assert {frame.flags & ~HOST_CONFIRMED for frame in home.service.frames()} == {NOTIFIED}
    # What was kept is what was streamed, in its order.
    streamed = [(each.values["spo2"], each.values["pulse"]) for each in oximeter.ledger.streamed]
    readings = [numbers(reading) for reading in home.service.readings()]
    places = [streamed.index((each["spo2"], each["pulse_rate"])) for each in readings]
    assert places[0] == 0 and places == sorted(places)
    plain = [place for place in places if place < good]
    assert 2 <= len(plain) < good / 2
    assert places[len(plain)] == good  # the first of the other class, not the window's next


async def test_cuff_gives_all_that_it_holds_when_it_is_subscribed_to(home: Home) -> None:
    cuff = await home.cuff()
    for systolic in (120, 130, 140):
        cuff.measure(systolic, 80, 95, 66)
    await home.plug_in()
    await home.frames(3)
    assert [numbers(reading)["systolic"] for reading in home.service.readings()] == [120, 130, 140]
    await home.until(lambda: len(cuff.ledger.confirmed) == 3)


async def test_failed_measurement_arrives_byte_for_byte_and_is_no_number(home: Home) -> None:
    cuff = await home.cuff()
    await home.plug_in()
    taken = cuff.measure_failed()
    await home.frames(1)
    (frame,) = home.service.frames()
    shown = clock.encode_date_time(datetime.fromisoformat(taken.shown_at))
    assert frame.value == bytes.fromhex("16ff07ff07ff07") + shown + bytes.fromhex("ff070000")
    (reading,) = home.service.readings()
    assert reading.trust == NEVER
    assert set(numbers(reading).values()) == {None}


async def test_value_that_was_not_confirmed_comes_again_and_both_are_kept(home: Home) -> None:
    cuff = await home.cuff()
    await home.plug_in()
    cuff.drop_before_confirmation()
    taken = cuff.measure(121, 81, 94, 61)
    await home.frames(2)
    first, second = home.service.frames()
    assert first.value == second.value
    await home.until(lambda: taken.state == "confirmed")
    assert taken.sent == 2


async def test_clock_that_is_not_set_is_read_set_and_read_again(home: Home) -> None:
    cuff = await home.cuff(PATIENT, clock=clock.SensorClock(factory=FACTORY))
    await home.plug_in()
    cuff.measure(122, 82, 95, 62)
    await home.until(lambda: len(home.service.all_of(SensorClock)) >= 3)
    before, written, after = home.service.all_of(SensorClock)
    assert [each.kind for each in (before, written, after)] == [CLOCK_BEFORE, CLOCK_SET, CLOCK_AFTER]
    assert decode(before.characteristic, before.value).date_time[:3] == (2010, 1, 1)
    assert written.offset_min == OFFSET_MIN
    at_home = datetime.now(UTC).replace(tzinfo=None) + timedelta(minutes=OFFSET_MIN)
    read_again = datetime(*decode(after.characteristic, after.value).date_time)
    assert abs(at_home - read_again) < timedelta(seconds=5)
    (reading,) = home.service.readings()
    assert not reading.clock_set  # it was taken before; its time is not believed


@pytest.mark.parametrize("seed", LEAVING_SEEDS)
async def test_sensor_that_leaves_at_any_step_loses_nothing(home: Home, seed: int) -> None:
    chance = random.Random(seed)
    oximeter = await home.oximeter()
    await home.plug_in()
    for spo2 in range(90, 94):
        oximeter.measure_spot_check(spo2, 60)
    for _ in range(4):
        await home.until(lambda: oximeter.is_connected or oximeter.is_dark)
        if oximeter.is_dark:
            oximeter.wake()
            continue
        await asyncio.sleep(chance.uniform(0, 0.3))
        home.room.drop(OXIMETER)
    while oximeter.ledger.held:
        oximeter.wake()
        await asyncio.sleep(0.2)
    await home.until(lambda: _spo2(home) == {90, 91, 92, 93})


async def test_unknown_sensor_is_left_alone_outside_the_pairing_window(home: Home) -> None:
    cuff = await home.cuff()
    await home.plug_in()
    cuff.measure(123, 83, 96, 63)
    await home.frames(1)
    await home.replug()
    stranger = await home.oximeter()
    stranger.measure_spot_check(97, 61)
    await stranger.dark()
    assert len(stranger.ledger.held) == 1 and not stranger.bonds.peers
    cuff.measure(124, 84, 97, 64)  # who is known is served meanwhile
    await home.frames(2)
    assert {frame.characteristic for frame in home.service.frames()} == {0x2A35}
    assert len(home.service.events(BOND_MADE)) == 1


async def test_sensor_that_lost_its_bond_is_refused_until_the_button_and_that_is_told(home: Home) -> None:
    cuff = await home.cuff()
    await home.plug_in()
    cuff.measure(125, 85, 98, 65)
    await home.frames(1)
    await home.replug()
    await cuff.dark()
    cuff.forget_bonds()
    cuff.measure(126, 86, 99, 66)
    await cuff.dark()
    assert len(cuff.ledger.held) == 1
    assert home.service.events(BOND_CHANGED) == []
    await home.hold_button()
    cuff.wake(20)
    await home.frames(2)
    assert [event.detail for event in home.service.events(BOND_CHANGED)] == [b"bond"]
    assert len(home.service.events(BOND_MADE)) == 1


async def test_what_was_kept_without_a_network_arrives_when_it_is_back(home: Home) -> None:
    cuff, oximeter = await home.cuff(), await home.oximeter()
    await home.plug_in()
    cuff.pairing_mode()
    oximeter.pairing_mode()
    await home.until(lambda: len(home.service.events(BOND_MADE)) == 2)
    home.kit.online(False)
    cuff.measure(127, 87, 100, 67)
    oximeter.measure_spot_check(96, 62)
    await home.until(lambda: not cuff.ledger.held and not oximeter.ledger.held)
    assert home.service.frames() == []
    home.kit.online(True)
    await home.frames(2)
    assert {frame.characteristic for frame in home.service.frames()} == {0x2A35, 0x2A5E}


async def test_two_sensors_are_served_at_once_and_one_that_fails_does_not_stop_the_other(
    home: Home,
) -> None:
    cuff, oximeter = await home.cuff(PATIENT), await home.oximeter(PATIENT)
    await home.plug_in()
    cuff.measure(128, 88, 101, 68)
    oximeter.measure_spot_check(97, 61)
    await home.frames(2)
    assert cuff.is_connected and oximeter.is_connected
    home.room.cut(CUFF)
    oximeter.measure_spot_check(95, 63)
    await home.frames(3)
    assert oximeter.is_connected and not cuff.is_connected
    home.room.restore(CUFF)
    cuff.measure(129, 89, 102, 69)
    await home.frames(4)


async def test_plug_that_is_pulled_keeps_bonds_and_journal(home: Home) -> None:
    cuff = await home.cuff()
    await home.plug_in()
    cuff.pairing_mode()
    await home.until(lambda: home.service.events(BOND_MADE))
    home.kit.online(False)
    cuff.measure(130, 90, 103, 70)
    await home.until(lambda: not cuff.ledger.held)  # confirmed: only the Gateway has it now
    assert home.service.frames() == []
    await home.replug()
    home.kit.online(True)
    await home.frames(1)
    cuff.measure(131, 91, 104, 71)
    await home.frames(2)
    assert [numbers(reading)["systolic"] for reading in home.service.readings()] == [130, 131]
    assert len(home.service.events(BOOTED)) == 2
    assert len(home.service.events(BOND_MADE)) == 1
    assert home.service.events(BOND_CHANGED) == []


async def test_other_sensor_at_the_same_address_is_told_before_its_value(home: Home) -> None:
    cuff = await home.cuff()
    await home.plug_in()
    cuff.measure(132, 92, 105, 72)
    await home.frames(1)
    await cuff.dark()
    await cuff.power_off()
    label, bonds = Label("Cuff", serial="CU-2"), home.folder / "cuff.json"
    other = Cuff(home.room, CUFF, label=label, bonds=bonds, habits=BRIEF)
    await home.add(other)
    other.measure(133, 93, 106, 73)
    await home.frames(2)
    bodies = home.service.bodies()
    told = [body for body in bodies if isinstance(body, Sensor | Frame)]
    serials = [
        dict(body.items)[SERIAL] for body in told if isinstance(body, Sensor) and SERIAL in dict(body.items)
    ]
    assert serials == [b"CU-1", b"CU-2"]
    assert isinstance(told[-1], Frame) and isinstance(told[-2], Sensor)
    assert [event.detail for event in home.service.events(BOND_CHANGED)] == [b"identity"]


def _spo2(home: Home) -> set[float | None]:
    return {numbers(reading)["spo2"] for reading in home.service.readings()}


def test_every_gateway_has_passed_every_scenario(passed: dict[str, set[str]], say: list[str]) -> None:
    for kind in GATEWAYS:
        if kind in passed:
            say.append(f"scenario suite: {name_of(kind)}: {len(passed[kind])} passed")
        else:
            say.append(f"scenario suite: {kind}: NOT RUN")
    assert len({frozenset(names) for names in passed.values()}) == 1
