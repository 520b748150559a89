"""A virtual board without its radio: flash, NVS, clock, watchdog, Wi-Fi, TLS. Real MicroPython each time."""

import asyncio
import datetime
import platform
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hw.virtual.board_host import Board
from hw.virtual.radio import Room

WORDS = [64] + ([32] if platform.machine() == "x86_64" else [])
MakeBoard = Callable[..., Board]


@pytest.fixture
def made(tmp_path: Path) -> MakeBoard:
    def make(program: str, **options: object) -> Board:
        root = tmp_path / "program"
        root.mkdir(exist_ok=True)
        (root / "main.py").write_text(program)
        return Board(Room(), tmp_path / "board", address="C0:00:00:00:00:10", program=root, **options)  # type: ignore[arg-type]

    return make


@asynccontextmanager
async def running(board: Board) -> AsyncIterator[Board]:
    """Whatever the board printed explains a failure."""
    try:
        async with board:
            yield board
    except BaseException:
        print("\n".join(board.log))
        raise


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  (a wire has no event)
            await asyncio.sleep(0.005)


# Interpreter and clock.


@pytest.mark.parametrize("bits", WORDS)
async def test_firmware_has_the_heap_that_it_was_promised(made: MakeBoard, bits: int) -> None:
    program = "import gc; gc.collect(); print('free', gc.mem_free())"
    async with running(made(program, bits=bits, heap="120k")) as board:
        free = int((await board.says("free")).split()[1])
    assert 114_000 < free < 122_880


@pytest.mark.parametrize("bits", WORDS)
async def test_time_begins_in_2000_and_ticks_wrap_after_two_to_the_thirty(made: MakeBoard, bits: int) -> None:
    program = """
import time
print("epoch", time.gmtime(0), time.time() < 5, type(time.time()).__name__)
print("mktime", time.mktime((2026, 3, 1, 12, 0, 0, 0, 0)), time.mktime((2000, 1, 1, 0, 0, 0, 0, 0)))
print("gmtime", time.gmtime(825681600))
start = time.ticks_ms()
end = start
while end >= start:
    end = time.ticks_ms()
print("ticks", start > 0x3FFFF000, end < 1000, 0 < time.ticks_diff(end, start) < 1500)
print("add", time.ticks_add(0x3FFFFFFF, 2), time.ticks_diff(1, 0x3FFFFFFF), time.ticks_diff(0x3FFFFFFF, 1))
"""
    ticks_ms = (1 << 30) - 1000 - int(time.monotonic() * 1000) % (1 << 30)
    async with running(made(program, bits=bits, ticks_ms=ticks_ms)) as board:
        assert await board.says("epoch") == "epoch (2000, 1, 1, 0, 0, 0, 5, 1) True int"
        assert await board.says("mktime") == "mktime 825681600 0"
        assert await board.says("gmtime") == "gmtime (2026, 3, 1, 12, 0, 0, 6, 60)"
        assert await board.says("ticks") == "ticks True True True"
        assert await board.says("add") == "add 1 2 -2"


async def test_clock_survives_a_reset_and_not_a_power_cut(made: MakeBoard) -> None:
    program = """
import machine, time
print("boot", machine.reset_cause(), time.gmtime()[:4], machine.RTC().memory())
if machine.reset_cause() == 1:
    machine.RTC().datetime((2026, 3, 1, 6, 12, 0, 0, 0))
    machine.RTC().memory(b"kept")
    machine.reset()
print("here")
"""
    async with running(made(program)) as board:
        await board.says("here")
        await board.kill()
        await board.start()
        first, second = "boot 1 (2000, 1, 1, 0) b''", "boot 5 (2026, 3, 1, 12) b'kept'"
        await until(lambda: list(board.log).count("here") == 2)
        await board.kill()
        assert [line for line in board.log if line.startswith("boot")][:3] == [first, second, first]


async def test_starved_watchdog_resets_even_a_stuck_interpreter(made: MakeBoard) -> None:
    program = """
import machine, time
print("cause", machine.reset_cause())
if machine.reset_cause() == 1:
    dog = machine.WDT(timeout=200)
    for _ in range(6):
        time.sleep_ms(100)
        dog.feed()
    print("hungry")
    while True:
        pass
"""
    async with running(made(program)) as board:
        await board.says("cause 3")
        assert "hungry" in board.log
        assert board.counter("fed") == 7


async def test_soft_reset_and_the_end_of_the_program_keep_the_cause(made: MakeBoard) -> None:
    program = """
import machine, esp32
nvs = esp32.NVS("t")
try:
    nvs.get_i32("n")
except OSError:
    nvs.set_i32("n", 1)
    nvs.commit()
    machine.soft_reset()
print("again", machine.reset_cause(), machine.unique_id())
"""
    async with running(made(program)) as board:
        assert await board.says("again") == r"again 1 b'\xc0\x00\x00\x00\x00\x10'"
        await board.says("REPL")
        assert board.is_on and board.boots == 2


async def test_board_that_cannot_start_says_why(made: MakeBoard) -> None:
    async with running(made("print('x'")) as board:
        await board.says("SyntaxError")
        with pytest.raises(TimeoutError):
            await board.says("never said", 0.05)


# Flash.

FLASH = """
from esp32 import Partition
journal = Partition.find(Partition.TYPE_DATA, label="journal")[0]
def read(offset, length):
    buffer = bytearray(length)
    journal.readblocks(offset // 4096, buffer, offset % 4096)
    return buffer
"""


@pytest.mark.parametrize("bits", WORDS)
async def test_programming_only_clears_bits_and_erasing_sets_them(made: MakeBoard, bits: int) -> None:
    program = """
journal.writeblocks(1, b"\\xf0\\x0f", 10)
journal.writeblocks(1, b"\\x3f\\xff", 10)
print("programmed", bytes(read(4096 + 9, 4)))
journal.ioctl(6, 1)
print("erased", bytes(read(4096 + 9, 4)))
journal.writeblocks(1, b"\\x55" * 4096)
journal.writeblocks(1, b"\\xaa" * 4096)
print("two arguments", bytes(read(4096, 2)), bytes(read(8190, 4)))
print("info", journal.info(), journal.ioctl(4, 0), journal.ioctl(5, 0))
print("none", Partition.find(Partition.TYPE_DATA, label="nothing"))
for wrong in (lambda: journal.readblocks(127, bytearray(2), 4095), lambda: journal.writeblocks(128, b"x", 0)):
    try:
        wrong()
    except OSError as error:
        print("refused", error.errno)
"""
    async with running(made(FLASH + program, bits=bits)) as board:
        assert await board.says("programmed") == r"programmed b'\xff0\x0f\xff'"
        assert await board.says("erased") == r"erased b'\xff\xff\xff\xff'"
        assert await board.says("two arguments") == r"two arguments b'\xaa\xaa' b'\xaa\xaa\xff\xff'"
        assert await board.says("info") == "info (1, 65, 3211264, 524288, 'journal', False) 128 4096"
        assert await board.says("none") == "none []"
        await board.says("REPL")
        assert list(board.log).count("refused -260") == 2


async def test_flash_operations_allocate_nothing(made: MakeBoard) -> None:
    program = """
import micropython
buffer = bytearray(624)
view = memoryview(buffer)[:40]
micropython.heap_lock()
journal.ioctl(6, 2)
journal.writeblocks(2, view, 8)
journal.writeblocks(2, buffer, 3000)
journal.readblocks(2, buffer, 0)
micropython.heap_unlock()
print("done", bytes(buffer[:12]))
"""
    async with running(made(FLASH + program, bits=WORDS[-1], heap="120k")) as board:
        assert await board.says("done") == r"done b'\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00'"


async def test_what_was_programmed_survives_the_plug(made: MakeBoard) -> None:
    program = """
n = 0
while read(n * 4, 4) != b"\\xff\\xff\\xff\\xff":
    n += 1
print("found", n)
while n < 100000:
    journal.writeblocks(n // 1024, n.to_bytes(4, "little"), n % 1024 * 4)
    n += 1
    if n == 200:
        print("some")
"""
    async with running(made(FLASH + program)) as board:
        await board.says("some")
        await board.kill()
        lying = board.flash("journal").index(b"\xff" * 8) // 4
        board.log.clear()
        await board.start()
        found = int((await board.says("found")).split()[1])
        assert found >= 200 and abs(found - lying) <= 1


@pytest.mark.parametrize(
    "at,after,done,left",
    [
        ("program", 1, 0, b"\xff" * 8),
        ("program", 1, 5, b"\x00" * 5 + b"\xff" * 3),
        ("program", 2, 3, b"\x00" * 8),
        ("erase", 1, 3, b"\xff" * 3 + b"\x00" * 5),
        ("any", 2, 3, b"\xff" * 3 + b"\x00" * 5),
    ],
)
async def test_power_is_cut_in_the_middle_of_the_chosen_operation(
    made: MakeBoard, at: str, after: int, done: int, left: bytes
) -> None:
    program = """
from machine import Pin
ready = Pin(1, Pin.OUT, value=1)
while not Pin(0).value():
    pass
journal.writeblocks(0, bytes(8), 0)
journal.ioctl(6, 0)
journal.writeblocks(0, b"\\x11\\x22", 4)
print("survived")
"""
    async with running(made(FLASH + program)) as board:
        await until(lambda: board.pin(1))
        board.cut_power(at=at, after=after, done_bytes=done)
        board.set_pin(0, 1)
        await board.off()
        if (at, after) == ("program", 2):
            left = b"\xff" * 4 + b"\x11\x22" + b"\xff" * 2
        assert board.flash("journal")[:8] == left
        assert "survived" not in board.log


async def test_file_system_keeps_what_was_flushed_over_a_power_cut(made: MakeBoard) -> None:
    program = """
import os
print("root", os.listdir("/"), os.getcwd())
file = open("/kept", "w"); file.write("yes"); file.flush()
file = open("/gone", "w"); file.write("no")
print("written")
"""
    async with running(made(program)) as board:
        await board.says("written")
        await board.kill()
        board.log.clear()
        (board.folder.parent / "program/main.py").write_text(
            "import os\nprint('kept', open('/kept').read(), 'gone' in os.listdir() and os.stat('/gone')[6])"
        )
        await board.start()
        assert await board.says("kept") in ("kept yes 0", "kept yes False")


async def test_nvs_keeps_what_was_committed(made: MakeBoard) -> None:
    program = """
from esp32 import NVS
nvs = NVS("homeward")
buffer = bytearray(8)
print("from outside", nvs.get_blob("kit", buffer), bytes(buffer), nvs.get_i32("port"))
for wrong in (
    lambda: nvs.get_i32("nothing"),
    lambda: nvs.erase_key("nothing"),
    lambda: nvs.get_blob("kit", bytearray(2)),
    lambda: nvs.set_i32("a key of 16 char", 1),
):
    try:
        wrong()
    except OSError as error:
        print("error", error.errno)
nvs.set_i32("n", -5)
nvs.erase_key("port")
nvs.commit()
nvs.set_i32("lost", 1)
print("set")
"""
    board = made(program)
    board.provision("homeward", {"kit": b"HW-0001", "port": 8883})
    async with running(board):
        assert await board.says("from outside") == r"from outside 7 b'HW-0001\x00' 8883"
        await board.says("set")
        await board.kill()
        assert [line.split()[1] for line in board.log if line.startswith("error")] == [
            "-4354",
            "-4354",
            "-4364",
            "-4361",
        ]
        assert board.nvs("homeward") == {"kit": b"HW-0001", "n": -5}


# Pins and lamps.


async def test_button_and_lamps_reach_the_world(made: MakeBoard) -> None:
    program = """
from machine import Pin, PWM
from neopixel import NeoPixel
import time
button = Pin(0, Pin.IN, Pin.PULL_UP)
print("up", button.value())
pressed = []
button.irq(lambda pin: pressed.append(pin.value()), Pin.IRQ_FALLING)
lamp = NeoPixel(Pin(48, Pin.OUT), 2)
lamp.fill((1, 2, 3)); lamp[0] = (9, 0, 0); lamp.write()
tone = PWM(Pin(5), freq=2000, duty=512)
print("ready")
while not pressed:
    time.sleep_ms(5)
print("pressed", pressed)
"""
    async with running(made(program)) as board:
        assert await board.says("up") == "up 1"
        await board.says("ready")
        assert board.pixels[-1] == bytes((9, 0, 0, 1, 2, 3)) and board.sound == (2000, 512)
        board.set_pin(0, 0)
        board.set_pin(0, 1)
        board.set_pin(0, 0)
        assert (await board.says("pressed")).startswith("pressed [0")


# Wi-Fi and what is behind it.

WIFI = """
import network, time, socket, sys
wlan = network.WLAN(network.STA_IF)
def until(what, ms=5000):
    end = time.ticks_add(time.ticks_ms(), ms)
    while wlan.status() != what:
        if time.ticks_diff(end, time.ticks_ms()) < 0:
            raise RuntimeError("status %d" % wlan.status())
        time.sleep_ms(1)
    print("status", what)
def join(ssid="home", key="correct horse"):
    wlan.active(True)
    wlan.connect(ssid, key)
    until(network.STAT_GOT_IP)
"""


async def test_wifi_joins_drops_and_comes_back_by_itself(made: MakeBoard) -> None:
    program = """
print("off", wlan.status(), wlan.isconnected(), wlan.ifconfig()[0])
try:
    wlan.connect("home", "correct horse")
except OSError as error:
    print("refused", error)
join()
print("on", wlan.isconnected(), wlan.status("rssi"), wlan.ifconfig()[0], wlan.scan()[0][0])
until(network.STAT_CONNECTING)
join_again = until(network.STAT_GOT_IP)
wlan.disconnect()
print("left", wlan.status())
"""
    board = made(WIFI + program)
    board.wifi(True)
    async with running(board):
        assert await board.says("off") == "off 1000 False 0.0.0.0"
        assert await board.says("refused") == "refused Wifi Not Started"
        assert await board.says("on ") == "on True -55 192.168.1.23 b'home'"
        board.wifi(False)
        await board.says("status 1001")
        board.wifi(True)
        assert await board.says("left") == "left 1000"


@pytest.mark.parametrize(
    "up,key,reconnects,status",
    [(True, "wrong", 2, 202), (True, "wrong", 0, 1001), (False, "correct horse", 2, 201)],
)
async def test_wifi_says_what_is_wrong_only_when_it_has_stopped_trying(
    made: MakeBoard, up: bool, key: str, reconnects: int, status: int
) -> None:
    program = f"""
wlan.active(True)
wlan.config(reconnects={reconnects})
wlan.connect("home", "{key}")
time.sleep_ms(300)
print("status", wlan.status())
"""
    board = made(WIFI + program)
    board.wifi(up)
    async with running(board):
        assert await board.says("status") == f"status {status}"


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
    writer.close()


async def test_without_internet_what_is_under_way_waits_and_nothing_new_begins(made: MakeBoard) -> None:
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        program = f"""
from machine import Pin
def lookup(host):
    return socket.getaddrinfo(host, {port})[0][-1]
for host in ("localhost", "127.0.0.1"):
    try:
        stream = socket.socket()
        stream.connect(lookup(host))
    except OSError as error:
        print("no wifi", host, error.errno)
join()
stream = socket.socket()
stream.connect(lookup("localhost"))
stream.write(b"one\\n")
print("echo", stream.readline())
while not Pin(0).value():
    time.sleep_ms(1)
stream.write(b"two\\n")
try:
    lookup("localhost")
except OSError as error:
    print("no name", error.errno)
other = socket.socket()
other.settimeout(0.3)
try:
    other.connect(lookup("127.0.0.1"))
except OSError as error:
    print("no answer", error.errno)
import ntptime
try:
    ntptime.settime()
except OSError as error:
    print("no time", error.errno)
print("waiting")
print("echo", stream.readline())
ntptime.settime()
print("year", time.gmtime()[0] >= 2024)
"""
        board = made(WIFI + program)
        board.wifi(True)
        async with running(board):
            await board.says("echo b'one")
            board.wifi(True, internet=False)
            board.set_pin(0, 1)
            await board.says("waiting")
            assert "no wifi localhost -202" in board.log
            assert [line for line in board.log if line.startswith("no wifi 127.0.0.1")]
            assert "no name -202" in board.log and "no time 110" in board.log
            assert [line for line in board.log if line.startswith("no answer")]
            board.wifi(True)
            await board.says("echo b'two")
            assert await board.says("year") == "year True"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, bytes]:
    """(PEM certificate, PEM key, DER) of "broker.test", valid from yesterday."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("broker.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    pem, pem_key = folder / "cert.pem", folder / "key.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem_key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pem, pem_key, made.public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("bits", WORDS)
async def test_tls_believes_a_certificate_only_when_the_clock_of_the_chip_allows(
    made: MakeBoard, certificate: tuple[Path, Path, bytes], bits: int
) -> None:
    pem, pem_key, der = certificate
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem, pem_key)
    async with await asyncio.start_server(echo, "127.0.0.1", 0, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        program = f"""
import ssl, ntptime, asyncio
def context():
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(cadata={der!r})
    return made
async def talk(name, host="broker.test"):
    try:
        reader, writer = await asyncio.open_connection("localhost", {port}, context(), host)
        writer.write(b"over tls\\n")
        await writer.drain()
        print(name, await reader.readline())
    except (OSError, ValueError) as error:
        print(name, "refused", error)
join()
asyncio.run(talk("in 2000:"))
ntptime.settime()
asyncio.run(talk("today:"))
asyncio.run(talk("another name:", "else.test"))
"""
        board = made(WIFI + program, bits=bits, heap="120k")
        board.wifi(True)
        async with running(board):
            assert "refused" in await board.says("in 2000:")
            assert await board.says("today:") == r"today: b'over tls\n'"
            assert "refused" in await board.says("another name:")


async def test_board_opens_a_network_of_its_own_as_the_documentation_says(made: MakeBoard) -> None:
    program = """
import network, socket
point, station = network.WLAN(network.AP_IF), network.WLAN(network.STA_IF)
print("same", point is network.WLAN(network.WLAN.IF_AP), point is not station, point.active())
for wrong in (
    lambda: network.WLAN(2),
    lambda: point.config(ssid="x", key="short", security=3),
    lambda: point.config(reconnects=2),
    lambda: station.config(security=3),
    lambda: point.config("key"),
    lambda: point.config(nothing=1),
    lambda: point.scan(),
    lambda: socket.getaddrinfo("192.168.4.1", 80),
):
    try:
        wrong()
    except (OSError, ValueError) as error:
        print("refused", type(error).__name__, error.args[0])
point.config(ssid="Homeward HW-0001", key="four words", security=3, max_clients=2)
point.active(True)
print("open", point.active(), point.config("ssid"), point.config("security"), point.ifconfig()[0])
listener = socket.socket()
listener.bind(socket.getaddrinfo("192.168.4.1", 80)[0][-1])
listener.listen(1)
print("listening")
client = listener.accept()[0]
client.write(b"hello")
client.close()
station.active(True)
station.connect("home", "correct horse")
while not station.isconnected():
    pass
point.active(False)
print("both", station.isconnected(), point.active())
"""
    async with running(made(program)) as board:
        board.wifi(True)
        assert await board.says("same") == "same True True False"
        await board.says("listening")
        refused = [line.removeprefix("refused ") for line in board.log if line.startswith("refused")]
        assert refused == [
            "ValueError invalid WLAN interface identifier",
            "OSError Wifi Invalid Password",
            "OSError STA required",
            "OSError AP required",
            "ValueError unknown config param",
            "ValueError unknown config param",
            "OSError STA must be active",
            "OSError -202",
        ]
        assert await board.says("open") == "open True Homeward HW-0001 3 192.168.4.1"
        point = board.network.point
        assert point is not None and (point.ssid, point.key, point.security) == (
            "Homeward HW-0001",
            "four words",
            3,
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", board.network.ports[80])
        assert await reader.read() == b"hello"
        writer.close()
        assert await board.says("both") == "both True False"
        assert board.network.point is None and not board.network.ports
