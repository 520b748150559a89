from pathlib import Path

import pytest

from sync_service.config import ConfigError, load, store_path

WHOLE = """
store = "sqlite:///kept/store.sqlite"
time_zone = "Europe/Dublin"
max_bracket_min = 30
[broker]
host = "broker.example"
port = 8884
ca = "ca"
certificate = "certificate"
key = "key"
[hub]
url = "https://hub.example/fhir"
token_file = "token"
conditional_create_races = true
[console]
host = "0.0.0.0"
port = 8091
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("ca", "certificate", "key"):
        (tmp_path / name).touch()
    (tmp_path / "token").write_text("s3cret\n")
    (tmp_path / "sync.toml").write_text(WHOLE)
    return tmp_path


def test_every_key_is_read(place: Path) -> None:
    config = load(place)
    assert (config.store, config.zone.key) == (place / "kept/store.sqlite", "Europe/Dublin")
    assert config.max_bracket_ms == 1_800_000
    assert (config.broker.host, config.broker.port, config.broker.ca) == (
        "broker.example",
        8884,
        place / "ca",
    )
    assert (config.hub.url, config.hub.conditional_create_races) == ("https://hub.example/fhir", True)
    assert (config.console_host, config.console_port) == ("0.0.0.0", 8091)


def test_the_token_is_read_when_it_is_used_and_shown_nowhere(place: Path) -> None:
    config = load(place)
    assert config.hub.token() == "s3cret"
    assert "s3cret" not in repr(config)
    (place / "token").unlink()
    with pytest.raises(ConfigError, match="token_file"):
        config.hub.token()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("port = 8884", 'port = "8884"', "broker.port must be a whole number, not '8884'"),
        ("port = 8884", "port = 88840", "broker.port must be between 1 and 65535, not 88840"),
        ("port = 8884", "prot = 8884", "broker.prot is not a key"),
        ('host = "broker.example"', "", "broker.host is missing"),
        ('ca = "ca"', 'ca = "cb"', "broker.ca: there is no file"),
        ("races = true", "races = 1", "hub.conditional_create_races must be true or false, not 1"),
        ("https://hub", "mqtt://hub", "hub.url must be an http or https address"),
        ("https://hub", "https://user:hunter2@hub", "hub.url must carry no user"),
        ("https://hub", "https://[hub", "hub.url is not an address"),
        ("Dublin", "Atlantis", "time_zone 'Europe/Atlantis' is not known"),
        ("= 30", "= 0", "max_bracket_min must be between 1 and"),
        ("sqlite:///kept", "postgresql://kept", "store must be sqlite:///PATH"),
        ("[hub]", "[hub", "sync.toml: "),
        ("[console]", "[consoles]", "consoles is not a key"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_its_key(
    place: Path, before: str, after: str, said: str
) -> None:
    assert before in WHOLE
    (place / "sync.toml").write_text(WHOLE.replace(before, after, 1))
    with pytest.raises(ConfigError) as error:
        load(place)
    assert said in str(error.value)
    assert "hunter2" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_config_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="homeward-sync init"):
        load(tmp_path)


@pytest.mark.parametrize("url", ["store.sqlite", "sqlite://store", "sqlite:///", "postgresql://h/d", ""])
def test_a_store_that_this_release_has_not_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="no other Store"):
        store_path(url, Path())


def test_a_store_may_lie_elsewhere() -> None:
    assert store_path("sqlite:////var/lib/store.sqlite", Path("/etc")) == Path("/var/lib/store.sqlite")
