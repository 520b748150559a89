"""Weeks in a Kit with the heap of a board: what it takes on the first day is what it takes on the last."""

from pathlib import Path

import on_micropython
import pytest

PEAK_BYTES = 60_000
"""On 32 bit, of the core and the radio: half of what a board without PSRAM has."""
SETTLED = 2  # days until uptime is past 2^30 ms: integers above that have bytes in the heap


@pytest.mark.parametrize("bits", [64, 32])
def test_heap_does_not_grow_in_weeks_of_readings_and_reconnects(
    bits: int, tmp_path: Path, say: list[str]
) -> None:
    result = on_micropython.run(bits, "long_life", tmp_path)
    assert result["failures"] == 0
    assert result["received"] >= result["readings"] >= 20_000
    heap = result["heap_after_days"]
    assert len(set(heap[SETTLED:])) == 1
    live = max(heap) - result["names_bytes"]
    assert bits == 64 or live <= PEAK_BYTES
    say.append(
        f"20,010 readings in 29 days on {bits}-bit: {live} bytes of heap, "
        f"{result['append_per_s']} appends/s, {result['drain_per_s']} drained/s"
    )
