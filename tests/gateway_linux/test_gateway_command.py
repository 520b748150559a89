"""homeward-gateway: runs until it is told to end; a wrong config or a refusal is one sentence and exit 1."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gateway.journal import Journal
from gateway.linux.command import main
from gateway.linux.config import Config, load
from gateway.linux.flash import FileFlash
from gateway.linux.run import wipe
from gateway.record import BUTTON, EVENT, Event, encode_event
from sync_service.identity import add_kit, init

KIT = "HW-0001"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config whose broker does not run."""
    init(tmp_path / "sync")
    files = add_kit(tmp_path / "sync", KIT)
    path = tmp_path / "gateway.toml"
    path.write_text(
        f'kit = "{KIT}"\njournal = "journal.flash"\njournal_kib = 64\nsensors = "sensors.json"\n'
        f'[broker]\nhost = "127.0.0.1"\nport = 1\n'
        f'ca = "{files}/ca.pem"\ncertificate = "{files}/kit.pem"\nkey = "{files}/kit.key"\n'
    )
    return path


def says(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run it; return its one line on stderr."""
    assert main([*arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def append_to(config: Config) -> None:
    """A Record that waits; a boot that had nothing to tell leaves none."""
    flash = FileFlash(config.journal, config.journal_kib * 1024)
    journal = Journal(flash, threading.Lock())
    journal.mount()
    assert journal.pending == 0
    journal.append(EVENT, 1, encode_event(Event(BUTTON, 0, b"")), 0)
    flash.close()


def test_a_wrong_config_value_is_one_sentence(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text().replace("port = 1", "port = 70000"))
    line = says(capsys, "--config", str(config))
    assert line == "homeward-gateway: port must be between 1 and 65535, not 70000"


def test_a_key_that_is_none_is_one_sentence(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(config).key.write_text("nothing")
    assert "ca, certificate or key can't be used" in says(capsys, "--config", str(config))


def test_a_journal_file_that_is_something_else_is_left_alone(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = load(config).journal
    journal.write_bytes(b"x" * 64 * 1024)
    assert "there is no Journal" in says(capsys, "--config", str(config))
    assert journal.read_bytes() == b"x" * 64 * 1024


def test_a_journal_that_another_gateway_has_open_is_refused(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileFlash(load(config).journal, 64 * 1024):
        assert "journal:" in says(capsys, "--config", str(config), "wipe")


def test_a_sensors_file_that_is_broken_is_one_sentence(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(config).sensors.write_text("{")
    assert "sensors:" in says(capsys, "--config", str(config), "wipe")


def test_it_ends_in_order_when_told_and_a_wipe_needs_force_then(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # No Bluetooth and no broker here: both are tried again, and neither ends it.
    command = [sys.executable, "-m", "gateway.linux.command", "--config", str(config), "--pair-window", "5"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = iter(process.stderr)
        assert "P1 cannot hold" in next(lines)
        assert any("broker:" in line for line in lines)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, list(lines)
    append_to(load(config))
    assert "1 Records have not been sent" in says(capsys, "--config", str(config), "wipe")
    assert main(["--config", str(config), "wipe", "--force-unsent"]) == 0
    wipe(load(config))
