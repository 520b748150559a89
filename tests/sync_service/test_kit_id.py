"""Kit ids: what people mistype is caught."""

import pytest

from sync_service.arrival import KIT
from sync_service.kit_id import NUMBERS, check_character, kit_id, mistake, number_of

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def test_check_character_is_that_of_iso_7064_mod_37_36() -> None:
    # The published example of the Global Release Identifier, which uses the same system.
    assert check_character("A1-2425G-ABC1234002") == "M"


@pytest.mark.parametrize("number", [1, 9, 42, 8_191, 10_000, NUMBERS])
def test_every_single_wrong_character_is_caught(number: int) -> None:
    kit = kit_id("HW", number)
    assert mistake(kit) is None and KIT.fullmatch(kit) and number_of(kit, "HW") == number
    for place, right in enumerate(kit):
        for wrong in ALPHABET if right.isdigit() else ():
            if wrong.isdigit() and wrong != right:
                assert mistake(kit[:place] + wrong + kit[place + 1 :])


def test_swapped_neighbours_are_caught_but_for_a_few() -> None:
    missed = swaps = 0
    for number in range(1, 5_000, 3):
        kit = kit_id("HW", number)
        for place in range(3, 6):
            if kit[place] != kit[place + 1]:
                swaps += 1
                swapped = kit[:place] + kit[place + 1] + kit[place] + kit[place + 2 :]
                missed += mistake(swapped) is None
    assert swaps > 3_000 and missed / swaps < 0.01


def test_kits_of_before_are_taken_as_they_are() -> None:
    assert mistake("HW-0001") is None
    assert number_of("HW-0001", "HW") == 0


@pytest.mark.parametrize(
    ("series", "number"), [("hw", 1), ("H", 1), ("HWXYZ", 1), ("HW", 0), ("HW", 1_000_000)]
)
def test_what_can_not_be_an_id_is_refused(series: str, number: int) -> None:
    with pytest.raises(ValueError, match="letters|number"):
        kit_id(series, number)
