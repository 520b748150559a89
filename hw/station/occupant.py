"""What a board holds already, asked before it is written: whose it is, and whether Records lie in it.

The one rule: Records that nobody may have yet are not written over. Where the board's own partition table
names no Journal, it is looked for where ours would have it: a torn write, rot, or somebody with a stock
binary may have taken the table alone.
"""

from gateway.block import HEADER_BYTES, decode_header
from hw.station import StationError, inspection, nvs, partitions
from hw.station.board import Board
from hw.station.loader import Loader
from hw.station.partitions import SECTOR_BYTES, TABLE_BYTES, TABLE_OFFSET, Partition, PartitionError

KEPT_BY_A_REPAIR = ("nvs", "bonds", "journal")
_LOOKED_AT_BYTES = 64 * 1024
"""Sixteen blocks: more than a Journal ever holds erased ahead of itself, so one of them has a header."""


class OccupantError(StationError):
    """A board that must not be written; one sentence that says what to do."""


def check(loader: Loader, board: Board, kit: str) -> None:
    """Refuse a board that says that it is another Kit, or that may hold Records. Raises StationError."""
    rows = _rows(loader)
    _check_kit(_kit(loader, rows), kit)
    if _holds_records(loader, rows, board):
        raise OccupantError(
            "the board's Journal is not empty, and may hold Records that nobody has yet. Drain and wipe it "
            f"first (homeward-station wipe {kit}), or keep it (homeward-station flash --repair)"
        )


def check_repair(loader: Loader, board: Board, kit: str) -> None:
    """Refuse a board that is not this Kit with this partition table. Raises StationError."""
    rows = _rows(loader)
    found = _kit(loader, rows)
    _check_kit(found, kit)
    if found is None or rows != board.partitions:
        raise OccupantError(
            f"this board is not Kit {kit} with the partition table of {board.name}: a repair can't keep its "
            "Journal"
        )


def repair_pieces(board: Board, flash: bytes) -> dict[int, bytes]:
    """What a repair writes, by offset: all but the Kit's own partitions, and the table, which is right."""
    table = Partition("", partitions.DATA, 0, TABLE_OFFSET, SECTOR_BYTES)
    kept = [table, *(row for row in board.partitions if row.label in KEPT_BY_A_REPAIR)]
    start, pieces = board.chip.bootloader_offset, {}
    for row in sorted(kept, key=lambda row: row.offset):
        if start < row.offset:
            pieces[start] = flash[start : row.offset]
        start = row.end
    if start < len(flash):
        pieces[start] = flash[start:]
    return pieces


def _check_kit(found: str | None, kit: str) -> None:
    if found not in (None, kit):
        raise OccupantError(
            f"the board says that it is Kit {found}, not {kit}: take another board, or wipe it first "
            f"(homeward-station wipe {found})"
        )


def _rows(loader: Loader) -> tuple[Partition, ...]:
    """The board's own partition table; none where there is none that can be read."""
    try:
        return partitions.decode(loader.read(TABLE_OFFSET, TABLE_BYTES))
    except PartitionError:
        return ()


def _kit(loader: Loader, rows: tuple[Partition, ...]) -> str | None:
    for row in rows:
        if row.label == "nvs":
            kit = nvs.decode(loader.read(row.offset, row.size)).get("kit")
            return kit.decode(errors="replace") if isinstance(kit, bytes) else None
    return None


def _holds_records(loader: Loader, rows: tuple[Partition, ...], board: Board) -> bool:
    """By the chip's digest: to read all of a Journal would take minutes on a slow line."""
    own, ours = ([row for row in table if row.label == "journal"] for table in (rows, board.partitions))
    journals = own or ours
    if loader.holds({row.offset: inspection.ERASED * row.size for row in journals}):
        return False
    # Where no table names it, it may be another program's bytes.
    return bool(own) or any(_has_block(loader.read(row.offset, _LOOKED_AT_BYTES)) for row in journals)


def _has_block(content: bytes) -> bool:
    starts = range(0, len(content), SECTOR_BYTES)
    return any(decode_header(content[at : at + HEADER_BYTES]) is not None for at in starts)
