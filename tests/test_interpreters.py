"""The Gateway's tests pass on CPython and on real MicroPython with 64-bit and 32-bit words: all of them.

The 32-bit run is the nearest that a host comes to the board: the board's word size, a heap as large as an
ESP32 without PSRAM has left, and compiled files that are executed where they lie, as a release is. Each test
file has a process, and so a heap, of its own.
"""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from hw.virtual import programs, romfs

ROOT = Path(__file__).parent.parent
RUNNER = "tests/micropython"
SUITE = "tests/gateway"
BOARD_HEAP = "120k"


class Run(NamedTuple):
    """The whole suite on one interpreter."""

    interpreter: str
    passed: int
    failures: str  # what the failed tests printed; empty when all passed


@pytest.fixture(scope="module")
def cpython() -> Run:
    done = _started([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", SUITE])
    # Anything failed or skipped would stand between the number and "in".
    passed = re.search(r"^(\d+) passed in ", done.stdout, re.MULTILINE)
    name = f"CPython {platform.python_version()}"
    return Run(name, int(passed[1]), "") if passed and not done.returncode else Run(name, 0, done.stdout)


@pytest.fixture(scope="module")
def micropython64() -> Run:
    return _on_micropython([*programs.micropython(64), f"{RUNNER}/run.py"], ROOT, _modules())


@pytest.fixture
def micropython32(tmp_path_factory: pytest.TempPathFactory, say: list[str]) -> Run:
    if platform.machine() != "x86_64":
        pytest.skip(f"MicroPython 32-bit needs an x86-64 machine; this one is {platform.machine()}")
    rom = tmp_path_factory.mktemp("board") / "suite.rom"
    rom.write_bytes(romfs.image(romfs.compiled(ROOT, _sources(), rom.parent / "suite")))
    try:
        command = [*programs.micropython(32), "-X", f"heapsize={BOARD_HEAP}", f"{RUNNER}/rom.py"]
    except programs.ProgramMissing as missing:
        if "CI" in os.environ:
            raise
        # Ubuntu has no 32-bit packages of it: there the board's word size is not tested, and that is said.
        say.append(f"gateway suite: MicroPython 32-bit: NOT RUN: {missing}")
        pytest.skip(str(missing))
    runs = [_on_micropython([*command, str(rom), RUNNER, "run"], "/rom", [module]) for module in _modules()]
    failures = "".join(run.failures for run in runs)
    return Run(f"{runs[0].interpreter} heap {BOARD_HEAP}", sum(run.passed for run in runs), failures)


def test_gateway_suite_passes_on_cpython(cpython: Run, say: list[str]) -> None:
    _all_pass(cpython, say)


def test_gateway_suite_passes_on_64_bit_micropython_in_equal_number(
    cpython: Run, micropython64: Run, say: list[str]
) -> None:
    _all_pass(micropython64, say)
    assert micropython64.passed == cpython.passed


def test_gateway_suite_passes_on_32_bit_micropython_with_the_heap_of_a_board_in_equal_number(
    cpython: Run, micropython32: Run, say: list[str]
) -> None:
    _all_pass(micropython32, say)
    assert micropython32.passed == cpython.passed


def _all_pass(run: Run, say: list[str]) -> None:
    assert not run.failures, run.failures
    assert run.passed > 0
    say.append(f"gateway suite: {run.interpreter}: {run.passed} passed")


def _modules() -> list[str]:
    return sorted(path.stem for path in (ROOT / SUITE).glob("test_*.py"))


def _sources() -> list[str]:
    """The core, its tests, and what runs them."""
    folders = ("gateway", "gateway/sensors", SUITE, RUNNER)
    return [str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).glob("*.py")]


def _on_micropython(command: list[str], root: Path | str, modules: list[str]) -> Run:
    done = _started([*command, str(root), *modules])
    if done.returncode:
        return Run("MicroPython", 0, f"{modules}: {done.stdout}{done.stderr}")
    counts = json.loads(done.stdout.splitlines()[-1])
    failures = done.stdout if counts["failed"] else ""
    return Run(counts["interpreter"], counts["ran"] - counts["failed"], failures)


def _started(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
