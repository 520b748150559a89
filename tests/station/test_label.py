"""The label: what is on it can be read, by people and by a telephone, and is nothing of a patient."""

from pathlib import Path

import pytest
import zxingcpp
from PIL import Image

from hw.station import StationError, label
from hw.station.kit_folder import KitFolder

ROOT = Path(__file__).parents[2]
ID = "HW-0001-Z"


def kit(**change: object) -> KitFolder:
    about = {
        "kit": ID,
        "board": "esp32-4mb",
        "host": "broker.example",
        "port": 8883,
        "networks": (("router", "dove umber lattice"),),
        "ca": b"",
        "certificate": b"",
        "key": b"",
        "made_at": 0,
        "portal_key": "abcd-efgh-jkmn",
        "support": "0800 000 0000",
    }
    return KitFolder(**about | change)  # type: ignore[arg-type]


def test_a_telephone_reads_the_kits_id_from_the_printed_label(tmp_path: Path) -> None:
    png, pdf = label.write(kit(), tmp_path)
    with Image.open(png) as picture:
        assert picture.mode == "1" and abs(picture.info["dpi"][0] - label.DPI) < 1
        (code,) = zxingcpp.read_barcodes(picture.convert("L"))
        assert (code.text, code.format) == (ID, zxingcpp.BarcodeFormat.QRCode)
        # Also when it was printed and photographed at a third of the resolution.
        small = picture.convert("L").resize((picture.width // 3, picture.height // 3))
        assert [one.text for one in zxingcpp.read_barcodes(small)] == [ID]
    whole = pdf.read_bytes()
    assert whole.startswith(b"%PDF") and b"/MediaBox [0 0 175.75 119.06]" in whole  # 62 x 42 mm in points
    for path in (png, pdf):
        assert path.stat().st_mode & 0o077 == 0


def test_it_says_what_a_patient_needs_and_no_more() -> None:
    said = " ".join(line.text for line in label.lines(kit()))
    for word in (ID, "0800 000 0000", f"Homeward {ID}", "abcd-efgh-jkmn"):
        assert word in said
    assert "dove" not in said and "broker" not in said


def test_the_network_on_the_label_is_the_one_that_the_firmware_opens() -> None:
    assert f'"{label.portal_name("")}" + self._kit' in (ROOT / "firmware/portal.py").read_text()


@pytest.mark.parametrize("support", ["1", "+44 20 7946 0000", "0800 000 0000 then press 4 for the ward desk"])
def test_every_line_stays_on_the_tape(support: str) -> None:
    for line in label.lines(kit(support=support, kit="WWWW-000000-W")):
        assert label._font(line).getlength(line.text) <= label._px(line.width_mm)
        assert line.x_mm + line.width_mm <= label.WIDTH_MM - 2.9


def test_a_kit_without_a_number_to_call_gets_no_label() -> None:
    with pytest.raises(StationError, match="number to call"):
        label.lines(kit(support=""))
    with pytest.raises(StationError, match="provision it again"):
        label.lines(kit(portal_key=""))
