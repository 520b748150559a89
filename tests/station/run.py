"""
make test-station: the bench's promises, by the real esptool and emulated boards.

    python -m tests.station.run

Each part does its piece on boards of its own and returns what it found; the last line of stdout is all of it
as one JSON object. Exit code 1 when a promise is broken.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.station import flash_proof, wipe_proof

Part = Callable[[Path], dict[str, Any]]
PARTS: tuple[Part, ...] = (flash_proof.prove, wipe_proof.prove)
EXPECTED = {"secrets_outside_nvs": 0, "residue_bytes": 0}
"""Of a number that is not a yes or no: what it has to be."""


def broken(found: dict[str, Any]) -> list[str]:
    """The names of what is not as it has to be."""
    return [name for name, value in found.items() if value is False or value != EXPECTED.get(name, value)]


def main() -> int:
    """Run every part."""
    found: dict[str, Any] = {}
    for part in PARTS:
        with tempfile.TemporaryDirectory() as folder:
            found |= part(Path(folder))
    print(json.dumps(found))
    wrong = broken(found)
    if wrong:
        print(f"broken: {', '.join(wrong)}", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
