"""Config of the Linux Gateway: a TOML file, checked once, before anything starts.

kit = "HW-0001"
journal = "journal.flash"          # made when it is not there; paths are relative to this file
journal_kib = 1024
sensors = "sensors.json"
stream_s = 60                      # of continuous oximetry, keep one value in so many seconds

[broker]
host = "127.0.0.1"
port = 8883
ca = "ca.pem"
certificate = "kit.pem"
key = "kit.key"
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.errors import HomewardError
from gateway.limits import BLOCK_BYTES, RESERVE_BLOCKS, STREAM_WINDOW_MAX_MS, STREAM_WINDOW_MS

_KIT = re.compile(r"[A-Z0-9][A-Z0-9-]{1,15}")
_MIN_BLOCKS = RESERVE_BLOCKS + 2
_MAX_JOURNAL_KIB = 16 * 1024  # the largest flash of the boards that this Gateway stands for


class ConfigError(HomewardError):
    """A wrong value; the message is one sentence that names the key."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a Linux Gateway needs to run. The private key stays in its file."""

    kit: str
    journal: Path
    sensors: Path
    host: str
    port: int
    ca: Path
    certificate: Path
    key: Path
    journal_kib: int = 1024
    stream_s: int = STREAM_WINDOW_MS // 1000


def load(path: Path) -> Config:
    """Return the checked config of a TOML file. Raises ConfigError."""
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return _check(table, path.parent)


def _check(table: dict[str, Any], folder: Path) -> Config:
    broker = _take(table, "broker", dict)
    config = Config(
        kit=_take(table, "kit", str),
        journal=folder / _take(table, "journal", str),
        journal_kib=_take(table, "journal_kib", int, 1024),
        sensors=folder / _take(table, "sensors", str),
        stream_s=_take(table, "stream_s", int, STREAM_WINDOW_MS // 1000),
        host=_take(broker, "host", str),
        port=_take(broker, "port", int, 8883),
        ca=folder / _take(broker, "ca", str),
        certificate=folder / _take(broker, "certificate", str),
        key=folder / _take(broker, "key", str),
    )
    for unknown in [*table, *broker]:
        raise ConfigError(f"{unknown} is not a key of this file")
    _check_values(config)
    return config


def _take(table: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = table.pop(key, default)
    if value is None:
        raise ConfigError(f"{key} is missing")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{key} must be {_KINDS[kind]}, not {value!r}")
    return value


_KINDS = {str: "a text", int: "a whole number", dict: "a table"}


def _check_values(config: Config) -> None:
    if not _KIT.fullmatch(config.kit):
        raise ConfigError(f"kit must look like HW-0001, not {config.kit!r}")
    if not config.host:
        raise ConfigError("host is empty")
    if not 0 < config.port < 65536:
        raise ConfigError(f"port must be between 1 and 65535, not {config.port}")
    if not 0 < config.stream_s <= STREAM_WINDOW_MAX_MS // 1000:
        raise ConfigError(
            f"stream_s must be between 1 and {STREAM_WINDOW_MAX_MS // 1000}, not {config.stream_s}"
        )
    least = _MIN_BLOCKS * BLOCK_BYTES // 1024
    if not least <= config.journal_kib <= _MAX_JOURNAL_KIB or config.journal_kib % (BLOCK_BYTES // 1024):
        raise ConfigError(
            f"journal_kib must be a multiple of {BLOCK_BYTES // 1024} between {least} and {_MAX_JOURNAL_KIB}"
            f", not {config.journal_kib}"
        )
    for name in ("ca", "certificate", "key"):
        if not getattr(config, name).is_file():
            raise ConfigError(f"{name}: there is no file {getattr(config, name)}")
