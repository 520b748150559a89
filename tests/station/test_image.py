"""Images: the same input gives the same bytes, and what an image says of itself is read out of its bytes."""

import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firmware import release
from hw.station import board, filesystem, image, inspection, micropython, nvs, partitions, secret
from hw.station.command import main
from hw.station.kit_folder import KitFolder
from hw.station.micropython import MicropythonError
from tests.station import binaries
from tests.station.kits import NETWORKS, PORTAL_KEY, kit_folder, project

KIT = "HW-0001"
ESP32, S3 = "esp32-4mb", "esp32-s3-8mb"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> KitFolder:
    return kit_folder(project(tmp_path_factory.mktemp("project") / "sync"), KIT)


@pytest.fixture(scope="module")
def flash(kit: KitFolder) -> bytes:
    return compose(ESP32, kit)


def compose(name: str, kit: KitFolder, path: Path | None = None) -> bytes:
    chosen = board.load(name)
    stock = micropython.read(path or binaries.esp32(), chosen, allow_unknown=path is not None)
    return image.compose(chosen, stock, kit)


def test_the_same_input_gives_the_same_bytes(
    kit: KitFolder, flash: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.save(tmp_path / "bench/kits" / KIT)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-m", "hw.station.command", "image", "--board", ESP32, "--kit", KIT]
    command += ["--micropython", str(binaries.esp32()), "--bench", str(tmp_path / "bench")]
    for name in ("a.bin", "b.bin"):
        subprocess.run([*command, "--out", str(tmp_path / name)], check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes() == flash
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o600


def test_another_kit_differs_in_nvs_alone(kit: KitFolder, flash: bytes, tmp_path: Path) -> None:
    other = compose(ESP32, kit_folder(project(tmp_path / "sync"), "HW-0002"))
    rows = board.load(ESP32).partitions
    assert [row.label for row in rows if row.of(flash) != row.of(other)] == ["nvs"]


def test_an_image_lists_all_that_it_holds(
    flash: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flash.bin").write_bytes(flash)
    assert main(["image", "--inspect", str(tmp_path / "flash.bin"), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["kit"], about["board"], about["chip"], about["flash_size"]) == (KIT, ESP32, "ESP32", "4MB")
    assert about["release"] == release.RELEASE and about["micropython"] == "v1.25.0 on 2025-04-15"
    assert about["micropython_known"] and about["boot.py"] is True
    assert about["secrets_outside_nvs"] == 0 and about["problems"] == []
    paths = {file["path"] for file in about["files"]}
    sources = [p for folder in ("gateway", "gateway/sensors", "firmware") for p in Path(folder).glob("*.py")]
    expected = {str(path.with_suffix(".mpy")) for path in sources if path.stem not in ("manifest", "boot")}
    assert paths == expected | {"boot.py", "main.py", "release.json"}
    parts = {part["label"]: part for part in about["parts"]}
    assert {label for label, part in parts.items() if part["erased"]} == {"phy_init", "bonds", "journal"}
    assert all(len(part["sha256"]) == 64 for part in parts.values())


def test_an_image_says_the_same_to_people(
    flash: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flash.bin").write_bytes(flash)
    assert main(["image", "--inspect", str(tmp_path / "flash.bin")]) == 0
    said = capsys.readouterr().out
    assert "secrets outside nvs  0" in said and "firmware/main.mpy" in said and "v1.25.0" in said
    for value in (NETWORKS[0][1], PORTAL_KEY):
        assert value not in said


def test_identity_is_read_back_as_it_was_written(kit: KitFolder, flash: bytes) -> None:
    values = nvs.decode(partitions.find(board.load(ESP32).partitions, "nvs").of(flash))
    assert values == nvs.identity(kit)
    assert (values["kit"], values["wipe"], values["key"]) == (KIT.encode(), 1, kit.key)
    assert json.loads(bytes(values["wifi"])) == [list(network) for network in NETWORKS]  # type: ignore[arg-type]


def test_what_a_kit_is_not_told_is_not_there(kit: KitFolder) -> None:
    assert not {"sntp", "stream_s", "pair_s"} & nvs.identity(kit).keys()
    told = nvs.identity(replace(kit, sntp="ntp.example", stream_s=5, pairing_s=60))
    assert (told["sntp"], told["stream_s"], told["pair_s"]) == (b"ntp.example", 5, 60)


def test_flash_size_is_stamped_and_the_hash_made_new(tmp_path: Path) -> None:
    chosen = board.load(S3)
    stock = micropython.read(binaries.for_s3(tmp_path / "s3.bin"), chosen, allow_unknown=True)
    stamped = micropython.stamped(stock.bootloader, chosen)
    (tmp_path / "bootloader.bin").write_bytes(stamped)
    said = subprocess.run(
        [
            sys.executable,
            "-m",
            "esptool",
            "--chip",
            "esp32s3",
            "image-info",
            str(tmp_path / "bootloader.bin"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    words = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in said.splitlines())
    }
    assert (words["Flash size"], words["Flash freq"], words["Flash mode"]) == ("8MB", "80m", "DIO")
    assert words["Checksum"].endswith("(valid)") and words["Validation hash"].endswith("(valid)")
    assert stamped != stock.bootloader.content


def test_the_recommended_board_has_room_for_all(kit: KitFolder, tmp_path: Path) -> None:
    flash = compose(S3, replace(kit, board=S3), binaries.for_s3(tmp_path / "s3.bin"))
    about = inspection.describe(flash, inspection.inspect(flash))
    assert (about["chip"], about["flash_size"], about["bytes"]) == ("ESP32-S3", "8MB", 8 << 20)
    assert not about["micropython_known"]


# --- Binaries -----------------------------------------------------------------------------------------------


def test_an_unknown_binary_is_refused_by_its_sum(tmp_path: Path) -> None:
    path = tmp_path / "other.bin"
    path.write_bytes(binaries.esp32().read_bytes() + b"\0")
    with pytest.raises(MicropythonError, match="compare|Compare") as refused:
        micropython.read(path, board.load(ESP32))
    assert "--allow-unknown" in str(refused.value)
    assert micropython.read(path, board.load(ESP32), allow_unknown=True).release is None


def _flip(at: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "spoil, said",
    [
        (_flip(0x100), "checksum of the image at 0x0"),
        (_flip(0x3), "hash of the image at 0x0"),
        (_flip(0xF000 + 0x100000), "checksum of the image at 0xf000"),
        (_flip(0x7005), "MD5 of the partition table"),
        (lambda content: content[:-4096], "cut off"),
        (lambda content: content[:0x4000], "cut off"),
        (lambda content: b"", "cut off"),
        (lambda content: b"\0" * 100_000, "no image at 0x0"),
    ],
)
def test_a_damaged_binary_is_refused(tmp_path: Path, spoil: Callable[[bytes], bytes], said: str) -> None:
    path = tmp_path / "stock.bin"
    path.write_bytes(spoil(binaries.esp32().read_bytes()))
    with pytest.raises(MicropythonError, match=said):
        micropython.read(path, board.load(ESP32), allow_unknown=True)


def test_a_binary_for_another_chip_is_refused(tmp_path: Path) -> None:
    s3 = binaries.for_s3(tmp_path / "s3.bin")
    with pytest.raises(MicropythonError, match="another chip than the ESP32 of board"):
        micropython.read(s3, board.load(ESP32), allow_unknown=True)
    with pytest.raises(MicropythonError, match="another chip than the ESP32-S3 of board"):
        micropython.read(binaries.esp32(), board.load(S3))


# --- Secrets ------------------------------------------------------------------------------------------------


def test_no_secret_is_outside_of_nvs_in_any_form(kit: KitFolder, flash: bytes) -> None:
    row = partitions.find(board.load(ESP32).partitions, "nvs")
    found = secret.places(flash, kit.secrets())
    assert {name for name, _ in found} == set(kit.secrets())  # they are there
    assert all(row.offset <= at < row.end for _, at in found)


@pytest.mark.parametrize(
    "name", ["private key", "private key's number", "password of network 2", "portal key"]
)
@pytest.mark.parametrize(
    "form",
    [
        lambda value: value,
        lambda value: value.hex().encode(),
        lambda value: value.hex().upper().encode(),
        lambda value: b64encode(value),
        lambda value: b64encode(b"x" + value + b"yz"),
        lambda value: b64encode(b"xy" + value + b"z"),
    ],
)
@pytest.mark.parametrize("label", ["vfs", "journal", "bonds", "factory"])
def test_a_secret_that_got_out_is_found(
    kit: KitFolder, flash: bytes, name: str, form: Callable[[bytes], bytes], label: str
) -> None:
    row = partitions.find(board.load(ESP32).partitions, label)
    planted = form(kit.secrets()[name])
    at = row.end - len(planted) - 3
    spoiled = flash[:at] + planted + flash[at + len(planted) :]
    found = inspection.inspect(spoiled)
    assert name in {leak for leak, _ in found.leaks} and found.problems
    assert all(value not in " ".join(found.problems).encode() for value in kit.secrets().values())


def test_an_image_with_a_leak_is_reported_and_not_accepted(
    kit: KitFolder, flash: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flash.bin").write_bytes(
        flash[:-100] + kit.portal_key.encode() + flash[-100 + len(PORTAL_KEY) :]
    )
    assert main(["image", "--inspect", str(tmp_path / "flash.bin"), "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["secrets_outside_nvs"] == 1
    assert "portal key stands outside of NVS" in said.err


# --- What is wrong ------------------------------------------------------------------------------------------


def _put(at: int, content: bytes) -> Callable[[bytes], bytes]:
    return lambda flash: flash[:at] + content + flash[at + len(content) :]


@pytest.mark.parametrize(
    "spoil, said",
    [
        (_put(0x310000, b"\0"), "partition journal is not erased"),
        (_put(0x200000, b"HB"), "partition bonds is not erased"),
        (lambda flash: flash * 2, "flash size in the bootloader's header"),
        (lambda flash: _with_file(flash, "boot.py", None), "there is no boot.py"),
        (
            lambda flash: _with_file(flash, "firmware/main.mpy", b"M"),
            "firmware/main.mpy is not as release.json",
        ),
        (
            lambda flash: _with_file(flash, "firmware/wifi.mpy", b"M\5"),
            "is no bytecode that this MicroPython",
        ),
        (lambda flash: _with_file(flash, "stranger.py", b"pass"), "stranger.py is not as release.json"),
        (lambda flash: _with_file(flash, "release.json", b"{"), "there is no release.json"),
    ],
)
def test_what_is_wrong_is_said(flash: bytes, spoil: Callable[[bytes], bytes], said: str) -> None:
    assert any(said in problem for problem in inspection.inspect(spoil(flash)).problems)


@pytest.mark.parametrize(
    "spoil, said",
    [
        (_put(0x1000, b"\xff" * 64), "no whole bootloader"),
        (_put(0x8004, b"\x77"), "MD5 of the partition table"),
        (_put(0x10100, b"\xff" * 64), "image at 0x10000"),
        (_put(0x204000, b"\xff" * 0x2000), "file system is damaged"),
    ],
)
def test_what_cannot_be_read_is_refused(
    flash: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[bytes], bytes],
    said: str,
) -> None:
    (tmp_path / "flash.bin").write_bytes(spoil(flash))
    assert main(["image", "--inspect", str(tmp_path / "flash.bin")]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "--board is missing"),
        (["--board", "esp32-s3-8mb", "--micropython", "none.bin"], "none.bin can't be read"),
        (["--board", "pico"], "there is no board 'pico'"),
        (["--kit", "HW-0009"], "there is no Kit folder"),
    ],
)
def test_wrong_usage_is_one_line(
    kit: KitFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    kit.save(tmp_path / "kits" / KIT)
    if arguments:
        defaults = ["--board", ESP32, "--micropython", str(binaries.esp32()), "--kit", KIT]
        arguments = [*defaults, *arguments, "--bench", str(tmp_path), "--out", str(tmp_path / "f.bin")]
    assert main(["image", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "f.bin").exists()


def test_a_kit_made_for_another_board_is_refused(kit: KitFolder) -> None:
    with pytest.raises(image.ImageError, match="made for board esp32-s3-8mb, not for esp32-4mb"):
        compose(ESP32, replace(kit, board=S3))


def test_a_dry_run_writes_nothing(kit: KitFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kit.save(tmp_path / "kits" / KIT)
    arguments = [
        "--board",
        ESP32,
        "--micropython",
        str(binaries.esp32()),
        "--kit",
        str(tmp_path / "kits" / KIT),
    ]
    out = tmp_path / "flash.bin"
    assert main(["image", *arguments, "--out", str(out), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] is None and not out.exists()


def test_files_that_do_not_fit_are_refused() -> None:
    with pytest.raises(filesystem.FilesystemError, match="can't be put into partition vfs"):
        filesystem.encode({"big": b"x" * 100_000}, 16 * 4096)
    with pytest.raises(nvs.NvsError, match="does not fit"):
        nvs.encode({f"key{n}": bytes(1900) for n in range(9)}, 0x3000)
    with pytest.raises(nvs.NvsError, match="cert has 1985 bytes"):
        nvs.encode({"cert": bytes(1985)}, 0x6000)


@pytest.mark.parametrize("count", [1, 12])
def test_nvs_is_read_over_its_pages(count: int) -> None:
    values: dict[str, Any] = {f"key{n}": bytes([n]) * 1500 for n in range(count)} | {"least": -(2**31)}
    assert nvs.decode(nvs.encode(values, 0x6000)) == values


def test_a_torn_value_of_nvs_is_left_out() -> None:
    partition = nvs.encode({"kit": b"HW-0001", "key": b"k" * 600}, 0x6000)
    at = partition.find(b"k" * 600)
    torn = partition[:at] + b"\0" + partition[at + 1 :]
    assert nvs.decode(torn) == {"kit": b"HW-0001"}
    assert nvs.decode(b"\xff" * 0x6000) == {}


def _with_file(flash: bytes, path: str, content: bytes | None) -> bytes:
    row = partitions.find(board.load(ESP32).partitions, "vfs")
    files = filesystem.decode(row.of(flash))
    files.pop(path, None)
    if content is not None:
        files[path] = content
    return flash[: row.offset] + filesystem.encode(files, row.size) + flash[row.end :]
