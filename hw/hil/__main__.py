"""
Hardware in the loop: `python -m hw.hil` checks a real board on a USB port, unattended.

One line for each check, and as the last one JSON: {"passed": [...], "failed": {...}, "measured": {...}}. The
exit code is 1 when a check failed. Without the board it says how to enable it, and that is all.
"""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hw.hil.bench import Bench, CheckFailed, Wifi, bench
from hw.hil.checks import CHECKS
from hw.hil.target import SerialTarget, TargetError
from hw.virtual.air import Air

NEEDED = ("HOMEWARD_BOARD", "HOMEWARD_RADIO", "HOMEWARD_WIFI")
HOW = """\
skipped: no board. Set HOMEWARD_BOARD to the serial port of an ESP32-S3 whose image has the partitions \
"journal" and "bonds" (/dev/ttyACM0), HOMEWARD_RADIO to a Bluetooth controller for the virtual Sensor as \
bumble names it (usb:0), and HOMEWARD_WIFI to network:password:address, the last being this computer's \
address in that network; then run `make hil`."""


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether somebody has set up a bench."""
    return all(environment.get(name) for name in NEEDED)


async def run(here: Bench) -> dict[str, Any]:
    """Every check. A failure does not stop the others, which may fail for want of it."""
    result: dict[str, Any] = {"passed": [], "failed": {}, "measured": {}}
    for check in CHECKS:
        name = check.__name__
        try:
            result["measured"] |= await check(here)
        except CheckFailed as why:
            result["failed"][name] = str(why).splitlines()[0]
            print(f"FAILED {name}: {why}", flush=True)
        else:
            result["passed"].append(name)
            print(f"ok     {name}", flush=True)
    return result


async def _check_board(environment: Mapping[str, str]) -> int:
    port, transport, wifi = (environment[name] for name in NEEDED)
    network, _, rest = wifi.partition(":")
    password, _, host = rest.rpartition(":")
    with tempfile.TemporaryDirectory(prefix="homeward-hil-") as folder:
        target = SerialTarget(port)
        async with bench(target, Air(transport), Path(folder), Wifi(network, password, host)) as here:
            result = await run(here)
    print(json.dumps(result))
    return 1 if result["failed"] else 0


def main() -> int:
    """The command line: see the top of this file."""
    if not wanted(os.environ):
        print(HOW)
        return 0
    try:
        return asyncio.run(_check_board(os.environ))
    except TargetError as why:
        print(why, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
