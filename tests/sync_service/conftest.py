"""A real broker, and the folder that `homeward-sync` made for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sync_service.command import main
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
