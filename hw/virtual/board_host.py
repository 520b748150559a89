"""
A virtual ESP32 in a Room: real MicroPython running the firmware, and this process as the world around it.

`Board` starts the unix MicroPython on the modules of `hw/virtual/board/`, answers what they ask, and carries
the radio's events to them. Its folder is what survives: `flash` (the whole chip, NOR) and `nvs`. Everything
else is forgotten when the power goes. The rule kept here: an event is over only when the interpreter says so;
one that it did not finish before its death has not happened, so its indication is never confirmed.

    async with Board(room, folder, address="C0:00:00:00:00:10", program=[root / "firmware", root]) as board:
        board.wifi(True)
        await board.says("ready")
        await board.kill()      # the plug
        await board.start()     # and in again
"""

import asyncio
import json
import mmap
import os
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from hw.virtual import programs
from hw.virtual.board import wiring
from hw.virtual.board_event import Reply, Value, encode
from hw.virtual.board_network import Network
from hw.virtual.board_radio import Central
from hw.virtual.radio import Room

MODULES = Path(__file__).parent / "board"

# machine.reset_cause() of an ESP32; esp_restart() is a soft reset there.
POWER_ON, WATCHDOG, SOFT = 1, 3, 5

OWN_HEAP = {64: 52, 32: 38}
"""KiB that the board's own modules take, by bits. Given on top: the firmware has what it was promised."""

_I32 = struct.Struct("<i")
_NAGGING_S = 0.01
_STARTING_S = 20.0
_PIXEL_LOG = 200
_NO_DEVICE = 19


class Partition(NamedTuple):
    """A row of the partition table. Types and subtypes as in ESP-IDF: 0 app, 1 data; 0x81 a file system."""

    label: str
    type: int
    subtype: int
    address: int
    size: int


PARTITIONS = (
    Partition("factory", 0, 0x00, 0x10000, 0x1F0000),
    Partition("vfs", 1, 0x81, 0x200000, 0x100000),
    Partition("bonds", 1, 0x40, 0x300000, 0x4000),
    Partition("journal", 1, 0x41, 0x310000, 0x80000),
)


class Board:
    """
    One ESP32. `program`: folders on its path, the first with boot.py and main.py. `heap`: for the firmware.

    `address`: of its radio, static random; the MAC is the same. `ticks_ms`: where ticks begin at power-on.
    """

    def __init__(
        self,
        room: Room,
        folder: Path,
        *,
        address: str,
        program: Path | Sequence[Path],
        bits: int = 64,
        heap: str | int | None = None,
        partitions: Sequence[Partition] = PARTITIONS,
        ticks_ms: int = 0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.address = address.upper()
        self.log: deque[str] = deque(maxlen=20_000)
        self.network = Network(self._show_wifi)
        self.boots = 0
        self.cause = 0
        self.clock_offset_ns = 0
        self.pixels: deque[bytes] = deque(maxlen=_PIXEL_LOG)
        self.sound: tuple[int, int] = (0, 0)  # Hz, duty of 1023
        self.tones: deque[int] = deque(maxlen=_PIXEL_LOG)  # Hz of each that has begun
        self.radio_fails = False  # its controller does not start
        self.app_valid = False
        self._program = [program] if isinstance(program, Path) else list(program)
        self._bits = bits
        self._heap_kib = _kib(heap)
        self._heap_on_top_kib = OWN_HEAP[bits]
        self._partitions = tuple(partitions)
        self._ticks_ms = ticks_ms
        self._say = say
        self._news = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._plugged = False
        self._life: asyncio.Task[None] | None = None
        self._boot: _Boot | None = None
        self._memory = b""
        (self.folder / "nvs").mkdir(parents=True, exist_ok=True)
        self._wires = self._new_wires()
        self.radio = Central(room, self.address, self.post, self._handler_is_set)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()
        await self.network.close()

    # What a person does with it.

    async def start(self) -> None:
        """Plug it in. Returns when the interpreter runs."""
        assert not self.is_on, "it is on"
        self._forget()
        self._plugged = True
        ready = asyncio.get_running_loop().create_future()
        self._life = asyncio.create_task(self._live(ready), name=f"board {self.address}")
        self._life.add_done_callback(lambda _: self._news.set())
        async with asyncio.timeout(_STARTING_S):
            await asyncio.wait({ready, self._life}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            raise RuntimeError("the board does not start: " + " | ".join(self.log))

    async def kill(self) -> None:
        """Pull the plug: SIGKILL in the middle of whatever it is doing."""
        self._plugged = False
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        await self.off()

    stop = kill  # there is no other way to switch off an ESP32

    async def off(self) -> None:
        """Wait until it is off: killed, or cut by `cut_power`. Raises what its life died of."""
        if self._life is not None:
            await self._life

    @property
    def is_on(self) -> bool:
        return self._life is not None and not self._life.done()

    def wifi(
        self,
        up: bool,
        *,
        ssid: str = "home",
        password: str = "correct horse",
        internet: bool = True,
        rssi: int = -55,
        captive: bool = False,
        address: bool = True,
        others: Mapping[str, str] | None = None,
    ) -> None:
        """The home's network from now on: there or gone, its password, and whether the world is behind it.

        `captive`: its own page stands in the way; `address`: whether it gives one; `others`: passwords of
        other networks in reach, by name.
        """
        self.network.change(
            up,
            ssid=ssid,
            password=password,
            internet=internet,
            rssi=rssi,
            captive=captive,
            address=address,
            others=others,
        )

    def cut_power(self, *, at: str = "any", after: int = 1, done_bytes: int = 0) -> None:
        """Pull the plug in the n-th flash operation from now ("program", "erase", "any"), so far into it."""
        kinds = {"program": wiring.PROGRAM, "erase": wiring.ERASE, "any": wiring.PROGRAM | wiring.ERASE}
        self._set("cut_bytes", done_bytes)
        self._set("cut_kind", kinds[at])
        self._set("cut_at", after)

    def cut_power_at_event(self, kind: int, *, where: str = "before") -> None:
        """Pull the plug at the next event of this _IRQ_ number: "before" or "after" its handler."""
        self._wires[wiring.CUT_WHERE] = wiring.BEFORE if where == "before" else wiring.AFTER
        self._wires[wiring.CUT_EVENT] = kind

    def set_pin(self, number: int, level: int) -> None:
        """Drive a pin from outside: a button."""
        self._wires[wiring.PINS + number] = 2 | level
        if self.is_on:
            self.post(wiring.PIN_EDGE, number)

    def pin(self, number: int) -> int:
        return self._wires[wiring.PINS + number] & 1

    def flash(self, label: str) -> bytes:
        """What lies in a partition now."""
        row = next(row for row in self._partitions if row.label == label)
        with (self.folder / "flash").open("rb") as file:
            file.seek(row.address)
            return file.read(row.size)

    def nvs(self, namespace: str) -> dict[str, int | bytes]:
        """A namespace as it was committed."""
        return {
            path.stem: _I32.unpack(path.read_bytes())[0] if path.suffix == ".i32" else path.read_bytes()
            for path in (self.folder / "nvs" / namespace).glob("*")
            if path.suffix in (".i32", ".blob")
        }

    def provision(self, namespace: str, values: dict[str, int | bytes]) -> None:
        """Write NVS from outside, as the Station's image does. The board is off."""
        assert not self.is_on
        folder = self.folder / "nvs" / namespace
        folder.mkdir(parents=True, exist_ok=True)
        for key, value in values.items():
            if isinstance(value, int):
                (folder / f"{key}.i32").write_bytes(_I32.pack(value))
            else:
                (folder / f"{key}.blob").write_bytes(value)

    def counter(self, name: str) -> int:
        """One of wiring.COUNTER_NAMES, for this power-on."""
        value: int = struct.unpack_from("<I", self._wires, _counter(name))[0]
        return value

    async def says(self, text: str, timeout_s: float = 20.0) -> str:
        """Wait for a line of the board's console that holds this text, from the beginning of its log on."""
        async with asyncio.timeout(timeout_s):
            while True:
                for line in list(self.log):
                    if text in line:
                        return line
                if not self.is_on:
                    raise RuntimeError(f"the board is off and has not said {text!r}: " + "\n".join(self.log))
                self._news.clear()
                await self._news.wait()

    # Events.

    def post(self, kind: int, *values: Value) -> asyncio.Future[Reply]:
        """
        Queue an event for the board. The future: what its handler returned; cancelled when the power went.

        Values: int (u16), Signed, bool, None, bytes, or Uuid.
        """
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if self._boot is None:
            answer.cancel()
        else:
            self._boot.events.put_nowait((kind, values, answer))
        return answer

    @property
    def waiting_events(self) -> int:
        return 0 if self._boot is None else self._boot.events.qsize()

    def _handler_is_set(self) -> bool:
        return bool(self._wires[wiring.HANDLER])

    # A life: from plug to plug, over resets.

    async def _live(self, ready: "asyncio.Future[None]") -> None:
        cause = POWER_ON
        while cause and self._plugged:
            self.cause = cause
            self.boots += 1
            code = await self._run(cause, ready)
            next_causes = {wiring.RESET: SOFT, wiring.SOFT_RESET: cause, -signal.SIGALRM: WATCHDOG}
            cause = next_causes.get(code, 0)

    async def _run(self, cause: int, ready: "asyncio.Future[None]") -> int:
        """One boot. Its exit code."""
        boot = _Boot(self)
        self._wires[wiring.BELL] = self._wires[wiring.HANDLER] = 0
        boot.describe(cause)
        heap = ["-X", f"heapsize={self._heap_kib + self._heap_on_top_kib}k"] if self._heap_kib else []
        process = self._process = await asyncio.create_subprocess_exec(
            *programs.micropython(self._bits),
            *heap,
            str(MODULES / "start.py"),
            str(self.folder),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=boot.theirs,
            env=os.environ | {"MICROPYPATH": ""},
        )
        boot.close_theirs()
        if not self._plugged:
            process.kill()
        self._boot = boot
        try:
            async with asyncio.TaskGroup() as tasks:
                mine = [
                    tasks.create_task(boot.answer(ready)),
                    tasks.create_task(boot.deliver(process)),
                ]
                assert process.stdout is not None
                async for line in process.stdout:
                    self._hear(line.decode(errors="replace").rstrip("\n"))
                code = await process.wait()
                for task in mine:
                    task.cancel()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            self._boot = None
            boot.close()
            await self.radio.power_off()
            self.network.power_off()
        return code

    def _hear(self, line: str) -> None:
        self.log.append(line)
        self._news.set()
        if self._say is not None:
            self._say(line)

    def _forget(self) -> None:
        """What power keeps and its loss does not: the clock, the memory of the RTC, counters and levels."""
        self.clock_offset_ns = -time.time_ns()
        self._memory = b""
        driven = [pin & 3 if pin & 2 else 0 for pin in self._wires[wiring.PINS : wiring.EVENT]]
        self._wires[:] = bytes(wiring.WIRES_BYTES)
        self._wires[wiring.PINS : wiring.EVENT] = bytes(driven)
        self._show_wifi(self.network.status, 0)

    # Answers.

    async def answer(self, question: str, values: dict[str, Any]) -> Any:
        """What a module asks. OSError: refused."""
        if question == "ble_active" and values["on"] and self.radio_fails:
            raise OSError(_NO_DEVICE)
        if question.startswith("ble_"):
            return await self.radio.answer(question.removeprefix("ble_"), values)
        if question.startswith("wifi_"):
            return self.network.answer(question.removeprefix("wifi_"), values)
        answers: dict[str, Callable[..., Any]] = {
            "up": lambda: None,
            "clock": self._set_clock,
            "ntp": self.network.ntp,
            "memory": self._keep_memory,
            "pixels": lambda bpp, value: self.pixels.append(bytes.fromhex(value)),
            "sound": self._sound,
            "app_valid": self._mark_valid,
            "route": self.network.route,
        }
        result = answers[question](**values)
        return await result if isinstance(result, Awaitable) else result

    def _set_clock(self, offset_ns: int) -> None:
        self.clock_offset_ns = offset_ns

    def _keep_memory(self, value: str | None) -> str:
        if value is not None:
            self._memory = bytes.fromhex(value)
        return self._memory.hex()

    def _sound(self, pin: int, freq: int, duty: int) -> None:
        self.sound = (freq, duty)
        if duty:
            self.tones.append(freq)

    def _mark_valid(self) -> None:
        self.app_valid = True

    # Wires and files.

    def _new_wires(self) -> mmap.mmap:
        flash = self.folder / "flash"
        if not flash.exists():
            size = max(row.address + row.size for row in self._partitions)
            flash.write_bytes(b"\xff" * size)
        path = self.folder / "wires"
        path.write_bytes(bytes(wiring.WIRES_BYTES))
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), wiring.WIRES_BYTES)

    def _set(self, name: str, value: int) -> None:
        struct.pack_into("<I", self._wires, _counter(name), value)

    def _show_wifi(self, status: int, rssi: int) -> None:
        struct.pack_into("<HB", self._wires, wiring.WIFI_STATUS, status, -rssi)


class _Boot:
    """One run of the interpreter: its two channels, and the events that wait for it."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._wires = board._wires
        self.events: asyncio.Queue[tuple[int, tuple[Value, ...], asyncio.Future[Reply]]] = asyncio.Queue()
        self._delivering: asyncio.Future[Reply] | None = None
        self._asked, their_questions = _pair()
        self._done, their_done = _pair()
        self.theirs = (their_questions, their_done)
        self._is_up = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    def describe(self, cause: int) -> None:
        board = self._board
        about = {
            "cause": cause,
            "folder": str(board.folder),
            "mac": board.address.replace(":", "").lower(),
            "program": [str(path.absolute()) for path in board._program],
            "partitions": board._partitions,
            "flash_bytes": (board.folder / "flash").stat().st_size,
            "clock_offset_ns": board.clock_offset_ns,
            "ticks_offset_ms": board._ticks_ms,
            "answers": self.theirs[0],
            "done": self.theirs[1],
        }
        (board.folder / "boot.json").write_text(json.dumps(about))

    def close_theirs(self) -> None:
        for end in self.theirs:
            os.close(end)

    def close(self) -> None:
        """The power is gone: what was not finished has not happened."""
        if self._delivering is not None:
            self._delivering.cancel()
        while not self.events.empty():
            self.events.get_nowait()[2].cancel()
        for writer in self._writers:
            writer.close()

    async def answer(self, ready: "asyncio.Future[None]") -> None:
        """Answer one question after the other, until the interpreter is gone."""
        reader, writer = await asyncio.open_connection(sock=self._asked)
        self._writers.append(writer)
        with suppress(ConnectionError):
            while line := await reader.readline():
                values = json.loads(line)
                question = values.pop("ask")
                try:
                    reply = {"value": await self._board.answer(question, values)}
                except OSError as refused:
                    reply = {"error": refused.args[0]}
                writer.write(json.dumps(reply).encode() + b"\n")
                if question == "up":
                    self._is_up.set()
                    if not ready.done():
                        ready.set_result(None)

    async def deliver(self, process: asyncio.subprocess.Process) -> None:
        """Hand over one event at a time; the next one only when the last one's handler has returned."""
        done, writer = await asyncio.open_connection(sock=self._done)
        self._writers.append(writer)
        await self._is_up.wait()
        while True:
            kind, values, answer = await self.events.get()
            self._delivering = answer
            self._put(kind, values)
            if not await self._ring(process, done):
                return
            self._delivering = None
            if not answer.done():
                answer.set_result(self._reply())

    def _put(self, kind: int, values: tuple[Value, ...]) -> None:
        packed = b"".join(encode(value) for value in values)
        assert wiring.EVENT + len(packed) <= wiring.REPLY_VALUE
        self._wires[wiring.EVENT : wiring.EVENT + len(packed)] = packed
        self._wires[wiring.KIND] = kind
        self._wires[wiring.ITEMS] = len(values)

    async def _ring(self, process: asyncio.subprocess.Process, done: asyncio.StreamReader) -> bool:
        """
        Ring until the handler has returned; False when the interpreter is gone.

        More than once: a signal that comes just before a system call does not end it.
        """
        self._wires[wiring.BELL] = 1
        returned = asyncio.ensure_future(done.read(1))
        try:
            while not returned.done():
                if self._wires[wiring.BELL] and process.returncode is None:
                    process.send_signal(signal.SIGUSR1)
                await asyncio.wait({returned}, timeout=_NAGGING_S)
        finally:
            if not returned.done():
                returned.cancel()
        with suppress(ConnectionError):
            return bool(returned.result())
        return False

    def _reply(self) -> Reply:
        if self._wires[wiring.REPLY] != 2:
            return bool(self._wires[wiring.REPLY])
        length = struct.unpack_from("<H", self._wires, wiring.REPLY_LENGTH)[0]
        return bytes(self._wires[wiring.REPLY_VALUE : wiring.REPLY_VALUE + length])


def _pair() -> tuple[socket.socket, int]:
    """A channel: our end, and the file descriptor of the interpreter's."""
    ours, theirs = socket.socketpair()
    return ours, theirs.detach()


def _counter(name: str) -> int:
    return wiring.COUNTERS + 4 * wiring.COUNTER_NAMES.index(name)


def _kib(heap: str | int | None) -> int:
    """ "120k" or bytes, in KiB; 0: the port's own (2 MB)."""
    if heap is None:
        return 0
    return heap // 1024 if isinstance(heap, int) else int(heap.lower().removesuffix("k"))
