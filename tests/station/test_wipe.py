"""The wipe: refused while anything would be lost; afterwards nothing is left, and the proof can tell."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from hw.station import bench, board, contents, partitions, secret
from hw.station import wipe as station_wipe
from hw.station.kit_folder import KitFolder
from hw.station.loader import Loader, Progress
from hw.station.report import Report
from hw.station.service import Service
from hw.virtual.rom_loader import RomLoader
from sync_service.life import Step, take
from sync_service.store import connect
from tests.station.kits import kit_folder, project
from tests.station.used_kit import BOARD, BOND_KEY, JOURNAL_ID, RECORDS, SENSOR, used_flash
from tests.station.workshop import PASSWORD, Workshop, workshop

KIT, OTHER = "HW-0001-Z", "HW-0002-X"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Workshop]:
    async with workshop(tmp_path) as started:
        said = await started.station("provision", "--next", "2", "--json")
        assert said.json == {"provisioned": [KIT, OTHER]}
        (tmp_path / "flash").write_bytes(used_flash(folder(started)))
        stored(started, RECORDS)
        yield started


def folder(here: Workshop, kit: str = KIT) -> KitFolder:
    return KitFolder.load(here.bench / "kits" / kit)


def stored(here: Workshop, through: int) -> None:
    """What the service holds of the Kit's Journal."""
    with closing(connect(here.sync / "store.sqlite")) as db:
        db.execute(
            "insert into journal (kit, journal_id, through, created_ms) values (?, ?, ?, 1)"
            " on conflict do update set through = excluded.through",
            (KIT, JOURNAL_ID, through),
        )


async def wiped(here: Workshop, tmp_path: Path, *arguments: str, kit: str = KIT) -> Any:
    """Run the command on a board in download mode with this flash."""
    with RomLoader(tmp_path / "flash") as loader:
        return await here.station("wipe", kit, "--port", loader.port, *arguments)


async def test_nothing_is_left_and_the_receipt_says_what_there_was(
    here: Workshop, tmp_path: Path, say: list[str]
) -> None:
    kit = folder(here)
    said = await wiped(here, tmp_path, "--json")
    assert said.code == 0, said.err
    receipt = said.json
    assert receipt["residue_bytes"] == receipt["known_found"] == 0
    assert receipt["before"]["records"] == RECORDS and receipt["before"]["bonds"] == 1
    assert receipt["before"]["places"] >= 2 * RECORDS  # the search could find them
    flash = (tmp_path / "flash").read_bytes()
    assert flash == b"\xff" * len(flash)
    assert receipt["sha256"] == hashlib.sha256(flash).hexdigest()
    assert receipt["sensors"] == [{"sensor": SENSOR, "mark": "cannot be emptied"}]
    assert (receipt["operator"], receipt["number"]) == ("ann", 1)
    assert here.lives()[KIT] == "wiped"
    assert json.loads(here.rows("select receipt from wipe")[0][0])["sha256"] == receipt["sha256"]
    assert here.rows("select sensor, mark from sensor_mark") == [(SENSOR, "cannot be emptied")]
    revoked = x509.load_pem_x509_crl((here.sync / "broker/revoked.pem").read_bytes())
    own = x509.load_der_x509_certificate(kit.certificate)
    assert own.serial_number in [one.serial_number for one in revoked]
    assert not (here.bench / "kits" / KIT).exists()
    papers = here.bench / "papers" / KIT
    text = (papers / "receipt.txt").read_text()
    assert KIT in text and "0 bytes" in text and receipt["sha256"][:32] in text and "Receipt number" in text
    assert (papers / "receipt.pdf").read_bytes().startswith(b"%PDF")
    for path in papers.iterdir():
        assert not secret.places(path.read_bytes(), kit.secrets())
    say.append(
        f"wipe: {receipt['before']['places']} known values before, residue_bytes {receipt['residue_bytes']}"
    )


async def test_unsent_records_refuse_the_wipe_and_nothing_is_erased(here: Workshop, tmp_path: Path) -> None:
    stored(here, RECORDS - 3)
    before = (tmp_path / "flash").read_bytes()
    said = await wiped(here, tmp_path)
    assert said.code == 1 and f"Kit {KIT}: 3 Records have not reached the service" in said.err
    assert "--drain" in said.err and (tmp_path / "flash").read_bytes() == before
    assert here.lives()[KIT] == "provisioned"
    short = await wiped(here, tmp_path, "--give-up-unsent", "x")
    assert short.code == 1 and "needs a reason in words" in short.err
    assert (tmp_path / "flash").read_bytes() == before
    given_up = await wiped(here, tmp_path, "--give-up-unsent", "the courier dropped it, it does not start")
    assert given_up.code == 0, given_up.err
    assert "3 given up: the courier dropped it" in given_up.out
    details = here.rows("select detail from audit where action = 'kit wipe'")
    assert details == [
        ("provisioned -> wiped unsent given up: 3 Records: the courier dropped it, it does not start",)
    ]


async def test_another_kits_board_a_shipped_kit_and_an_assigned_one_are_not_touched(
    here: Workshop, tmp_path: Path
) -> None:
    before = (tmp_path / "flash").read_bytes()
    other = await wiped(here, tmp_path, kit=OTHER)
    assert other.code == 1 and f"the board on the bench is Kit {KIT}, not {OTHER}" in other.err
    mistyped = await wiped(here, tmp_path, kit="HW-0001-X")
    assert mistyped.code == 1 and "is mistyped" in mistyped.err
    with closing(connect(here.sync / "store.sqlite")) as db:
        db.execute("update kit set life = 'shipped' where kit = ?", (KIT,))
        shipped = await wiped(here, tmp_path)
        assert shipped.code == 1 and "is shipped: run `homeward-station receive` first" in shipped.err
        take(db, Step(KIT, "receive", "ann", 1))
        row = (KIT, "E-1", "Patient/7", 1)
        db.execute("insert into assignment (kit, episode, patient, start_ms) values (?, ?, ?, ?)", row)
    assigned = await wiped(here, tmp_path)
    assert assigned.code == 1 and "still with a patient" in assigned.err
    assert "E-1" not in assigned.err and "Patient" not in assigned.err
    assert (tmp_path / "flash").read_bytes() == before


async def test_a_board_that_says_nothing_needs_a_reason(here: Workshop, tmp_path: Path) -> None:
    (tmp_path / "flash").write_bytes(b"\xff" * (4 << 20))
    said = await wiped(here, tmp_path)
    assert said.code == 1 and f"does not say that it is Kit {KIT}" in said.err
    assert here.lives()[KIT] == "provisioned"


async def test_a_dry_run_erases_nothing(here: Workshop, tmp_path: Path) -> None:
    before = (tmp_path / "flash").read_bytes()
    said = await wiped(here, tmp_path, "--dry-run", "--json")
    assert said.code == 0 and len(said.json["plan"]) == 4
    assert (tmp_path / "flash").read_bytes() == before and here.lives()[KIT] == "provisioned"


async def test_a_receipt_is_sent_again_when_the_service_was_away(here: Workshop, tmp_path: Path) -> None:
    token = (here.bench / "token").read_text()

    class Cut(Loader):
        """The token is taken away while the flash is being erased."""

        def erase(self, flash_bytes: int, progress: Progress) -> None:
            super().erase(flash_bytes, progress)
            (here.bench / "token").write_text("gone")
            with closing(connect(here.sync / "store.sqlite")) as db:
                db.execute("update technician set revoked_ms = 1")

    settings = bench.load(here.bench)
    with RomLoader(tmp_path / "flash") as loader, pytest.raises(Exception, match="the token is not known"):
        await _in_thread(
            lambda: station_wipe.wipe(
                settings, Service(settings), KIT, Cut(loader.port), Report(json=True, dry_run=False)
            )
        )
    assert here.lives()[KIT] == "provisioned"
    with closing(connect(here.sync / "store.sqlite")) as db:
        db.execute("update technician set revoked_ms = null")
    (here.bench / "token").write_text(token)
    said = await here.station("wipe", KIT, "--send", "--json")
    assert said.code == 0, said.err
    assert said.json["number"] == 1 and here.lives()[KIT] == "wiped"


async def test_a_byte_that_stays_is_found_and_the_board_condemned(here: Workshop, tmp_path: Path) -> None:
    class Worn(Loader):
        """A sector of its flash can't be erased any more."""

        def erase(self, flash_bytes: int, progress: Progress) -> None:
            row = partitions.find(board.load(BOARD).partitions, "bonds")
            kept = self.read(row.offset, 4096)
            super().erase(flash_bytes, progress)
            with (tmp_path / "flash").open("r+b") as file:
                file.seek(row.offset)
                file.write(kept)

    settings = bench.load(here.bench)
    with (
        RomLoader(tmp_path / "flash") as loader,
        pytest.raises(Exception, match="do not use this board again"),
    ):
        await _in_thread(
            lambda: station_wipe.wipe(
                settings, Service(settings), KIT, Worn(loader.port), Report(json=True, dry_run=False)
            )
        )
    receipt = json.loads((here.bench / "papers" / KIT / "receipt.json").read_text())
    assert receipt["residue_bytes"] > 100 and receipt["known_found"] >= 1
    assert here.lives()[KIT] == "provisioned"
    assert (await here.station("wipe", KIT, "--send")).code == 1  # nor does the service take it


def test_everything_that_a_used_kit_holds_is_known(tmp_path: Path) -> None:
    kit = kit_folder(project(tmp_path / "sync"), "HW-0001")
    flash = used_flash(kit)

    class Whole:
        def read(self, offset: int, size: int) -> bytes:
            return flash[offset : offset + size]

    held = contents.read(Whole())
    assert (held.kit, held.journal_id, held.last, held.records) == (
        "HW-0001",
        JOURNAL_ID.hex(),
        RECORDS,
        RECORDS,
    )
    assert held.sensors == [SENSOR] and held.readable
    assert held.missing({JOURNAL_ID.hex(): 60}) == 4 and held.missing({}) == RECORDS
    assert BOND_KEY in held.secrets.values() and kit.key in held.secrets.values()
    found = {name.split(" 1")[0] for name, _ in secret.places(flash, held.secrets)}
    assert {"private key", "bond key", "Record", "password of network"} <= found
    assert PASSWORD not in repr(held)
    flash = flash.replace(partitions.encode(board.load(BOARD).partitions), b"\xff" * partitions.TABLE_BYTES)
    lost = contents.read(Whole(), board.load(BOARD).partitions)
    assert (lost.kit, lost.records, lost.readable) == ("HW-0001", RECORDS, True)
    assert not contents.read(Whole()).readable


def test_a_damaged_journal_is_no_empty_one(tmp_path: Path) -> None:
    class Torn:
        def __init__(self) -> None:
            chosen = board.load(BOARD)
            self.content = bytearray(b"\xff" * (4 << 20))
            table = partitions.encode(chosen.partitions)
            self.content[partitions.TABLE_OFFSET : partitions.TABLE_OFFSET + len(table)] = table
            self.journal = partitions.find(chosen.partitions, "journal").offset

        def read(self, offset: int, size: int) -> bytes:
            return bytes(self.content[offset : offset + size])

    torn = Torn()
    assert contents.read(torn).readable
    torn.content[torn.journal + 100] = 0
    assert not contents.read(torn).readable


async def _in_thread(work: Any) -> Any:
    return await asyncio.to_thread(work)
