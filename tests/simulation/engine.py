"""The engine: an asyncio event loop whose time jumps to the next timer, and processes that end at any step.

Nothing here waits: a fortnight takes as long as its work. Single-threaded, and ordered by time and then by
who asked first, so that one seed gives one run.

A process is whatever power or a signal ends at once: a boot of a Kit, a worker of the service. Its tasks
share a context, by which the loop knows them. What has ended is never run again, not even its `finally`: that
is the difference between `kill -9` and a cancellation.
"""

import asyncio
import weakref
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from heapq import heappop
from typing import Any

_PROCESS: ContextVar["Process"] = ContextVar("process")
_ENDED: list[object] = []
"""Tasks of what was killed. Freed, they would run their `finally` after all."""


class Process:
    """Runs until `kill`; `on_end` is called then, in the world's own context."""

    def __init__(self, name: str, on_end: Callable[[], None] | None = None) -> None:
        self.name = name
        self.alive = True
        self.steps = 0
        self.on_end = on_end
        self.tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self.context = Context()
        self.context.run(_PROCESS.set, self)
        self._last: int | None = None

    def kill(self) -> None:
        """End at once."""
        if self.alive:
            self.alive = False
            _ENDED.extend(self.tasks)
            if self.on_end is not None:
                self.on_end()

    def kill_after(self, steps: int) -> None:
        """End after so many more steps of the loop: between any two awaits."""
        self._last = self.steps + steps

    def may_step(self) -> bool:
        """Count a step; False: it has ended."""
        if not self.alive:
            return False
        self.steps += 1
        if self._last is not None and self.steps > self._last:
            self.kill()
        return self.alive


class Loop(asyncio.BaseEventLoop):
    """Virtual time in seconds from 0. `failures` holds what no task has caught: a mistake of the world's."""

    _ready: Any
    _scheduled: Any

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self.steps = 0
        self.most_steps = 1 << 60  # then it stops: something runs in circles
        self.failures: list[str] = []
        self.set_exception_handler(self._failed)
        self.set_task_factory(_task)

    def time(self) -> float:
        """Seconds since the world began."""
        return self._now

    def spawn(
        self, process: Process | None, work: Coroutine[Any, Any, None], name: str = ""
    ) -> asyncio.Task[None]:
        """Begin a task of a process, None: of the world."""
        context = Context() if process is None else process.context
        return self.create_task(work, name=name, context=context)

    def after(self, delay_s: float, process: Process | None, call: Callable[..., object], *args: Any) -> None:
        """Call later, if the process is still there."""
        self.call_later(delay_s, call, *args, context=Context() if process is None else process.context)

    def run_until(self, end_s: float) -> None:
        """Run what is due before this time."""
        asyncio._set_running_loop(self)
        try:
            while self.steps < self.most_steps and self._step(end_s):
                pass
        finally:
            asyncio._set_running_loop(None)
        self._now = max(self._now, end_s)

    def _step(self, end_s: float) -> bool:
        """Run one handle; False: nothing is due any more."""
        ready, scheduled = self._ready, self._scheduled
        if not ready:
            if not scheduled or scheduled[0]._when > end_s:
                return False
            handle = heappop(scheduled)
            handle._scheduled = False
            self._now = max(self._now, handle._when)
        else:
            handle = ready.popleft()
        if handle._cancelled:
            return True
        process = handle._context.get(_PROCESS)
        if process is None or process.may_step():
            self.steps += 1
            handle._run()
        else:
            _ENDED.append(handle)
        return True

    def _failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.failures.append(f"{context['message']}: {error!r}")
        if error is not None and error.__traceback__ is not None:
            where = error.__traceback__
            while where.tb_next is not None:
                where = where.tb_next
            code = where.tb_frame.f_code
            self.failures[-1] += f" at {code.co_filename}:{where.tb_lineno}"


def _task(loop: asyncio.AbstractEventLoop, work: Any, context: Context | None = None) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, context=context)
    process = context.get(_PROCESS) if context is not None else _PROCESS.get(None)
    if process is not None:
        process.tasks.add(task)
    return task
