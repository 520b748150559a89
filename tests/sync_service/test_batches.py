"""A Record that comes after its LOST has been derived: its Reading is made, and no other twice."""

from pathlib import Path

from kit_journal import BIRTH_MS, BP, CUFF, DAY, HOUR, MINUTE, OXIMETER, SPOT, KitJournal, spot
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


def test_what_a_later_journal_says_of_the_end_of_one_reaches_its_readings(tmp_path: Path) -> None:
    # Nothing else comes of it any more: no Record would have it looked at again (found by the simulation).
    db = connect(tmp_path / "store.sqlite")
    kit = KitJournal()
    kit.create(db)
    kit.begin()
    kit.hint(BIRTH_MS + kit.uptime_ms)
    kit.boot, kit.uptime_ms = 2, HOUR
    kit.hint(BIRTH_MS + DAY)  # false: the Kit is back at the bench by then
    kit.frame(OXIMETER, SPOT, spot())
    kit.store(db)
    deriver = Deriver()
    deriver.chunk(db, now_ms=BIRTH_MS)
    times = "select earliest_ms, latest_ms, quality from reading"
    ((earliest_ms, _, quality),) = db.execute(times).fetchall()
    assert quality == "extrapolated" and earliest_ms > BIRTH_MS + 23 * HOUR
    came_ms = BIRTH_MS + 4 * HOUR
    first = decode(up_topic(kit.kit), batch(journal_id=b"journal2", uptime_ms=0), came_ms)
    keep(db, [first], came_ms)
    deriver.chunk(db, now_ms=BIRTH_MS)
    ((earliest_ms, latest_ms, quality),) = db.execute(times).fetchall()
    assert quality == "bracketed" and earliest_ms < BIRTH_MS + 2 * HOUR < latest_ms <= came_ms + 10
    db.close()
