"""Config: a wrong value is one sentence that names its key."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.linux.config import Config, ConfigError, load

Write = Callable[[str], Path]

GOOD = """
kit = "HW-0001"
journal = "journal.flash"
sensors = "sensors.json"
[broker]
host = "127.0.0.1"
port = 18883
ca = "ca.pem"
certificate = "kit.pem"
key = "kit.key"
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    for name in ("ca.pem", "kit.pem", "kit.key"):
        (tmp_path / name).touch()

    def write(text: str) -> Path:
        path = tmp_path / "gateway.toml"
        path.write_text(text)
        return path

    return write


def test_paths_are_relative_to_the_file(write: Write, tmp_path: Path) -> None:
    config = load(write(GOOD))
    assert config == Config(
        kit="HW-0001",
        journal=tmp_path / "journal.flash",
        journal_kib=1024,
        sensors=tmp_path / "sensors.json",
        host="127.0.0.1",
        port=18883,
        ca=tmp_path / "ca.pem",
        certificate=tmp_path / "kit.pem",
        key=tmp_path / "kit.key",
    )


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('kit = "HW-0001"', "", "kit is missing"),
        ('kit = "HW-0001"', "kit = 7", "kit must be a text, not 7"),
        ('"HW-0001"', '"hw/+"', "kit must look like HW-0001, not 'hw/+'"),
        ("[broker]", "stream_s = 0\n[broker]", "stream_s must be between 1 and 600, not 0"),
        ("[broker]", "stream_s = 601\n[broker]", "stream_s must be between 1 and 600, not 601"),
        ("port = 18883", "port = 0", "port must be between 1 and 65535, not 0"),
        ("port = 18883", "port = true", "port must be a whole number, not True"),
        ("port = 18883", 'prot = "x"', "prot is not a key of this file"),
        ('"127.0.0.1"', '""', "host is empty"),
        (
            'kit = "HW-0001"',
            'kit = "HW-0001"\njournal_kib = 10',
            "journal_kib must be a multiple of 4",
        ),
        ('"kit.key"', '"other.key"', "key: there is no file"),
        ("[broker]", "[brokre]", "broker is missing"),
        ("[broker]", "[broker", "Expected"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(write: Write, old: str, new: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)) as raised:
        load(write(GOOD.replace(old, new)))
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gateway.toml"):
        load(tmp_path / "gateway.toml")
