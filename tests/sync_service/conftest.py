"""A real broker, and the folder that `homeward-sync` made for it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hub_server import serve_hub
from ward import Ward

from sync_service.command import main
from sync_service.hub import Hub
from sync_service.store import Store
from tests.broker import Broker, running

KITS = ("HW-0001", "HW-0002")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with two Kits."""
    made = tmp_path / "sync"
    assert main(["init", str(made)]) == 0
    for kit in KITS:
        assert main(["--dir", str(made), "kit", "add", kit]) == 0
    return made


@pytest.fixture
def broker(folder: Path) -> Iterator[Broker]:
    """Mosquitto with the project's configuration."""
    with running(folder) as started:
        yield started


@pytest.fixture
async def ward(tmp_path: Path) -> AsyncIterator[Ward]:
    async with (
        serve_hub(tmp_path) as server,
        Store.open(tmp_path / "store.sqlite") as store,
        Hub(server.url, answer_s=0.3) as hub,
    ):
        yield Ward(store, server, hub)
