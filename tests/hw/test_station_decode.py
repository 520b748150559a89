"""`homeward-station decode` says what a raw value means, and shows no number where there is none."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.sensors import NAMES
from hw.station.command import main

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "values.json").read_text())
FAILED = "16FF07FF07FF07E80706170E230AFF070000"
SPOT = "0061004800"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["decode", *arguments])
    return code, *capsys.readouterr()


def decoded(capsys: pytest.CaptureFixture[str], characteristic: str, *value: str) -> Any:
    code, out, err = run(capsys, characteristic, *value, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def shown(value: dict[str, Any]) -> str:
    return value["special"] or f"{value['text']} {value['unit']}"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["about"][:40])
def test_values_mean_what_the_specifications_say(
    vector: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    meaning = decoded(capsys, vector["characteristic"], vector["value"])
    assert {key: meaning[key] for key in vector["meaning"]} == vector["meaning"]
    numbers = {value["name"]: shown(value) for value in meaning.get("values", ())}
    assert numbers == vector.get("numbers", {})


def test_every_known_characteristic_has_a_vector() -> None:
    assert {vector["characteristic"] for vector in VECTORS} == {f"{number:04X}" for number in NAMES}


def test_a_failed_measurement_says_so_and_has_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    meaning = decoded(capsys, "2A35", FAILED)
    assert meaning["failed"] is True
    assert meaning["trust"] == "never"
    assert [value["value"] for value in meaning["values"]] == [None] * 4
    _, table, _ = run(capsys, "2A35", FAILED)
    assert "the measurement failed" in table
    assert "2047" not in table + json.dumps(meaning)


def test_a_number_is_given_for_arithmetic_and_with_its_precision(capsys: pytest.CaptureFixture[str]) -> None:
    spo2, pulse = decoded(capsys, "2A5E", "00CAF34800")["values"]
    assert (spo2["value"], spo2["text"]) == (97.0, "97.0")
    assert (pulse["value"], pulse["text"]) == (72, "72")


def test_the_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "2A5E", SPOT)
    assert code == 0
    lines = out.splitlines()
    assert lines[:4] == [
        "characteristic  2A5E PLX Spot-Check Measurement",
        "trust           good",
        "spo2            97 %",
        "pulse rate      72 /min",
    ]


@pytest.mark.parametrize(
    "written",
    [
        "2A5E", "2a5e", "0x2a5e", "0X2A5E", "00002A5E", "00002a5e-0000-1000-8000-00805f9b34fb",
        "PLX Spot-Check Measurement", "plx_spot_check_measurement",
    ],
)  # fmt: skip
def test_a_characteristic_may_be_written_in_any_usual_way(
    written: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decoded(capsys, written, SPOT)["characteristic"] == "2A5E"


@pytest.mark.parametrize(
    "written",
    [["0061004800"], ["00 61 00 48 00"], ["00:61:00:48:00"], ["0x00", "0x61", "0x00", "0x48", "0x00"]],
)
def test_bytes_may_be_written_in_any_usual_way(
    written: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert decoded(capsys, "2A5E", *written)["raw"] == "0061004800"


@pytest.mark.parametrize(
    ("characteristic", "value", "told"),
    [
        ("2A37", "00", "unknown characteristic '2A37'; known are 2A08 Date Time"),
        ("00002a5e-0000-1000-8000-000000000000", SPOT, "unknown characteristic"),
        ("", SPOT, "unknown characteristic"),
        ("2A35", "16FF", "announces 18 bytes and has 2"),
        ("2A35", "", "is empty"),
        ("2A35", "0G", "'G' is no hexadecimal digit"),
        ("2A35", "１６", "is no hexadecimal digit"),
        ("2A35", "123", "no whole number of bytes"),
        ("2A35", "00" * 513, "at most 512"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_1(
    characteristic: str, value: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, characteristic, value)
    assert (code, out) == (1, "")
    assert told in err
    assert err.startswith("homeward-station: ") and err.count("\n") == 1


def test_wrong_usage_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["frob"], ["decode"], ["decode", "2A35"]):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 2
    capsys.readouterr()


def test_it_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "hw.station.command", "decode", "2A5E", SPOT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert "97 %" in done.stdout
