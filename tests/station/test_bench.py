"""The bench's own file: what is wrong in it is one sentence that names the key, and never a secret."""

from pathlib import Path

import pytest

from hw.station import bench
from hw.station.bench import BenchError

GOOD = """\
service = "https://homeward.example:8443"
ca = "ca.pem"
token_file = "token"
support = "0800 000 0000"

[[networks]]
name = "router"
password = "dove umber lattice"
"""


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "bench.toml"
    path.touch(mode)
    path.write_text(text)
    return folder


def test_a_good_file_is_read_and_shows_no_password(tmp_path: Path) -> None:
    here = bench.load(written(tmp_path, GOOD))
    assert here.networks == (("router", "dove umber lattice"),)
    assert (here.series, here.board) == ("HW", "esp32-s3-8mb")
    assert "dove" not in repr(here)
    assert here.kit_folder("HW-0001-Z") == tmp_path / "kits/HW-0001-Z"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("service =", "servic ="), "servic is not a key"),
        (
            ("https://homeward.example:8443", "http://homeward.example"),
            "service must be an address like https",
        ),
        (("https://homeward.example:8443", "https://x/path"), "service must be an address like https"),
        (('ca = "ca.pem"', ""), "ca is missing"),
        (('ca = "ca.pem"', "ca = 7"), "ca must be a text"),
        (("[[networks]]", "[networks]"), "networks must be a list of tables"),
        (('name = "router"', ""), "each of [[networks]] has a name"),
        (('name = "router"', "name = 7"), "a network's name and password are texts"),
        (('support = "0800 000 0000"', "pairing_s = -1"), "pairing_s must not be negative"),
        (("service", "[service"), "bench.toml"),
    ],
)
def test_a_wrong_value_is_one_sentence(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    with pytest.raises(BenchError) as wrong:
        bench.load(written(tmp_path, GOOD.replace(*change, 1)))
    assert sentence in str(wrong.value) and "dove" not in str(wrong.value) and "\n" not in str(wrong.value)


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="chmod 600"):
        bench.load(written(tmp_path, GOOD, 0o644))
    with pytest.raises(BenchError, match="there is no"):
        bench.load(tmp_path / "elsewhere")


def test_a_token_is_read_from_its_own_private_file_alone(tmp_path: Path) -> None:
    here = bench.load(written(tmp_path, GOOD))
    with pytest.raises(BenchError, match="ask the operator for a token"):
        here.token()
    (tmp_path / "token").touch(0o644)
    (tmp_path / "token").write_text("abc\n")
    with pytest.raises(BenchError, match="chmod 600"):
        here.token()
    (tmp_path / "token").chmod(0o600)
    assert here.token() == "abc"
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    with pytest.raises(BenchError, match="can't be read"):
        here.token()
    (tmp_path / "token").write_text("a\nb")
    with pytest.raises(BenchError, match="does not hold a token"):
        here.token()
