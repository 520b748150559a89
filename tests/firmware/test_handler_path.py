"""P1 on the chip's interpreter: a value is in flash when the handler returns, and that takes no heap."""

from pathlib import Path

import on_micropython
import pytest


@pytest.mark.parametrize("bits", [64, 32])
def test_handler_keeps_every_value_at_every_uptime_without_allocating(
    bits: int, tmp_path: Path, say: list[str]
) -> None:
    result = on_micropython.run(bits, "handler_path", tmp_path)
    assert result["wrong"] == 0  # sizes whose Frame was not in flash, byte for byte, with its uptime
    assert result["failures"] == 0
    assert result["alloc_bytes"] == 0
    assert result["erased_late"] and result["alloc_bytes_worst"] == 0  # nor when it erases, or a block is bad
    # Three of 130 streamed values: one a minute. To leave one out takes no heap either.
    assert (result["streamed_kept"], result["streamed_thinned"]) == (3, 127)
    assert result["alloc_bytes_streamed"] == 0
    assert result["refusal_contained"]  # flash that takes nothing: counted, and the link is ended
    say.append(f"handler on {bits}-bit: {result['handler_us']:.0f} us, empty {result['empty_us']:.2f} us")
