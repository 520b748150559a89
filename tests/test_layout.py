"""Who may import whom, held by walking the syntax trees: the pure core stays pure, and data moves one way."""

import ast
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

# Each file of the core imports only what stands before it.
# fmt: off
CORE_ORDER = [
    "port", "limits", "errors", "record", "message", "reading", "sensors", "timebase", "block", "journal",
    "sensor_session", "peek", "uplink", "stream", "sntp", "update", "network", "status", "gateway",
]
# fmt: on
# What MicroPython has, and what the core may know of the world. `typing` is for checkers alone.
CORE_STDLIB = {"struct", "binascii", "hashlib", "json", "collections"}  # collections: for namedtuple
TYPES_ONLY = {"typing", "collections.abc"}
BOARD_MODULES = {"bluetooth", "network", "machine", "esp32"}
SHARED_WITH_THE_SERVICE = {"record", "message", "reading", "sensors", "timebase", "limits", "errors", "port"}
PARTS = {"gateway", "hw", "sync_service", "firmware", "tests"}

# fmt: off
TOP_LEVEL = {
    ".ci", ".editorconfig", ".gitignore", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md",
    "DECISIONS.md", "LICENSE", "Makefile", "README.md", "SECURITY.md", "constraints.txt", "firmware",
    "gateway", "hw", "pyproject.toml", "sync_service", "tests",
}
# fmt: on


class Import(NamedTuple):
    where: str  # file:line
    module: str  # dotted; for "from a import b" it is "a.b" when that is a module of ours
    typing_only: bool


def test_core_files_import_only_what_stands_above_them() -> None:
    wrong = []
    for path in _core_files():
        above = set(CORE_ORDER[: CORE_ORDER.index(_core_name(path))])
        if path.parent.name == "sensors":
            above.add("sensors")
        for found in _imports(path):
            part, _, rest = found.module.partition(".")
            if part == "gateway" and rest.split(".")[0] not in above:
                wrong.append(found)
    assert not wrong


def test_core_knows_no_world() -> None:
    wrong = []
    for path in _core_files():
        allowed = CORE_STDLIB | {"gateway"} | ({"micropython"} if path.name == "port.py" else set())
        for found in _imports(path):
            known = found.module.split(".")[0] in allowed
            if not known and not (found.typing_only and found.module in TYPES_ONLY):
                wrong.append(found)
    assert not wrong


def test_core_and_board_have_no_async_generator() -> None:
    # MicroPython parses one and silently makes a plain generator of it.
    wrong = []
    for path in [*_core_files(), *_files("firmware")]:
        for function in ast.walk(_tree(path)):
            if isinstance(function, ast.AsyncFunctionDef) and _yields(function):
                wrong.append(f"{path.relative_to(ROOT)}:{function.lineno}")
    assert not wrong


@pytest.mark.parametrize("part", ["gateway/linux", "gateway", "firmware"])
def test_gateway_knows_neither_service_nor_bench(part: str) -> None:
    assert not [
        found for found in _imports_under(part) if found.module.split(".")[0] in {"sync_service", "hw"}
    ]


def test_service_shares_only_the_codec_and_the_decoder_with_the_gateway() -> None:
    wrong = []
    for found in _imports_under("sync_service"):
        part, _, rest = found.module.partition(".")
        if part in {"hw", "firmware"} or (
            part == "gateway" and rest.split(".")[0] not in SHARED_WITH_THE_SERVICE
        ):
            wrong.append(found)
    assert not wrong


def test_checker_and_virtual_sensors_share_nothing_with_what_they_judge() -> None:
    judges = [ROOT / "hw/demo/checker.py", *_files("hw/virtual")]
    judged = {"gateway", "sync_service"}
    wrong = [found for path in judges for found in _imports(path) if found.module.split(".")[0] in judged]
    assert not wrong


def test_only_virtual_hardware_and_tests_import_bumble() -> None:
    _only_importers({"bumble"}, ("hw/virtual/", "tests/"))


def test_only_the_board_imports_board_modules() -> None:
    _only_importers(
        BOARD_MODULES, ("firmware/", "hw/boards/HOMEWARD/", "hw/virtual/board", "hw/hil/probe.py")
    )


def test_nothing_but_tests_imports_tests() -> None:
    _only_importers({"tests"}, ("tests/",))


def test_tree_holds_only_what_has_a_place() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git clone: which files belong to the tree is git's knowledge")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert {name.split("/")[0] for name in listed} <= TOP_LEVEL


def _only_importers(modules: set[str], places: tuple[str, ...]) -> None:
    wrong = [
        found
        for part in sorted(PARTS)
        for found in _imports_under(part)
        if found.module.split(".")[0] in modules and not found.where.startswith(places)
    ]
    assert not wrong


def _core_files() -> list[Path]:
    """The core; a file that has no place in the order fails as soon as that place is asked for."""
    return sorted([*(ROOT / "gateway").glob("*.py"), *(ROOT / "gateway/sensors").glob("*.py")])


def _core_name(path: Path) -> str:
    if path.parent.name == "sensors":
        return "sensors"
    # The package itself stands at the very top: it imports nothing.
    return CORE_ORDER[0] if path.stem == "__init__" else path.stem


def _files(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py"))


def _imports_under(part: str) -> Iterator[Import]:
    for path in _files(part):
        yield from _imports(path)


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _imports(path: Path) -> Iterator[Import]:
    tree = _tree(path)
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        for module in _modules(node, path):
            yield Import(f"{path.relative_to(ROOT)}:{node.lineno}", module, id(node) in for_types)  # type: ignore[attr-defined]


def _modules(node: ast.AST, path: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert node.level == 0 and node.module, f"{path}:{node.lineno}: imports are absolute"
    if node.module.split(".")[0] not in PARTS:
        return [node.module]
    return [f"{node.module}.{alias.name}" for alias in node.names]


def _yields(function: ast.AsyncFunctionDef) -> bool:
    """Whether the function itself yields (not one that is defined inside it)."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))
    return False
