"""The application as it lies on a board's file system: compiled, with its pins, and a list of itself.

A stock MicroPython starts `boot.py` and `main.py` as source only; both are short, and the rest is `.mpy`. The
one rule: the same sources give the same bytes, so no time and no path of this machine gets in.
"""

import ast
import hashlib
import json
import subprocess
import tempfile
from pathlib import Path

from hw.station import StationError
from hw.station.board import Board

ROOT = Path(__file__).parents[2]
LIST = "release.json"
BOOT, MAIN = "boot.py", "main.py"

_PATTERNS = ("gateway/*.py", "gateway/sensors/*.py", "firmware/*.py")
_LEFT_OUT = ("firmware/manifest.py", "firmware/boot.py", "firmware/pins.py")
_MAIN = "hw/boards/HOMEWARD/main.py"


class ApplicationError(StationError):
    """The sources are not here, or do not compile."""


def files(board: Board) -> dict[str, bytes]:
    """The application's files for a board, by path on its file system. Raises ApplicationError."""
    if not (ROOT / "firmware/main.py").is_file():
        raise ApplicationError("the firmware's sources are not here: run this from a clone of the project")
    with tempfile.TemporaryDirectory() as work:
        try:
            tree = _compile(board, Path(work))
        except subprocess.CalledProcessError:
            raise ApplicationError(
                "mpy-cross refuses a file of the firmware; `make check` says which"
            ) from None
        found = {str(path.relative_to(tree)): path.read_bytes() for path in sorted(tree.rglob("*.mpy"))}
    return found | {BOOT: (ROOT / "firmware/boot.py").read_bytes(), MAIN: (ROOT / _MAIN).read_bytes()}


def listed(content: dict[str, bytes], board: Board, micropython: str) -> dict[str, bytes]:
    """The files, and a list that says what they are."""
    sums = {path: hashlib.sha256(content[path]).hexdigest() for path in sorted(content)}
    about = {"release": release(), "board": board.name, "micropython": micropython, "files": sums}
    return content | {LIST: json.dumps(about, indent=1).encode()}


def release() -> str:
    """The release of the firmware's sources, as firmware/release.py says. Raises ApplicationError."""
    for node in ast.parse((ROOT / "firmware/release.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "RELEASE":
            return str(ast.literal_eval(node.value))
    raise ApplicationError("firmware/release.py names no RELEASE")


def _compile(board: Board, work: Path) -> Path:
    from hw.virtual.romfs import compiled

    sources = [str(path.relative_to(ROOT)) for pattern in _PATTERNS for path in sorted(ROOT.glob(pattern))]
    tree = compiled(ROOT, [name for name in sources if name not in _LEFT_OUT], work / "tree")
    (work / "own/firmware").mkdir(parents=True)
    pins = "".join(f"{name.upper()} = {number}\n" for name, number in board.pins.items())
    (work / "own/firmware/pins.py").write_text(pins)
    return compiled(work / "own", ["firmware/pins.py"], tree)
