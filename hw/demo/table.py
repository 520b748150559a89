"""The live table on stderr: drawn in place on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table as Grid
from rich.text import Text

if TYPE_CHECKING:
    from hw.demo.main import Run

LINE_EVERY_S = 5.0


class Table:
    """`draw` as often as you like; `with` leaves the terminal as it was."""

    def __init__(self, console_url: str, *, seed: int) -> None:
        self._title = f"Homeward demo, seed {seed}. Each Kit's latest Readings: {console_url}"
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)
        self._said_at = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        else:
            self._console.print(self._title, highlight=False, soft_wrap=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def draw(self, run: "Run") -> None:
        """Show the run as it is now."""
        if self._console.is_terminal:
            self._live.update(Group(Text(self._title), self._grid(run), Text("Ctrl-C stops everything.")))
        elif time.monotonic() - self._said_at >= LINE_EVERY_S:
            self._said_at = time.monotonic()
            self._console.print(_line(run), highlight=False, soft_wrap=True)

    def _grid(self, run: "Run") -> Grid:
        grid = Grid(box=None, padding=(0, 2, 0, 0))
        for heading in ("Kit", "measured", "in the Sensors", "at the Hub"):
            grid.add_column(heading, justify="left" if heading == "Kit" else "right")
        for kit, home in run.world.homes.items():
            measured = home.measurements()
            at_hub = sum((m.serial, m.number) in run.verdict.arrived for m in measured)
            held = sum(m.end is None for m in measured)
            grid.add_row(kit, str(len(measured)), str(held), str(at_hub))
        grid.add_section()
        grid.add_row(_line(run))
        return grid


def _line(run: "Run") -> str:
    verdict = run.verdict
    parts = [name for name, part in run.world.parts.items() if not part.running]
    network = "the homes are off line, " if run.faults.offline else ""
    down = f"down: {', '.join(parts)}, " if parts else ""
    return (
        f"{verdict.taken} measured, {verdict.at_hub} at the Hub, {verdict.missing} under way, "
        f"{verdict.possible_repeats} possible repeats, {network}{down}"
        f"{time.monotonic() - run.started:.0f} s"
    )
