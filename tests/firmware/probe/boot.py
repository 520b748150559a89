"""A boot.py that measures the heap, put before the release on a board's path: main.py is the release's own.

It says "heap NAME BYTES": what is live after a collection, beside what the board's own modules and this file
take. Twice MicroPython says how large its table of names is, which frozen code has in flash.
"""

import asyncio
import gc
import sys

import micropython

_LOOK_MS = 50


def used():
    gc.collect()
    gc.collect()
    return gc.mem_alloc() - base


def say(name, count):
    print("heap", name, count)


def measured(function, name):
    """The function itself, and what it leaves in the heap."""

    def call(*arguments):
        before = used()
        result = function(*arguments)
        say(name, used() - before)
        return result

    return call


async def look():
    """All that is live, again and again."""
    micropython.qstr_info()
    while True:
        say("live", used())
        await asyncio.sleep_ms(_LOOK_MS)


def watch():
    """Import the parts as main.py does; then look from the moment at which they run."""
    for name in (
        "gateway.gateway",
        "firmware.radio",
        "firmware.mqtt",
        "firmware.wifi",
        "firmware.supervisor",
    ):
        __import__(name)
    say("code", used())
    micropython.qstr_info()
    mqtt = sys.modules["firmware.mqtt"]
    mqtt.tls_context = measured(mqtt.tls_context, "tls")
    supervisor = sys.modules["firmware.supervisor"].Supervisor
    run = supervisor.run

    async def run_watched(self):
        say("made", used())
        asyncio.create_task(look())
        await run(self)

    supervisor.run = run_watched


micropython.kbd_intr(-1)
gc.threshold(32 * 1024)  # as the release's own boot.py says
base = 0
base = used()
watch()
