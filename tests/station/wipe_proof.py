"""What a wipe promises, on an emulated board that was with a patient and a real service."""

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any

from hw.station import secret
from hw.station.kit_folder import KitFolder
from hw.virtual.rom_loader import RomLoader
from sync_service.store import connect
from tests.station.used_kit import BOND_KEY, HOME_PASSWORD, JOURNAL_ID, RECORDS, used_flash
from tests.station.workshop import Workshop, workshop

KIT = "HW-0001-Z"


def prove(folder: Path) -> dict[str, Any]:
    """Refused while a Record is unsent; then nothing is left of 64 Records, a bond, passwords and a key."""
    return asyncio.run(_prove(folder))


async def _prove(folder: Path) -> dict[str, Any]:
    path = folder / "flash"
    async with workshop(folder) as here:
        await here.station("provision", "--next")
        kit = KitFolder.load(here.bench / "kits" / KIT)
        before = used_flash(kit)
        path.write_bytes(before)
        with RomLoader(path) as loader:
            _stored(here, RECORDS - 1)
            refused = await here.station("wipe", KIT, "--port", loader.port)
            untouched = path.read_bytes() == before
            _stored(here, RECORDS)
            said = await here.station("wipe", KIT, "--port", loader.port, "--json")
        after = path.read_bytes()
        planted = kit.secrets() | {"bond": BOND_KEY, "home": HOME_PASSWORD.encode()}
        return {
            "wipe_refused_while_unsent": refused.code == 1 and untouched,
            "wiped": said.code == 0 and here.lives()[KIT] == "wiped",
            "known_before": said.json["before"]["places"],
            "residue_bytes": len(after) - after.count(0xFF) + len(secret.places(after, planted)),
        }


def _stored(here: Workshop, through: int) -> None:
    with closing(connect(here.sync / "store.sqlite")) as db:
        db.execute(
            "insert into journal (kit, journal_id, through, created_ms) values (?, ?, ?, 1)"
            " on conflict do update set through = excluded.through",
            (KIT, JOURNAL_ID, through),
        )
