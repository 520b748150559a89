# mypy: ignore-errors
"""
Probe: the firmware as it is, with a stopwatch at its handler. Runs on the board, after `start()` for ever.

Every second it prints one line, "PROBE {...}". It takes no heap while the handler runs, and puts one frame of
its own above the append; its frame around `program` stands where the flash's own would.
"""

import array
import asyncio
import gc
import json
import sys
import time
from time import ticks_diff, ticks_us

import esp32
import machine
import micropython
import network

from firmware import wifi
from firmware.flash import PartitionFlash
from firmware.radio import Radio
from firmware.supervisor import Supervisor
from gateway.gateway import Gateway
from gateway.port import const

# Places in `figures`: what is shared with the handler.
_INSIDE = const(0)  # 1: the handler runs
_VALUES = const(1)
_APPEND_US = const(2)  # the longest
_PROGRAM_US = const(3)
_STACK_BYTES = const(4)  # the most that was in use when the handler programmed
_EVENTS = const(5)
_HOLD_MS = const(6)

_SCAN_RESULT = const(5)
_REPORT_MS = const(1_000)

figures = array.array("i", [0] * 7)
order = bytearray(255)  # the last events that were no adverts, by their numbers
statuses = []  # of the network, each once

_received, _program, _take = Gateway.received, PartitionFlash.program, Radio._take
_state, _feed = wifi._state, Supervisor.run


def received(self, sensor, characteristic, value, flags, uptime_hi, uptime_lo):
    """Around the append in the handler."""
    figures[_INSIDE] = 1
    start = ticks_us()
    sequence = _received(self, sensor, characteristic, value, flags, uptime_hi, uptime_lo)
    took = ticks_diff(ticks_us(), start)
    figures[_INSIDE] = 0
    figures[_VALUES] += 1
    if took > figures[_APPEND_US]:
        figures[_APPEND_US] = took
    hold_us = figures[_HOLD_MS] * 1000
    while ticks_diff(ticks_us(), start) < hold_us:  # busy: a sleep would hand NimBLE's task to others
        pass
    return sequence


def program(self, offset, buffer):
    """The deepest point of the handler."""
    if figures[_INSIDE]:
        stack = micropython.stack_use()
        if stack > figures[_STACK_BYTES]:
            figures[_STACK_BYTES] = stack
    start = ticks_us()
    _program(self, offset, buffer)
    took = ticks_diff(ticks_us(), start)
    if figures[_INSIDE] and took > figures[_PROGRAM_US]:
        figures[_PROGRAM_US] = took


def take(self, event, data):
    """What the handler copies: everything but values."""
    if event != _SCAN_RESULT:
        order[figures[_EVENTS] % len(order)] = event
        figures[_EVENTS] += 1
    return _take(self, event, data)


def state(status):
    """The driver's last word about a try to join a network that came to nothing."""
    if status not in statuses:
        statuses.append(status)
    return _state(status)


async def feed(self):
    """The supervisor, with the report beside it."""
    asyncio.create_task(_report())
    await _feed(self)


async def _report():
    while True:
        gc.collect()
        print("PROBE", json.dumps(_seen()))
        await asyncio.sleep_ms(_REPORT_MS)


def _seen():
    regions = esp32.idf_heap_info(esp32.HEAP_DATA)
    count = figures[_EVENTS]
    return {
        "micropython": list(sys.implementation.version[:3]),
        "epoch": time.gmtime(0)[0],
        "cause": machine.reset_cause(),
        "values": figures[_VALUES],
        "append_us": figures[_APPEND_US],
        "program_us": figures[_PROGRAM_US],
        "stack_bytes": figures[_STACK_BYTES],
        "heap_free": gc.mem_free(),
        "idf_free": sum([row[1] for row in regions]),
        "idf_largest": max([row[2] for row in regions]),
        "events": [order[i % len(order)] for i in range(max(0, count - len(order)), count)],
        "online": network.WLAN(network.STA_IF).isconnected(),
        "wifi_refusals": statuses,
    }


def start(hold_ms=0):
    """Begin the firmware. Every value stays in the handler for `hold_ms` after it was kept."""
    figures[_HOLD_MS] = hold_ms
    Gateway.received, PartitionFlash.program, Radio._take = received, program, take
    wifi._state, Supervisor.run = state, feed
    # What boot.py does, but for the Ctrl-C that the bench stops it with.
    if hasattr(micropython, "alloc_emergency_exception_buf"):
        micropython.alloc_emergency_exception_buf(128)
    gc.threshold(32 * 1024)
    __import__("firmware.main")
