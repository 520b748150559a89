"""The Journal's cost in flash stays where it is: what `make bench-journal` measures, on real MicroPython."""

from tests.bench.journal import TARGETS, measured


def test_flash_and_recovery_cost_meet_their_targets(say: list[str]) -> None:
    found = measured()
    for name, most in TARGETS.items():
        assert found[name] <= most, name
    assert found["littlefs_programmed_per_byte"] > 10 * found["programmed_per_byte"]
    assert found["littlefs_erased_per_byte"] > 10 * found["erased_per_byte"]
    say.append(f"journal: {found}")
