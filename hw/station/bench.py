"""The bench: a folder with `bench.toml`, what a technician's computer has to know. Checked before all else.

service = "https://homeward.example:8443"       # the Station's API of the service
ca = "ca.pem"                                   # the project CA, given by the operator
token_file = "token"                            # 0600; made by `homeward-sync technician add NAME`
board = "esp32-s3-8mb"                          # what Kits are made of
series = "HW"                                   # of the Kits' numbers
support = "0800 000 0000"                       # telephone number on the label
folder = "."                                    # Kits' folders, labels and receipts go below it
pairing_s = 0                                   # unknown Sensors may bond for so long after the first boot

[[networks]]                                    # that every Kit knows, the best one first
name = "homeward-router"
password = "..."

Paths are relative to the file, which holds passwords: its mode is 0600. Kits' identities go into `kits/`,
labels and receipts into `papers/`.
"""

import argparse
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hw.station import StationError, kit_folder

FILE_NAME = kit_folder.BENCH_FILE
PAPERS = "papers"
_OTHERS = 0o077
_KINDS: dict[str, type] = {
    "service": str,
    "ca": str,
    "token_file": str,
    "board": str,
    "series": str,
    "support": str,
    "folder": str,
    "pairing_s": int,
    "networks": list,
}
_WORDS = {str: "a text", int: "a whole number", list: "a list of tables"}
_NEEDED = ("service", "ca", "token_file", "networks")


class BenchError(StationError):
    """The bench is not set up; one sentence that names the file and says what to do."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A checked `bench.toml`. Secrets stay out of every `repr`."""

    service: str
    ca: Path
    token_file: Path
    networks: tuple[tuple[str, str], ...] = field(repr=False)
    folder: Path
    board: str = "esp32-s3-8mb"
    series: str = "HW"
    support: str = ""
    pairing_s: int = 0

    def kit_folder(self, kit: str) -> Path:
        """Where the Kit's identity lies (hw/station/kit_folder.py)."""
        return self.folder / kit_folder.KITS / kit

    def papers(self, kit: str) -> Path:
        """Where the Kit's label and receipts go."""
        return self.folder / PAPERS / kit

    def token(self) -> str:
        """The technician's token, read anew each time. Raises BenchError."""
        try:
            if self.token_file.stat().st_mode & _OTHERS:
                raise BenchError(f"others can read {self.token_file}: run `chmod 600 {self.token_file}`")
            token = self.token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as problem:
            raise BenchError(
                f"{self.token_file} can't be read ({_why(problem)}): ask the operator for a token"
            ) from None
        if not token.isascii() or not token.isprintable() or not token:
            raise BenchError(f"{self.token_file} does not hold a token: it is one line of letters and digits")
        return token


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every command of the bench takes."""
    kit_folder.add_bench(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--json", action="store_true", help="for programs")


def load(path: Path) -> Bench:
    """Return the checked config of a bench: its file, or the folder with that. Raises BenchError."""
    path = path if path.suffix == ".toml" else path / FILE_NAME
    try:
        if path.stat().st_mode & _OTHERS:
            raise BenchError(f"{path} holds passwords and others can read it: run `chmod 600 {path}`")
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise BenchError(f"there is no {path}: write one as README.md, 'A bench', shows") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise BenchError(f"{path}: {_why(problem)}") from None
    try:
        return _bench(table, path.absolute().parent)
    except BenchError as problem:
        raise BenchError(f"{path}: {problem}") from None


def _bench(table: dict[str, Any], base: Path) -> Bench:
    for key, value in table.items():
        if key not in _KINDS:
            raise BenchError(f"{key} is not a key of this file")
        if type(value) is not _KINDS[key]:
            raise BenchError(f"{key} must be {_WORDS[_KINDS[key]]}")
    for key in _NEEDED:
        if key not in table:
            raise BenchError(f"{key} is missing")
    _check_service(table["service"])
    if table.get("pairing_s", 0) < 0:
        raise BenchError("pairing_s must not be negative")
    paths = {"ca": base / table["ca"], "token_file": base / table["token_file"]}
    return Bench(
        **table
        | paths
        | {"folder": base / table.get("folder", "."), "networks": _networks(table["networks"])}
    )


def _check_service(service: str) -> None:
    parts = urlsplit(service)
    if parts.scheme != "https" or not parts.hostname or parts.path.strip("/") or parts.query:
        raise BenchError(f"service must be an address like https://homeward.example:8443, not {service!r}")


def _networks(rows: list[Any]) -> tuple[tuple[str, str], ...]:
    found = []
    for row in rows:
        if not isinstance(row, dict) or row.keys() - {"name", "password"} or "name" not in row:
            raise BenchError("each of [[networks]] has a name and a password, and nothing else")
        if not isinstance(row["name"], str) or not isinstance(row.get("password", ""), str):
            raise BenchError("a network's name and password are texts")
        found.append((row["name"], row.get("password", "")))
    if not found:
        raise BenchError("there must be at least one of [[networks]]")
    return tuple(found)


def _why(problem: Exception) -> str:
    return problem.strerror or str(problem) if isinstance(problem, OSError) else str(problem)
