"""Flashing is a step in a Kit's life, which the service keeps; a repair is none."""

from contextlib import closing
from pathlib import Path

from hw.virtual.rom_loader import RomLoader
from sync_service.store import connect
from tests.station import binaries
from tests.station.workshop import Workshop, workshop

BOARD = "esp32-4mb"


async def test_a_repair_leaves_a_shipped_kit_where_it_is(tmp_path: Path) -> None:
    async with workshop(tmp_path) as shop:
        made = await shop.station("provision", "--next", "--json")
        (kit,) = made.json["provisioned"]
        image = str(tmp_path / "flash.bin")
        stock = str(binaries.esp32())
        composed = await shop.station(
            "image", "--board", BOARD, "--micropython", stock, "--kit", kit, "--out", image
        )
        assert composed.code == 0, composed.err
        with RomLoader(tmp_path / "chip") as loader:
            words = ["flash", "--board", BOARD, "--image", image, "--port", loader.port]
            flashed = await shop.station(*words)
            assert flashed.code == 0 and shop.lives() == {kit: "flashed"}, flashed.err
            shipped(shop)
            repaired = await shop.station(*words, "--repair")
            assert repaired.code == 0 and shop.lives() == {kit: "shipped"}, repaired.err


def shipped(shop: Workshop) -> None:
    """The steps between have tests of their own."""
    with closing(connect(shop.sync / "store.sqlite")) as db:
        db.execute("update kit set life = 'shipped'")
