"""The bench's register, `boards.json`: which MAC is which Kit. A board is one Kit's until it is wiped.

{"24:0A:C4:00:00:01": {"kit": "HW-0001", "state": "flashed", "image": "<sha256>", "at": "2026-11-26T09:00Z"}}

`begun` means that a write was under way: the board holds who knows what, and is that Kit's all the same.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hw.station import StationError

FILE = "boards.json"
BEGUN, FLASHED = "begun", "flashed"


class RegisterError(StationError):
    """A board or a Kit that is taken, or a register that can't be read."""


class Register:
    """The register in a bench's folder. Other programs of the bench may use it at the same time."""

    def __init__(self, bench: Path) -> None:
        self._path = bench / FILE

    def kit_of(self, mac: str) -> str | None:
        """The Kit that a board is, None for a free one."""
        row = self._load().get(mac.upper())
        return row["kit"] if row else None

    def boards_of(self, kit: str) -> list[str]:
        """MACs of the boards that are this Kit; more than one only while one is being replaced."""
        return sorted(mac for mac, row in self._load().items() if row["kit"] == kit)

    def is_flashed(self, kit: str) -> bool:
        """Whether a board of this Kit was written whole and verified."""
        return any(row["kit"] == kit and row["state"] == FLASHED for row in self._load().values())

    def check(self, mac: str, kit: str) -> None:
        """Raise RegisterError unless this board may become this Kit."""
        owner = self.kit_of(mac)
        if owner not in (None, kit):
            raise RegisterError(
                f"this board ({mac}) is Kit {owner}, not {kit}: take another board, or wipe it first "
                f"(homeward-station wipe {owner})"
            )
        for other in self.boards_of(kit):
            if other != mac.upper():
                raise RegisterError(
                    f"Kit {kit} has a board already ({other}): plug that one in, or wipe it first "
                    f"(homeward-station wipe {kit})"
                )

    def claim(self, mac: str, kit: str, *, image: str, state: str) -> None:
        """Note that this board is this Kit. Raises RegisterError when either is taken."""
        with self._locked():
            self.check(mac, kit)
            at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")
            self._save(self._load() | {mac.upper(): {"kit": kit, "state": state, "image": image, "at": at}})

    def release(self, mac: str) -> None:
        """A board that was wiped is nobody's."""
        with self._locked():
            rows = self._load()
            rows.pop(mac.upper(), None)
            self._save(rows)

    def _load(self) -> dict[str, dict[str, Any]]:
        try:
            rows: dict[str, dict[str, Any]] = json.loads(self._path.read_text())
            if not all({"kit", "state"} <= row.keys() for row in rows.values()):
                raise ValueError("a row without a Kit")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as problem:
            raise RegisterError(f"{self._path} can't be used: {problem}. Put back a copy of it") from None
        return rows

    def _save(self, rows: dict[str, dict[str, Any]]) -> None:
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
        part.replace(self._path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
