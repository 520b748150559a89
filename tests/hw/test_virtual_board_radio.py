"""Module bluetooth of a virtual board, as firmware meets it: real MicroPython above, real Sensors below."""

import asyncio
import platform
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import pytest

from hw.virtual.board_host import Board
from hw.virtual.clock import SensorClock
from hw.virtual.cuff import Cuff
from hw.virtual.ledger import CONFIRMED, SENT, Measurement
from hw.virtual.oximeter import Oximeter
from hw.virtual.radio import Room
from hw.virtual.sensor import Habits, Label

BOARD, CUFF, OXIMETER = "C0:00:00:00:00:10", "C0:00:00:00:00:01", "C0:00:00:00:00:02"
HABITS = Habits(window_s=20.0, linger_s=10.0, advertising_ms=20)
WORDS = [64] + ([32] if platform.machine() == "x86_64" else [])

# A central in forty lines. What it prints is what the tests read.
CENTRAL = """
import bluetooth, micropython, sys, time, _thread
from bluetooth import UUID
ble = bluetooth.BLE()
events = []
values = []
secrets = {}

def copied(value):
    return bytes(value) if isinstance(value, (memoryview, UUID)) else value

def on_value(event, data):
    values.append(bytes(data[2]))
    print("value", event, bytes(data[2]).hex())

def on_event(event, data):
    if event == 29:
        kind, index, key = data
        return secrets.get((kind, bytes(key)))
    if event == 30:
        kind, key, value = [copied(value) for value in data]
        if value is None:
            secrets.pop((kind, key), None)
        else:
            secrets[kind, key] = value
            with open("/secrets", "w") as file:
                file.write(repr(secrets))
        return True
    if event in (18, 19):
        on_value(event, data)
    else:
        events.append((event, tuple([copied(value) for value in data])))

def wait(kind, ms=5000):
    end = time.ticks_add(time.ticks_ms(), ms)
    while time.ticks_diff(end, time.ticks_ms()) > 0:
        for index, (event, data) in enumerate(events):
            if event == kind:
                del events[index]
                return data
        time.sleep_ms(1)
    raise RuntimeError("no event %d: %s" % (kind, events[:4]))

def load_secrets():
    try:
        with open("/secrets") as file:
            secrets.update(eval(file.read()))
    except OSError:
        pass

def on():
    load_secrets()
    ble.irq(on_event)
    ble.active(True)
    ble.config(bond=True, le_secure=True, mitm=False, io=3)

def connect(address):
    ble.gap_scan(0)
    while True:
        kind, seen, adv_type, rssi, advert = wait(5)
        if seen == address:
            break
    ble.gap_connect(kind, seen)
    return wait(7)[0]

def pair(conn):
    ble.gap_pair(conn)
    return wait(28)

def find(conn, service, characteristic):
    ble.gattc_discover_services(conn, UUID(service))
    _, start, end, uuid = wait(9)
    assert wait(10)[1] == 0
    ble.gattc_discover_characteristics(conn, start, end, UUID(characteristic))
    _, last, handle, properties, uuid = wait(11)
    assert wait(12)[1] == 0
    return handle, last

def subscribe(conn, handle, last, how):
    ble.gattc_discover_descriptors(conn, handle, last)
    found = wait(13)
    assert wait(14)[1] == 0
    ble.gattc_write(conn, found[1], bytes([how, 0]), 1)
    return wait(17)[2]

def serve(address=bytes.fromhex("c00000000001")):
    conn = connect(address)
    print("encrypted", pair(conn))
    handle, last = find(conn, 0x1810, 0x2A35)
    print("subscribed", subscribe(conn, handle, last, 2))
    return conn, handle

"""

MakeBoard = Callable[..., Board]


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.fixture
def made(room: Room, tmp_path: Path) -> MakeBoard:
    def make(program: str, **options: object) -> Board:
        root = tmp_path / "program"
        root.mkdir(exist_ok=True)
        (root / "main.py").write_text(CENTRAL + program)
        return Board(room, tmp_path / "board", address=BOARD, program=root, **options)  # type: ignore[arg-type]

    return make


def a_cuff(room: Room) -> Cuff:
    clock = SensorClock(datetime(2026, 3, 1, 12, 0, 0))
    return Cuff(room, CUFF, label=Label("Cuff", serial="C1"), clock=clock, habits=HABITS, capacity=2000)


def measured(cuff: Cuff, n: int = 1) -> list[Measurement]:
    return [cuff.measure(100 + i % 100, 70, 80, 60) for i in range(n)]


@asynccontextmanager
async def running(board: Board, *sensors: Cuff | Oximeter) -> AsyncIterator[Board]:
    """Both on; whatever the board printed explains a failure."""
    for sensor in sensors:
        await sensor.power_on()
    try:
        async with board:
            yield board
    except BaseException:
        print("\n".join(board.log))
        raise
    finally:
        for sensor in sensors:
            await sensor.power_off()


@pytest.mark.parametrize("bits", WORDS)
async def test_cuff_delivers_every_reading_once_to_either_word_size(
    room: Room, made: MakeBoard, bits: int
) -> None:
    cuff = a_cuff(room)
    async with running(made("on(); serve()", bits=bits, heap="120k"), cuff) as board:
        taken = measured(cuff, 20)
        await board.says("subscribed 0")
        await all_confirmed(cuff)
    lines = [line for line in board.log if line.startswith("value")]
    assert len(lines) == len(set(lines)) == len(taken)
    assert board.radio.confirmed == 20


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  (a wire has no event)
            await asyncio.sleep(0.005)


async def all_confirmed(cuff: Cuff) -> None:
    await until(lambda: not cuff.stored)


async def test_indication_is_confirmed_only_after_the_handler_has_returned(
    room: Room, made: MakeBoard
) -> None:
    program = """
def on_value(event, data):
    print("in handler")
    while not Pin(0).value():
        pass
    print("leaves handler")

from machine import Pin
on(); serve()
"""
    cuff = a_cuff(room)
    async with running(made(program), cuff) as board:
        [reading] = measured(cuff)
        await board.says("in handler")
        await asyncio.sleep(0.2)
        assert reading.state == SENT and board.radio.confirmed == 0
        board.set_pin(0, 1)
        await all_confirmed(cuff)
        assert reading.state == CONFIRMED


@pytest.mark.parametrize("where", ["before", "after"])
async def test_power_cut_at_the_handler_leaves_the_indication_unconfirmed_and_the_bond_brings_it_again(
    room: Room, made: MakeBoard, where: str
) -> None:
    cuff = a_cuff(room)
    async with running(made("on(); serve()"), cuff) as board:
        board.cut_power_at_event(19, where=where)
        [reading] = measured(cuff)
        await board.off()
        assert reading.state == SENT
        assert any(line.startswith("value") for line in board.log) == (where == "after")
        bonds = cuff.bonds.peers
        board.log.clear()
        await board.start()
        await all_confirmed(cuff)
        await board.says("encrypted (")
        assert cuff.bonds.peers == bonds
        assert reading.state == CONFIRMED


async def test_kill_inside_the_handler_leaves_the_indication_unconfirmed(room: Room, made: MakeBoard) -> None:
    program = """
def on_value(event, data):
    print("in handler")
    while True:
        pass

on(); serve()
"""
    cuff = a_cuff(room)
    async with running(made(program), cuff) as board:
        [reading] = measured(cuff)
        await board.says("in handler")
        await board.kill()
        await asyncio.sleep(0.05)
        assert reading.state == SENT
        assert cuff.stored == [reading]


async def test_exception_in_the_handler_unregisters_it_and_the_indication_is_confirmed_all_the_same(
    room: Room, made: MakeBoard
) -> None:
    program = """
def on_value(event, data):
    print("value", bytes(data[2]).hex())
    raise ValueError("oops")

on(); serve()
print("listening")
"""
    cuff = a_cuff(room)
    async with running(made(program), cuff) as board:
        measured(cuff, 3)
        await board.says("Unhandled exception in IRQ callback handler")
        await board.says("ValueError: oops")
        await all_confirmed(cuff)
        assert len([line for line in board.log if line.startswith("value")]) == 1


async def test_views_die_with_the_handler(room: Room, made: MakeBoard) -> None:
    program = """
seen = []

def on_value(event, data):
    seen.append((data[2], bytes(data[2])))

on(); serve()
while not seen:
    time.sleep_ms(1)
view, copy = seen[0]
print("kept", bytes(view) == copy, bytes(view)[:3])
"""
    cuff = a_cuff(room)
    async with running(made(program), cuff) as board:
        measured(cuff)
        assert await board.says("kept") == r"kept False b'\xa5\xa5\xa5'"


@pytest.mark.parametrize(
    "hold,release",
    [
        ("lock.acquire()", "lock.release()"),
        ("state = machine.disable_irq()", "machine.enable_irq(state)"),
        ("micropython.heap_lock()", "micropython.heap_unlock()"),
    ],
)
async def test_no_event_is_delivered_while_the_main_task_must_not_be_pre_empted(
    room: Room, made: MakeBoard, hold: str, release: str
) -> None:
    program = f"""
import machine
lock = _thread.allocate_lock()
button = machine.Pin(0)
ready = machine.Pin(1, machine.Pin.OUT)
on(); serve()
{hold}
ready.on()
for _ in range(300000):
    if button.value():
        break
before = len(values)
{release}
while not values:
    time.sleep_ms(1)
print("values", before, len(values))
"""
    cuff = a_cuff(room)
    async with running(made(program), cuff) as board:
        cuff.wake()
        await until(lambda: board.pin(1))
        [reading] = measured(cuff)
        await until(lambda: reading.state == SENT)
        await asyncio.sleep(0.1)
        assert board.radio.confirmed == 0
        board._wires[64] = 1  # without an event: a level alone
        assert await board.says("values") == "values 0 1"
        await all_confirmed(cuff)


async def test_sleeping_interpreter_hears_an_event_within_milliseconds(
    room: Room, made: MakeBoard, say: list[str]
) -> None:
    program = """
on(); serve()
import asyncio
asyncio.run(asyncio.sleep(60))
"""
    cuff = a_cuff(room)
    async with running(made(program), cuff) as board:
        cuff.wake()
        await board.says("subscribed")
        await asyncio.sleep(0.1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        measured(cuff, 200)
        await all_confirmed(cuff)
        passed = loop.time() - began
    say.append(f"virtual board: {200 / passed:.0f} readings/s through the handler, one at a time")
    assert passed / 200 < 0.02


async def test_radio_that_is_off_says_so(made: MakeBoard) -> None:
    program = """
try:
    ble.gap_scan(100)
except OSError as error:
    print("errno", error.errno)
"""
    async with running(made(program)) as board:
        assert await board.says("errno") == "errno 19"


async def test_failed_connection_is_event_8_of_nobody(room: Room, made: MakeBoard) -> None:
    program = """
on()
ble.gap_connect(1, bytes.fromhex("c000000000ff"), 100)
print("failed", wait(8))
ble.gap_connect(1, bytes.fromhex("c000000000ff"), 5000)
ble.gap_connect(None)
print("cancelled", wait(8))
"""
    async with running(made(program)) as board:
        nobody = r"(65535, 255, b'\x00\x00\x00\x00\x00\x00')"
        assert await board.says("failed") == f"failed {nobody}"
        assert await board.says("cancelled") == f"cancelled {nobody}"


async def test_connecting_ends_the_scan_and_adverts_carry_what_the_sensor_says(
    room: Room, made: MakeBoard
) -> None:
    program = """
on()
ble.gap_scan(0)
kind, address, adv_type, rssi, advert = wait(5)
print("advert", kind, address.hex(), adv_type, rssi < 0, advert.hex())
ble.gap_connect(kind, address)
print("scan done", wait(6))
print("connected", wait(7)[1:])
try:
    ble.gap_scan(0); ble.gap_scan(0)
except OSError as error:
    print("errno", error.errno)
"""
    cuff = a_cuff(room)
    async with running(made(program), cuff) as board:
        measured(cuff)
        assert (await board.says("advert")).startswith("advert 1 c00000000001 0 True 020105")
        assert await board.says("scan done") == "scan done ()"
        assert await board.says("connected") == r"connected (1, b'\xc0\x00\x00\x00\x00\x01')"
        assert await board.says("errno") == "errno 114"


async def test_discovery_and_errors_of_gatt_are_told_as_nimble_tells_them(
    room: Room, made: MakeBoard
) -> None:
    program = """
on()
conn = connect(bytes.fromhex("c00000000001"))
ble.gattc_discover_services(conn)
time.sleep_ms(300)
print("services", [UUID(data[3]) for event, data in events if event == 9])
events.clear()
handle, last = find(conn, 0x1810, 0x2A49)
ble.gattc_read(conn, handle)
print("refused", hex(wait(16)[2]))
print("encrypted", pair(conn)[1:])
ble.gattc_read(conn, handle)
print("read", wait(15)[2].hex(), wait(16)[2])
handle, last = find(conn, 0x1810, 0x2A35)
ble.gattc_discover_descriptors(conn, handle, last)
print("descriptor", wait(13)[1] - handle, wait(14)[1])
ble.gattc_read(conn, 0x7FFF)
print("no such handle", hex(wait(16)[2]))
ble.gap_disconnect(conn)
print("left", wait(8)[1:])
print("again", ble.gap_disconnect(conn))
try:
    ble.gattc_read(conn, handle)
except OSError as error:
    print("errno", error.errno)
"""
    cuff = a_cuff(room)
    async with running(made(program), cuff) as board:
        measured(cuff)
        assert "UUID(0x1810)" in await board.says("services")
        assert await board.says("refused") == "refused 0x10f"
        assert await board.says("encrypted") == "encrypted (True, False, True, 16)"
        assert await board.says("read") == "read 3700 0"
        assert await board.says("descriptor") == "descriptor 1 0"
        assert await board.says("no such handle") == "no such handle 0x101"
        assert await board.says("left") == r"left (1, b'\xc0\x00\x00\x00\x00\x01')"
        assert await board.says("again") == "again False"
        assert await board.says("errno") == "errno 107"


async def test_bond_is_what_the_firmware_keeps(room: Room, made: MakeBoard) -> None:
    program = """
import machine, os
on()
asked = []
inner = on_event
def spy(event, data):
    if event in (28, 29, 30):
        asked.append(event if event == 28 else (event, data[0]))
    return inner(event, data)
time.sleep_ms(100)
ble.irq(spy)
conn = connect(bytes.fromhex("c00000000001"))
print("boot", machine.reset_cause(), "encrypted", pair(conn)[1:])
time.sleep_ms(100)
kept = sorted([(kind, len(key)) for kind, key in secrets if kind != 10])
print("boot", machine.reset_cause(), "asked", asked, kept)
if machine.reset_cause() == 1:
    machine.reset()
ble.gap_disconnect(conn)
wait(8)
secrets.clear()
conn = connect(bytes.fromhex("c00000000001"))
print("forgotten", pair(conn)[1:])
"""
    cuff = a_cuff(room)
    async with running(made(program), cuff) as board:
        measured(cuff)
        first = "boot 1 asked [(29, 2), 28, (30, 1), (30, 2)] [(1, 7), (2, 7)]"
        assert await board.says("boot 1 asked") == first
        await board.says("boot 5 encrypted (True, False, True, 16)")
        assert await board.says("boot 5 asked") == "boot 5 asked [(29, 2), 28] [(1, 7), (2, 7)]"
        await board.says("forgotten (True, False, True, 16)")


async def test_sensor_that_lost_its_bond_refuses_the_key(room: Room, made: MakeBoard) -> None:
    program = """
on()
conn = connect(bytes.fromhex("c00000000001"))
print("first", pair(conn)[1:])
time.sleep_ms(100)
ble.gap_disconnect(conn)
wait(8)
print("ready")
time.sleep_ms(300)
conn = connect(bytes.fromhex("c00000000001"))
print("second", pair(conn)[1:])
"""
    cuff = a_cuff(room)
    async with running(made(program), cuff) as board:
        measured(cuff)
        await board.says("first (True")
        await board.says("ready")
        cuff.forget_bonds()
        assert (await board.says("second")).startswith("second (False, False, False")


async def test_lost_link_ends_what_is_under_way_with_a_status_and_then_the_link(
    room: Room, made: MakeBoard
) -> None:
    program = """
on()
conn = connect(bytes.fromhex("c00000000001"))
events.clear()
ble.gattc_discover_services(conn)
ble.gattc_read(conn, 3)
print("asked")
time.sleep_ms(500)
print("order", [(event, data[-1]) for event, data in events if event in (10, 16, 8)])
"""
    cuff = a_cuff(room)
    async with running(made(program), cuff) as board:
        measured(cuff)
        room.send_acl_data = lambda *_: None  # type: ignore[method-assign]  # the air swallows all
        await board.says("asked")
        room.drop(CUFF)
        assert await board.says("order") == r"order [(10, 7), (16, 7), (8, b'\xc0\x00\x00\x00\x00\x01')]"


async def test_streamed_values_are_notified(room: Room, made: MakeBoard) -> None:
    program = """
on()
conn = connect(bytes.fromhex("c00000000002"))
pair(conn)
handle, last = find(conn, 0x1822, 0x2A5F)
print("subscribed", subscribe(conn, handle, last, 1))
"""
    clock = SensorClock(datetime(2026, 3, 1, 12, 0, 0))
    oximeter = Oximeter(room, OXIMETER, label=Label("Oxi", serial="O1"), clock=clock, habits=HABITS)
    async with running(made(program), oximeter) as board:
        oximeter.start_continuous([(97, 61)] * 20, period_s=0.1)
        assert (await board.says("value 18")).startswith("value 18 ")
