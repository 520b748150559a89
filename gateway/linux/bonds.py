"""The list of bonded Sensors in a JSON file: a power cut leaves the old list or the new one."""

import json
import os
from pathlib import Path
from typing import Any

from gateway.linux.config import ConfigError


class BondsFile:
    """Gateway's `Bonds` over a file; no file is an empty list."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> list[dict[str, Any]]:
        """Return the bonded Sensors. Raises ConfigError when the file is not such a list."""
        try:
            sensors = json.loads(self._path.read_text())
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise ConfigError(f"sensors: {self._path}: {error}") from None
        if not isinstance(sensors, list):
            raise ConfigError(f"sensors: {self._path} does not hold a list")
        return sensors

    def save(self, sensors: list[dict[str, Any]]) -> None:
        """Replace the list."""
        new = self._path.with_name(self._path.name + ".new")
        with new.open("w") as file:
            json.dump(sensors, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
