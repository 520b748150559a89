"""The firmware on the word size and heap of a board: `python -m tests.bench.firmware`. Last line: JSON.

handler_alloc_bytes, handler_frames, handler_us beside empty_us (of an empty handler in the same run)
peak_heap_bytes: live after a collection, highest of 29 days; code is executed in place, as frozen code is,
  and without names_bytes, MicroPython's table of names, which frozen code has in flash
heap_growth_per_day_bytes: from day 2 on, when uptime is past 2^30 ms and its integer lies in the heap
append_per_s, drain_per_s: Records
kit_heap: the whole Kit on the virtual board, with Wi-Fi, TLS and visits (tests/firmware/heap_budget.py);
kit_heap_littlefs: the same from compiled files on littlefs, which needs PSRAM
"""

import asyncio
import json
import platform
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SETTLED = 2

sys.path.insert(0, str(ROOT / "tests/firmware"))

import heap_budget  # noqa: E402
import on_micropython  # noqa: E402
import test_handler_depth  # noqa: E402


def main() -> None:
    """Measure and print."""
    bits = 32 if platform.machine() == "x86_64" else 64
    with tempfile.TemporaryDirectory() as folder:
        handler = on_micropython.run(bits, "handler_path", Path(folder, "handler"))
        life = on_micropython.run(bits, "long_life", Path(folder, "life"))
        kit = _kit_heap(bits, Path(folder, "kit"), on_littlefs=False)
        from_files = _kit_heap(bits, Path(folder, "files"), on_littlefs=True)
    heap = life["heap_after_days"]
    print(
        f"MicroPython {bits}-bit, heap {on_micropython.HEAPS[bits]}: {life['readings']} readings in 29 days"
    )
    print(
        json.dumps(
            {
                "bits": bits,
                "handler_alloc_bytes": max(handler["alloc_bytes"], handler["alloc_bytes_worst"]),
                "handler_frames": test_handler_depth.frames(),
                "handler_us": round(handler["handler_us"], 1),
                "empty_us": round(handler["empty_us"], 2),
                "peak_heap_bytes": max(heap) - life["names_bytes"],
                "names_bytes": life["names_bytes"],
                "heap_growth_per_day_bytes": (heap[-1] - heap[SETTLED]) // (len(heap) - 1 - SETTLED),
                "append_per_s": life["append_per_s"],
                "drain_per_s": life["drain_per_s"],
                "kit_heap": kit,
                "kit_heap_littlefs": from_files,
            }
        )
    )


def _kit_heap(bits: int, folder: Path, *, on_littlefs: bool) -> dict[str, int]:
    heap = heap_budget.PSRAM_HEAP if on_littlefs else on_micropython.HEAPS[bits]
    folder.mkdir()
    rows = asyncio.run(heap_budget.measure(folder, bits, heap, on_littlefs=on_littlefs))
    where = "from littlefs" if on_littlefs else "executed in place"
    print(f"the whole Kit {where}: {heap_budget.table(rows)}")
    return rows


if __name__ == "__main__":
    main()
