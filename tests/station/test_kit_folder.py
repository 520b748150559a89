"""Kit folders: what loads can be flashed, and what is wrong is said without giving a secret away."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hw.station.kit_folder import CARD, KitFolder, KitFolderError
from tests.station.kits import NETWORKS, PORTAL_KEY, kit_folder, project


@pytest.fixture
def sync(tmp_path: Path) -> Path:
    return project(tmp_path / "sync")


@pytest.fixture
def folder(sync: Path) -> KitFolder:
    return kit_folder(sync, "HW-0001")


def test_what_is_saved_is_loaded_again(folder: KitFolder, tmp_path: Path) -> None:
    sensors = ({"address": "c00000000001", "name": "Cuff"},)
    folder = replace(folder, sensors=sensors, sntp="ntp.example", stream_s=5)
    folder.save(tmp_path / "kit")
    folder.save(tmp_path / "kit")
    assert KitFolder.load(tmp_path / "kit") == folder


def test_a_kit_of_the_service_needs_only_its_card(folder: KitFolder, sync: Path, tmp_path: Path) -> None:
    folder.save(tmp_path / "kit")
    (sync / "kits/HW-0001" / CARD).write_bytes((tmp_path / "kit" / CARD).read_bytes())
    assert KitFolder.load(sync / "kits/HW-0001") == folder


def test_nobody_else_may_read_it(folder: KitFolder, tmp_path: Path) -> None:
    (tmp_path / "kit").mkdir(mode=0o755)
    folder.save(tmp_path / "kit")
    assert (tmp_path / "kit").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "kit").iterdir()} == {0o600}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"kit": "hw 1"}, "looks like HW-0001"),
        ({"host": ""}, "host is empty"),
        ({"port": 0}, "between 1 and 65535"),
        ({"port": "8883"}, "port is not a whole number"),
        ({"networks": ()}, "1 to 8 networks"),
        ({"networks": (("n", "short"),)}, "8 to 63 characters"),
        ({"networks": (("n" * 33, ""),)}, "1 to 32 bytes"),
        ({"portal_key": "short"}, "portal_key must have 8 to 63"),
        ({"sensors": ("one",)}, "sensors is not a list of objects"),
        ({"pairing_s": -1}, "pairing_s must not be negative"),
        ({"stream_s": 601}, "stream_s must be 1 to 600"),
        ({"stream_s": "5"}, "stream_s must be 1 to 600"),
        ({"made_at": 1_000_000_000}, "outside of the time in which ca.pem and kit.pem are valid"),
    ],
)
def test_what_no_kit_could_work_with_is_neither_saved_nor_loaded(
    folder: KitFolder, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(KitFolderError, match=said):
        replace(folder, **change).save(tmp_path / "kit")
    folder.save(tmp_path / "kit")
    card = json.loads((tmp_path / "kit" / CARD).read_text())
    (tmp_path / "kit" / CARD).write_text(json.dumps(card | change))
    with pytest.raises(KitFolderError, match=said):
        KitFolder.load(tmp_path / "kit")


def test_certificates_that_do_not_belong_together_are_refused(
    folder: KitFolder, sync: Path, tmp_path: Path
) -> None:
    other = kit_folder(sync, "HW-0002")
    stranger = kit_folder(project(tmp_path / "other"), "HW-0001")
    for change, said in (
        ({"certificate": other.certificate, "key": other.key}, "is that of HW-0002"),
        ({"key": other.key}, "kit.key does not belong to kit.pem"),
        ({"ca": stranger.ca}, "not signed by ca.pem"),
        ({"certificate": b"\x30\x00"}, "unusable"),
    ):
        with pytest.raises(KitFolderError, match=said):
            replace(folder, **change).check()


@pytest.mark.parametrize(
    "name, spoil, said",
    [
        (CARD, lambda path: path.write_text("{"), "is no JSON"),
        (CARD, lambda path: path.write_text("[]"), "does not hold an object"),
        (CARD, lambda path: path.write_text('{"format": 2}'), "this Station reads 1"),
        (CARD, lambda path: path.write_text('{"format": 1}'), "kit is missing"),
        (CARD, lambda path: path.write_text('{"format": 1, "moon": 1}'), "moon is not a key"),
        (CARD, lambda path: _change(path, networks=5), "networks is not a list of"),
        (CARD, lambda path: _change(path, networks=[["name"]]), "networks is not a list of"),
        (CARD, lambda path: _change(path, sensors=5), "sensors is not a list of"),
        (CARD, lambda path: path.unlink(), "can't be read"),
        ("kit.key", lambda path: path.write_text("no key"), "no plain private key"),
        ("kit.pem", lambda path: path.write_text("nothing"), "no certificate"),
        ("ca.pem", lambda path: path.unlink(), "can't be read"),
    ],
)
def test_a_damaged_folder_names_its_file(
    folder: KitFolder, tmp_path: Path, name: str, spoil: Callable[[Path], object], said: str
) -> None:
    folder.save(tmp_path / "kit")
    spoil(tmp_path / "kit" / name)
    with pytest.raises(KitFolderError, match=said) as refused:
        KitFolder.load(tmp_path / "kit")
    assert name in str(refused.value)


def test_secrets_are_neither_shown_nor_in_messages(folder: KitFolder) -> None:
    assert set(folder.secrets()) == {
        "private key",
        "private key's number",
        "password of network 1",
        "password of network 2",
        "portal key",
    }
    shown = repr(folder)
    assert NETWORKS[0][1] not in shown and PORTAL_KEY not in shown and folder.key.hex() not in shown
    assert folder.secrets()["private key's number"] in folder.key


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
