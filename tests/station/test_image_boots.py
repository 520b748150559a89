"""An image boots: the virtual board runs the application out of the image's own littlefs, as that Kit."""

import asyncio
from pathlib import Path

import pytest

from hw.hil.service import Service
from hw.station import board, image, micropython, nvs, partitions
from hw.virtual import programs
from hw.virtual.board_host import Board, Partition
from hw.virtual.radio import Room
from tests import broker
from tests.station import binaries
from tests.station.kits import kit_folder, project

KIT, BOARD = "HW-0001", "esp32-4mb"
ADDRESS = "C0:00:00:00:00:31"
_PATIENCE_S = 40.0
_BOOTED = 1


@pytest.mark.parametrize("bits", [64, 32])
async def test_a_kit_comes_on_line_from_its_image_alone(tmp_path: Path, bits: int) -> None:
    sync = project(tmp_path / "sync")
    with broker.running(sync) as mosquitto:
        kit = kit_folder(
            sync, KIT, host="127.0.0.1", port=mosquitto.port, networks=(("home", "correct horse"),)
        )
        chosen = board.load(BOARD)
        flash = image.compose(chosen, micropython.read(binaries.esp32(), chosen), kit)
        (tmp_path / "board").mkdir()
        (tmp_path / "board/flash").write_bytes(flash)
        rows = partitions.decode(flash[partitions.TABLE_OFFSET :])
        virtual = Board(
            Room(),
            tmp_path / "board",
            address=ADDRESS,
            program=programs.umqtt(),  # frozen in the stock binary; all that is ours lies in the image
            bits=bits,
            partitions=[Partition(*row) for row in rows],
        )
        virtual.provision(nvs.NAMESPACE, nvs.decode(partitions.find(rows, "nvs").of(flash)))
        virtual.wifi(True)
        service = Service(KIT)
        answering = asyncio.create_task(service.run(mosquitto.service()))
        try:
            async with virtual, asyncio.timeout(_PATIENCE_S):
                while not (service.events(_BOOTED) and service.statuses):  # noqa: ASYNC110 - has no event
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError("\n".join(virtual.log)) from None
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
        assert service.statuses[-1]["release"] == image.application.release()
        assert "wipe" not in virtual.nvs(nvs.NAMESPACE)  # the new Journal has begun
