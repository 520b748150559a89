"""
One patient's home as a process: a room with virtual Sensors and the Gateway of one Kit.

    python -m hw.demo.home --config KIT.toml --folder DIR --gateway mpy64

It answers each line of JSON on stdin with one on stdout, when it is done: {"id": I} or {"id": I, "why": W}.
The Sensors' ledgers lie in DIR and are the truth that the demo's checker compares the Hub with.

    {"id": I, "do": "begin", "episode": E}          the Sensors are bonded to the Kit for this Episode
    {"do": "measure", "action": A, "numbers": {}}   somebody measures; answers when it is taken
    {"do": "online", "on": false}                   the home's network goes and comes
    {"do": "drain"}                                 waits until no Sensor holds anything
    {"do": "wipe"}                                  the Kit is taken back and emptied, and forgets its bonds
    {"do": "pull_plug"}, {"do": "plug_in"}          the Gateway loses its power, and has it again
"""

import argparse
import asyncio
import json
import logging
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from gateway.linux.config import Config, load
from hw.demo import kit
from hw.virtual.clock import SensorClock
from hw.virtual.cuff import Cuff
from hw.virtual.ledger import Ledger
from hw.virtual.oximeter import Oximeter
from hw.virtual.radio import Room
from hw.virtual.sensor import Habits, Label, Sensor

HABITS = Habits(window_s=20.0, linger_s=3.5)
"""A patient's day in a minute. Real ones linger for 15 s; these long enough to be asked for their clock."""
PAIRING_S = 5.0
"""Somebody at the bench holds the button: long enough for a first session, which finds nothing to collect."""
BETWEEN_S = 1.2
"""No Sensor measures twice within its clock's second: a real one takes 10 to 40 s for a measurement."""
PATIENCE_S = 120.0
"""Longer than anything that is asked of a home; then something is broken, and it is said."""
POLL_S = 0.05
FACTORY_DATE = datetime(2010, 1, 1)


class Home:
    """The Sensors, and the Kit's Gateway."""

    def __init__(self, config: Config, folder: Path, gateway: str) -> None:
        room = Room()
        end = config.kit[-2:]
        self._kit = kit.choose(gateway, config, room, folder, f"F0:00:00:00:00:{end}")

        def parts(number: int, name: str) -> dict[str, Any]:
            ledger = Ledger(folder / f"ledger-{name}.jsonl")
            label = Label(f"{name} {end}", model=name, serial=f"{name.upper()}-{end}")
            return {
                "address": f"C0:00:00:00:{number:02}:{end}",
                "label": label,
                "ledger": ledger,
                "habits": HABITS,
            }

        self._oximeter = Oximeter(room, clock=SensorClock(factory=FACTORY_DATE), **parts(1, "oximeter"))
        self._cuff = Cuff(room, clock=SensorClock(factory=FACTORY_DATE), **parts(2, "cuff"))
        self._simple = Oximeter.simple(room, **parts(3, "clip"))
        self._sensors: tuple[Sensor, ...] = (self._oximeter, self._cuff, self._simple)
        self._last: dict[Sensor, float] = {}

    async def start(self) -> None:
        """Power everything on."""
        for sensor in self._sensors:
            await sensor.power_on()
        await self._kit.plug_in()

    async def stop(self) -> None:
        """Power everything off."""
        await self._kit.pull_plug()
        for sensor in self._sensors:
            await sensor.power_off()

    async def begin(self, episode: str) -> None:
        """The bench: every Sensor is bonded, and its first session sets its clock."""
        for sensor in self._sensors:
            sensor.ledger.episode = episode
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(_bond(sensor) for sensor in self._sensors))

    async def measure(self, action: str, numbers: dict[str, int]) -> None:
        """One thing that a patient does."""
        sensor: Sensor = self._cuff
        if action == "spot_check":
            sensor = self._oximeter
        elif action in ("simple", "simple_repeat"):
            sensor = self._simple
            await _until(
                lambda: not sensor.ledger.held
            )  # it can't store: a new one would discard the old one
        elif action == "clock_lost":
            await _dark(sensor)
            self._cuff.clock.lose()  # type: ignore[union-attr]
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._last.get(sensor, 0.0) + BETWEEN_S - loop.time()))
        self._last[sensor] = loop.time()
        if action.endswith("repeat"):
            sensor.drop_before_confirmation()
        if isinstance(sensor, Oximeter):
            sensor.measure_spot_check(**numbers)
        elif action == "failed":
            self._cuff.measure_failed()
        else:
            self._cuff.measure(*(numbers[name] for name in ("systolic", "diastolic", "mean", "pulse")))

    async def drain(self) -> None:
        """Wait until no Sensor holds anything."""
        await _until(lambda: not any(sensor.ledger.held for sensor in self._sensors))
        for sensor in self._sensors:
            await _dark(sensor)

    async def wipe(self) -> None:
        """Take the Kit back."""
        await self._kit.wipe()
        for sensor in self._sensors:
            sensor.forget_bonds()

    async def pull_plug(self) -> None:
        """Power off, in the middle of whatever the Gateway is doing."""
        await self._kit.pull_plug()

    async def plug_in(self) -> None:
        """Power on again."""
        await self._kit.plug_in()

    def online(self, on: bool) -> None:
        """The home's network."""
        self._kit.online(on)


async def _bond(sensor: Sensor) -> None:
    """Hold the button, until the Kit has come."""
    while not sensor.bonds.peers:
        sensor.pairing_mode(PAIRING_S)
        await sensor.dark()


async def _dark(sensor: Sensor) -> None:
    """Wait until the Sensor has gone to sleep."""
    async with asyncio.timeout(PATIENCE_S):
        await sensor.dark()


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - what it looks at belongs to parts that have no event for it
            await asyncio.sleep(POLL_S)


async def _answer(home: Home, line: bytes) -> None:
    request = json.loads(line)
    answer = {"id": request.pop("id")}
    try:
        done = getattr(home, request.pop("do"))(**request)
        if asyncio.iscoroutine(done):
            await done
    except Exception as error:  # told to the demo, which names the home and stops
        logging.exception("home")
        answer["why"] = f"{type(error).__name__}: {error}"
    print(json.dumps(answer), flush=True)


async def _serve(config: Config, folder: Path, gateway: str) -> None:
    """Answer until stdin ends or SIGTERM comes. A network can go while another request waits."""
    loop = asyncio.get_running_loop()
    asked = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    loop.add_signal_handler(signal.SIGTERM, asked.feed_eof)
    home = Home(config, folder, gateway)
    await home.start()
    print(json.dumps({"id": 0}), flush=True)
    async with asyncio.TaskGroup() as answers:
        under_way = set()
        while line := await asked.readline():
            task = answers.create_task(_answer(home, line))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        for task in under_way:
            task.cancel()
    await home.stop()


def main() -> None:
    """The command line: see the top of this file."""
    parser = argparse.ArgumentParser(description="One patient's home, for homeward-demo.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gateway", choices=kit.GATEWAYS, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("bumble").setLevel(
        logging.ERROR
    )  # it warns of every dropped link, and those are on purpose
    asyncio.run(_serve(load(options.config), options.folder, options.gateway))


if __name__ == "__main__":
    main()
