"""Sensors on the bench: real pairing, encryption and GATT over bumble; a real service where it is told."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bleak.exc import (
    BleakBluetoothNotAvailableError,
    BleakBluetoothNotAvailableReason,
    BleakDBusError,
    BleakError,
)
from bumble import att
from bumble.core import UUID
from bumble.gatt import Characteristic, Service

from hw.station import StationError, bench, sensor_bond, sensors
from hw.station import radio as station_radio
from hw.station.kit_folder import KitFolder
from hw.station.radio import Radio, RadioError
from hw.station.report import Report
from hw.station.service import Service as Api
from hw.virtual.bleak_backend import BumbleAdapter
from hw.virtual.clock import SensorClock
from hw.virtual.cuff import Cuff
from hw.virtual.oximeter import Oximeter
from hw.virtual.radio import Room
from hw.virtual.sensor import Habits, Label, Sensor, gatt_service, stop
from tests.station.workshop import Workshop, set_up, workshop

KIT, OTHER_KIT = "HW-0001-Z", "HW-0002-X"
BENCH, OXIMETER, CUFF = (f"C0:00:00:00:00:0{n}" for n in (9, 1, 2))
HABITS = Habits(window_s=60.0, linger_s=20.0, advertising_ms=20, pairing_button=True)
ZONE = sensors._zone("Asia/Kathmandu")
"""UTC+5:45: no offset of a computer of ours."""


class Heard(Report):
    """A report, and a person who does what it says."""

    def __init__(self) -> None:
        super().__init__(json=True, dry_run=False)
        self.lines: list[str] = []
        self.value: dict[str, Any] = {}
        self.does: dict[str, Callable[[], Awaitable[None]]] = {}
        self._acts: list[asyncio.Task[None]] = []

    def say(self, line: str) -> None:
        self.lines.append(line)
        for words, act in list(self.does.items()):
            if words in line:
                self._acts.append(asyncio.ensure_future(act()))

    def result(self, value: dict[str, Any], sentence: str) -> None:
        self.value = value
        self.lines.append(sentence)

    async def done(self) -> None:
        await asyncio.gather(*self._acts)


def oximeter(room: Room, **options: Any) -> Oximeter:
    label = Label(
        "Oxi", manufacturer="Maker", model="M1", serial="O-7", firmware="2.3", system_id=b"\x01" * 8
    )
    return Oximeter(room, OXIMETER, label=label, habits=HABITS, **options)


def cuff(room: Room, **options: Any) -> Cuff:
    return Cuff(room, CUFF, label=Label("Cuff", serial="C-7"), habits=HABITS, **options)


def local() -> datetime:
    return datetime.now(ZONE).replace(tzinfo=None)


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.fixture
async def adapter(room: Room) -> AsyncIterator[BumbleAdapter]:
    async with BumbleAdapter(room, BENCH, name="Bench") as adapter:
        yield adapter


@pytest.fixture
def radio(adapter: BumbleAdapter) -> Radio:
    return radio_of(adapter)


def radio_of(adapter: BumbleAdapter, find_s: float = 10.0) -> Radio:
    return Radio(
        scanner_backend=adapter.scanner_backend,
        client_backend=adapter.client_backend,
        find_s=find_s,
        gone_s=0.5,
    )


@pytest.fixture
def here(tmp_path: Path) -> bench.Bench:
    """A bench without a running service: to look at Sensors takes none."""
    _, folder = set_up(tmp_path, "http://127.0.0.1:1/fhir")
    return bench.load(folder)


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Workshop]:
    async with workshop(tmp_path) as started:
        assert (await started.station("provision", "--next", "2")).code == 0
        yield started


# --- scan and check -----------------------------------------------------------------------------------------


async def test_scan_names_what_is_in_reach_and_whose_it_is(
    room: Room, radio: Radio, here: bench.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensor_bond, "owners", lambda _: {CUFF: KIT})
    async with oximeter(room) as one, cuff(room) as other:
        one.wake()
        other.wake()
        rows = await sensors.scan(here, radio, 0.5, Heard())
    found = {row["address"]: (row["name"], row["services"], row["kit"]) for row in rows}
    assert found == {OXIMETER: ("Oxi", ["oximeter"], None), CUFF: ("Cuff", ["cuff"], KIT)}


async def test_check_reads_everything_and_takes_no_value(
    room: Room, radio: Radio, here: bench.Bench, adapter: BumbleAdapter
) -> None:
    async with oximeter(room, clock=SensorClock(local())) as sensor:
        sensor.measure_spot_check(97, 72)
        sensor.pairing_mode()
        said = await sensors.check(here, radio, OXIMETER, Heard(), pair=True, zone=ZONE)
        assert said["serial"] == "O-7" and said["manufacturer"] == "Maker" and said["firmware"] == "2.3"
        assert said["system_id"] == "-".join(["01"] * 8) and said["battery"] == 100
        assert "measurement storage for spot-check" in said["features"]
        assert said["clock"]["state"] == "set" and abs(said["clock"]["difference_s"]) <= 2
        assert said["amiss"] == []
        assert [one.state for one in sensor.ledger.measurements] == ["taken"]
        assert adapter.bonds.peers == []  # the bench keeps none


async def test_an_unset_clock_and_an_empty_battery_are_said_with_what_to_do(
    room: Room, radio: Radio, here: bench.Bench
) -> None:
    async with cuff(room, clock=SensorClock(factory=datetime(2010, 1, 1))) as sensor:
        sensor.battery = 12
        sensor.pairing_mode()
        heard = Heard()
        with pytest.raises(StationError, match="clock is not set; its battery is at 12 %"):
            await sensors.check(here, radio, CUFF, heard, pair=True, zone=ZONE)
        assert heard.value["clock"] == {"state": "not set", "difference_s": None}
        assert any("sensors bond" in row["advice"] for row in heard.value["amiss"])


async def test_a_clock_that_is_wrong_is_said_in_seconds(room: Room, radio: Radio, here: bench.Bench) -> None:
    async with cuff(room, clock=SensorClock(local() - timedelta(hours=1))) as sensor:
        sensor.pairing_mode()
        heard = Heard()
        with pytest.raises(StationError, match=r"its clock is -3\d\d\d s from the home's time"):
            await sensors.check(here, radio, CUFF, heard, pair=True, zone=ZONE)


async def test_without_a_bond_it_is_said_what_was_kept_back(
    room: Room, radio: Radio, here: bench.Bench
) -> None:
    async with cuff(room) as sensor:
        sensor.wake()
        heard = Heard()
        with pytest.raises(StationError, match="only to whom it is bonded"):
            await sensors.check(here, radio, CUFF, heard, zone=ZONE)
        assert heard.value["serial"] == "C-7" and heard.value["clock"]["state"] == "not told"


async def test_a_stranger_is_told_from_a_sensor(room: Room, radio: Radio, here: bench.Bench) -> None:
    async with Thermometer(room, OXIMETER, label=Label("Thermo"), habits=HABITS) as stranger:
        stranger.wake()
        assert await sensors.scan(here, radio, 0.3, Heard()) == []
        with pytest.raises(RadioError, match="measures nothing that a Kit knows"):
            await sensors.check(here, radio, OXIMETER, Heard())


async def test_out_of_reach_and_out_of_pairing_mode_are_two_sentences(
    room: Room, radio: Radio, adapter: BumbleAdapter, here: bench.Bench
) -> None:
    async with cuff(room) as sensor:
        sensor.wake()
        with pytest.raises(RadioError, match="does not pair: put it into pairing mode"):
            await sensors.check(here, radio, CUFF, Heard(), pair=True)
        room.cut(CUFF)
        with pytest.raises(RadioError, match="was not heard in 0 s: wake it"):
            await sensors.check(here, radio_of(adapter, find_s=0.3), CUFF, Heard())


class Thermometer(Sensor):
    """Health, but nothing that a Kit reads."""

    service = 0x1809

    def _services(self) -> list[Service]:
        read = Characteristic.Properties.READ
        kind: Characteristic[bytes] = Characteristic(
            UUID.from_16_bits(0x2A1D), read, att.Attribute.READABLE, b"\x02"
        )
        return [gatt_service(0x1809, [kind])]

    async def _deliver(self, link: Any) -> None:
        pass

    def _has_news(self) -> bool:
        return False


async def test_a_check_that_has_replaced_the_only_bond_says_so(
    room: Room, radio: Radio, here: bench.Bench
) -> None:
    clock = SensorClock(local())
    async with Cuff(
        room, CUFF, label=Label("C", serial="C-7"), clock=clock, habits=replace(HABITS, one_bond=True)
    ) as one:
        one.pairing_mode()
        heard = Heard()
        with pytest.raises(StationError, match="keeps a single bond, and this check has replaced it"):
            await sensors.check(here, radio, CUFF, heard, pair=True, zone=ZONE)
        assert "sensors bond" in heard.value["amiss"][-1]["advice"]


# --- What the computer lacks --------------------------------------------------------------------------------


def test_what_this_computer_lacks_is_said_with_what_to_do() -> None:
    reasons = BleakBluetoothNotAvailableReason
    for error, words in (
        (BleakBluetoothNotAvailableError("x", reasons.NO_BLUETOOTH), "no Bluetooth adapter: plug one in"),
        (BleakBluetoothNotAvailableError("x", reasons.POWERED_OFF), "bluetoothctl power on"),
        (BleakBluetoothNotAvailableError("x", reasons.NO_BLE_CENTRAL_ROLE), "too old"),
        (BleakBluetoothNotAvailableError("x", reasons.DENIED_BY_SYSTEM), "group bluetooth"),
        (BleakDBusError("org.freedesktop.DBus.Error.ServiceUnknown", ["x"]), "install package bluez"),
        (BleakError("le-connection-abort-by-local"), "wake it again"),
    ):
        assert words in str(station_radio._said(error, CUFF)), error


async def test_without_bluez_every_command_is_one_sentence(
    here: bench.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
    for work in (
        sensors.scan(here, Radio(), 0.1, Heard()),
        sensors.check(here, Radio(), CUFF, Heard(), pair=True),
    ):
        with pytest.raises(RadioError, match="BlueZ does not run here"):
            await work


# --- bond ---------------------------------------------------------------------------------------------------


def person(heard: Heard, sensor: Sensor, *, forgets: bool = False) -> None:
    """Does what a technician is told to do with the Sensor."""

    async def off() -> None:
        await sensor.power_off()
        if forgets:
            sensor.forget_bonds()

    async def on() -> None:
        await sensor.power_on()
        sensor.wake()

    heard.does = {"batteries out": off, "and on again": on}


async def bonded(
    shop: Workshop, radio: Radio, sensor: Sensor, heard: Heard, kit: str = KIT, **options: Any
) -> dict[str, Any]:
    here = bench.load(shop.bench)
    options = {"zone": ZONE, "bench_only": True} | options
    try:
        return await sensor_bond.bond(here, Api(here), radio, sensor.address, kit, heard, **options)
    finally:
        await heard.done()


def listed(shop: Workshop, kit: str = KIT) -> tuple[dict[str, Any], ...]:
    return KitFolder.load(shop.bench / "kits" / kit).sensors


async def test_a_bond_is_proved_by_off_and_on_and_the_clock_is_the_homes(
    room: Room, radio: Radio, adapter: BumbleAdapter, shop: Workshop
) -> None:
    async with cuff(room, clock=SensorClock(factory=datetime(2010, 1, 1))) as sensor:
        sensor.measure(121, 81, 94, 66)
        sensor.pairing_mode()
        heard = Heard()
        person(heard, sensor)
        row = await bonded(shop, radio, sensor, heard)
        assert row == {
            "address": "c00000000002",
            "address_type": 1,
            "name": "Cuff",
            "serial": "C-7",
            "proved": False,
        }
        assert listed(shop) == (row,)
        assert "values that it still held, taken from it and not kept: 1" in heard.lines
        assert sensor.clock is not None and sensor.clock.is_set
        assert abs((sensor.clock.read() or datetime.min) - local()) < timedelta(seconds=5)
        assert adapter.bonds.peers == []  # the Gateway is to be its only owner
        # On the list, but not proved by the Kit: `ship` does not call it bonded.
        assert shop.rows("select mark, note from sensor_mark") == [
            ("emptied", "values taken and not kept: 1")
        ]
        await sensor.power_off()
        await sensor.power_on()
        with pytest.raises(StationError, match=f"is on the list of Kit {KIT}: run"):
            await bonded(shop, radio, sensor, Heard(), OTHER_KIT)


async def test_a_bond_that_does_not_last_is_found(
    room: Room, radio: Radio, adapter: BumbleAdapter, shop: Workshop
) -> None:
    async with oximeter(room) as sensor:
        sensor.pairing_mode()
        heard = Heard()
        person(heard, sensor, forgets=True)
        with pytest.raises(StationError, match="has not kept the bond"):
            await bonded(shop, radio, sensor, heard)
        assert listed(shop) == () and adapter.bonds.peers == []


async def test_a_sensor_that_was_never_switched_off_proves_nothing(
    room: Room, adapter: BumbleAdapter, shop: Workshop
) -> None:
    async with oximeter(room) as sensor:
        sensor.pairing_mode()
        with pytest.raises(RadioError, match="is still on the air"):
            await bonded(shop, radio_of(adapter, find_s=2.0), sensor, Heard())
        assert listed(shop) == ()


async def test_a_clock_that_takes_no_time_is_found(room: Room, radio: Radio, shop: Workshop) -> None:
    async with cuff(room, clock=SensorClock(ignores_setting=True)) as sensor:
        sensor.pairing_mode()
        with pytest.raises(StationError, match="does not take the time"):
            await bonded(shop, radio, sensor, Heard())
        assert listed(shop) == ()


async def test_a_technician_who_stops_leaves_no_bond_and_no_link(
    room: Room, radio: Radio, adapter: BumbleAdapter, shop: Workshop
) -> None:
    async with oximeter(room) as sensor:
        sensor.pairing_mode()
        heard = Heard()
        told = asyncio.Event()

        async def hear() -> None:
            told.set()

        heard.does = {"batteries out": hear}
        work: asyncio.Task[Any] = asyncio.create_task(bonded(shop, radio, sensor, heard))
        await told.wait()
        assert adapter.bonds.peers == [OXIMETER]
        await stop(work)
        assert work.cancelled()
        assert adapter.bonds.peers == [] and not sensor.is_connected and listed(shop) == ()


# --- empty --------------------------------------------------------------------------------------------------


async def emptied(shop: Workshop, radio: Radio, sensor: Sensor, heard: Heard) -> dict[str, Any]:
    here = bench.load(shop.bench)
    return await sensors.empty(here, Api(here), radio, sensor.address, KIT, heard)


def stored_three(sensor: Oximeter) -> None:
    for spo2 in (91, 92, 93, 94):  # a new one puts the one before into storage
        sensor.measure_spot_check(spo2, 72)


async def test_an_oximeter_deletes_and_what_was_new_is_counted_not_told(
    room: Room, radio: Radio, adapter: BumbleAdapter, shop: Workshop
) -> None:
    async with oximeter(room) as sensor:
        stored_three(sensor)
        sensor.pairing_mode()
        heard = Heard()
        said = await emptied(shop, radio, sensor, heard)
        assert said == {"sensor": OXIMETER, "kit": KIT, "mark": "emptied", "values": 1}
        assert [one.state for one in sensor.ledger.measurements] == ["emptied"] * 3 + ["confirmed"]
        assert adapter.bonds.peers == []
    assert shop.rows("select sensor, mark from sensor_mark") == [(OXIMETER, "emptied")]
    assert not any(value in " ".join(heard.lines) for value in ("91", "92", "93", "94"))
    assert "sensor mark" in shop.operator("kit", "history", KIT)


async def test_one_that_refuses_to_delete_is_emptied_by_its_confirmations(
    room: Room, radio: Radio, shop: Workshop
) -> None:
    async with oximeter(room, refuses=frozenset({2})) as sensor:
        stored_three(sensor)
        sensor.pairing_mode()
        said = await emptied(shop, radio, sensor, Heard())
        assert said["mark"] == "emptied" and said["values"] == 4
        assert sensor.ledger.held == []


async def test_one_that_gives_out_nothing_is_marked(room: Room, radio: Radio, shop: Workshop) -> None:
    async with oximeter(room, refuses=frozenset({1, 2})) as sensor:
        stored_three(sensor)
        sensor.pairing_mode()
        with pytest.raises(
            StationError,
            match="does not give out what it has stored: it is marked, and its first session will be held",
        ):
            await emptied(shop, radio, sensor, Heard())
    assert shop.rows("select sensor, mark from sensor_mark") == [(OXIMETER, "cannot be emptied")]


async def test_a_cuff_is_collected_until_quiet_and_leaves_the_list(
    room: Room, radio: Radio, shop: Workshop
) -> None:
    async with cuff(room) as sensor:
        sensor.pairing_mode()
        heard = Heard()
        person(heard, sensor)
        await bonded(shop, radio, sensor, heard)
        sensor.measure(121, 81, 94, 66)
        sensor.measure(122, 82, 95, 67)
        sensor.pairing_mode()
        assert (await emptied(shop, radio, sensor, Heard()))["values"] == 2
        assert sensor.ledger.held == []
    assert listed(shop) == ()


async def test_a_sensor_of_a_patient_is_left_alone(room: Room, radio: Radio, shop: Workshop) -> None:
    shop.operator("assign", KIT, "--patient", "Patient/7", "--episode", "E-1")
    async with cuff(room) as sensor:
        sensor.measure(121, 81, 94, 66)
        sensor.pairing_mode()
        with pytest.raises(StationError, match="still with a patient"):
            await emptied(shop, radio, sensor, Heard())
        with pytest.raises(StationError, match="with a patient"):
            await bonded(shop, radio, sensor, Heard())
        assert len(sensor.ledger.held) == 1


# --- The command line ---------------------------------------------------------------------------------------


async def test_every_command_shows_its_plan_and_says_in_one_sentence_what_is_wrong(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
    for arguments in (
        ("scan",),
        ("check", CUFF, "--pair"),
        ("bond", CUFF, "--kit", KIT),
        ("empty", CUFF, "--kit", KIT),
    ):
        dry = await shop.station("sensors", *arguments, "--dry-run", "--json")
        assert dry.code == 0 and dry.json["dry_run"] is True, dry.err
        said = await shop.station("sensors", *arguments)
        assert said.code == 1 and "BlueZ does not run here: install" in said.err, arguments
        assert "Traceback" not in said.err
    for arguments, sentence in (
        (("check", "C0:00"), "is no address"),
        (("check", CUFF, "--zone", "Mars/Base"), "the time zone 'Mars/Base' is not known"),
        (("bond", CUFF, "--kit", "HW-0001-X"), "is mistyped"),
        (("empty", CUFF), "on the list of no Kit of this bench"),
        (("empty", CUFF, "--kit", KIT, "--cannot", "x"), "needs a reason in words"),
        (("scan", "--seconds", "0"), "--seconds takes more than 0"),
    ):
        said = await shop.station("sensors", *arguments)
        assert said.code == 1 and sentence in said.err, said.err


async def test_one_that_is_broken_is_marked_by_hand(shop: Workshop) -> None:
    said = await shop.station(
        "sensors", "empty", CUFF, "--kit", KIT, "--cannot", "its display is broken", "--json"
    )
    assert said.code == 0 and said.json["mark"] == "cannot be emptied", said.err
    rows = shop.rows("select sensor, mark, note, who from sensor_mark")
    assert rows == [(CUFF, "cannot be emptied", "its display is broken", "bench/ann")]
    history = json.loads(shop.operator("kit", "history", KIT, "--json"))
    assert history[-1]["action"] == "sensor mark"
