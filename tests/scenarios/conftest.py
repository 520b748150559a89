"""What the scenarios share: one broker and one release for all, a home and a Kit for each; and the count."""

import itertools
import os
import platform
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from home import Home, lived_in

from hw.demo.kit import GATEWAYS, describe, release
from hw.virtual.programs import ProgramMissing
from sync_service import identity
from tests import broker

PASSED = pytest.StashKey[dict[str, set[str]]]()
_KITS = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[PASSED] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if isinstance(item, pytest.Function) and "gateway" in item.fixturenames and not report.skipped:
        kind = item.callspec.params["gateway"]
        names = item.config.stash[PASSED].setdefault(kind, set())
        name = item.name.replace(kind, "")
        if not report.passed:  # at its end, too: `Home.check`
            names.discard(name)
        elif report.when == "call":
            names.add(name)
    return report


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[broker.Broker]:
    folder = tmp_path_factory.mktemp("sync")
    identity.init(folder)
    with broker.running(folder) as running:
        yield running


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The firmware, compiled once."""
    return release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="session", params=GATEWAYS)
def gateway(request: pytest.FixtureRequest) -> str:
    """A kind of Gateway; skipped, with the reason, where this machine can't have it."""
    kind: str = request.param
    if kind == "mpy32" and platform.machine() != "x86_64":
        pytest.skip(f"MicroPython 32-bit needs an x86-64 machine; this one is {platform.machine()}")
    try:
        describe(kind)
    except ProgramMissing as missing:
        if "CI" in os.environ:
            raise
        pytest.skip(str(missing))
    return kind


@pytest.fixture
async def home(gateway: str, tmp_path: Path, mosquitto: broker.Broker, image: Path) -> AsyncIterator[Home]:
    """Everything is off."""
    home = Home(gateway, tmp_path, mosquitto, image, f"HW-{next(_KITS):04}")
    async with lived_in(home, mosquitto):
        yield home


@pytest.fixture
def passed(request: pytest.FixtureRequest) -> dict[str, set[str]]:
    """The scenarios that have passed, by kind of Gateway."""
    return request.config.stash[PASSED]
