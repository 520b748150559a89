"""Radio: virtual Sensors on real Bluetooth stacks, through bleak, into the Journal."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import pytest

from gateway import record
from gateway.gateway import Gateway
from gateway.journal import Journal
from gateway.linux.bonds import BondsFile
from gateway.linux.clock import Clock
from gateway.linux.flash import FileFlash
from gateway.linux.radio import Radio
from gateway.message import ENVELOPE_BYTES, Ack, decode_batch, encode_ack
from gateway.uplink import Uplink
from hw.virtual.bleak_backend import BumbleAdapter
from hw.virtual.clock import SensorClock
from hw.virtual.cuff import Cuff
from hw.virtual.oximeter import Oximeter
from hw.virtual.radio import Room
from hw.virtual.sensor import Habits, Label

OXIMETER, CUFF, GATEWAY = (f"C0:00:00:00:00:0{n}" for n in range(1, 4))
SHORT = Habits(window_s=1.0, linger_s=0.3, advertising_ms=20)
BRIEF = Habits(window_s=5.0, linger_s=0.3, advertising_ms=20)
PATIENT = Habits(window_s=5.0, linger_s=4.0, advertising_ms=20)
UTC_MS = 1_764_000_000_000


class Kit:
    """A Gateway with its radio in a Room; `append` wakes whoever waits for a Record."""

    def __init__(self, folder: Path, adapter: BumbleAdapter) -> None:
        self.room = adapter.room
        self.clock = Clock()
        self.flash = FileFlash(folder / "journal.flash", 64 * 1024, strict=True)
        journal = Journal(self.flash, threading.Lock())
        journal.format(b"journal1")
        journal.mount()
        self.journal = journal
        self.gateway = Gateway(
            "HW-0001",
            "0",
            journal=journal,
            uplink=Uplink(journal, lambda: b"noncenon"),
            bonds=BondsFile(folder / "sensors.json"),
            frame_flags=record.HOST_CONFIRMED,
        )
        self.news = asyncio.Event()
        self.radio = Radio(
            self.gateway,
            self.clock,
            wake=self.news.set,
            scanner_backend=adapter.scanner_backend,
            client_backend=adapter.client_backend,
        )

    def tell_time(self) -> None:
        """An Ack of the service that gives the time."""
        uplink, now_ms = self.gateway.uplink, self.clock.now_ms()
        uplink.connected(now_ms)
        batch = uplink.next_batch(now_ms)
        assert batch is not None
        nonce = decode_batch(bytes(batch)).nonce
        self.gateway.receive_ack(encode_ack(Ack(b"journal1", nonce, 0, 0, 0, None, UTC_MS, 0)), now_ms)
        uplink.disconnected(now_ms)

    def bodies(self) -> list[tuple[int, object]]:
        """Type and body of every Record in the Journal."""
        found, after = [], 0
        buffer = bytearray(8192)
        while after < self.journal.next_sequence - 1:
            _, count, end = self.journal.read_batch(buffer, ENVELOPE_BYTES, 4000, after)
            assert count
            for each in record.decode_all(buffer[ENVELOPE_BYTES:end]):
                after = each.sequence
                found.append((each.type, record.decode_body(each.type, each.version, each.body)))
        return found

    def frames(self) -> list[record.Frame]:
        return [
            body for kind, body in self.bodies() if kind == record.FRAME and isinstance(body, record.Frame)
        ]

    def events(self, code: int) -> list[record.Event]:
        return [b for _, b in self.bodies() if isinstance(b, record.Event) and b.code == code]

    def clocks(self) -> list[int]:
        return [body.kind for _, body in self.bodies() if isinstance(body, record.SensorClock)]

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(8):
            while not holds():
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def running(kit: Kit) -> AsyncIterator[None]:
    task = asyncio.create_task(kit.radio.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    async with BumbleAdapter(Room(), GATEWAY) as adapter:
        kit = Kit(tmp_path, adapter)
        yield kit
        kit.flash.close()


def cuff(kit: Kit, habits: Habits = BRIEF, **options: object) -> Cuff:
    label = Label("Cuff", serial="CU-1")
    return Cuff(kit.room, CUFF, label=label, habits=habits, **options)  # type: ignore[arg-type]


def oximeter(kit: Kit, habits: Habits = BRIEF, **options: object) -> Oximeter:
    label = Label("Oxi", serial="OX-1")
    options.setdefault("clock", SensorClock(datetime(2026, 3, 1, 12)))
    return Oximeter(kit.room, OXIMETER, label=label, habits=habits, **options)  # type: ignore[arg-type]


async def test_a_cuff_bonds_in_the_window_and_its_value_is_in_the_journal_byte_for_byte(kit: Kit) -> None:
    kit.gateway.open_pairing(kit.clock.now_ms(), 5_000)
    async with cuff(kit) as sensor, running(kit):
        sensor.measure(120, 80, 93, 61)
        await kit.until(kit.frames)
        (frame,) = kit.frames()
        assert (frame.characteristic, frame.flags) == (0x2A35, record.INDICATED | record.HOST_CONFIRMED)
        assert frame.value[1:3] == b"\x78\x00"
        kinds = [kind for kind, _ in kit.bodies()]
        assert kinds.index(record.SENSOR) < kinds.index(record.FRAME)
        described = [body for _, body in kit.bodies() if isinstance(body, record.Sensor)][-1]
        assert (record.SERIAL, b"CU-1") in described.items
        assert len(kit.events(record.BOND_MADE)) == 1


async def test_a_sensor_that_is_not_bonded_is_left_alone_outside_the_window(kit: Kit) -> None:
    async with cuff(kit, SHORT) as sensor, running(kit):
        sensor.measure(120, 80, 93, 61)
        await sensor.dark()
        assert len(sensor.ledger.held) == 1
    assert kit.gateway.counters["strangers"] > 0
    assert kit.gateway.counters["sessions"] == 0


async def test_a_bonded_sensor_is_served_again_after_the_window_and_after_a_new_start(kit: Kit) -> None:
    kit.gateway.open_pairing(kit.clock.now_ms(), 2_000)
    async with cuff(kit) as sensor:
        async with running(kit):
            sensor.measure(120, 80, 93, 61)
            await kit.until(kit.frames)
        kit.gateway.open_pairing(0, 0)
        async with running(kit):
            sensor.measure(130, 85, 97, 66)
            await kit.until(lambda: len(kit.frames()) == 2)
    assert len(kit.events(record.BOND_MADE)) == 1


async def test_the_clock_of_a_cuff_is_read_set_and_read_again_and_it_is_drained(kit: Kit) -> None:
    kit.gateway.open_pairing(kit.clock.now_ms(), 5_000)
    kit.tell_time()
    async with cuff(kit, PATIENT, clock=SensorClock(factory=datetime(2010, 1, 1))) as sensor, running(kit):
        sensor.measure(120, 80, 93, 61)
        await kit.until(lambda: record.CLOCK_AFTER in kit.clocks())
        assert kit.clocks() == [record.CLOCK_BEFORE, record.CLOCK_SET, record.CLOCK_AFTER]
        assert sensor.clock is not None
        shown = sensor.clock.read()
        assert shown is not None and shown.year == 2025
    assert kit.events(record.SENSOR_DRAINED)


async def test_stored_spot_checks_come_by_racp_and_are_marked(kit: Kit) -> None:
    kit.gateway.open_pairing(kit.clock.now_ms(), 10_000)
    async with oximeter(kit, PATIENT) as sensor:
        for spo2 in (95, 96, 97):
            sensor.measure_spot_check(spo2, 60)
        async with running(kit):
            await kit.until(lambda: kit.events(record.SENSOR_DRAINED))
    flags = sorted(frame.flags & record.FROM_STORAGE for frame in kit.frames())
    assert flags == [0, record.FROM_STORAGE, record.FROM_STORAGE]
    assert [event.detail for event in kit.events(record.RACP_ENDED)] == [b"\x01"]
    assert not sensor.ledger.held


async def test_a_value_whose_confirmation_was_lost_comes_again_and_both_are_kept(kit: Kit) -> None:
    kit.gateway.open_pairing(kit.clock.now_ms(), 5_000)
    async with cuff(kit) as sensor, running(kit):
        sensor.drop_before_confirmation()
        sensor.measure(120, 80, 93, 61)
        await kit.until(lambda: len(kit.frames()) == 2)
    first, second = kit.frames()
    assert first.value == second.value


async def test_two_sensors_are_served_at_once_and_one_that_fails_does_not_stop_the_other(kit: Kit) -> None:
    kit.gateway.open_pairing(kit.clock.now_ms(), 10_000)
    async with cuff(kit, PATIENT) as one, oximeter(kit, PATIENT) as other, running(kit):
        one.measure(120, 80, 93, 61)
        other.measure_spot_check(97, 60)
        await kit.until(lambda: len(kit.frames()) == 2)
        kit.room.cut(CUFF)
        other.measure_spot_check(96, 61)
        await kit.until(lambda: len(kit.frames()) == 3)
        assert other.is_connected


async def test_streamed_values_are_kept_as_notified(kit: Kit) -> None:
    kit.gateway.open_pairing(kit.clock.now_ms(), 5_000)
    async with oximeter(kit, PATIENT) as sensor, running(kit):
        sensor.start_continuous([(97, 60 + i) for i in range(200)], period_s=0.05)
        await kit.until(lambda: len(kit.frames()) >= 3)
        assert {frame.flags for frame in kit.frames()} == {record.NOTIFIED | record.HOST_CONFIRMED}
        await sensor.stop_continuous()


async def test_a_sensor_that_has_lost_its_bond_is_refused_until_a_window_opens_and_then_changed(
    kit: Kit,
) -> None:
    kit.gateway.open_pairing(kit.clock.now_ms(), 5_000)
    async with cuff(kit, SHORT) as sensor, running(kit):
        sensor.measure(120, 80, 93, 61)
        await kit.until(kit.frames)
        await sensor.dark()
        kit.gateway.open_pairing(0, 0)
        sensor.forget_bonds()
        sensor.measure(130, 85, 97, 66)
        await sensor.dark()
        assert len(kit.frames()) == 1
        kit.gateway.open_pairing(kit.clock.now_ms(), 10_000)
        sensor.wake()
        await kit.until(lambda: len(kit.frames()) == 2)
    assert len(kit.events(record.BOND_CHANGED)) == 1
