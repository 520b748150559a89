"""Virtual Sensors as a Gateway meets them: bleak above, bumble below, nothing mocked."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from bleak import BleakClient, BleakScanner
from bleak.backends.device import BLEDevice
from bleak.exc import BleakError, BleakGATTProtocolError

from hw.virtual.bleak_backend import BumbleAdapter
from hw.virtual.clock import SensorClock, encode_current_time, encode_date_time
from hw.virtual.cuff import BODY_MOVEMENT, KPA, Cuff
from hw.virtual.ledger import Ledger
from hw.virtual.oximeter import DEMONSTRATION, FROM_STORAGE, FULLY_QUALIFIED, Oximeter
from hw.virtual.radio import Room
from hw.virtual.sensor import Habits, Label, Sensor

OXIMETER, CUFF, GATEWAY, OTHER_GATEWAY = (f"C0:00:00:00:00:0{n}" for n in range(1, 5))
QUICK = Habits(window_s=5.0, linger_s=0.25, advertising_ms=20)
NOON = datetime(2026, 3, 1, 12, 0, 0)

SPOT, CONTINUOUS, FEATURES, RACP, PRESSURE = "2a5e", "2a5f", "2a60", "2a52", "2a35"
REPORT_ALL, COUNT_ALL, DELETE_ALL = b"\x01\x01", b"\x04\x01", b"\x02\x01"


class Heard:
    """Values of one connection, in order of arrival, each with its characteristic."""

    def __init__(self) -> None:
        self.values: list[tuple[str, bytes]] = []
        self._news = asyncio.Event()

    def listen(self, name: str) -> Callable[[object, bytearray], None]:
        def on_value(_characteristic: object, value: bytearray) -> None:
            self.values.append((name, bytes(value)))
            self._news.set()

        return on_value

    async def of(self, name: str, n: int) -> list[bytes]:
        """The first n values of a characteristic."""
        async with asyncio.timeout(5):
            while len(found := [value for kind, value in self.values if kind == name]) < n:
                self._news.clear()
                await self._news.wait()
        return found


def label(name: str) -> Label:
    return Label(name, manufacturer="Maker", model="M1", serial=f"{name}-7", firmware="2.3")


def oximeter(room: Room, **options: object) -> Oximeter:
    clock = options.pop("clock", None) or SensorClock(NOON)
    return Oximeter(room, OXIMETER, label=label("Oxi"), habits=QUICK, clock=clock, **options)  # type: ignore[arg-type]


def cuff(room: Room, **options: object) -> Cuff:
    return Cuff(room, CUFF, label=label("Cuff"), habits=QUICK, **options)  # type: ignore[arg-type]


def client_of(adapter: BumbleAdapter, sensor: Sensor | BLEDevice, **options: object) -> BleakClient:
    options.setdefault("timeout", 5.0)
    peer = sensor if isinstance(sensor, BLEDevice) else sensor.address
    return BleakClient(peer, backend=adapter.client_backend, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def paired(adapter: BumbleAdapter, sensor: Sensor) -> AsyncIterator[BleakClient]:
    async with client_of(adapter, sensor) as client:
        await client.pair()
        yield client


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.fixture
async def gateway(room: Room) -> AsyncIterator[BumbleAdapter]:
    async with BumbleAdapter(room, GATEWAY) as adapter:
        yield adapter


async def refused(operation: Awaitable[object]) -> int:
    """The ATT error that an operation ends with."""
    with pytest.raises(BleakGATTProtocolError) as error:
        await operation
    return int(error.value.code)


# Air.


async def test_advert_names_the_sensor_and_its_service(room: Room, gateway: BumbleAdapter) -> None:
    async with oximeter(room) as sensor, cuff(room) as other:
        sensor.wake()
        other.wake()
        heard: asyncio.Queue[tuple[str, str | None, list[str]]] = asyncio.Queue()
        scanner = BleakScanner(
            lambda found, advert: heard.put_nowait((found.address, advert.local_name, advert.service_uuids)),
            ["00001822-0000-1000-8000-00805f9b34fb"],
            backend=gateway.scanner_backend,
        )
        async with scanner, asyncio.timeout(5):
            seen = await heard.get()
        assert seen == (OXIMETER, "Oxi", ["00001822-0000-1000-8000-00805f9b34fb"])


async def test_sensor_is_dark_until_woken_and_after_its_window(room: Room, gateway: BumbleAdapter) -> None:
    async with oximeter(room) as sensor:
        with pytest.raises(TimeoutError):
            await client_of(gateway, sensor, timeout=0.2).connect()
        sensor.wake(0.1)
        async with asyncio.timeout(5):
            await sensor.dark()
        with pytest.raises(TimeoutError):
            await client_of(gateway, sensor, timeout=0.2).connect()
        sensor.wake()
        async with client_of(gateway, sensor):  # an attempt that was given up does not block the next
            assert sensor.is_connected


async def test_cut_link_is_lost_on_both_ends_and_works_again_when_restored(
    room: Room, gateway: BumbleAdapter
) -> None:
    async with oximeter(room) as sensor:
        sensor.wake()
        lost = asyncio.Event()
        client = client_of(gateway, sensor, disconnected_callback=lambda _client: lost.set())
        await client.connect()
        room.cut(sensor.address)
        async with asyncio.timeout(5):
            await lost.wait()
        assert not client.is_connected
        assert not sensor.is_connected
        with pytest.raises(TimeoutError):
            await client_of(gateway, sensor, timeout=0.2).connect()
        room.restore(sensor.address)
        await client.connect()
        assert await client.read_gatt_char("2a19") == b"\x64"


async def test_two_gateways_answer_one_advert_and_one_learns_that_it_has_no_link(room: Room) -> None:
    async with (
        oximeter(room) as sensor,
        BumbleAdapter(room, GATEWAY) as one,
        BumbleAdapter(room, OTHER_GATEWAY) as two,
    ):
        clients = [client_of(adapter, sensor, timeout=1.0) for adapter in (one, two)]
        attempts = [asyncio.ensure_future(client.connect()) for client in clients]
        await asyncio.sleep(0.05)  # both are waiting for the advert
        sensor.wake()
        outcome = await asyncio.gather(*attempts, return_exceptions=True)
        assert sorted(client.is_connected for client in clients) == [False, True]
        assert [type(o) for o in outcome if o is not None] in ([BleakError], [TimeoutError])


# Security.


async def test_device_information_is_open_and_measurements_are_not(
    room: Room, gateway: BumbleAdapter
) -> None:
    async with oximeter(room) as sensor:
        sensor.wake()
        async with client_of(gateway, sensor) as client:
            known = [bytes(await client.read_gatt_char(uuid)) for uuid in ("2a29", "2a24", "2a25", "2a26")]
            assert known == [b"Maker", b"M1", b"Oxi-7", b"2.3"]
            assert await refused(client.read_gatt_char(FEATURES)) == 0x0F
            assert await refused(client.read_gatt_char("2a2b")) == 0x0F
            assert await refused(client.start_notify(SPOT, lambda *_: None)) == 0x0F
            assert await refused(client.write_gatt_char(RACP, REPORT_ALL, response=True)) == 0x0F
            await client.pair()
            assert (await client.read_gatt_char(FEATURES)).hex() == "8f00e0ffffff00"


async def test_bond_outlives_a_power_cycle_and_a_new_gateway_process(room: Room, tmp_path: Path) -> None:
    keys = tmp_path / "gateway.json"
    sensor = oximeter(room, bonds=tmp_path / "sensor.json")
    async with sensor, BumbleAdapter(room, GATEWAY, bonds=keys) as adapter:
        sensor.wake()
        async with paired(adapter, sensor):
            pass
    sensor = oximeter(room, bonds=tmp_path / "sensor.json")
    async with sensor, BumbleAdapter(room, GATEWAY, bonds=keys) as adapter:
        sensor.wake()
        async with client_of(adapter, sensor) as client:  # no pair(): the bond encrypts
            assert await client.read_gatt_char(FEATURES)
            assert sensor.bonds.peers == [GATEWAY]
    assert sorted(os.listdir(tmp_path)) == ["gateway.json", "sensor.json"]  # and no half-written file


async def test_bond_forgotten_by_the_sensor_shows_and_can_be_made_again(
    room: Room, gateway: BumbleAdapter
) -> None:
    async with oximeter(room) as sensor:
        sensor.wake()
        async with paired(gateway, sensor) as client:
            pass
        sensor.forget_bonds()
        with pytest.raises(BleakError, match="PIN_OR_KEY_MISSING"):
            await client.connect()
        await client.unpair()
        async with paired(gateway, sensor) as client:
            assert await client.read_gatt_char(FEATURES)


async def test_sensor_with_a_pairing_button_refuses_until_it_is_held(
    room: Room, gateway: BumbleAdapter
) -> None:
    shy = Oximeter(room, OXIMETER, label=label("Oxi"), habits=Habits(pairing_button=True))
    async with shy:
        shy.wake()
        async with client_of(gateway, shy) as client:
            with pytest.raises(BleakError):
                await client.pair()
            assert shy.bonds.peers == []
        shy.pairing_mode()
        async with paired(gateway, shy):
            assert shy.bonds.peers == [GATEWAY]


# Oximeter.


async def test_new_spot_check_is_indicated_with_its_timestamp_and_the_link_is_dropped(
    room: Room, gateway: BumbleAdapter
) -> None:
    async with oximeter(room) as sensor:
        sensor.ledger.episode = "A"
        taken = sensor.measure_spot_check(Decimal("97.5"), 62)
        heard = Heard()
        async with paired(gateway, sensor) as client:
            await client.start_notify(SPOT, heard.listen(SPOT))
            [value] = await heard.of(SPOT, 1)
            assert value.hex() == "07" + "cff3" + "3e00" + "ea07" + "03010c0000" + "0001" + "000000"
            async with asyncio.timeout(5):
                await sensor.dark()
            assert not client.is_connected
        assert (taken.state, taken.sent, taken.episode) == ("confirmed", 1, "A")
        assert (taken.values, taken.clock) == ({"spo2": 97.5, "pulse": 62}, "set")


async def test_simple_oximeter_has_no_time_no_store_no_clock_and_discards(
    room: Room, gateway: BumbleAdapter
) -> None:
    habits = Habits(window_s=0.1, linger_s=0.25, advertising_ms=20)
    async with Oximeter.simple(room, OXIMETER, label=label("Oxi"), habits=habits) as sensor:
        lost = sensor.measure_spot_check(91, 80)
        async with asyncio.timeout(5):
            await sensor.dark()
        assert lost.state == "discarded"
        taken = sensor.measure_spot_check(97, 62)
        sensor.wake(5)
        heard = Heard()
        async with paired(gateway, sensor) as client:
            assert await client.read_gatt_char(FEATURES) == b"\x80\x00"
            assert client.services.get_characteristic(RACP) is None
            assert client.services.get_service("1805") is None
            await client.start_notify(SPOT, heard.listen(SPOT))
            assert await heard.of(SPOT, 1) == [bytes.fromhex("0061003e00")]
        assert (taken.clock, taken.timestamped) == ("none", False)


async def test_unset_clock_is_told_by_the_flag_and_cleared_by_setting(
    room: Room, gateway: BumbleAdapter
) -> None:
    clock = SensorClock(factory=datetime(2010, 1, 1))
    async with oximeter(room, clock=clock) as sensor:
        sensor.measure_spot_check(97, 62)
        heard = Heard()
        async with paired(gateway, sensor) as client:
            await client.start_notify(SPOT, heard.listen(SPOT))
            [unset] = await heard.of(SPOT, 1)
            assert (await client.read_gatt_char("2a2b"))[:4] == encode_date_time(datetime(2010, 1, 1))[:4]
            await client.write_gatt_char("2a2b", encode_current_time(NOON), response=True)
            read = bytes(await client.read_gatt_char("2a2b"))
            sensor.measure_spot_check(96, 61)
            _, after = await heard.of(SPOT, 2)
            assert await refused(client.write_gatt_char("2a2b", bytes(10), response=True)) == 0xFF
            assert await refused(client.write_gatt_char("2a2b", bytes(7), response=True)) == 0x0D
        assert (unset[0] & 0x10, after[0] & 0x10) == (0x10, 0)
        assert unset[5:9] == encode_date_time(datetime(2010, 1, 1))[:4]
        assert read[:6] == encode_date_time(NOON)[:6]
        assert [m.clock for m in sensor.ledger.taken] == ["unset", "set"]


async def stored_three(sensor: Oximeter) -> None:
    """Three spot-checks that nobody fetched, and the end of their session."""
    for spo2 in (91, 92, 93):
        sensor.measure_spot_check(spo2, 60)
    await sensor.power_off()
    await sensor.power_on()


@asynccontextmanager
async def with_racp(adapter: BumbleAdapter, sensor: Oximeter, heard: Heard) -> AsyncIterator[BleakClient]:
    sensor.wake()
    async with paired(adapter, sensor) as client:
        await client.start_notify(SPOT, heard.listen(SPOT))
        await client.start_notify(RACP, heard.listen(RACP))
        yield client


async def test_report_gives_stored_records_oldest_first_then_success(
    room: Room, gateway: BumbleAdapter
) -> None:
    async with oximeter(room) as sensor:
        await stored_three(sensor)
        heard = Heard()
        async with with_racp(gateway, sensor, heard) as client:
            await client.write_gatt_char(RACP, COUNT_ALL, response=True)
            assert await heard.of(RACP, 1) == [b"\x05\x00\x03\x00"]
            await client.write_gatt_char(RACP, REPORT_ALL, response=True)
            assert (await heard.of(RACP, 2))[1] == b"\x06\x00\x01\x01"
            await client.write_gatt_char(RACP, REPORT_ALL, response=True)
            assert (await heard.of(RACP, 3))[2] == b"\x06\x00\x01\x06"  # no records found
        values = [value for name, value in heard.values if name == SPOT]
        assert [value[1] for value in values] == [91, 92, 93]
        assert all(int.from_bytes(v[12:14], "little") == FULLY_QUALIFIED | FROM_STORAGE for v in values)
        assert [name for name, _ in heard.values] == [RACP, SPOT, SPOT, SPOT, RACP, RACP]
        assert [m.state for m in sensor.ledger.taken] == ["confirmed"] * 3
        assert sensor.ledger.held == []


async def test_lost_link_ends_the_report_and_only_confirmed_records_are_forgotten(
    room: Room, gateway: BumbleAdapter
) -> None:
    async with oximeter(room) as sensor:
        await stored_three(sensor)
        first = Heard()
        lost = asyncio.Event()
        async with with_racp(gateway, sensor, first) as client:
            client._backend.set_disconnected_callback(lost.set)
            sensor.drop_before_confirmation()
            await client.write_gatt_char(RACP, REPORT_ALL, response=True)
            async with asyncio.timeout(5):
                await lost.wait()
        assert [m.state for m in sensor.ledger.taken] == ["sent", "taken", "taken"]
        again = Heard()
        async with with_racp(gateway, sensor, again) as client:
            await client.write_gatt_char(RACP, REPORT_ALL, response=True)
            assert await again.of(RACP, 1) == [b"\x06\x00\x01\x01"]
        assert [name for name, _ in first.values] == [SPOT]
        assert (await again.of(SPOT, 3))[0] == first.values[0][1]
        assert [m.sent for m in sensor.ledger.taken] == [2, 1, 1]


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        ("0701", "06000702"),  # op code not supported
        ("0100", "06000103"),  # invalid operator
        ("0105", "06000104"),  # operator not supported
        ("010101", "06000105"),  # invalid operand
        ("0201", "06000206"),  # nothing to delete
        ("0300", "06000301"),  # abort
        ("0401", "05000000"),
    ],
)
async def test_record_access_is_answered_by_the_book(
    room: Room, gateway: BumbleAdapter, request_: str, answer: str
) -> None:
    async with oximeter(room) as sensor:
        heard = Heard()
        async with with_racp(gateway, sensor, heard) as client:
            await client.write_gatt_char(RACP, bytes.fromhex(request_), response=True)
            assert await heard.of(RACP, 1) == [bytes.fromhex(answer)]


async def test_record_access_without_subscription_is_improperly_configured(
    room: Room, gateway: BumbleAdapter
) -> None:
    async with oximeter(room) as sensor:
        sensor.wake()
        async with paired(gateway, sensor) as client:
            assert await refused(client.write_gatt_char(RACP, COUNT_ALL, response=True)) == 0xFD
            await client.start_notify(RACP, lambda *_: None)
            assert await refused(client.write_gatt_char(RACP, REPORT_ALL, response=True)) == 0xFD


async def test_second_request_is_refused_and_abort_ends_the_first(room: Room, gateway: BumbleAdapter) -> None:
    async with oximeter(room, capacity=200) as sensor:
        for n in range(200):
            sensor.measure_spot_check(90 + n % 10, 60)
        heard = Heard()
        async with with_racp(gateway, sensor, heard) as client:
            await heard.of(SPOT, 1)  # the newest is delivered at once, the others only on request
            await client.write_gatt_char(RACP, REPORT_ALL, response=True)
            assert await refused(client.write_gatt_char(RACP, COUNT_ALL, response=True)) == 0xFE
            await client.write_gatt_char(RACP, b"\x03\x00", response=True)
            assert await heard.of(RACP, 1) == [b"\x06\x00\x03\x01"]
            assert 0 < len(sensor.stored) < 199


async def test_delete_empties_the_store_and_the_ledger_says_so(room: Room, gateway: BumbleAdapter) -> None:
    async with oximeter(room) as sensor:
        await stored_three(sensor)
        heard = Heard()
        async with with_racp(gateway, sensor, heard) as client:
            await client.write_gatt_char(RACP, DELETE_ALL, response=True)
            assert await heard.of(RACP, 1) == [b"\x06\x00\x02\x01"]
        assert [m.state for m in sensor.ledger.taken] == ["emptied"] * 3


async def test_full_store_discards_the_oldest(room: Room) -> None:
    async with oximeter(room, capacity=2) as sensor:
        await stored_three(sensor)
        assert [m.state for m in sensor.ledger.taken] == ["discarded", "taken", "taken"]


async def test_continuous_values_are_notified_and_never_held(room: Room, gateway: BumbleAdapter) -> None:
    async with oximeter(room) as sensor:
        sensor.start_continuous([(97, 60 + n) for n in range(50)], period_s=0.02)
        heard = Heard()
        async with paired(gateway, sensor) as client:
            await client.start_notify(CONTINUOUS, heard.listen(CONTINUOUS))
            values = await heard.of(CONTINUOUS, 5)
            await client.stop_notify(CONTINUOUS)
        await sensor.stop_continuous()
        assert values[0][:3] == b"\x0c\x61\x00"
        assert [b[3] - a[3] for a, b in zip(values, values[1:], strict=False)] == [1] * (len(values) - 1)
        assert sensor.ledger.taken == sensor.ledger.held == []
        assert {m.state for m in sensor.ledger.streamed} == {"sent"}


async def test_status_of_a_demonstration_is_sent_and_in_the_ledger(
    room: Room, gateway: BumbleAdapter
) -> None:
    async with oximeter(room) as sensor:
        taken = sensor.measure_spot_check(97, 62, status=DEMONSTRATION, sensor_status=1 << 12)
        heard = Heard()
        async with paired(gateway, sensor) as client:
            await client.start_notify(SPOT, heard.listen(SPOT))
            [value] = await heard.of(SPOT, 1)
        assert value[12:].hex() == "0004" + "001000"
        assert (taken.status, taken.sensor_status) == (DEMONSTRATION, 1 << 12)


# Cuff.


async def test_cuff_sends_what_it_holds_oldest_first_on_subscription_then_leaves(
    room: Room, gateway: BumbleAdapter
) -> None:
    async with cuff(room, clock=SensorClock(NOON)) as sensor:
        sensor.measure(121, 81, 94, 66)
        sensor.measure(Decimal("16.0"), Decimal("10.7"), Decimal("12.5"), 70, unit=KPA, status=BODY_MOVEMENT)
        gone = asyncio.Event()
        heard = Heard()
        async with client_of(gateway, sensor, disconnected_callback=lambda _c: gone.set()) as client:
            await client.pair()
            assert await client.read_gatt_char("2a49") == b"\x37\x00"
            await client.start_notify(PRESSURE, heard.listen(PRESSURE))
            mmhg, kpa = await heard.of(PRESSURE, 2)
            async with asyncio.timeout(5):
                await gone.wait()
        stamp = encode_date_time(NOON).hex()
        assert mmhg.hex() == "16" + "790051005e00" + stamp + "4200" + "0000"
        assert kpa.hex() == "17" + "a0f06bf07df0" + stamp + "4600" + "0100"
        assert [m.state for m in sensor.ledger.taken] == ["confirmed"] * 2
        assert sensor.ledger.taken[1].values == {"systolic": 16, "diastolic": 10.7, "mean": 12.5, "pulse": 70}
        assert [m.unit for m in sensor.ledger.taken] == ["mmHg", "kPa"]


async def test_failed_measurement_is_the_frame_captured_from_a_real_cuff(
    room: Room, gateway: BumbleAdapter
) -> None:
    clock = SensorClock(datetime(2024, 6, 23, 14, 35, 10))
    clock.stop()
    async with cuff(room, clock=clock) as sensor:
        taken = sensor.measure_failed()
        heard = Heard()
        async with paired(gateway, sensor) as client:
            await client.start_notify(PRESSURE, heard.listen(PRESSURE))
            [value] = await heard.of(PRESSURE, 1)
        assert value.hex().upper() == "16FF07FF07FF07E80706170E230AFF070000"
        assert taken.failed
        assert set(taken.values.values()) == {None}


async def test_measurement_whose_confirmation_was_lost_comes_again_unchanged(
    room: Room, gateway: BumbleAdapter
) -> None:
    async with cuff(room, clock=SensorClock(NOON)) as sensor:
        sensor.drop_before_confirmation()
        taken = sensor.measure(121, 81, 94, 66)
        heard = Heard()
        lost = asyncio.Event()
        async with client_of(gateway, sensor, disconnected_callback=lambda _c: lost.set()) as client:
            await client.pair()
            await client.start_notify(PRESSURE, heard.listen(PRESSURE))
            async with asyncio.timeout(5):
                await lost.wait()
        assert (taken.state, sensor.ledger.held) == ("sent", [taken])
        async with client_of(gateway, sensor) as client:
            await client.start_notify(PRESSURE, heard.listen(PRESSURE))
            first, again = await heard.of(PRESSURE, 2)
            async with asyncio.timeout(5):
                await sensor.dark()
        assert first == again
        assert (taken.state, taken.sent) == ("confirmed", 2)


async def test_cuff_without_timestamps_sends_none_and_has_no_clock(
    room: Room, gateway: BumbleAdapter
) -> None:
    async with cuff(room, timestamps=False) as sensor:
        sensor.measure(121, 81, 94, 66, user=255)
        heard = Heard()
        async with paired(gateway, sensor) as client:
            assert client.services.get_characteristic("2a08") is None
            await client.start_notify(PRESSURE, heard.listen(PRESSURE))
            [value] = await heard.of(PRESSURE, 1)
        assert value.hex() == "1c" + "790051005e00" + "4200" + "ff" + "0000"


async def test_clock_of_the_cuff_is_read_set_and_seen_to_stand_still(
    room: Room, gateway: BumbleAdapter
) -> None:
    world = [0.0]
    clock = SensorClock(monotonic=lambda: world[0])
    async with cuff(room, clock=clock) as sensor:
        sensor.wake()
        async with paired(gateway, sensor) as client:
            assert await client.read_gatt_char("2a08") == bytes(7)  # year 0: unknown
            await client.write_gatt_char("2a08", encode_date_time(NOON), response=True)
            world[0] += 90
            later = encode_date_time(NOON + timedelta(seconds=90))
            assert await client.read_gatt_char("2a08") == later
            clock.stop()
            world[0] += 90
            assert await client.read_gatt_char("2a08") == later
            assert await refused(client.write_gatt_char("2a08", b"\xe8\x07", response=True)) == 0x0D


async def test_held_measurements_outlive_a_power_cycle_and_a_dead_link(
    room: Room, gateway: BumbleAdapter, tmp_path: Path
) -> None:
    async with cuff(room, ledger=Ledger(tmp_path / "cuff.jsonl")) as sensor:
        taken = sensor.measure(121, 81, 94, 66)
        async with paired(gateway, sensor):
            await sensor.power_off()
        await sensor.power_on()
        sensor.wake()
        heard = Heard()
        async with client_of(gateway, sensor) as client:
            await client.start_notify(PRESSURE, heard.listen(PRESSURE))
            await heard.of(PRESSURE, 1)
            async with asyncio.timeout(5):
                await sensor.dark()
        assert Ledger.read(tmp_path / "cuff.jsonl").confirmed == [taken]


async def test_operation_on_a_lost_link_fails_at_once(room: Room, gateway: BumbleAdapter) -> None:
    async with cuff(room) as sensor:
        sensor.wake()
        async with paired(gateway, sensor) as client:
            # One sent, one queued behind it: bumble tells only the first.
            reads = [asyncio.ensure_future(client.read_gatt_char("2a49")) for _ in range(2)]
            await asyncio.sleep(0)
            room.drop(sensor.address)
            async with asyncio.timeout(1):
                outcome = await asyncio.gather(*reads, return_exceptions=True)
            assert [type(error) for error in outcome] == [BleakError, BleakError]
            with pytest.raises(BleakError):
                await client.read_gatt_char("2a49")
