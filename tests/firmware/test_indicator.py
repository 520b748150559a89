"""What a patient sees and hears, for people who see or hear badly, and that the board really shows it."""

import asyncio
import json
from pathlib import Path

import pytest
from kit import GATEWAY, home
from on_micropython import HEAPS
from test_pulled_plug import WORDS

from gateway.record import RADIO_MISSING
from hw.demo.kit import release
from hw.virtual.board_host import Board
from hw.virtual.radio import Room

Pattern = tuple[list[int], list[int], list[int]]

SOUNDING = {"kept", "failed", "refused"}
SHORTEST_MS = 150
"""A flash that is shorter is missed by who looks up late."""
LOWEST_HZ, HIGHEST_HZ = 500, 1500
_SAY = "import json\nfrom firmware.indicator import PATTERNS\nprint('patterns', json.dumps(PATTERNS))\n"
_NO_BLUETOOTH = "import sys\ndel sys.modules['bluetooth']\nsys.path.pop(0)\n"


@pytest.fixture(scope="module")
def patterns(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pattern]:
    """The table, as the board reads it."""
    return asyncio.run(_read_patterns(tmp_path_factory.mktemp("patterns")))


async def _read_patterns(folder: Path) -> dict[str, Pattern]:
    (folder / "program").mkdir()
    (folder / "program/main.py").write_text(_SAY)
    program = [folder / "program", release(folder)]
    async with Board(Room(), folder / "board", address=GATEWAY, program=program) as board:
        found: dict[str, Pattern] = json.loads((await board.says("patterns")).removeprefix("patterns "))
        return found


def test_no_two_patterns_have_the_same_rhythm(patterns: dict[str, Pattern]) -> None:
    rhythms = [tuple(rhythm) for _, rhythm, _ in patterns.values()]
    assert len(set(rhythms)) == len(rhythms) >= 13


def test_what_lasts_differs_in_the_number_or_the_length_of_its_flashes(patterns: dict[str, Pattern]) -> None:
    """A difference of a few ms would be none to a person."""
    lasting = {name: rhythm for name, (_, rhythm, tones) in patterns.items() if not tones}
    for name, rhythm in lasting.items():
        for other, another in lasting.items():
            same_count = len(rhythm) == len(another)
            alike = same_count and all(
                max(a, b) < 1.9 * min(a, b) for a, b in zip(rhythm, another, strict=True)
            )
            assert name == other or not alike, (name, other)


def test_nothing_flashes_more_than_three_times_in_a_second_nor_too_briefly(
    patterns: dict[str, Pattern],
) -> None:
    for name, (_, rhythm, _) in patterns.items():
        assert min(rhythm[::2]) >= SHORTEST_MS, name
        begins = [sum(rhythm[: 2 * n]) for n in range(len(rhythm) // 2 or 1)]
        again = [sum(rhythm) + at for at in begins]
        for at in begins:
            assert sum(at <= other < at + 1000 for other in begins + again) <= 3, name


def test_only_what_the_patient_has_done_sounds_and_low_enough_to_be_heard(
    patterns: dict[str, Pattern],
) -> None:
    assert {name for name, (_, _, tones) in patterns.items() if tones} == SOUNDING
    for name in SOUNDING:
        assert all(LOWEST_HZ <= hz <= HIGHEST_HZ for hz in patterns[name][2])
    kept, failed, refused = (patterns[name][2] for name in ("kept", "failed", "refused"))
    assert kept[0] < kept[1] and refused[0] > refused[1] and len(set(failed)) == 1 and len(failed) == 3


async def test_kept_and_failed_measurements_sound_as_the_table_says(
    patterns: dict[str, Pattern], tmp_path: Path
) -> None:
    async with home(tmp_path, 64, None) as here:
        await here.pair()
        here.board.tones.clear()
        here.cuff.measure(123, 60, 80, 70)
        await here.until(lambda: list(here.board.tones) == patterns["kept"][2])
        here.board.tones.clear()
        here.cuff.measure_failed()
        await here.until(lambda: list(here.board.tones) == patterns["failed"][2])


@pytest.mark.parametrize("bits", WORDS)
async def test_kit_whose_radio_does_not_start_says_so_and_keeps_sending(
    bits: int, patterns: dict[str, Pattern], tmp_path: Path
) -> None:
    def fails(board: Board) -> None:
        board.radio_fails = True

    async with home(tmp_path, bits, HEAPS[bits], prepare=fails) as here:
        await here.until(lambda: [e.detail for e in here.service.events(RADIO_MISSING)] == [b"\x01"])
        await here.until(lambda: any(s.get("radio") is False for s in here.service.statuses))
        shown = bytes(patterns["no_radio"][0])
        await here.until(lambda: here.board.pixels[-1] == shown)
        assert here.board.boots == 1


async def test_image_without_bluetooth_runs_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    (tmp_path / "before/boot.py").write_text(_NO_BLUETOOTH)
    async with home(tmp_path, 64, None, before=[tmp_path / "before"]) as here:
        await here.until(lambda: [e.detail for e in here.service.events(RADIO_MISSING)] == [b"\x01"])
        assert here.board.boots == 1
