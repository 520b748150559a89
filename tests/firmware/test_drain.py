"""A backlog of 40,000 Records, months of a patient's readings, drains through the heap of a board."""

from pathlib import Path

import on_micropython
import pytest

IN_FLIGHT_BYTES = 128
"""What one look sees and the next does not: a nonce, the times of a flight, the list of a peek."""


@pytest.mark.parametrize("bits", [64, 32])
def test_40_000_records_drain_and_the_heap_does_not_grow(bits: int, tmp_path: Path, say: list[str]) -> None:
    result = on_micropython.run(bits, "drain", tmp_path)
    assert result["through"] == result["last"] > 40_000
    assert result["gaps"] == 0
    assert result["peeks"] >= 5 and result["resent"] >= 50
    heap = result["heap"]
    assert min(heap) > 0
    assert max(heap) - min(heap) <= IN_FLIGHT_BYTES
    say.append(
        f"{result['last']} Records drained on {bits}-bit in {result['batches']} Batches, {result['peeks']} "
        f"peeks among them: {max(heap)} bytes of heap"
    )
