"""Wait: for an event or an answer, and not for ever."""

import asyncio
import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import TypeVar

    Answer = TypeVar("Answer")

_TimeoutError = asyncio.TimeoutError  # noqa: UP041 - MicroPython has no builtin of this name


async def for_event(event: "asyncio.Event | asyncio.ThreadSafeFlag", wait_ms: int) -> bool:
    """Wait for it; return whether it came in time."""
    try:
        await asyncio.wait_for_ms(event.wait(), max(wait_ms, 1))
    except _TimeoutError:
        return False
    return True


async def for_answer(answer: "Coroutine[None, None, Answer]", wait_ms: int) -> "Answer":
    """Return the answer. Raises OSError (ETIMEDOUT) when it has not come in time."""
    try:
        return await asyncio.wait_for_ms(answer, wait_ms)
    except _TimeoutError:
        raise OSError(errno.ETIMEDOUT) from None
