"""What a whole Kit takes of a board's heap, and that it runs from compiled files on littlefs as well."""

import platform
from pathlib import Path

import heap_budget
import pytest
from on_micropython import HEAPS

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="a budget is of the board's word size: needs an x86-64 machine"
)

FROZEN_PEAK = 80_000
"""33 kB of what a stock board without PSRAM has left are spare, for what breaks it up and for surprises."""
LITTLEFS_PEAK = 200_000
"""Bytecode and names are in the heap then: only a board with PSRAM has room, and that is a tenth of 2 MB."""


async def test_frozen_kit_fits_a_board_without_psram(tmp_path: Path, say: list[str]) -> None:
    rows = await heap_budget.measure(tmp_path, 32, HEAPS[32])
    say.append(f"heap of the Kit, 32-bit, executed in place: {heap_budget.table(rows)}")
    assert rows["peak"] <= FROZEN_PEAK < heap_budget.CHIP_FREE


async def test_kit_runs_from_compiled_files_on_littlefs_with_psram(tmp_path: Path, say: list[str]) -> None:
    rows = await heap_budget.measure(tmp_path, 32, heap_budget.PSRAM_HEAP, on_littlefs=True)
    say.append(f"heap of the Kit, 32-bit, from littlefs: {heap_budget.table(rows)}")
    assert heap_budget.CHIP_FREE < rows["peak"] + rows["names"] <= LITTLEFS_PEAK
