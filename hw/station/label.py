"""`homeward-station label`: the label of a Kit, as PNG and PDF for a 62 mm label printer.

It shows what a patient and a technician need: the Kit's id with its check character, the same as a QR code,
the number to call, and the name and key of the set-up portal. No patient detail: it outlives every patient.
One picture is drawn, black and white at the printer's resolution, and the PDF is that picture to scale.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import segno
from fpdf import FPDF
from PIL import Image, ImageDraw, ImageFont

from hw.station import StationError, bench
from hw.station.kit_folder import KitFolder
from hw.station.provision import check_kit
from hw.station.report import Report
from hw.station.service import Service

if TYPE_CHECKING:
    from argparse import _SubParsersAction

PNG, PDF, SHEET = "label.png", "label.pdf", "labels.pdf"
_MODE, _FOLDER_MODE = 0o600, 0o700  # the key of the portal stands on a label
WIDTH_MM, HEIGHT_MM = 62.0, 42.0
DPI = 300
"""Of the usual label printers with 62 mm tape."""
_MARGIN_MM = 3.0
"""The tape's edges are not printed: 1.5 mm, and as much again for a tape that wanders."""
_QR_MM = 21.0
"""25 modules of 0.84 mm with their quiet zone: a telephone reads it from an arm's length."""
_SHARE = 0.97  # of the width that a line may fill


class Line(NamedTuple):
    """A line of text: where its top is, how high it is at most, in mm."""

    text: str
    x_mm: float
    y_mm: float
    size_mm: float
    width_mm: float


def add(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-command `label`."""
    parser = commands.add_parser("label", help="print the labels of Kits: PNG and PDF")
    parser.add_argument("kit", nargs="+", help="HW-0001-Z ...")
    bench.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Draw the labels and tell the service. Raises StationError."""
    here = bench.load(options.bench)
    for kit in options.kit:
        check_kit(kit)
    report = Report(json=options.json, dry_run=options.dry_run)
    sheet = here.papers(options.kit[0]) / PDF if len(options.kit) == 1 else here.papers("") / SHEET
    steps = [
        f"draw {here.papers('KIT') / PNG}, {WIDTH_MM:.0f} x {HEIGHT_MM:.0f} mm, for {', '.join(options.kit)}",
        f"put them into {sheet}, one to a page",
        "tell the service that each has its label",
    ]
    if not report.plan("Labels", steps):
        return
    folders = [KitFolder.load(here.kit_folder(kit)) for kit in options.kit]
    for kit in folders:
        write(kit, here.papers(kit.kit))
    _write(lambda: _bind([draw(kit) for kit in folders], sheet))
    service = Service(here)
    for number, name in enumerate(options.kit, 1):
        service.post(name, "label", {})
        report.progress("labelled", number, len(options.kit))
    report.result({"kits": options.kit, "pdf": str(sheet)}, f"print {sheet}, and stick each on its Kit")


def write(kit: KitFolder, place: Path) -> tuple[Path, Path]:
    """Write PNG and PDF into a folder. Raises StationError."""
    picture = draw(kit)

    def save() -> None:
        place.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        picture.save(place / PNG, dpi=(DPI, DPI))
        (place / PNG).chmod(_MODE)
        _bind([picture], place / PDF)

    _write(save)
    return place / PNG, place / PDF


def _bind(pictures: Sequence[Image.Image], path: Path) -> None:
    """A page for each picture, to scale."""
    sheet = FPDF(unit="mm", format=(WIDTH_MM, HEIGHT_MM))
    sheet.set_title("Homeward Kits")
    for picture in pictures:
        sheet.add_page(orientation="P")
        sheet.image(picture, 0, 0, WIDTH_MM, HEIGHT_MM)
    sheet.output(str(path))
    path.chmod(_MODE)


def _write(act: Callable[[], None]) -> None:
    try:
        act()
    except OSError as problem:
        raise StationError(f"{problem.filename} can't be written: {problem.strerror}") from None


def draw(kit: KitFolder) -> Image.Image:
    """The label, 1 bit per pixel."""
    picture = Image.new("L", (_px(WIDTH_MM), _px(HEIGHT_MM)), 255)
    pen = ImageDraw.Draw(picture)
    for line in lines(kit):
        pen.text((_px(line.x_mm), _px(line.y_mm)), line.text, 0, font=_font(line), anchor="lt")
    code = segno.make(kit.kit, error="m", micro=False, boost_error=False)
    scale = _px(_QR_MM) // code.symbol_size(border=4)[0]
    left, top = int(_px(WIDTH_MM - _MARGIN_MM) - code.symbol_size(scale, 2)[0]), _px(10.5)
    for y, row in enumerate(code.matrix_iter(scale, border=2)):
        for x, dark in enumerate(row):
            if dark:
                picture.putpixel((left + x, top + y), 0)
    pen.line((_px(_MARGIN_MM), _px(9.5), _px(WIDTH_MM - _MARGIN_MM), _px(9.5)), 0, _px(0.3))
    return picture.point(lambda value: 255 * (value > 127)).convert("1", dither=Image.Dither.NONE)


def lines(kit: KitFolder) -> list[Line]:
    """What is written on it. Raises StationError when the folder does not hold it."""
    if not kit.support:
        raise StationError(
            "the label needs the number to call: set `support` in bench.toml and provision again"
        )
    if not kit.portal_key:
        raise StationError(f"Kit {kit.kit} has no key for its set-up portal: provision it again")
    left, whole = _MARGIN_MM, WIDTH_MM - 2 * _MARGIN_MM
    beside = whole - _QR_MM
    return [
        Line(kit.kit, left, 2.6, 6.4, whole),
        Line("Help:", left, 11.0, 2.6, beside),
        Line(kit.support, left, 14.6, 4.6, beside),
        Line("To join your Wi-Fi, hold the", left, 21.6, 2.4, beside),
        Line("button, then join with a phone:", left, 24.7, 2.4, beside),
        Line(f"network  {portal_name(kit.kit)}", left, 30.0, 3.2, whole),
        Line(f"key  {kit.portal_key}", left, 35.0, 4.0, whole),
    ]


def portal_name(kit: str) -> str:
    """The name of the set-up portal's network (firmware/portal.py)."""
    return f"Homeward {kit}"


def _font(line: Line) -> ImageFont.FreeTypeFont:
    """The font that comes with Pillow, as large as the line allows."""
    size = float(_px(line.size_mm))
    while True:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        if font.getlength(line.text) <= _SHARE * _px(line.width_mm):
            return font
        size *= 0.95


def _px(mm: float) -> int:
    return round(mm / 25.4 * DPI)
