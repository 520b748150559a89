"""Boards: `hw/boards/<name>.toml`, each checked as a whole before anything is made for it."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hw.station import StationError, partitions
from hw.station.partitions import Partition, PartitionError

FOLDER = Path(__file__).parents[1] / "boards"
PINS = ("light", "button", "buzzer")
"""What firmware/pins.py names."""
FLASH_SIZES = {"4MB": 4 << 20, "8MB": 8 << 20, "16MB": 16 << 20}
"""Smaller ones hold no Journal beside MicroPython."""


class BoardError(StationError):
    """A board file that can't be used; one sentence that names the file and the key."""


class Chip(NamedTuple):
    """What Espressif has fixed for a chip."""

    name: str  # as esptool and people write it
    image_id: int  # in the header of every image for it
    bootloader_offset: int  # where its ROM looks for the bootloader
    outputs: frozenset[int]  # pins that can be driven and are not the flash's
    inputs: frozenset[int]
    sizes: Mapping[str, int]  # codes in the upper half of a header's fourth byte
    frequencies: Mapping[str, int]  # in the lower half
    modes: Mapping[str, int]  # the third byte


_SIZES = {"4MB": 2, "8MB": 3, "16MB": 4}
_FREQUENCIES = {"40m": 0x0, "26m": 0x1, "20m": 0x2, "80m": 0xF}
_MODES = {"qio": 0, "qout": 1, "dio": 2, "dout": 3}
# Left out: the pins of flash, octal PSRAM, serial port and USB, and GPIO 12, 45 and 46, which choose the
# flash's voltage and what the ROM does at reset.
_ESP32_PINS = frozenset({0, 2, 4, 5, 13, 14, 15, *range(16, 20), *range(21, 24), 25, 26, 27, 32, 33})
_S3_PINS = frozenset({*range(19), 21, *range(38, 43), 47, 48})

CHIPS = {
    "esp32": Chip(
        "ESP32", 0, 0x1000, _ESP32_PINS, _ESP32_PINS | {34, 35, 36, 39}, _SIZES, _FREQUENCIES, _MODES
    ),
    "esp32s3": Chip("ESP32-S3", 9, 0x0, _S3_PINS, _S3_PINS, _SIZES, _FREQUENCIES, _MODES),
}


class Board(NamedTuple):
    """A board as its file describes it. Sizes in bytes."""

    name: str
    title: str
    note: str
    chip: Chip
    psram: bool
    recommended: bool
    pins: dict[str, int]
    flash_size: str
    flash_mode: str
    flash_frequency: str
    partitions: tuple[Partition, ...]

    @property
    def flash_bytes(self) -> int:
        return FLASH_SIZES[self.flash_size]

    @property
    def bootloader_bytes(self) -> int:
        """Room for the bootloader: up to the partition table."""
        return partitions.TABLE_OFFSET - self.chip.bootloader_offset


def names() -> list[str]:
    """The boards that there are, the recommended ones first."""
    return sorted(
        (path.stem for path in FOLDER.glob("*.toml")), key=lambda name: (not load(name).recommended, name)
    )


def load(name: str) -> Board:
    """The board with this name. Raises BoardError."""
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.toml")))
        raise BoardError(f"there is no board {name!r}; known are {known}")
    return read(path)


def read(path: Path) -> Board:
    """The checked board of a file. Raises BoardError."""
    try:
        board = _board(path.stem, tomllib.loads(path.read_text()))
        partitions.check(board.partitions, board.flash_bytes)
        partitions.check_needs(board.partitions)
    except OSError as problem:
        raise BoardError(f"{path} can't be read: {problem.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, PartitionError, BoardError) as problem:
        raise BoardError(f"{path.name}: {problem}") from None
    return board


def _board(name: str, table: dict[str, Any]) -> Board:
    chip = CHIPS[_choice(table, "chip", CHIPS)]
    pins, flash = _take(table, "pins", dict), _take(table, "flash", dict)
    board = Board(
        name=name,
        title=_take(table, "title", str),
        note=_take(table, "note", str),
        chip=chip,
        psram=_take(table, "psram", bool),
        recommended=_take(table, "recommended", bool),
        pins={pin: _take(pins, pin, int) for pin in PINS},
        flash_size=_choice(flash, "size", chip.sizes),
        flash_mode=_choice(flash, "mode", chip.modes),
        flash_frequency=_choice(flash, "frequency", chip.frequencies),
        partitions=tuple(_partition(row) for row in _take(table, "partitions", list)),
    )
    for unknown in [*table, *pins, *flash]:
        raise BoardError(f"{unknown} is not a key of this file")
    _check_pins(board)
    return board


def _check_pins(board: Board) -> None:
    for pin, number in board.pins.items():
        if number not in (board.chip.inputs if pin == "button" else board.chip.outputs):
            raise BoardError(f"pin {pin}: GPIO {number} of an {board.chip.name} can't be used for it")
        if list(board.pins.values()).count(number) > 1:
            raise BoardError(f"pin {pin}: GPIO {number} is used twice")


def _partition(row: Any) -> Partition:
    if not isinstance(row, dict):
        raise BoardError("partitions is not a list of tables")
    label, kind = _take(row, "label", str), _choice(row, "type", partitions.TYPES)
    subtypes = partitions.SUBTYPES[kind]
    partition = Partition(
        label,
        partitions.TYPES[kind],
        subtypes[_choice(row, "subtype", subtypes)],
        _take(row, "offset", int),
        _take(row, "size", int),
    )
    for unknown in row:
        raise BoardError(f"partition {label}: {unknown} is not a key of it")
    return partition


def _choice(table: dict[str, Any], key: str, known: Mapping[str, Any]) -> str:
    chosen: str = _take(table, key, str)
    if chosen not in known:
        raise BoardError(f"{key} is {chosen!r}; known are {', '.join(known)}")
    return chosen


def _take(table: dict[str, Any], key: str, kind: type) -> Any:
    value = table.pop(key, None)
    if value is None:
        raise BoardError(f"{key} is missing")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BoardError(f"{key} must be {_KINDS[kind]}, not {value!r}")
    return value


_KINDS = {str: "a text", int: "a whole number", bool: "true or false", dict: "a table", list: "a list"}
