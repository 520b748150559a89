"""`sensors bond` to its end: the Kit's own Gateway, the firmware on a virtual board, holds the bond."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.linux.config import Config
from hw.demo.kit import identity, release
from hw.station import StationError, bench, journey, sensor_bond
from hw.station.kit_folder import KitFolder
from hw.station.service import Service
from hw.virtual.bleak_backend import BumbleAdapter
from hw.virtual.board_host import Board
from hw.virtual.clock import SensorClock
from hw.virtual.cuff import Cuff
from hw.virtual.radio import Room
from hw.virtual.sensor import Habits, Label
from tests.station.test_sensors import BENCH, CUFF, HABITS, KIT, Heard, listed, person, radio_of
from tests.station.workshop import Workshop, workshop

BOARD = "C0:00:00:00:00:0A"
BUTTON_PIN, HELD_S = 0, 4.0
"""Longer than the firmware's 3 s for a pairing window, shorter than its 8 s for the set-up portal."""


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Workshop]:
    async with workshop(tmp_path) as started:
        assert (await started.station("provision", "--next")).code == 0
        yield started


def board_of(shop: Workshop, room: Room, folder: Path) -> Board:
    """A board that was flashed with the Kit's identity, and whose pairing window is shut."""
    kit = shop.bench / "kits" / KIT
    config = Config(
        kit=KIT,
        journal=kit,
        sensors=kit,
        host="127.0.0.1",
        port=KitFolder.load(kit).port,
        ca=kit / "ca.pem",
        certificate=kit / "kit.pem",
        key=kit / "kit.key",
    )
    board = Board(room, folder / "board", address=BOARD, program=release(folder))
    board.provision("homeward", identity(config) | {"pair_s": 0})
    return board


def button(heard: Heard, board: Board, sensor: Cuff) -> None:
    """The person also holds the Kit's button when told to, then the Sensor's."""

    async def press() -> None:
        board.set_pin(BUTTON_PIN, 0)
        await asyncio.sleep(HELD_S)
        board.set_pin(BUTTON_PIN, 1)
        sensor.pairing_mode()

    heard.does["hold the button"] = press


async def test_the_kits_own_bond_is_proved_and_the_bench_has_none(
    shop: Workshop, tmp_path: Path, say: list[str]
) -> None:
    room, here = Room(), bench.load(shop.bench)
    board = board_of(shop, room, tmp_path)
    sensor = Cuff(
        room,
        CUFF,
        label=Label("Cuff", serial="C-7"),
        clock=SensorClock(),
        habits=replace(HABITS, one_bond=True),
    )
    async with BumbleAdapter(room, BENCH, name="Bench") as adapter, sensor, board:
        board.wifi(True)
        sensor.pairing_mode()
        heard = Heard()
        person(heard, sensor)
        button(heard, board, sensor)
        began = asyncio.get_running_loop().time()
        row = await sensor_bond.bond(here, Service(here), radio_of(adapter), CUFF, KIT, heard)
        took_s = asyncio.get_running_loop().time() - began
        await heard.done()
        assert row["proved"] is True and listed(shop) == (row,)
        assert adapter.bonds.peers == [] and sensor.bonds.peers == [f"{BOARD}"]
        assert journey._sensors(here, KIT) == [CUFF]
        told = Service(here).sensors(KIT)
        assert [(one["sensor"], one["serial"], one["bonded"]) for one in told] == [(CUFF, "C-7", True)]
        assert told[0]["sessions"] >= 2
        assert shop.rows("select mark from sensor_mark") == [("bonded",)]
        history = json.loads(shop.operator("kit", "history", KIT, "--json"))
        assert [one["detail"].split(" ")[1] for one in history if one["action"] == "sensor mark"] == [
            "emptied",
            "bonded",
        ]
        # Once more: what the Kit has bonded is not paired with again, only proved.
        sensor.pairing_mode()
        again = Heard()
        person(again, sensor)
        assert (await sensor_bond.bond(here, Service(here), radio_of(adapter), CUFF, KIT, again)) == row
        await again.done()
        assert any("has bonded it already" in line for line in again.lines)
        assert Service(here).sensors(KIT)[0]["changed"] is False
    await board.network.close()
    say.append(f"sensors bond: both proofs on the virtual board in {took_s:.1f} s")


async def test_a_kit_that_never_bonds_is_no_proof(shop: Workshop, tmp_path: Path) -> None:
    room, here = Room(), bench.load(shop.bench)
    quick = Habits(window_s=60.0, linger_s=20.0, advertising_ms=20)
    async with BumbleAdapter(room, BENCH) as adapter, Cuff(room, CUFF, label=Label("C"), habits=quick) as one:
        one.wake()
        heard = Heard()
        person(heard, one)
        with pytest.raises(StationError, match=f"Kit {KIT} has not bonded {CUFF}: is it on line"):
            await sensor_bond.bond(here, Service(here), radio_of(adapter), CUFF, KIT, heard, within_s=0.5)
        await heard.done()
    assert [row["proved"] for row in listed(shop)] == [False] and journey._sensors(here, KIT) == []
    assert shop.rows("select mark from sensor_mark") == [("emptied",)]
