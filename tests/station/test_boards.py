"""Boards: the files that there are describe boards that boot; a wrong file says what is wrong with it."""

from pathlib import Path

import pytest

from firmware import pins
from hw.station import board, partitions
from hw.station.board import BoardError
from hw.station.partitions import Partition, PartitionError
from tests.station import binaries

RECOMMENDED, DEVELOPMENT = "esp32-s3-8mb", "esp32-4mb"
JOURNAL = "[[partitions]]\nlabel = 'journal'\ntype = 'data'\nsubtype = 'undefined'\noffset = {}\nsize = {}\n"


def test_the_boards_are_those_that_the_kit_names() -> None:
    assert board.names() == [RECOMMENDED, DEVELOPMENT]
    assert board.load(RECOMMENDED).psram and not board.load(DEVELOPMENT).recommended


def test_the_firmware_as_it_lies_here_is_for_the_recommended_board() -> None:
    assert board.load(RECOMMENDED).pins == {"light": pins.LIGHT, "button": pins.BUTTON, "buzzer": pins.BUZZER}


@pytest.mark.parametrize("name", board.names())
def test_no_byte_of_a_flash_belongs_to_two(name: str) -> None:
    chosen = board.load(name)
    owned = [(0, partitions.TABLE_OFFSET + partitions.SECTOR_BYTES)]
    owned += [(row.offset, row.end) for row in chosen.partitions]
    assert sum(end - start for start, end in owned) == chosen.flash_bytes  # nor to none
    assert sorted(owned) == owned and owned[-1][1] == chosen.flash_bytes


def test_two_app_slots_where_they_fit() -> None:
    slots = [row.label for row in board.load(RECOMMENDED).partitions if row.type == partitions.APP]
    assert slots == ["ota_0", "ota_1"]


@pytest.mark.parametrize("name", board.names())
def test_a_table_is_read_back_as_it_was_written(name: str) -> None:
    rows = board.load(name).partitions
    assert partitions.decode(partitions.encode(rows)) == rows


def test_a_table_is_written_as_espressif_writes_it() -> None:
    chosen = board.load(DEVELOPMENT)
    stock = binaries.esp32().read_bytes()[partitions.TABLE_OFFSET - chosen.chip.bootloader_offset :]
    assert partitions.encode(partitions.decode(stock)) == stock[: partitions.TABLE_BYTES]


def test_a_damaged_table_is_refused() -> None:
    table = bytearray(partitions.encode(board.load(DEVELOPMENT).partitions))
    table[4] ^= 1
    with pytest.raises(PartitionError, match="MD5"):
        partitions.decode(table)
    with pytest.raises(PartitionError, match="no partition table"):
        partitions.decode(b"\xff" * partitions.TABLE_BYTES)


@pytest.mark.parametrize(
    "old, new, said",
    [
        ('chip = "esp32"', 'chip = "esp8266"', "known are esp32, esp32s3"),
        ('chip = "esp32"', "", "chip is missing"),
        ("psram = false", 'psram = "no"', "psram must be true or false"),
        ("light = 4 ", "light = 6 ", "GPIO 6 of an ESP32 can't be used"),
        ("buzzer = 25", "buzzer = 34", "GPIO 34 of an ESP32 can't be used"),
        ("buzzer = 25", "buzzer = 4", "GPIO 4 is used twice"),
        ('size = "4MB"', 'size = "3MB"', "size is '3MB'"),
        ("[pins]", "[pins]\nhorn = 2", "horn is not a key"),
        ("offset = 0x10000", "offset = 0x11000", "factory: 0x1f0000 bytes at 0x11000"),
        ("offset = 0x204000", "offset = 0x204800", "vfs: 0xfc000 bytes at 0x204800"),
        ("size = 0x1F0000", "size = 0x1F1000", "factory (to 0x201000) runs into bonds"),
        ("size = 0x100000", "size = 0x101000", "ends at 0x401000, the flash at 0x400000"),
        ("offset = 0x9000", "offset = 0x8000", "inside the partition table"),
        ('label = "bonds"', 'label = "bond"', "no data partition bonds"),
        ('label = "bonds"', 'label = "vfs"', "two partitions are named vfs"),
        ('label = "vfs"', 'label = "a name that is too long"', "1 to 15 bytes"),
        ('subtype = "factory"', 'subtype = "ota_0"', "need a data partition of subtype ota"),
        ('subtype = "phy"', 'subtype = "ota"', "subtype ota has 0x2000 bytes"),
        ('subtype = "nvs"', 'subtype = "moon"', "known are ota, phy, nvs"),
        ("size = 0x6000", "size = 0x2000", "nvs needs 0x3000 bytes"),
        ("[flash]", "[flash", "Expected"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = (board.FOLDER / f"{DEVELOPMENT}.toml").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(BoardError) as refused:
        board.read(path)
    assert said in str(refused.value) and "mine.toml" in str(refused.value)


def test_an_unknown_board_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(BoardError, match="known are esp32-4mb, esp32-s3-8mb"):
        board.load("esp8266")


def test_more_rows_than_a_table_holds_are_refused() -> None:
    rows = [Partition(f"p{n}", partitions.DATA, 6, 0x9000 + 0x1000 * n, 0x1000) for n in range(96)]
    with pytest.raises(PartitionError, match="96 partitions do not fit"):
        partitions.check(rows, 1 << 22)
