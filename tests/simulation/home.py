"""A home: its network, its power, the flash of the Kit in it; and the patient who measures there."""

import asyncio
from random import Random
from typing import TYPE_CHECKING

from tests.simulation.kit import WATCHDOG, Kit
from tests.simulation.sensor import Sensor

if TYPE_CHECKING:
    from tests.simulation.world import World

MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86400.0
MORNING_S, EVENING_S = 7 * HOUR_S, 22.5 * HOUR_S
PAGE_BYTES = 256
"""Of NOR flash: cells that are programmed together grow weak together."""
A_DAY = 9
"""Measurements of each Sensor and day; the promise is for 8 and days of a hand-over are short."""


class Home:
    """Where a Kit stands, for as long as the world runs."""

    def __init__(self, world: "World", kit: Kit, random: Random) -> None:
        self.world, self.kit, self.random = world, kit, random
        self._outage_s = random.choice((HOUR_S, 8 * HOUR_S, DAY_S, 4 * DAY_S, 9 * DAY_S))
        world.loop.spawn(None, self._network(), "network")
        world.loop.spawn(None, self._power(), "power")

    async def _network(self) -> None:
        """Outages, mostly short; long ones with the habit of this home."""
        while True:
            await asyncio.sleep(self.random.expovariate(1 / (18 * HOUR_S)))
            if self.world.faults.strikes("home offline", 0.6):
                short = self.random.random() < 0.7
                length_s = self.random.uniform(60, HOUR_S) if short else self._outage_s
                self.go(online=False)
                await asyncio.sleep(length_s if self.world.faults.active else 1)
                self.go(online=True)

    def go(self, *, online: bool) -> None:
        kit = self.kit
        kit.online = online
        if kit.link is not None and not online:
            if self.random.random() < 0.5:
                kit.link.break_off()
            else:
                kit.link.lose()

    async def _power(self) -> None:
        strikes = self.world.faults.strikes
        while True:
            await asyncio.sleep(self.random.expovariate(1 / (6 * HOUR_S)))
            kit = self.kit
            if kit.process is None:
                continue
            if strikes("SNTP wrong", 0.04):
                kit.sntp_wrong_ms = self.random.choice((-1, 1)) * self.random.randrange(3_000, 90_000_000)
            elif self.random.random() < 0.1:
                kit.sntp_wrong_ms = 0
            if strikes("bit rot", 0.03):
                self._rot()
            if strikes("power cut", 0.06):
                kit.off(self.random.choice((1.0, 5.0, 60.0, HOUR_S, 10 * HOUR_S)))
            elif strikes("watchdog", 0.03):
                kit.off(1.0, "watchdog", WATCHDOG)
            elif self.world.faults.active and self.random.random() < 0.08:
                flash = kit.flash if self.random.random() < 0.9 else kit.bonds_flash
                flash.cut_in = self.random.randrange(40)
                flash.cut_in_erase = self.random.random() < 0.5

    def _rot(self) -> None:
        """The newest Records' page, with a boot that finds it so; or any bit."""
        flash = self.kit.flash
        offset, length = flash.last
        if self.random.random() < 0.5 and length:
            begin = max(offset - PAGE_BYTES, offset - offset % flash.block_bytes + 32)
            for _ in range(self.random.choice((1, 8))):
                flash.rot(self.random.randrange(min(begin, offset), offset + length))
            self.kit.off(5.0, "watchdog", WATCHDOG)
        else:
            flash.rot(self.random.randrange(flash.size))

    # --- The patient ----------------------------------------------------------------------------------------

    async def live(self, patient: str | None, until_s: float) -> None:
        """Measure some times a day, with both Sensors."""
        loop = self.world.loop
        while loop.time() < until_s:
            day_s = (self.world.now_ms // 86_400_000) * DAY_S - self.world.epoch_ms / 1000
            times = sorted(day_s + self.random.uniform(MORNING_S, EVENING_S) for _ in range(A_DAY))
            for at_s in times:
                if at_s < loop.time():
                    continue
                if at_s > until_s:
                    break
                await asyncio.sleep(at_s - loop.time())
                await self._occasion(patient)
            await asyncio.sleep(max(0.0, min(until_s, day_s + DAY_S + HOUR_S) - loop.time()))

    async def _occasion(self, patient: str | None) -> None:
        """One value of each Sensor, a few minutes apart; out of reach of the Kit now and then."""
        away = self.random.random() < 0.1
        for sensor in self.kit.sensors:
            sensor.measure(patient)
            if sensor.has_bond and self.world.faults.strikes("bond forgotten", 0.003):
                sensor.has_bond = False
                self.world.loop.spawn(None, self._pair_again(sensor), "pair again")
            if not away:
                self.kit.call(sensor)
                sensor.wake()
            await asyncio.sleep(self.random.uniform(60.0, 200.0))

    async def _pair_again(self, sensor: Sensor) -> None:
        """Its batteries were changed. Sooner or later somebody reads what to do, and presses the button."""
        while not sensor.has_bond:
            await asyncio.sleep(self.random.uniform(1.0, 20 * HOUR_S))
            self.kit.open_pairing()
            self.kit.call(sensor)
            sensor.wake()
            await asyncio.sleep(2 * MINUTE_S)
