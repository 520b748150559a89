"""Bonds survive a power cut at any moment: the old ones or the new ones, never none."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "gateway"))

from nor import NorFlash

from firmware.bonds import PEER_KEY, Bonds, reverse

ADDRESS = bytes.fromhex("c00000000001")
KEY = b"\x01" + reverse(ADDRESS) + b"\0\0"
OUR_KEY = 1


def sensors(count: int) -> list[dict[str, Any]]:
    return [{"reference": n, "address": f"c0000000000{n}", "items": [[4, "31" * 20]]} for n in range(count)]


def state(bonds: Bonds) -> tuple[Any, ...]:
    return (bonds.load(), bonds.secret(PEER_KEY, 0, None), bonds.handles(ADDRESS))


def flash() -> NorFlash:
    return NorFlash(8, 1024)


def test_what_was_saved_is_there_after_a_boot() -> None:
    chip = flash()
    bonds = Bonds(chip)
    assert state(bonds) == ([], None, {})
    bonds.set_secret(PEER_KEY, KEY, b"secret")
    bonds.keep_handles(ADDRESS, {12: 0x2A35})
    bonds.save(sensors(2))
    assert state(Bonds(chip)) == (sensors(2), b"secret", {12: 0x2A35})


def test_power_cut_anywhere_leaves_the_old_bonds_or_the_new_ones() -> None:
    chip = flash()
    bonds = Bonds(chip)
    torn: list[NorFlash] = []
    for count in range(1, 5):  # both copies are written, and written again
        before = state(bonds)
        torn.clear()
        chip.watch = lambda tear: torn.extend(tear(n) for n in range(NorFlash.TEARS))
        bonds.set_secret(PEER_KEY, KEY, bytes([count]) * 16)
        bonds.save(sensors(count))
        chip.watch = None
        found = [state(Bonds(copy)) for copy in torn]
        assert all(each in (before, state(bonds)) for each in found)
        assert before in found
        assert state(Bonds(chip)) == state(bonds)


def test_bonds_that_were_torn_are_saved_again() -> None:
    chip = flash()
    torn: list[NorFlash] = []
    Bonds(chip).save(sensors(1))
    chip.watch = lambda tear: torn.extend(tear(n) for n in range(NorFlash.TEARS))
    Bonds(chip).save(sensors(2))
    for copy in torn:
        Bonds(copy).save(sensors(3))
        assert Bonds(copy).load() == sensors(3)


def test_a_forgotten_peer_keeps_nothing_and_others_keep_theirs() -> None:
    chip = flash()
    bonds = Bonds(chip)
    other = b"\x01" + reverse(bytes.fromhex("c00000000002")) + b"\0\0"
    for kind in (OUR_KEY, PEER_KEY):
        bonds.set_secret(kind, KEY, b"a")
        bonds.set_secret(kind, other, b"b")
    assert bonds.is_bonded(ADDRESS)
    bonds.forget(ADDRESS)
    after = Bonds(chip)
    assert not after.is_bonded(ADDRESS)
    assert after.secret(PEER_KEY, 0, None) == b"b" == after.secret(OUR_KEY, 0, other)
    assert after.secret(PEER_KEY, 1, None) is None
