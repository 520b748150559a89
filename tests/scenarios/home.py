"""A home for a scenario: any kind of Gateway, the Sensors that it names, a real broker and a service."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

from gateway.linux.config import Config
from gateway.reading import Reading
from gateway.record import BUTTON, HANDLER_RESTARTED, HOST_CONFIRMED
from hw.demo import kit
from hw.hil.service import Service
from hw.virtual.clock import SensorClock
from hw.virtual.cuff import Cuff
from hw.virtual.oximeter import Oximeter
from hw.virtual.radio import Room
from hw.virtual.sensor import Habits, Label, Sensor
from sync_service import identity
from tests.broker import Broker

GATEWAY, CUFF, OXIMETER = (f"C0:00:00:00:00:0{n}" for n in range(1, 4))
BRIEF = Habits(window_s=2.5, linger_s=0.4, advertising_ms=20)
"""A Sensor that has said all it has to say, and goes."""
PATIENT = Habits(window_s=8.0, linger_s=8.0, advertising_ms=20)
"""One that stays until the Gateway has done with it."""
FACTORY = datetime(2010, 1, 1)
TAKEN = datetime(2026, 3, 1, 12)
_PATIENCE_S = 30.0


class Home:
    """What a scenario has in its hands. Nothing runs yet: `plug_in` the Gateway, `add` the Sensors."""

    def __init__(self, gateway: str, folder: Path, broker: Broker, image: Path, name: str) -> None:
        self.host_confirmed = gateway == "linux"  # P1 does not hold there, and the Gateway says so
        self.room = Room()
        self.service = Service(name)
        self.folder = folder
        self.sensors: list[Sensor] = []
        place = identity.add_kit(broker.folder, name)
        config = Config(
            kit=name,
            journal=folder / "journal.flash",
            journal_kib=256,
            sensors=folder / "sensors.json",
            host="127.0.0.1",
            port=broker.port,
            ca=place / "ca.pem",
            certificate=place / "kit.pem",
            key=place / "kit.key",
            stream_s=1,
        )
        self.kit = kit.choose(gateway, config, self.room, folder, GATEWAY, image=image)

    async def plug_in(self) -> None:
        await self.kit.plug_in()

    async def replug(self) -> None:
        """Pull the plug and put it in again; the pairing window was the first boot's alone."""
        await self.kit.pull_plug()
        await self.kit.plug_in()

    async def hold_button(self) -> None:
        """Let unknown Sensors bond."""
        self.kit.press(True)
        await self.until(lambda: self.host_confirmed or self.service.events(BUTTON))
        self.kit.press(False)

    async def add(self, sensor: Sensor) -> None:
        await sensor.power_on()
        self.sensors.append(sensor)

    async def cuff(self, habits: Habits = BRIEF, *, clock: SensorClock | None = None) -> Cuff:
        """A cuff whose clock is set, unless another one is given."""
        sensor = Cuff(
            self.room,
            CUFF,
            label=Label("Cuff", serial="CU-1"),
            clock=clock or SensorClock(TAKEN),
            bonds=self.folder / "cuff.json",
            habits=habits,
        )
        await self.add(sensor)
        return sensor

    async def oximeter(self, habits: Habits = BRIEF) -> Oximeter:
        """An oximeter with storage and a clock that is set."""
        label, clock = Label("Oxi", serial="OX-1"), SensorClock(TAKEN)
        sensor = Oximeter(self.room, OXIMETER, label=label, clock=clock, habits=habits)
        await self.add(sensor)
        return sensor

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait for the world; what the board said explains a failure."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while not holds():  # noqa: ASYNC110 - what it looks at has no event for it
                    await asyncio.sleep(0.02)
        except TimeoutError:
            said = "\n".join(self.kit.board.log) if isinstance(self.kit, kit.BoardKit) else "nothing"
            raise AssertionError(f"it never came true; the board said:\n{said}") from None

    async def frames(self, count: int) -> None:
        """Until so many have reached the service."""
        await self.until(lambda: len(self.service.frames()) >= count)

    def check(self) -> None:
        """What no scenario may break: nothing confirmed is missing, and no sequence was used twice."""
        service = self.service
        confirmed = sum(len(sensor.ledger.confirmed) for sensor in self.sensors)
        assert len(service.values()) >= confirmed
        assert service.clashes == 0
        assert service.through == len(service.records)
        assert service.events(HANDLER_RESTARTED) == []
        assert {bool(frame.flags & HOST_CONFIRMED) for frame in service.frames()} <= {self.host_confirmed}
        assert {status["host_confirmed"] for status in service.statuses if "host_confirmed" in status} <= {
            self.host_confirmed
        }


@asynccontextmanager
async def lived_in(home: Home, broker: Broker) -> AsyncIterator[Home]:
    """The home while its service runs; everything is off at the end."""
    answering = asyncio.create_task(home.service.run(broker.service()))
    try:
        yield home
        home.check()
    finally:
        await home.kit.close()
        for sensor in home.sensors:
            await sensor.power_off()
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)


def numbers(reading: Reading) -> dict[str, float | None]:
    """The numbers of a Reading by name; None is no number."""
    return {
        value.name: None if value.special else value.mantissa * 10**value.exponent for value in reading.values
    }


def name_of(gateway: str) -> str:
    """As the closing summary of the tests has it."""
    return kit.describe(gateway) + (f", heap {kit.BOARD_HEAP}" if gateway == "mpy32" else "")
