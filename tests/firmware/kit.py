"""A Kit for tests: the firmware on a virtual board, real Sensors in its room, a real broker, a service."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from on_micropython import ROOT

from gateway.message import Ack, ack_topic, decode_batch, encode_ack
from gateway.record import FRAME, Event, Frame, Record, decode_body, scan
from hw.virtual import programs, romfs
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
_TO_2000_S = 946_684_800
_PATIENCE_S = 40.0


class Service:
    """Acks every Batch and keeps its Records, unless it is `deaf`."""

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}
        self.repeats = 0
        self.clashes = 0
        self.statuses: list[dict[str, Any]] = []
        self.deaf = False
        self.before_ack: Callable[[int], None] = lambda count: None  # of a Batch with so many Records

    async def run(self, client: aiomqtt.Client) -> None:
        async with client:
            await client.subscribe("homeward/1/+/up")
            await client.subscribe("homeward/1/+/status")
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                if message.topic.matches("homeward/1/+/status"):
                    self.statuses.append(json.loads(message.payload))
                elif not self.deaf:
                    await client.publish(ack_topic(KIT), self._take(message.payload))

    def _take(self, whole: bytes) -> bytes:
        batch = decode_batch(whole)
        records, broken = scan(batch.records)
        assert not broken
        for record in records:
            before = self.records.setdefault(record.sequence, record)
            self.repeats += before is not record
            self.clashes += before != record
        through = 0
        while through + 1 in self.records:
            through += 1
        last = batch.first + batch.count - 1 if batch.count else 0
        self.before_ack(batch.count)
        utc_ms = int(time.time() * 1000)
        return encode_ack(Ack(batch.journal_id, batch.nonce, through, batch.first, last, None, utc_ms, 60))

    def bodies(self) -> list[Any]:
        """Of all Records, in order."""
        return [decode_body(r.type, r.version, r.body) for _, r in sorted(self.records.items())]

    def frames(self) -> list[Frame]:
        return [body for body in self.bodies() if isinstance(body, Frame)]

    def values(self) -> list[bytes]:
        """Of the Frames, each once: a Sensor that was not confirmed sends again."""
        return list(dict.fromkeys(frame.value for frame in self.frames()))

    def events(self, code: int) -> list[Event]:
        return [body for body in self.bodies() if isinstance(body, Event) and body.code == code]

    @property
    def has_frames(self) -> bool:
        return any(record.type == FRAME for record in self.records.values())


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


def program(folder: Path) -> list[Path]:
    """The firmware as a release has it: compiled, in ROM, umqtt with it."""
    sources = ["gateway/*.py", "gateway/sensors/*.py", "firmware/*.py"]
    names = [str(path.relative_to(ROOT)) for pattern in sources for path in ROOT.glob(pattern)]
    tree = romfs.compiled(ROOT, [name for name in names if not name.endswith("manifest.py")], folder / "rom")
    romfs.compiled(programs.umqtt(), ["umqtt/simple.py"], tree)
    for name in ("boot.mpy", "main.mpy"):
        (tree / "firmware" / name).rename(tree / name)
    image = folder / "firmware.rom"
    image.write_bytes(romfs.image(tree))
    return [image]


def provision(board: Board, sync: Path, port: int, *, pair_s: int = 60) -> None:
    """Write the identity as the Station does."""
    folder = sync / "kits" / KIT
    board.provision(
        "homeward",
        {
            "kit": KIT.encode(),
            "host": b"127.0.0.1",
            "port": port,
            "wifi": b'[["home", "correct horse"]]',
            "ca": _certificate(sync / "ca/ca.pem"),
            "cert": _certificate(folder / "kit.pem"),
            "key": _key(folder / "kit.key"),
            "wipe": 1,
            "pair_s": pair_s,
            "utc_s": int(time.time()) - _TO_2000_S,
        },
    )


@asynccontextmanager
async def home(folder: Path, bits: int, heap: str | None) -> AsyncIterator[Home]:
    """A Kit that has just been provisioned, beside a cuff and an oximeter, with everything running."""
    identity.init(folder / "sync")
    identity.add_kit(folder / "sync", KIT)
    room, service = Room(), Service()
    with broker.running(folder / "sync") as mosquitto:
        answering = asyncio.create_task(service.run(mosquitto.service()))
        board = Board(room, folder / "board", address=GATEWAY, program=program(folder), bits=bits, heap=heap)
        provision(board, folder / "sync", mosquitto.port)
        board.wifi(True)
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


def _certificate(path: Path) -> bytes:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return certificate.public_bytes(serialization.Encoding.DER)


def _key(path: Path) -> bytes:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    return key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
