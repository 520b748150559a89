"""A Kit for tests: the firmware on a virtual board, real Sensors in its room, a real broker, a service."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.linux.config import Config
from hw.demo.kit import identity as kit_identity
from hw.demo.kit import release
from hw.hil.service import Service
from hw.virtual.board_host import Board
from hw.virtual.clock import SensorClock
from hw.virtual.cuff import Cuff
from hw.virtual.oximeter import Oximeter
from hw.virtual.radio import Room
from hw.virtual.sensor import Habits, Label
from sync_service import identity
from tests import broker

KIT = "HW-0001"
GATEWAY, CUFF, OXIMETER = (f"C0:00:00:00:00:0{n}" for n in range(1, 4))
HABITS = Habits(window_s=6.0, linger_s=2.6, advertising_ms=20)
_PATIENCE_S = 40.0


class Home:
    """What a test has in its hands."""

    def __init__(self, board: Board, cuff: Cuff, oximeter: Oximeter, service: Service) -> None:
        self.board = board
        self.cuff = cuff
        self.oximeter = oximeter
        self.service = service

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait for the world; what the board said explains a failure."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while not holds():  # noqa: ASYNC110 - what it looks at has no event for it
                    await asyncio.sleep(0.02)
        except TimeoutError:
            said = "\n".join(self.board.log)
            raise AssertionError(f"it never came true; the board said:\n{said}") from None

    async def pair(self) -> None:
        """Bond both Sensors, and wait until they have switched off."""
        for sensor in (self.cuff, self.oximeter):
            sensor.pairing_mode()
        await self.until(lambda: len(self.service.events(_SENSOR_DRAINED)) >= 2)
        for sensor in (self.cuff, self.oximeter):
            await asyncio.wait_for(sensor.dark(), _PATIENCE_S)

    def held(self) -> int:
        """Measurements that a Sensor still has."""
        return len(list(self.cuff.ledger.held)) + len(list(self.oximeter.ledger.held))


_SENSOR_DRAINED = 5


def provision(board: Board, sync: Path, port: int) -> None:
    """Write the identity as the Station does."""
    folder = sync / "kits" / KIT
    config = Config(
        kit=KIT,
        journal=sync / "unused",
        sensors=sync / "unused",
        host="127.0.0.1",
        port=port,
        ca=sync / "ca/ca.pem",
        certificate=folder / "kit.pem",
        key=folder / "kit.key",
    )
    board.provision("homeward", kit_identity(config))


async def install(folder: Path, bits: int) -> None:
    """Put the release into the board's file system; main.py and boot.py have to be source there."""
    release(folder)
    tree = folder / "rom"
    for name in ("main", "boot"):
        (tree / f"{name}.mpy").rename(tree / f"firmware/{name}.mpy")
        (tree / f"{name}.py").write_text(f"import firmware.{name}\n")
    (folder / "installer").mkdir()
    (folder / "installer/main.py").write_text(_INSTALLER % f"/host{tree.absolute()}")
    board = Board(Room(), folder / "board", address=GATEWAY, program=folder / "installer", bits=bits)
    async with board:
        await board.says("installed")


_INSTALLER = """
import os
def copy(source, target):
    for name, kind, *_ in os.ilistdir(source):
        if kind == 0x4000:
            os.mkdir(target + name)
            copy(source + "/" + name, target + name + "/")
        else:
            with open(source + "/" + name, "rb") as old, open(target + name, "wb") as new:
                new.write(old.read())
copy("%s", "/")
print("installed")
"""


@asynccontextmanager
async def home(
    folder: Path,
    bits: int,
    heap: str | None,
    *,
    before: Sequence[Path] = (),
    on_littlefs: bool = False,
    prepare: Callable[[Board], None] = lambda board: None,
) -> AsyncIterator[Home]:
    """A Kit that has just been provisioned, beside a cuff and an oximeter, with everything running.

    `before`: folders that stand before the release on the board's path. `on_littlefs`: the release is files
    of partition vfs, as on a stock image, and none of it is executed in place. `prepare`: what is different
    from the usual home before the plug goes in.
    """
    identity.init(folder / "sync")
    identity.add_kit(folder / "sync", KIT)
    room, service = Room(), Service(KIT)
    with broker.running(folder / "sync") as mosquitto:
        answering = asyncio.create_task(service.run(mosquitto.service()))
        program = [*before] if on_littlefs else [*before, release(folder)]
        if on_littlefs:
            await install(folder, bits)
        board = Board(room, folder / "board", address=GATEWAY, program=program, bits=bits, heap=heap)
        provision(board, folder / "sync", mosquitto.port)
        board.wifi(True)
        prepare(board)
        cuff = Cuff(room, CUFF, label=Label("Cuff"), clock=SensorClock(), habits=HABITS)
        oximeter = Oximeter(room, OXIMETER, label=Label("Oximeter"), clock=SensorClock(), habits=HABITS)
        for sensor in (cuff, oximeter):
            await sensor.power_on()
        try:
            async with board:
                yield Home(board, cuff, oximeter, service)
        finally:
            for sensor in (cuff, oximeter):
                await sensor.power_off()
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
