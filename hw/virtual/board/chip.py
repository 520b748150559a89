# mypy: ignore-errors
"""
The chip below the modules: the wires to the host, its answers, its events, and the plug.

Theory of operation. The host process holds the world (radio, Wi-Fi, buttons); three things lead to it:
- `wires`, one page of memory mapped by both, for all that must be read and written without the heap;
- `ask()`, a question in a line of JSON that waits for its answer;
- events: the host writes one into `wires`, rings the bell, and sends SIGUSR1 so that sleep and poll return.
  `_look`, a scheduled callback that schedules itself again, sees the bell between any two bytecodes, as the
  radio's task interrupts the main one on the chip. One thread: the unix port has no GIL.

The rule kept here: an event is answered only after its handler has returned, and none is delivered while a
lock of `_thread` is held, interrupts are off, or the chip is busy (a flash operation, an answer outstanding).
"""

import json
import sys

import ffi
import micropython
import uctypes
from micropython import const
from wiring import (
    AFTER,
    BEFORE,
    BELL,
    COUNTER_NAMES,
    COUNTERS,
    CUT_EVENT,
    CUT_WHERE,
    EVENT,
    HANDLER,
    ITEMS,
    KIND,
    PIN_EDGE,
    REPLY,
    REPLY_LENGTH,
    REPLY_VALUE,
    WIRES_BYTES,
)

_POISON = const(0xA5)
_SIGKILL = const(9)
_SIGUSR1 = 30 if sys.platform == "darwin" else 10
_PROT_READ_WRITE = const(3)
_MAP_SHARED = const(1)

_libc = ffi.open(None)
_getpid = _libc.func("i", "getpid", "")
_kill = _libc.func("i", "kill", "ii")
_exit = _libc.func("v", "_exit", "i")
_mmap = _libc.func("P", "mmap", "Pliiil")
_rename = _libc.func("i", "rename", "ss")

boot = None  # what the host said about this boot
wires = None
counters = None
radio_handler = None  # of bluetooth.BLE.irq: (event, values)
pin_handler = None  # (pin number)
uuid_seen = None  # bluetooth.UUID reused for every event, as on the chip

_busy = bytearray(2)  # depth of chip operations; interrupts off
_locks: list = []
_views: dict = {}
_answers = None
_done = None
_memory = None


def power_on(folder: str) -> None:
    """Connect to the host. The first thing that runs."""
    global boot, wires, counters, _answers, _done, _memory
    with open(folder + "/boot.json") as file:
        boot = json.load(file)
    address = map_file(folder + "/wires", WIRES_BYTES)
    wires = uctypes.bytearray_at(address, WIRES_BYTES)
    _memory = memoryview(wires)
    places = {name: uctypes.UINT32 | (COUNTERS + 4 * i) for i, name in enumerate(COUNTER_NAMES)}
    counters = uctypes.struct(address, places)
    _answers = open(boot["answers"], "r+b")  # noqa: SIM115
    _done = open(boot["done"], "wb")  # noqa: SIM115
    sys.modules["_thread"] = _Threads()
    # A handler in C that does nothing: the signal only has to end a sleeping system call.
    _libc.func("P", "signal", "iP")(_SIGUSR1, _libc.addr("abs"))
    _libc.func("i", "siginterrupt", "ii")(_SIGUSR1, 1)
    micropython.schedule(_look, None)
    ask("up")


def map_file(path: str, size: int) -> int:
    """Address of a file's bytes. What is written there survives this process."""
    file = open(path, "r+b")  # noqa: SIM115
    return _mmap(None, size, _PROT_READ_WRITE, _MAP_SHARED, file.fileno(), 0)


def replace(new: str, path: str) -> None:
    """Rename a file below /host at once over another one; the port's os.rename fails there (1.25, 1.26)."""
    if _rename(new[len("/host") :], path[len("/host") :]):
        raise OSError(5)


def ask(question: str, **values: object) -> object:
    """The host's answer; OSError when it refuses."""
    values["ask"] = question
    hold()
    try:
        _answers.write(json.dumps(values) + "\n")
        line = _answers.readline()
    finally:
        release()
    if not line:
        end(_SIGKILL)
    answer = json.loads(line)
    if "error" in answer:
        raise OSError(answer["error"])
    return answer["value"]


def hold() -> None:
    """No events from here to `release`: on the chip this is one operation in C."""
    _busy[0] += 1


def release() -> None:
    _busy[0] -= 1


def interrupts(on: bool) -> bool:
    """Switch the delivery of events; returns what it was."""
    was = not _busy[1]
    _busy[1] = 0 if on else 1
    return was


def end(code: int) -> None:
    """End this boot at once, as a reset does."""
    _exit(code)


def pull_plug() -> None:
    _kill(_getpid(), _SIGKILL)


def power_left(kind: int) -> int:
    """Count a flash operation. How many of its bytes are done before the plug is pulled; -1 for all."""
    if not counters.cut_at or not counters.cut_kind & kind:
        return -1
    counters.cut_at -= 1
    return -1 if counters.cut_at else counters.cut_bytes


class _Threads:
    """Module _thread. Its locks are the real ones; the chip looks at them before it delivers an event."""

    get_ident = staticmethod(lambda: 1)

    def __init__(self) -> None:
        import _thread

        self.LockType = _thread.LockType
        self._allocate = _thread.allocate_lock

    def allocate_lock(self) -> object:
        lock = self._allocate()
        _locks.append(lock)
        return lock

    def start_new_thread(self, _function: object, _arguments: object, _names: object = None) -> None:
        raise OSError("the virtual board has one thread")


def _look(_argument: object) -> None:
    # First of all, while a place in the queue is surely free.
    micropython.schedule(_look, None)
    if not wires[BELL] or _busy[0] or _busy[1]:
        return
    for lock in _locks:
        if lock.locked():
            return
    try:
        values = _values()
    except MemoryError:  # the main task holds the heap lock; the chip needs no heap here, this file does
        return
    wires[BELL] = 0
    _deliver(wires[KIND], values)
    _done.write(b".")


def _deliver(kind: int, values: tuple) -> None:
    if wires[CUT_EVENT] == kind and wires[CUT_WHERE] == BEFORE:
        pull_plug()
    wires[REPLY] = 0
    if kind == PIN_EDGE:
        if pin_handler:
            pin_handler(values[0])
    elif radio_handler:
        _call_radio_handler(kind, values)
    if wires[CUT_EVENT] == kind and wires[CUT_WHERE] == AFTER:
        pull_plug()


def _call_radio_handler(kind: int, values: tuple) -> None:
    global radio_handler
    try:
        _keep_reply(radio_handler(kind, values))
    except BaseException as problem:
        print("Unhandled exception in IRQ callback handler")
        sys.print_exception(problem)
        radio_handler = None
        wires[HANDLER] = 0
    # Views given to the handler now show poison, as on the chip they show whatever comes next.
    for index in range(EVENT, EVENT + _poisoned):
        wires[index] = _POISON
    if uuid_seen:
        uuid_seen.forget()


def _keep_reply(reply: object) -> None:
    if reply is None or reply is False:
        return
    if isinstance(reply, (bytes, bytearray, memoryview)):
        wires[REPLY] = 2
        length = len(reply)
        wires[REPLY_LENGTH] = length & 0xFF
        wires[REPLY_LENGTH + 1] = length >> 8
        wires[REPLY_VALUE : REPLY_VALUE + length] = reply
    elif reply:
        wires[REPLY] = 1


_poisoned = 0


def _values() -> tuple:
    """
    The values of the event in `wires`: each a tag and its bytes.

    i: u16; s: signed byte; t: bool; n: None; v: a view (u16 length); u: a UUID (u8 length).
    """
    global _poisoned
    values = []
    at = EVENT
    for _ in range(wires[ITEMS]):
        tag = wires[at]
        low = wires[at + 1]
        at += 2
        if tag == 0x69:
            values.append(low | wires[at] << 8)
            at += 1
        elif tag == 0x73:
            values.append(low - 256 if low > 127 else low)
        elif tag == 0x74:
            values.append(low != 0)
        elif tag == 0x6E:
            values.append(None)
        else:
            length = low
            if tag == 0x76:
                length |= wires[at] << 8
                at += 1
                values.append(_view(at, length))
            else:
                uuid_seen.show(_view(at, length))
                values.append(uuid_seen)
            at += length
    _poisoned = at - EVENT
    return tuple(values)


def _view(at: int, length: int) -> memoryview:
    key = at << 12 | length
    if key not in _views:
        if len(_views) > 64:
            _views.clear()
        _views[key] = _memory[at : at + length]
    return _views[key]
