"""What the firmware may import: a stock image's modules, the core, and each peripheral in one file alone."""

import ast
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import stock_modules

from firmware import release

ROOT = Path(__file__).parent.parent.parent
BUILD_FILES = {"manifest.py"}  # read by the build tool on a computer, never by a board

# What stands for hardware. Names out of `machine` and `esp32` are peripherals of their own.
PERIPHERALS = {"bluetooth", "network", "neopixel", "umqtt.simple", "ssl", "_thread"}
MODULES_OF_MANY = {"machine", "esp32"}


def test_firmware_imports_nothing_that_a_stock_image_lacks() -> None:
    ours = {"gateway", "firmware"}
    wrong = [
        f"{where}: {module}"
        for where, module, _ in _imports()
        if module not in stock_modules.STOCK and module.split(".")[0] not in ours
    ]
    assert not wrong


def test_each_peripheral_has_one_file() -> None:
    importers = defaultdict(set)
    for where, module, name in _imports():
        if module in PERIPHERALS:
            importers[module].add(where)
        if module in MODULES_OF_MANY:
            importers[f"{module}.{name}"].add(where)
    assert {"bluetooth", "network", "esp32.Partition", "esp32.NVS", "machine.WDT", "machine.RTC"} <= set(
        importers
    )
    assert not {name: files for name, files in importers.items() if len(files) > 1}


def test_only_the_wire_knows_the_network_and_only_the_clock_the_epoch() -> None:
    assert [path.name for path in _files() if "open_connection" in path.read_text()] == ["wire.py"]
    assert [path.name for path in _files() if "gmtime" in path.read_text()] == ["clock.py"]


def test_main_reads_in_a_minute() -> None:
    assert len((ROOT / "firmware/main.py").read_text().splitlines()) <= 150


def test_release_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == release.RELEASE


def _files() -> list[Path]:
    return [path for path in sorted((ROOT / "firmware").glob("*.py")) if path.name not in BUILD_FILES]


def _imports() -> Iterator[tuple[str, str, str]]:
    """(file, module, name) of every import that a board carries out, wherever it stands in the file."""
    for path in _files():
        tree = ast.parse(path.read_text())
        for_types = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
            for node in ast.walk(block)
        }
        for node in ast.walk(tree):
            if id(node) in for_types:
                continue
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield path.name, alias.name, "*"
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield path.name, node.module or "", alias.name
