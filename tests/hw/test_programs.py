"""Programs that are brought: what is chosen wins or is refused, and who has none is told what to do."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from hw.virtual import programs


def test_command_line_prints_a_json_list_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert programs.main(["micropython"]) == 0
    command = json.loads(capsys.readouterr().out)
    assert subprocess.run([*command, "-c", "print(6 * 7)"], capture_output=True).stdout == b"42\n"


def test_program_named_in_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROPYTHON", f"/usr/bin/env {' '.join(programs.micropython(64))}")
    assert programs.micropython(64)[0] == "/usr/bin/env"


def test_wrong_program_in_the_environment_is_refused_not_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MICROPYTHON", "/bin/true")
    assert programs.main(["micropython"]) == 1
    assert (
        "$MICROPYTHON is '/bin/true', which is not a 64-bit unix MicroPython 1.25" in capsys.readouterr().err
    )


def test_word_size_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROPYTHON32", " ".join(programs.micropython(64)))
    with pytest.raises(programs.ProgramMissing, match="32-bit"):
        programs.micropython(32)


def test_machine_without_a_package_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(programs.platform, "machine", lambda: "sparc")
    monkeypatch.setattr(programs.shutil, "which", lambda name, path=None: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(programs.ProgramMissing, match=r"Install Mosquitto 2\.0 or later, or set \$MOSQUITTO"):
        programs.mosquitto()


def test_cached_program_that_does_not_run_here_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(programs.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(programs.shutil, "which", lambda name, path=None: None)
    tree = tmp_path / "homeward/mosquitto_2.0_amd64/usr"
    for name in ("lib/any/ld-linux.so.2", "sbin/mosquitto"):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_text("not a program")
    with pytest.raises(programs.ProgramMissing):
        programs.mosquitto()


def test_stock_binary_of_a_chip_is_the_published_one_or_the_chosen_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ESP32_MICROPYTHON", raising=False)
    published = programs.esp32_micropython().read_bytes()
    assert hashlib.sha256(published).hexdigest().startswith("1eb1a88473e32aa6")
    monkeypatch.setenv("ESP32_MICROPYTHON", str(tmp_path))
    assert programs.main(["esp32-micropython"]) == 1
    assert "which is no file" in capsys.readouterr().err
