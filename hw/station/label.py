"""`homeward-station label`: the label of a Kit, as PNG and PDF for a 62 mm label printer.

It shows what a patient and a technician need: the Kit's id with its check character, the same as a QR code,
the number to call, and the name and key of the set-up portal. No patient detail: it outlives every patient.
One picture is drawn, black and white at the printer's resolution, and the PDF is that picture to scale.
"""

import argparse
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
    parser = commands.add_parser("label", help="print a Kit's label: PNG and PDF")
    parser.add_argument("kit", help="HW-0001-Z")
    bench.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Draw the label and tell the service. Raises StationError."""
    here = bench.load(options.bench)
    check_kit(options.kit)
    report = Report(json=options.json, dry_run=options.dry_run)
    place = here.papers(options.kit)
    steps = [
        f"draw {place / 'label.png'} and {place / 'label.pdf'}, {WIDTH_MM:.0f} x {HEIGHT_MM:.0f} mm",
        "tell the service that the Kit has its label",
    ]
    if not report.plan(f"Label of Kit {options.kit}", steps):
        return
    png, pdf = write(KitFolder.load(here.kit_folder(options.kit)), place)
    Service(here).post(options.kit, "label", {})
    report.result({"kit": options.kit, "png": str(png), "pdf": str(pdf)}, f"print {pdf} and stick it on")


def write(kit: KitFolder, place: Path) -> tuple[Path, Path]:
    """Write PNG and PDF into a folder. Raises StationError."""
    picture = draw(kit)
    png, pdf = place / "label.png", place / "label.pdf"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        picture.save(png, dpi=(DPI, DPI))
        page = FPDF(unit="mm", format=(WIDTH_MM, HEIGHT_MM))
        page.set_title(f"Homeward Kit {kit.kit}")
        page.add_page(orientation="P")
        page.image(picture, 0, 0, WIDTH_MM, HEIGHT_MM)
        page.output(str(pdf))
        for path in (png, pdf):
            path.chmod(0o600)  # the key of the portal stands on it
    except OSError as problem:
        raise StationError(f"{problem.filename or place} can't be written: {problem.strerror}") from None
    return png, pdf


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
    key = " ".join(kit.portal_key[n : n + 4] for n in range(0, len(kit.portal_key), 4))
    return [
        Line(kit.kit, left, 2.6, 6.4, whole),
        Line("Help:", left, 11.0, 2.6, beside),
        Line(kit.support, left, 14.6, 4.6, beside),
        Line("To join your Wi-Fi, hold the", left, 21.6, 2.4, beside),
        Line("button, then join with a phone:", left, 24.7, 2.4, beside),
        Line(f"network  {portal_name(kit.kit)}", left, 30.0, 3.2, whole),
        Line(f"key  {key}", left, 35.0, 4.0, whole),
    ]


def portal_name(kit: str) -> str:
    """The name of the set-up portal's network."""
    return f"Homeward-{kit}"


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
