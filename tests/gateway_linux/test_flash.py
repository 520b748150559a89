"""FileFlash: NOR flash in a file, and the Journal in it when its process is killed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.journal import Journal
from gateway.linux.flash import FileFlash
from gateway.record import EVENT, decode_all

SIZE = 8 * 4096
JOURNAL_ID = b"journal1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.flash"


@pytest.fixture
def flash(path: Path) -> Iterator[FileFlash]:
    with FileFlash(path, SIZE) as flash:
        yield flash


def read(flash: FileFlash, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    flash.read(offset, buffer)
    return bytes(buffer)


def test_new_flash_is_erased_and_only_its_owner_can_read_it(flash: FileFlash, path: Path) -> None:
    assert read(flash, 0, SIZE) == b"\xff" * SIZE
    assert path.stat().st_mode & 0o777 == 0o600


def test_programming_only_clears_bits(flash: FileFlash) -> None:
    flash.program(8, bytearray(b"\xf0\x0f\x00\xff"))
    flash.program(8, bytearray(b"\xff\x05\xff\x7f"))
    assert read(flash, 7, 6) == b"\xff\xf0\x05\x00\x7f\xff"


def test_strict_flash_refuses_to_program_a_1_over_a_0(path: Path) -> None:
    with FileFlash(path, SIZE, strict=True) as flash:
        flash.program(0, bytearray(b"\x00\xff"))
        flash.program(0, bytearray(b"\x00\x7f"))
        with pytest.raises(ValueError, match="over a 0"):
            flash.program(0, bytearray(b"\x01\x7f"))
        assert read(flash, 0, 2) == b"\x00\x7f"


def test_erase_sets_one_block_and_no_other(flash: FileFlash) -> None:
    flash.program(4092, bytearray(8))
    flash.program(8192, bytearray(4))
    flash.erase(1)
    assert read(flash, 4092, 8) == bytes(4) + b"\xff" * 4
    assert read(flash, 8192, 4) == bytes(4)


def test_what_is_outside_of_the_flash_is_refused_and_the_file_does_not_grow(
    flash: FileFlash, path: Path
) -> None:
    for outside in (
        lambda: flash.program(SIZE - 2, bytearray(4)),
        lambda: flash.read(-1, bytearray(1)),
        lambda: flash.erase(8),
    ):
        with pytest.raises(ValueError, match="outside"):
            outside()
    assert path.stat().st_size == SIZE


def test_two_gateways_cannot_open_one_file(flash: FileFlash, path: Path) -> None:
    with pytest.raises(BlockingIOError):
        FileFlash(path, SIZE)
    flash.close()
    FileFlash(path, SIZE).close()


def test_a_file_of_another_size_is_refused_and_left_as_it_is(path: Path) -> None:
    path.write_bytes(b"not flash")
    with pytest.raises(ValueError, match="has 9 bytes"):
        FileFlash(path, SIZE)
    assert path.read_bytes() == b"not flash"
    path.write_bytes(bytes(2 * SIZE))
    with pytest.raises(ValueError, match="has 65536 bytes"):
        FileFlash(path, SIZE)


def test_a_file_whose_making_was_cut_short_is_completed(path: Path) -> None:
    path.write_bytes(b"\xff" * 5000)
    with FileFlash(path, SIZE) as flash:
        assert read(flash, 0, SIZE) == b"\xff" * SIZE


def test_a_size_that_is_no_number_of_blocks_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="blocks"):
        FileFlash(path, SIZE + 1)
    assert not path.exists()


APPENDING = """
import sys, threading
from pathlib import Path
from gateway.journal import Journal
from gateway.linux.flash import FileFlash

journal = Journal(FileFlash(Path(sys.argv[1]), int(sys.argv[2]), strict=True), threading.Lock())
journal.mount()
while True:
    sequence = journal.append_frame(1, 1, 0x2A35, b"%d" % journal.next_sequence, 0, 0)
    sys.stdout.write("%d\\n" % sequence)
    sys.stdout.flush()
    journal.maintain()
"""


def test_what_was_appended_before_kill_9_is_found(path: Path) -> None:
    with FileFlash(path, SIZE, strict=True) as flash:
        Journal(flash, threading.Lock()).format(JOURNAL_ID)
    said = 0
    for round_ in range(4):
        said = killed_after(path, 40 + 71 * round_)
        with FileFlash(path, SIZE, strict=True) as flash:
            journal = Journal(flash, threading.Lock())
            journal.mount()
            assert journal.next_sequence > said
            first = journal.first_sequence
            values = {record.sequence: record.body[4:] for record in every(journal, first - 1)}
        assert first < said - 100 or first == 1
        assert [values[sequence] for sequence in range(first, said + 1)] == [
            b"%d" % sequence for sequence in range(first, said + 1)
        ]


def killed_after(path: Path, lines: int) -> int:
    """Let a process append; kill it when it has said so many sequences. Return the last one it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", APPENDING, str(path), str(SIZE)], stdout=subprocess.PIPE, cwd=os.getcwd()
    )
    assert process.stdout is not None
    with process.stdout as said:
        heard = [said.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        heard += said.readlines()
    assert process.wait() == -signal.SIGKILL
    return int([line for line in heard if line.endswith(b"\n")][-1])


def every(journal: Journal, sequence: int) -> list:
    records = []
    buffer = bytearray(4096)
    while sequence < journal.next_sequence - 1:
        end = journal.read_batch(buffer, 0, len(buffer), sequence)[2]
        records += decode_all(memoryview(buffer)[:end])
        sequence = records[-1].sequence
    assert all(record.type != EVENT for record in records)
    return records
