"""
The checks: each returns what it has measured, or raises CheckFailed.

Limits are those of a real board; on the virtual one only what does not depend on the chip is judged. Why each
of them matters stands in ASSUMPTIONS.md, under the check's name.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.record import BOND_CHANGED, BOND_MADE, BOOTED
from hw.hil.bench import Bench, CheckFailed

HOLD_MS = 300
"""How long the handler is held: far longer than a connection interval (BLE: at most 50 ms here)."""
MAX_PROGRAM_US = 20_000
"""A page of 256 bytes takes 0.4 to 3 ms on usual flash; beyond this a second Sensor's event would wait."""
STACK_BYTES = 4_096
STACK_LEFT_BYTES = 512
"""What an exception on its way and the flash driver of the IDF still need below the deepest Python frame."""
MIN_HEAP_BYTES = 20_000
MIN_BLOCK_BYTES = 18_000
"""A TLS record of 16 KiB with its header, in one piece: a reconnect asks for one."""
MAX_FOUND_S = 10.0
"""A cuff advertises for 30 s; half the air time belongs to Wi-Fi."""
WRONG_PASSWORD = 202
SOFT_RESET = 5
# Events of bluetooth.BLE.irq.
_DISCONNECTED, _ENCRYPTED, _SET_SECRET = 8, 28, 30
_READ_DONE = 16

Check = Callable[[Bench], Awaitable[dict[str, Any]]]


async def wrong_password_is_named(bench: Bench) -> dict[str, Any]:
    await bench.provision(password="not the password")
    await bench.target.start()
    report = await bench.report(lambda report: report["wifi_refusals"], "a refusal")
    _hold(WRONG_PASSWORD in report["wifi_refusals"], f"refused with {report['wifi_refusals']}")
    return {"wifi_refusals": report["wifi_refusals"]}


async def epoch_is_known(bench: Bench) -> dict[str, Any]:
    await bench.provision()
    await bench.target.start()
    report = await bench.report(lambda report: True, "a first report")
    _hold(report["epoch"] in (1970, 2000), f"time begins in {report['epoch']}")
    return {"epoch": report["epoch"], "micropython": report["micropython"]}


async def sensor_is_found_and_bonded_beside_wifi(bench: Bench) -> dict[str, Any]:
    await bench.report(lambda report: report["online"], "Wi-Fi")
    await bench.until(lambda: bench.service.events(BOOTED), "TLS and the first Batch")
    bench.cuff.pairing_mode()
    woken = time.monotonic()
    await bench.until(lambda: bench.cuff.is_connected, "a call", within_s=MAX_FOUND_S)
    found_s = time.monotonic() - woken
    await bench.until(lambda: bench.service.events(BOND_MADE), "a bond")
    return {"found_s": round(found_s, 2)}


async def key_follows_the_encryption(bench: Bench) -> dict[str, Any]:
    report = await bench.report(lambda report: _SET_SECRET in report["events"], "a key")
    events = report["events"]
    _hold(events.index(_ENCRYPTED) < events.index(_SET_SECRET), f"events {events}")
    return {"events": events[: events.index(_SET_SECRET) + 1]}


async def value_is_in_flash_quickly_and_the_stack_suffices(bench: Bench) -> dict[str, Any]:
    await bench.measure(20)
    report = await bench.report(lambda report: report["values"] >= 20, "20 values")
    if bench.target.is_real:
        _hold(report["program_us"] <= MAX_PROGRAM_US, f"programming takes {report['program_us']} us")
        left = STACK_BYTES - report["stack_bytes"]
        _hold(left >= STACK_LEFT_BYTES, f"{left} bytes of C stack are left")
    return {name: report[name] for name in ("append_us", "program_us", "stack_bytes")}


async def heap_suffices_with_radio_wifi_and_tls(bench: Bench) -> dict[str, Any]:
    report = await bench.report(lambda report: report["online"] and report["values"], "all at once")
    _hold(report["heap_free"] >= MIN_HEAP_BYTES, f"{report['heap_free']} bytes of heap are free")
    _hold(report["idf_largest"] >= MIN_BLOCK_BYTES, f"the largest block is {report['idf_largest']}")
    return {name: report[name] for name in ("heap_free", "idf_free", "idf_largest")}


async def operation_ends_before_its_link(bench: Bench) -> dict[str, Any]:
    seen = len((await bench.report(lambda report: True, "a report"))["events"])
    bench.cuff.leave_at_next_read()
    bench.cuff.wake()
    report = await bench.report(lambda report: _DISCONNECTED in report["events"][seen:], "the end of a link")
    events = report["events"][seen:]
    before = events[: events.index(_DISCONNECTED)]
    _hold(bool(before) and before[-1] == _READ_DONE, f"events {events}")
    return {"events": events}


async def bond_outlives_a_reset(bench: Bench) -> dict[str, Any]:
    await bench.cuff.dark()
    await bench.target.stop()
    await bench.target.start()
    await bench.measure()
    report = await bench.report(lambda report: report["values"], "a value")
    made, changed = bench.service.events(BOND_MADE), bench.service.events(BOND_CHANGED)
    _hold(len(made) == 1 and not changed, f"{len(made)} bonds made, {len(changed)} changed")
    if bench.target.is_real:
        _hold(report["cause"] == SOFT_RESET, f"reset cause {report['cause']}")
    return {"cause": report["cause"]}


async def confirmation_waits_for_the_handler(bench: Bench) -> dict[str, Any]:
    await bench.cuff.dark()
    await bench.target.stop()
    await bench.target.start(hold_ms=HOLD_MS)
    await bench.measure()
    waited_s = bench.confirmed_after_s()
    _hold(waited_s * 1000 >= HOLD_MS, f"confirmed after {waited_s * 1000:.0f} ms")
    return {"confirmed_after_ms": round(waited_s * 1000)}


CHECKS: tuple[Check, ...] = (
    wrong_password_is_named,
    epoch_is_known,
    sensor_is_found_and_bonded_beside_wifi,
    key_follows_the_encryption,
    value_is_in_flash_quickly_and_the_stack_suffices,
    heap_suffices_with_radio_wifi_and_tls,
    operation_ends_before_its_link,
    bond_outlives_a_reset,
    confirmation_waits_for_the_handler,
)
"""In this order: each goes on from where the last one left the board."""


def _hold(true: bool, otherwise: str) -> None:
    if not true:
        raise CheckFailed(otherwise)
