"""`homeward-station journal` shows what a dump holds, and says in one line what is no Journal."""

import json
from inspect import getsource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import record
from gateway.journal import Journal
from hw.station import StationError
from hw.station.command import main
from hw.station.journal import Dump, about, inspect, lines
from tests.power_cuts.week import Lock, Week

DUMPS = Path(__file__).parents[1] / "vectors" / "journals"
BLOCK_BYTES = 4096
OFFSET = 0x10000


def golden(name: str) -> bytearray:
    dump = json.loads((DUMPS / f"0.1.0-{name}.json").read_text())
    return bytearray(b"".join(bytes.fromhex(block[4:]).ljust(1024, b"\xff") for block in dump["blocks"]))


def found_in(cells: bytes) -> dict[str, Any]:
    return inspect(Dump(bytes(cells), 1024))


@pytest.fixture(scope="module")
def week() -> bytes:
    """A partition as a Kit's dump has it."""
    week = Week(6, BLOCK_BYTES)
    week.begin()
    for day in range(2):
        week.live(day)
    return b"".join(week.flash.blocks)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["journal", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_each_record_stands_on_a_line_with_what_it_means(
    week: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dump := tmp_path / "journal.bin").write_bytes(week)
    code, out, _ = run(capsys, str(dump))
    assert code == 0
    said = out.splitlines()
    assert said[0] == "Journal 6a6f75726e616c31, 6 blocks of 4096 bytes"
    assert said[1].startswith("boots 1 to 2, the next is 3; sequences 1 to ")
    assert any("Sensor 1: systolic 127 mmHg, diastolic 80 mmHg" in line for line in said)
    assert any("Sensor 1: c0:00:00:00:00:01, name Sensor, serial SN-1, model V1" in line for line in said)
    assert any("booted: 1" in line for line in said)
    assert any("2025-11-24T21:00:04.229 UTC +-76 ms from an Ack, home +01:00" in line for line in said)
    assert any("clock read" in line and "2025-11-26T07:00:05" in line for line in said)


def test_json_holds_every_record_in_order_and_the_blocks(
    week: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dump := tmp_path / "journal.bin").write_bytes(week)
    found = json.loads(run(capsys, str(dump), "--json")[1])
    sequences = [each["sequence"] for each in found["records"]]
    assert sequences == list(range(1, found["next_sequence"]))
    assert (found["boots"], found["next_boot"], found["broken"]) == ([1, 2], 3, [])
    assert sum(block["records"] for block in found["blocks"]) >= len(sequences)  # and the Ack positions
    assert [block["number"] for block in found["blocks"]] == list(range(len(found["blocks"])))


def test_the_partition_is_found_inside_an_image_of_the_whole_flash(
    week: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image := tmp_path / "flash.bin").write_bytes(bytes(OFFSET) + week + b"\xff" * 9)
    inside = ("--offset", hex(OFFSET), "--size", str(len(week)))
    assert run(capsys, str(image), *inside)[1].startswith("Journal 6a6f75726e616c31, 6 blocks")
    (image := tmp_path / "flash.bin").write_bytes(bytes(OFFSET) + week)
    code, _, error = run(capsys, str(image))
    assert code == 1 and f"a block at {OFFSET:#x}: give --offset and --size" in error


def test_what_is_gone_stands_in_its_place() -> None:
    wrapped = found_in(golden("wrapped"))
    assert wrapped["records"][0]["meaning"] == "1 to 179 (179) are gone: overwritten"
    assert wrapped["first_sequence"] == 180
    torn = found_in(golden("torn"))
    lost = [each for each in torn["records"] if each["type"] == "LOST"]
    assert [each["meaning"].rpartition(": ")[2] for each in lost] == ["skipped after a power cut"] * 2
    assert [block["after_tear"] for block in torn["blocks"]] == [False, True]
    assert [place["what"] for place in torn["broken"]] == ["torn, or the last Record is rotten"] * 2


def test_bad_and_rotten_places_are_named() -> None:
    broken = found_in(golden("broken"))
    assert [(place["place"], place["what"]) for place in broken["broken"]] == [
        (0, "rotten"),
        (1, "no header that can be read"),  # one rotten bit, as in that of 3, would be mended
    ]
    assert broken["records"][0]["type"] == "type 119"
    assert any("6 to 6 (1) are gone: rotten" in line for line in lines(broken))


def test_every_event_has_a_name() -> None:
    written = getsource(record).partition("# EVENT codes")[2].partition("\n\n")[0]
    codes = [getattr(record, line.split(" ")[0]) for line in written.splitlines() if " = const(" in line]
    assert len(codes) > 15
    for code in codes:
        assert not said_of(code, b"").startswith("event "), code


def test_details_of_events_are_said() -> None:
    assert said_of(record.NETWORK, bytes([2, record.NET_ABSENT])) == "network: 2, not in reach"
    assert said_of(record.PORTAL, bytes([record.PORTAL_OPENED])) == "set-up page: opened"
    assert said_of(record.RADIO_MISSING, b"\1") == "Bluetooth: can't be had"
    assert said_of(record.REPLAYED, b"\x10\0\0\0") == "sent again at the service's request: from 16"
    assert said_of(record.BATTERY, b"\x58", 3) == "Sensor 3: battery: 88"
    assert said_of(99, b"ab") == "event 99: ab"


def said_of(code: int, detail: bytes, sensor: int = 0) -> str:
    body = record.encode_event(record.Event(code, sensor, detail))
    return str(about(record.Record(record.EVENT, 1, 1, 1, 0, body))["meaning"])


def test_text_of_a_sensor_can_do_nothing_to_a_terminal() -> None:
    week = Week(6, 1024)
    week.begin()
    week.kit.gateway.describe(1, ((record.SERIAL, b"\x1b[2Jgone"), (record.MODEL, b"\xff")), True, 0)
    said = "\n".join(lines(found_in(b"".join(week.flash.blocks))))
    assert "\x1b" not in said and "serial 1b5b324a676f6e65, model ff" in said


@pytest.mark.parametrize(
    ("whole", "said"),
    [
        (b"", "0 bytes at 0x0 of"),
        (b"x" * 5000, "5000 bytes at 0x0 of"),
        (b"\xff" * 8 * BLOCK_BYTES, "the flash is erased: this Kit was never provisioned, or it was wiped"),
        (bytes(8 * BLOCK_BYTES), "no Journal in this flash: no block of it has a header that can be read"),
        (
            b"\xff" * BLOCK_BYTES,
            "a Journal needs 4 blocks that hold the longest Record; these are 4096 bytes",
        ),
    ],
)
def test_what_is_no_journal_is_said_in_one_line(
    whole: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dump := tmp_path / "dump").write_bytes(whole)
    code, out, error = run(capsys, str(dump))
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert said in error


def test_a_file_that_is_not_there_or_too_short_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "can't be read: No such file" in run(capsys, str(tmp_path / "none"))[2]
    (dump := tmp_path / "dump").write_bytes(bytes(BLOCK_BYTES))
    assert "ends before 0x1000 + 0x2000" in run(capsys, str(dump), "--offset", "4096", "--size", "0x2000")[2]
    with pytest.raises(SystemExit):
        main(["journal", str(dump), "--offset", "-1"])


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["first_lap", "wrapped", "torn", "broken"]),
    st.lists(st.tuples(st.integers(0, 6 * 1024 - 1), st.integers(0, 255)), max_size=30),
    st.lists(st.tuples(st.integers(0, 5), st.binary(min_size=1, max_size=80)), max_size=3),
)
def test_a_dump_with_any_damage_is_shown_or_refused(
    name: str, bytes_: list[tuple[int, int]], pieces: list[tuple[int, bytes]]
) -> None:
    cells = golden(name)
    for at, value in bytes_:
        cells[at] = value
    for position, piece in pieces:
        cells[position * 1024 + 32 : position * 1024 + 32 + len(piece)] = piece
    shown(cells)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            *(st.integers(0, 255) for _ in range(3)),
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**48 - 1),
            st.binary(max_size=60),
        ),
        max_size=12,
    )
)
def test_records_of_any_form_are_shown(made: list[tuple[int, int, int, int, int, bytes]]) -> None:
    cells = bytearray(b"\xff" * 6 * 1024)
    cells[:32] = golden("torn")[:32]
    at = 32
    for number, (type_, version, _, boot, uptime_ms, body) in enumerate(made):
        whole = record.encode(type_ % 8, version % 3, number + 1, boot, uptime_ms, body)
        if at + len(whole) > 1024:
            break
        cells[at : at + len(whole)] = whole
        at += (len(whole) + 3) & -4
    shown(cells)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=4 * 1024), st.integers(4, 8))
def test_garbage_is_refused(garbage: bytes, blocks: int) -> None:
    shown((garbage * blocks).ljust(blocks * 1024, b"\xff")[: blocks * 1024])


def shown(cells: bytes | bytearray) -> None:
    """It is shown, or refused with a reason."""
    try:
        found = found_in(cells)
    except StationError as refused:
        assert str(refused) and "\n" not in str(refused)
        return
    json.dumps(found)
    assert len(list(lines(found))) >= 6 + len(found["records"])


def test_the_dump_is_never_written() -> None:
    dump = Dump(bytes(golden("torn")), 1024)
    with pytest.raises(OSError, match="only read"):
        dump.erase(0)
    journal = Journal(dump, Lock())
    journal.mount()
    assert dump.cells == golden("torn")
