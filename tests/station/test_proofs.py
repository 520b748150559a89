"""`make test-station` says when a promise is broken."""

from tests.station.run import broken


def test_only_what_is_as_it_has_to_be_passes() -> None:
    assert broken({"flashed": True, "residue_bytes": 0, "flash_seconds": 4.2}) == []
    assert broken({"flashed": False, "residue_bytes": 3, "secrets_outside_nvs": 1}) == [
        "flashed",
        "residue_bytes",
        "secrets_outside_nvs",
    ]
