"""Receipt: the proof that a Kit was wiped, for people (text, PDF) and the service (JSON); no patient detail.

It says what stood on the Kit before, as counts, so that a search that finds nothing afterwards is known to be
able to find something.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fpdf import FPDF

from hw.station import StationError

TEXT, PDF, JSON = "receipt.txt", "receipt.pdf", "receipt.json"
_LABEL_WIDTH = 24
_LINE_MM = 6.5
_MODE = 0o600
_PAGE_MM = (148.0, 210.0)  # A5


def lines(receipt: dict[str, Any]) -> list[tuple[str, str]]:
    """What people read: (label, text). A label "" continues the line before."""
    before, sensors = receipt["before"], receipt["sensors"]
    given_up = receipt["unsent_given_up"]
    rows = [
        ("Kit", receipt["kit"]),
        ("Wiped", datetime.fromtimestamp(receipt["at_ms"] / 1000, UTC).strftime("%d %B %Y, %H:%M:%S UTC")),
        ("By", receipt["operator"]),
        ("Receipt number", str(receipt.get("number", "not yet at the service"))),
        ("Chip", f"{receipt['chip']}, {receipt['flash_bytes']:,} bytes of flash"),
        ("Before", f"{before['records']} Records, bonds with {before['bonds']} Sensors,"),
        ("", f"{before['known']} known values, found at {before['places']} places"),
        ("Erased", ", ".join(receipt["erased"])),
        ("Read back", f"{receipt['flash_bytes']:,} bytes, all of them"),
        ("Residue", f"{receipt['residue_bytes']} bytes, {receipt['known_found']} known values"),
        ("SHA-256 of that", receipt["sha256"][:32]),
        ("", receipt["sha256"][32:]),
        ("Certificate", "revoked"),
        ("Unsent Records", f"{given_up['records']} given up: {given_up['reason']}" if given_up else "none"),
    ]
    for number, sensor in enumerate(sensors):
        rows.append(("" if number else "Sensors", f"{sensor['sensor']}  {sensor['mark']}"))
    return rows if sensors else [*rows, ("Sensors", "none")]


def text(receipt: dict[str, Any]) -> str:
    """For a terminal or a printer of text."""
    body = "\n".join(f"{label:{_LABEL_WIDTH}}{value}" for label, value in lines(receipt))
    return f"HOMEWARD: RECEIPT OF A WIPE\n\n{body}\n"


def write(receipt: dict[str, Any], place: Path) -> list[Path]:
    """Write text, PDF and JSON into a folder; return them. Raises StationError."""
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        (place / TEXT).write_text(text(receipt))
        (place / JSON).write_text(json.dumps(receipt, indent=1) + "\n")
        _draw(receipt, place / PDF)
        for name in (TEXT, PDF, JSON):
            (place / name).chmod(_MODE)
    except OSError as problem:
        raise StationError(f"{problem.filename or place} can't be written: {problem.strerror}") from None
    return [place / name for name in (TEXT, PDF, JSON)]


def read(place: Path) -> dict[str, Any]:
    """The receipt that was written before. Raises StationError."""
    try:
        receipt = json.loads((place / JSON).read_bytes())
    except (OSError, ValueError):
        raise StationError(f"there is no receipt in {place}: wipe the Kit") from None
    if not isinstance(receipt, dict):
        raise StationError(f"{place / JSON} is no receipt: wipe the Kit again")
    return receipt


def _draw(receipt: dict[str, Any], path: Path) -> None:
    page = FPDF(unit="mm", format=_PAGE_MM)
    page.set_title(f"Wipe of Homeward Kit {receipt['kit']}")
    page.set_creation_date(datetime.fromtimestamp(receipt["at_ms"] / 1000, UTC))
    page.add_page()
    page.set_font("Helvetica", "B", 15)
    page.cell(0, 2 * _LINE_MM, "Homeward: receipt of a wipe", new_x="LMARGIN", new_y="NEXT")
    page.ln(2)
    for label, value in lines(receipt):
        page.set_font("Helvetica", "B", 9.5)
        page.cell(36, _LINE_MM, label)
        page.set_font("Helvetica" if label not in ("SHA-256 of that", "") else "Courier", "", 9.5)
        page.multi_cell(0, _LINE_MM, _latin(value), new_x="LMARGIN", new_y="NEXT")
    page.ln(3 * _LINE_MM)
    page.set_font("Helvetica", "", 9.5)
    page.cell(0, _LINE_MM, "Signature ______________________________")
    page.output(str(path))


def _latin(value: str) -> str:
    """What the PDF's own fonts have."""
    return value.encode("latin-1", "replace").decode("latin-1")
