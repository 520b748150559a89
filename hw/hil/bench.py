"""Bench: the board that is checked, a virtual cuff on the air, a broker and a service that acks."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import aiomqtt

from gateway.linux.config import Config
from hw.demo import kit
from hw.demo.part import Part, listening
from hw.hil.service import Service
from hw.hil.target import Target, last_report
from hw.virtual.clock import SensorClock
from hw.virtual.cuff import Cuff
from hw.virtual.ledger import CONFIRMED, SENT, Ledger
from hw.virtual.programs import mosquitto
from hw.virtual.radio import Room
from hw.virtual.sensor import Habits, Label
from sync_service import config as sync_config
from sync_service import identity

KIT = "HW-HIL"
CUFF = "C0:00:00:00:00:C1"
HABITS = Habits(window_s=30.0, linger_s=4.0, advertising_ms=100)
_POLL_S = 0.05


class CheckFailed(AssertionError):
    """A promise that the board does not keep, or something that never happened."""


@dataclass(frozen=True)
class Wifi:
    """The network that the board joins, and this computer's address in it."""

    network: str
    password: str
    host: str


class LeavingCuff(Cuff):
    """A cuff that can go out of range in the middle of being asked for its clock."""

    _leaves = False

    def leave_at_next_read(self) -> None:
        self._leaves = True

    def _read_clock(self) -> bytes:
        if self._leaves:
            self._leaves = False
            self.room.drop(self.address)
        return super()._read_clock()


class Bench:
    """What a check has in its hands."""

    def __init__(
        self, target: Target, cuff: LeavingCuff, service: Service, config: Config, wifi: Wifi
    ) -> None:
        self.target = target
        self.cuff = cuff
        self.service = service
        self._config = config
        self._wifi = wifi

    async def provision(self, *, password: str | None = None) -> None:
        """A new Kit, for which nothing is bonded; with another password when one is given."""
        wifi = self._wifi
        values = kit.identity(
            self._config, network=wifi.network, password=wifi.password if password is None else password
        )
        await self.target.stop()
        await self.target.provision(values)
        self.cuff.forget_bonds()
        self.service.records.clear()

    async def until(self, holds: Callable[[], object], what: str, *, within_s: float = 60.0) -> None:
        """Wait for the world. Raises CheckFailed with what the board said."""
        try:
            async with asyncio.timeout(within_s):
                while not holds():  # noqa: ASYNC110 - a board has no event for it
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            said = "\n".join(self.target.said()[-20:])
            raise CheckFailed(f"{what}: not within {within_s:.0f} s; the board said:\n{said}") from None

    async def report(self, holds: Callable[[dict[str, Any]], object], what: str) -> dict[str, Any]:
        """The Probe's first report for which it holds."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            report = last_report(self.target)
            if report is not None and holds(report):
                found.append(report)
            return bool(found)

        await self.until(look, what)
        return found[0]

    async def measure(self, count: int = 1) -> None:
        """The cuff measures, and the service has it all."""
        before = len(self.service.values())
        for n in range(count):
            self.cuff.measure(110 + before + n, 80, 90, 60)
        await self.until(lambda: len(self.service.values()) >= before + count, f"{count} values sent")

    def confirmed_after_s(self) -> float:
        """From the last indication to its confirmation, as the cuff has it in its ledger."""
        assert self.cuff.ledger.path is not None
        at = {}
        for line in self.cuff.ledger.path.read_text().splitlines():
            entry = json.loads(line)
            if entry["event"] in (SENT, CONFIRMED):
                at[entry["event"]] = datetime.fromisoformat(entry["at"])
        return (at[CONFIRMED] - at[SENT]).total_seconds()


@asynccontextmanager
async def bench(target: Target, air: Room, folder: Path, wifi: Wifi) -> AsyncIterator[Bench]:
    """Everything but the firmware is running. Raises TargetError."""
    await target.deploy()
    listen = "0.0.0.0" if target.is_real else "127.0.0.1"
    identity.init(folder / "sync", names=[wifi.host], listen=listen)
    place = identity.add_kit(folder / "sync", KIT)
    port = sync_config.load(folder / "sync").broker.port
    command = [*mosquitto(), "-c", str(folder / "sync/broker/mosquitto.conf")]
    broker = Part("broker", command, log=folder / "broker.log", ready=lambda: listening(port))
    config = Config(
        kit=KIT,
        journal=folder / "unused",
        sensors=folder / "unused",
        host=wifi.host,
        port=port,
        ca=place / "ca.pem",
        certificate=place / "kit.pem",
        key=place / "kit.key",
    )
    service = Service(KIT)
    clock, ledger = SensorClock(datetime(2026, 3, 1, 12)), Ledger(folder / "ledger.jsonl")
    label = Label("HIL cuff", serial="HIL-1")
    cuff = LeavingCuff(air, CUFF, label=label, clock=clock, ledger=ledger, habits=HABITS)
    await broker.start()
    serving = asyncio.create_task(service.run(_client(folder / "sync", port)), name="service")
    try:
        await cuff.power_on()
        yield Bench(target, cuff, service, config, wifi)
    finally:
        await target.stop()
        await cuff.power_off()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await broker.stop()


def _client(sync: Path, port: int) -> aiomqtt.Client:
    tls = aiomqtt.TLSParameters(
        ca_certs=str(sync / "ca/ca.pem"),
        certfile=str(sync / "service/service.pem"),
        keyfile=str(sync / "service/service.key"),
    )
    return aiomqtt.Client("127.0.0.1", port, identifier="service", tls_params=tls)
