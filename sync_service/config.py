"""Config of the Sync Service: a TOML file, checked once, before anything starts. Paths are relative to it.

store = "sqlite:///store.sqlite"
time_zone = "Europe/London"             # of the homes
max_bracket_min = 720                   # a time known less well than this is held

[broker]
host = "127.0.0.1"
port = 8883
ca = "ca/ca.pem"
certificate = "service/service.pem"
key = "service/service.key"

[hub]
url = "http://127.0.0.1:8080"
token_file = "hub.token"                # optional: sent as bearer token
conditional_create_races = false        # true: search before a retry

[console]
host = "127.0.0.1"
port = 8090

[station]                               # optional: the API of the technicians' bench
host = "0.0.0.0"
port = 8443
certificate = "station/server.pem"
key = "station/server.key"
kit_host = "homeward.example"           # the broker as Kits know it (default: broker.host)
self_test_days = 30                     # an older self-test does not let a Kit leave
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

T = TypeVar("T")

FILE_NAME = "sync.toml"
_SQLITE = "sqlite:///"
_MAX_BRACKET_MIN = 7 * 24 * 60  # beyond a week nobody would call it a time
_MAX_SELF_TEST_DAYS = 366  # a battery and a radio that were tested last year say nothing
_KINDS = {str: "a text", int: "a whole number", bool: "true or false", dict: "a table"}


class ConfigError(Exception):
    """A wrong value; the message is one sentence that names the key."""


@dataclass(frozen=True, kw_only=True)
class Broker:
    """Where the broker is and who we are to it. The private key stays in its file."""

    host: str
    port: int
    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, kw_only=True)
class HubAddress:
    """Where the Hub is. The token stays in its file: no `repr` and no message shows it."""

    url: str
    token_file: Path | None
    conditional_create_races: bool

    def token(self) -> str | None:
        """The bearer token, read anew at each start. Raises ConfigError."""
        if self.token_file is None:
            return None
        try:
            return self.token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"hub.token_file can't be read: {error}") from None


@dataclass(frozen=True, kw_only=True)
class StationApi:
    """Where the Station's API listens, and what it tells the Station. The private key stays in its file."""

    host: str
    port: int
    certificate: Path
    key: Path
    kit_host: str
    self_test_days: int


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the service needs to run."""

    folder: Path
    store: Path
    zone: ZoneInfo
    max_bracket_ms: int
    broker: Broker
    hub: HubAddress
    console_host: str
    console_port: int
    station: StationApi | None = None


def load(folder: Path) -> Config:
    """Return the checked config of a folder made by `homeward-sync init`. Raises ConfigError."""
    path = folder / FILE_NAME
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path} is not there: make it with `homeward-sync init {folder}`") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        return _config(_Table("", table), folder)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


class _Table:
    """One table of the file: keys are taken out of it, so that what is left is unknown."""

    def __init__(self, name: str, content: dict[str, Any]) -> None:
        self._name, self._content = name, content

    @property
    def is_empty(self) -> bool:
        return not self._content

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        value = self._content.pop(key, default)
        if value is None:
            raise ConfigError(f"{self._name}{key} is missing")
        if type(value) is not kind:
            raise ConfigError(f"{self._name}{key} must be {_KINDS[kind]}, not {value!r}")
        return value

    def table(self, key: str) -> "_Table":
        return _Table(f"{self._name}{key}.", self.take(key, dict, {}))

    def port(self, key: str, default: int) -> int:
        port = self.take(key, int, default)
        if not 0 < port < 65536:
            raise ConfigError(f"{self._name}{key} must be between 1 and 65535, not {port}")
        return port

    def file(self, key: str, folder: Path, default: str) -> Path:
        path = folder / self.take(key, str, default)
        if not path.is_file():
            raise ConfigError(f"{self._name}{key}: there is no file {path}")
        return path

    def end(self) -> None:
        for key in self._content:
            raise ConfigError(f"{self._name}{key} is not a key of this file")


def _config(table: _Table, folder: Path) -> Config:
    broker, hub, console = table.table("broker"), table.table("hub"), table.table("console")
    broker_host = broker.take("host", str)
    config = Config(
        folder=folder,
        store=store_path(table.take("store", str, "sqlite:///store.sqlite"), folder),
        zone=zone_of(table.take("time_zone", str, "Europe/London")),
        max_bracket_ms=_bracket_ms(table.take("max_bracket_min", int, 720)),
        broker=Broker(
            host=broker_host,
            port=broker.port("port", 8883),
            ca=broker.file("ca", folder, "ca/ca.pem"),
            certificate=broker.file("certificate", folder, "service/service.pem"),
            key=broker.file("key", folder, "service/service.key"),
        ),
        hub=HubAddress(
            url=hub_url(hub.take("url", str)),
            token_file=_token_file(hub, folder),
            conditional_create_races=hub.take("conditional_create_races", bool, False),
        ),
        console_host=console.take("host", str, "127.0.0.1"),
        console_port=console.port("port", 8090),
        station=_station(table.table("station"), folder, broker_host),
    )
    for one in (table, broker, hub, console):
        one.end()
    return config


def _station(station: _Table, folder: Path, broker_host: str) -> StationApi | None:
    if station.is_empty:
        return None
    days = station.take("self_test_days", int, 30)
    if not 0 < days <= _MAX_SELF_TEST_DAYS:
        raise ConfigError(f"station.self_test_days must be between 1 and {_MAX_SELF_TEST_DAYS}, not {days}")
    found = StationApi(
        host=station.take("host", str, "127.0.0.1"),
        port=station.port("port", 8443),
        certificate=station.file("certificate", folder, "station/server.pem"),
        key=station.file("key", folder, "station/server.key"),
        kit_host=station.take("kit_host", str, broker_host),
        self_test_days=days,
    )
    station.end()
    return found


def store_path(url: str, folder: Path) -> Path:
    """The file of a Store's URL: `sqlite:///relative` or `sqlite:////absolute`. Raises ConfigError."""
    if not url.startswith(_SQLITE) or url == _SQLITE:
        raise ConfigError(f"store must be sqlite:///PATH, not {url!r}: this release has no other Store")
    return folder / url.removeprefix(_SQLITE)


def _token_file(hub: _Table, folder: Path) -> Path | None:
    name = hub.take("token_file", str, "")
    return folder / name if name else None


def zone_of(name: str) -> ZoneInfo:
    """The time zone of a name like Europe/London. Raises ConfigError."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ConfigError(f"time_zone {name!r} is not known on this machine") from None


def _bracket_ms(minutes: int) -> int:
    if not 0 < minutes <= _MAX_BRACKET_MIN:
        raise ConfigError(f"max_bracket_min must be between 1 and {_MAX_BRACKET_MIN}, not {minutes}")
    return minutes * 60_000


def hub_url(url: str) -> str:
    """The address of a Hub, checked. Raises ConfigError."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError("hub.url is not an address") from None
    if parts.username or parts.password or parts.query:
        raise ConfigError("hub.url must carry no user, password or query: a token goes into hub.token_file")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"hub.url must be an http or https address, not {url!r}")
    return url
