"""Report: what a command tells the technician, or a program: lines, or one object at the end.

The rule: the plan is said before anything is done, and with --dry-run nothing is done after it.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any, TextIO

_BAR = 30


class Report:
    """`json`: stdout holds the result alone, and everything for people goes to stderr."""

    def __init__(self, *, json: bool, dry_run: bool) -> None:
        self._json, self.dry_run = json, dry_run

    def plan(self, title: str, steps: Sequence[str]) -> bool:
        """Say what will be done; whether to do it."""
        if self.dry_run and self._json:
            print(json.dumps({"dry_run": True, "title": title, "plan": list(steps)}))
            return False
        out = self._people()
        print(f"{title}:", file=out)
        for number, step in enumerate(steps, 1):
            print(f"  {number}. {step}", file=out)
        if self.dry_run:
            print("(dry run: nothing was done)", file=out)
        return not self.dry_run

    def say(self, line: str) -> None:
        """One line for people, at once."""
        print(line, file=self._people(), flush=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """How far long work is; only where somebody looks."""
        out = sys.stderr
        if not out.isatty():
            return
        filled = _BAR * done // max(total, 1)
        end = "\n" if done >= total else ""
        print(
            f"\r  {what} [{'#' * filled}{'.' * (_BAR - filled)}] {100 * done // max(total, 1):3}%",
            end=end,
            file=out,
            flush=True,
        )

    def result(self, value: dict[str, Any], sentence: str) -> None:
        """How it ended: JSON for programs, a sentence for people."""
        print(json.dumps(value) if self._json else sentence, flush=True)

    def _people(self) -> TextIO:
        return sys.stderr if self._json else sys.stdout
