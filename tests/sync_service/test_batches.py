"""A Record that comes after its LOST has been derived: its Reading is made, and no other twice."""

from pathlib import Path

from kit_journal import BIRTH_MS, BP, CUFF, MINUTE, KitJournal
from wire import batch

from gateway.message import up_topic
from gateway.record import LOST, TORN, Lost, encode, encode_lost
from sync_service.arrival import decode
from sync_service.batches import Kept, keep
from sync_service.derive import Deriver
from sync_service.store import connect


def test_a_record_that_comes_late_is_derived_and_no_other_twice(tmp_path: Path) -> None:
    db = connect(tmp_path / "store.sqlite")
    kit = KitJournal()
    kit.create(db)
    kit.begin()
    for _ in range(5):
        kit.uptime_ms += MINUTE
        kit.frame(CUFF, BP, b"\x00\x78\x00\x50\x00\x5d\x00")
    kit.store(db)
    late = kit.sequence - 2
    row = db.execute(
        "select type, version, sequence, boot, uptime_ms, body from record where sequence = ?", (late,)
    ).fetchone()
    gone = encode_lost(Lost(late, late, TORN))
    db.execute("update record set type = ?, body = ? where sequence = ?", (LOST, gone, late))
    deriver = Deriver()
    deriver.chunk(db, now_ms=BIRTH_MS)
    before = db.execute("select sequence, key from reading order by reading").fetchall()
    assert len(before) == 4

    arrival = decode(
        up_topic(kit.kit), batch([encode(*row)], first=late, journal_id=kit.journal_id), BIRTH_MS
    )
    assert keep(db, [arrival], BIRTH_MS) == [Kept(kit.sequence, None)]
    for _ in range(3):
        deriver.chunk(db, now_ms=BIRTH_MS)
    after = db.execute("select sequence, key from reading order by reading").fetchall()
    assert after[:-1] == before
    assert after[-1][0] == late
    assert db.execute("select derived_through from journal").fetchone() == (kit.sequence,)
    db.close()
