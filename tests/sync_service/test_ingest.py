"""The lines of the contract between Kit and Store, through the real Store: what is stored, what is acked."""

import asyncio
import binascii
import sqlite3
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from wire import JOURNAL, NONCE, UPTIME_MS, batch, broken, frame, frames, lost

from gateway.message import Ack, decode_ack
from gateway.record import LOST, NO_OFFSET, decode_body, encode
from sync_service import batches, ingest, store
from sync_service.batches import QUARANTINED_PER_KIT
from sync_service.ingest import GROUP_LIMIT, QUEUE_LIMIT, Ingest, offset_min
from sync_service.store import Store

KIT, OTHER, REVOKED = "HW-0001", "HW-0002", "HW-0009"
NOW_MS = 1_783_641_600_000  # 2026-07-10T00:00:00Z: British Summer Time


class Kits:
    """Kits that send to an Ingest and see its Acks."""

    def __init__(self, opened: Store) -> None:
        self.store = opened
        self.acks: list[tuple[str, Ack]] = []
        self.now_ms = NOW_MS
        self.wake = asyncio.Event()
        self.clock_sure = True
        self.ingest = Ingest(
            opened,
            self._acked,
            self.wake,
            zone=ZoneInfo("Europe/London"),
            clock_ms=lambda: self.now_ms,
            clock_sure=lambda: self.clock_sure,
        )

    def _acked(self, topic: str, whole: bytes) -> None:
        self.acks.append((topic, decode_ack(whole)))

    async def send(self, whole: bytes, kit: str = KIT) -> Ack | None:
        """Send, and return the Ack that comes for it."""
        before = len(self.acks)
        self.ingest.offer(f"homeward/1/{kit}/up", whole)
        await self.ingest.idle()
        for topic, ack in self.acks[before:]:
            assert topic == f"homeward/1/{kit}/down/ack"
            return ack
        return None

    async def rows(self, query: str) -> list[tuple[object, ...]]:
        return await self.store.read(lambda db: db.execute(query).fetchall())

    async def sequences(self) -> list[object]:
        return [row[0] for row in await self.rows("select sequence from record order by sequence")]

    async def counters(self, kit: str = KIT) -> dict[object, object]:
        return dict(await self.rows(f"select name, n from counter where kit = '{kit}'"))  # type: ignore[arg-type]


@pytest.fixture
async def kits(tmp_path: Path) -> AsyncIterator[Kits]:
    def add(db: sqlite3.Connection) -> None:
        rows = [(KIT, "active"), (OTHER, "active"), (REVOKED, "revoked")]
        db.executemany("insert into kit (kit, state, created_ms) values (?, ?, 0)", rows)

    async with Store.open(tmp_path / "store.sqlite") as opened:
        await opened.write(add)
        made = Kits(opened)
        running = asyncio.create_task(made.ingest.run())
        yield made
        running.cancel()


# --- Stored and acked ---------------------------------------------------------------------------------------


async def test_a_batch_is_stored_as_it_came_and_acked(kits: Kits) -> None:
    ack = await kits.send(batch(frames(1, 3), first=1))
    assert ack == Ack(JOURNAL, NONCE, 3, 1, 3, None, NOW_MS, 60)
    rows = await kits.rows("select type, version, sequence, boot, uptime_ms, body from record")
    assert [encode(*row) for row in rows] == frames(1, 3)
    assert kits.wake.is_set()


async def test_an_empty_batch_gets_time_and_position(kits: Kits) -> None:
    await kits.send(batch(frames(1, 3), first=1))
    kits.now_ms += 5
    ack = await kits.send(batch(acked_through=3, nonce=b"nonce--2"))
    assert ack == Ack(JOURNAL, b"nonce--2", 3, 0, 0, None, NOW_MS + 5, 60)


async def test_the_receipt_of_a_boot_is_its_first_batch(kits: Kits) -> None:
    await kits.send(batch(uptime_ms=100))
    kits.now_ms += 900
    await kits.send(batch(uptime_ms=1_000))
    await kits.send(batch(boot=2, uptime_ms=50))
    rows = await kits.rows("select boot, uptime_ms, received_ms from receipt order by boot")
    assert rows == [(1, 100, NOW_MS), (2, 50, NOW_MS + 900)]


async def test_while_the_clock_is_in_doubt_acks_carry_no_time_and_receipts_bound_nothing(kits: Kits) -> None:
    kits.clock_sure = False
    ack = await kits.send(batch(frames(1, 3), first=1))
    assert ack == Ack(JOURNAL, NONCE, 3, 1, 3, None, None, NO_OFFSET), "it is stored, and acked"
    assert await kits.rows("select * from receipt") == []
    kits.clock_sure = True
    kits.now_ms += 700
    ack = await kits.send(batch(uptime_ms=900, acked_through=3))
    assert ack is not None and (ack.utc_ms, ack.offset_min) == (NOW_MS + 700, 60)
    assert await kits.rows("select boot, uptime_ms, received_ms from receipt") == [(1, 900, NOW_MS + 700)]


async def test_a_batch_sent_twice_gets_the_same_ack_and_stores_nothing_twice(kits: Kits) -> None:
    whole = batch(frames(1, 5), first=1)
    first = await kits.send(whole)
    counts = (f"(select count(*) from {table})" for table in ("record", "conflict", "journal"))
    tables = f"select {', '.join(counts)}"
    before = await kits.rows(tables)
    assert await kits.send(whole) == first
    assert await kits.rows(tables) == before == [(5, 0, 1)]
    assert (await kits.counters())["records repeated"] == 5


async def test_the_same_journal_id_of_two_kits_is_two_journals(kits: Kits) -> None:
    await kits.send(batch([frame(1)], first=1))
    ack = await kits.send(batch([frame(1, b"\x02\x5a\x00\x48\x00")], first=1), OTHER)
    assert ack is not None and ack.through == 1
    assert await kits.rows("select kit from journal") == [(KIT,), (OTHER,)]
    assert await kits.rows("select * from conflict") == []


async def test_many_batches_share_a_commit_and_each_has_its_ack(kits: Kits) -> None:
    for first in range(1, 200, 2):
        kits.ingest.offer(f"homeward/1/{KIT}/up", batch(frames(first, first + 1), first=first))
    await kits.ingest.idle()
    assert [ack.through for _, ack in kits.acks] == list(range(2, 201, 2))


# --- Order and gaps -----------------------------------------------------------------------------------------


async def test_a_gap_is_stored_and_asked_for(kits: Kits) -> None:
    await kits.send(batch(frames(1, 2), first=1))
    ack = await kits.send(batch(frames(6, 7), first=6, acked_through=5))
    assert ack is not None
    assert (ack.through, ack.stored_first, ack.stored_last, ack.replay_from) == (2, 6, 7, 3)
    assert await kits.sequences() == [1, 2, 6, 7]
    ack = await kits.send(batch(frames(3, 5), first=3, acked_through=2))
    assert ack is not None
    assert (ack.through, ack.replay_from) == (7, None)


async def test_a_service_that_knows_less_than_the_kit_asks_for_a_replay(kits: Kits) -> None:
    """A restored backup (P3): the greeting alone shows it."""
    await kits.send(batch(frames(1, 2), first=1))
    ack = await kits.send(batch(acked_through=40))
    assert ack is not None
    assert (ack.through, ack.replay_from) == (2, 3)


async def test_a_peek_asks_for_nothing_and_its_records_count_when_their_turn_comes(kits: Kits) -> None:
    ack = await kits.send(batch(frames(4, 5), first=4, peek=True))
    assert ack is not None
    assert (ack.through, ack.stored_first, ack.stored_last, ack.replay_from) == (0, 4, 5, None)
    ack = await kits.send(batch(frames(1, 3), first=1))
    assert ack is not None and ack.through == 5
    ack = await kits.send(batch(frames(4, 6), first=4, acked_through=3))
    assert ack is not None and ack.through == 6
    assert await kits.sequences() == [1, 2, 3, 4, 5, 6]


async def test_lost_extends_what_is_accounted_for(kits: Kits) -> None:
    ack = await kits.send(batch([lost(1, 90), frame(91)], first=1))
    assert ack is not None
    assert (ack.through, ack.stored_first, ack.stored_last) == (91, 1, 91)
    assert (await kits.counters())["records lost"] == 90


async def test_a_lost_that_waited_behind_a_gap_counts_when_the_gap_is_closed(kits: Kits) -> None:
    await kits.send(batch([lost(3, 9)], first=3))
    ack = await kits.send(batch(frames(1, 2), first=1))
    assert ack is not None and ack.through == 9


async def test_the_longer_of_two_losts_wins_and_neither_conflicts(kits: Kits) -> None:
    await kits.send(batch([lost(1, 5)], first=1))
    ack = await kits.send(batch([lost(1, 8)], first=1))
    assert ack is not None and ack.through == 8
    ack = await kits.send(batch([lost(1, 3)], first=1))
    assert ack is not None and ack.through == 8
    rows = await kits.rows("select type, version, sequence, boot, uptime_ms, body from record")
    assert [encode(*row) for row in rows] == [lost(1, 8)]
    assert await kits.rows("select * from conflict") == []


async def test_a_lost_that_begins_where_a_record_is_stored_is_kept_for_the_rest(kits: Kits) -> None:
    """The Ack of that Record was lost, then it rotted in the Kit; or it was peeked."""
    await kits.send(batch(frames(1, 3), first=1))
    await kits.send(batch(frames(6, 6), first=6, peek=True))
    for last in (8, 8, 9):
        ack = await kits.send(batch([lost(3, last)], first=3, acked_through=2))
        assert ack is not None and ack.through == last
    rows = await kits.rows("select type, version, sequence, boot, uptime_ms, body from record where type = 6")
    assert [decode_body(*row[:2], row[5])[:2] for row in rows] == [(4, 8), (9, 9)]
    assert (await kits.counters())["records lost"] == 5
    assert await kits.rows("select * from conflict") == []


async def test_a_real_record_beats_lost_and_is_derived_after_all(kits: Kits) -> None:
    await kits.send(batch([*frames(1, 2), lost(3, 4), frame(5)], first=1))
    await kits.store.write(lambda db: db.execute("update journal set derived_through = 5").rowcount)
    await kits.send(batch(frames(3, 4), first=3))
    await kits.send(batch([lost(3, 4)], first=3))
    rows = await kits.rows("select type, version, sequence, boot, uptime_ms, body from record")
    assert [encode(*row) for row in rows] == frames(1, 5)
    assert await kits.rows("select derived_through from journal") == [(2,)]
    assert (await kits.counters())["records late"] == 2
    assert await kits.rows("select * from conflict") == []


# --- Bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("whole", "reason"),
    [
        (batch()[:10], "batch truncated"),
        (batch(frames(1, 3), first=1)[:-9], "batch CRC broken"),
        (batch(frames(1, 80), first=1), None),  # more than MAX_BATCH_RECORDS, but a Batch
        (batch(frames(1, 150), first=1), "batch oversized"),
        (batch()[:-1] + b"\x00\x00", "batch CRC broken"),
    ],
)
async def test_a_batch_that_is_none_gets_no_ack(kits: Kits, whole: bytes, reason: str | None) -> None:
    ack = await kits.send(whole)
    assert (ack is None) == (reason is not None)
    if reason:
        assert await kits.counters() == {reason: 1}
        assert await kits.sequences() == []


async def test_a_batch_of_an_unknown_version_is_quarantined_once_and_not_acked(kits: Kits) -> None:
    whole = b"\x02" + batch()[1:-4]
    whole += struct.pack("<I", binascii.crc32(whole))
    assert await kits.send(whole) is None
    assert await kits.send(whole) is None
    rows = await kits.rows("select kit, reason, content from quarantine")
    assert rows == [(KIT, "batch of unknown version", whole)]
    assert await kits.counters() == {"batch of unknown version": 2}


async def test_quarantine_is_bounded_for_each_kit(kits: Kits, monkeypatch: pytest.MonkeyPatch) -> None:
    assert QUARANTINED_PER_KIT >= 100
    monkeypatch.setattr(batches, "QUARANTINED_PER_KIT", 3)
    for sequence in range(1, 6):
        await kits.send(batch([broken(frame(sequence))], first=sequence))
    assert await kits.rows("select count(*) from quarantine") == [(3,)]
    assert (await kits.counters())["records broken"] == 5


async def test_a_broken_record_is_quarantined_and_the_ack_moves_on(kits: Kits) -> None:
    ack = await kits.send(batch([frame(1), broken(frame(2)), frame(3)], first=1))
    assert ack is not None
    assert (ack.through, ack.replay_from) == (3, None)
    rows = await kits.rows("select kit, reason, content from quarantine")
    assert rows == [(KIT, "record broken", broken(frame(2)))]
    assert await kits.rows("select type from record where sequence = 2") == [(LOST,)]


async def test_an_unknown_record_is_carried_counted_and_acked(kits: Kits) -> None:
    strange = encode(77, 3, 1, 1, UPTIME_MS, b"from the future")
    ack = await kits.send(batch([strange], first=1))
    assert ack is not None and ack.through == 1
    assert await kits.rows("select type, version, body from record") == [(77, 3, b"from the future")]
    assert (await kits.counters())["records of unknown type"] == 1


async def test_other_bytes_under_a_sequence_are_both_kept_and_acked(kits: Kits) -> None:
    other = frame(2, b"\x02\x5a\x00\x48\x00")
    await kits.send(batch(frames(1, 3), first=1))
    ack = await kits.send(batch([frame(1), other, frame(3)], first=1))
    assert ack is not None and ack.through == 3
    await kits.send(batch([other], first=2))
    assert await kits.rows("select sequence, record from conflict") == [(2, other)]
    rows = await kits.rows("select type, version, sequence, boot, uptime_ms, body from record")
    assert [encode(*row) for row in rows] == frames(1, 3)
    assert (await kits.counters())["conflicts"] == 1


async def test_a_kit_that_is_not_known_stores_nothing(kits: Kits) -> None:
    assert await kits.send(batch([frame(1)], first=1), "HW-7777") is None
    assert await kits.send(b"rubbish", "HW-7777") is None
    assert await kits.sequences() == []
    assert await kits.rows("select * from journal") == []
    assert await kits.counters("") == {"Kit unknown": 1, "batch truncated": 1}


async def test_a_revoked_kit_stores_nothing(kits: Kits) -> None:
    assert await kits.send(batch([frame(1)], first=1), REVOKED) is None
    assert await kits.sequences() == []
    assert await kits.counters(REVOKED) == {"Kit revoked": 1}


@pytest.mark.parametrize("kit", [REVOKED, "HW-0404"])
async def test_of_a_kit_that_is_not_heard_nothing_is_quarantined_either(kits: Kits, kit: str) -> None:
    later = b"\x02" + batch()[1:-4]
    later += struct.pack("<I", binascii.crc32(later))
    assert await kits.send(later, kit) is None
    assert await kits.rows("select * from quarantine") == []


async def test_a_revocation_acts_from_the_next_batch_on(kits: Kits) -> None:
    assert await kits.send(batch([frame(1)], first=1)) is not None
    other = store.connect(kits.store.path)  # as `homeward-sync kit revoke` does
    other.execute("update kit set state = 'revoked' where kit = ?", (KIT,))
    other.close()
    assert await kits.send(batch([frame(2)], first=2)) is None
    assert await kits.sequences() == [1]


async def test_a_status_is_kept_and_a_wrong_one_is_counted(kits: Kits) -> None:
    for whole in (b'{"online": true}', b"not one"):
        kits.ingest.offer(f"homeward/1/{KIT}/status", whole)
    await kits.ingest.idle()
    rows = await kits.rows("select status, status_ms from kit where status is not null")
    assert rows == [('{"online": true}', NOW_MS)]
    assert await kits.counters() == {"status not JSON": 1}


# --- Ack after commit ---------------------------------------------------------------------------------------


async def test_no_ack_before_the_commit(kits: Kits) -> None:
    """The write lock is held elsewhere: the Batch is in hand, its commit is not."""
    other = sqlite3.connect(kits.store.path, isolation_level=None)
    other.execute("begin immediate")
    kits.ingest.offer(f"homeward/1/{KIT}/up", batch([frame(1)], first=1))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(kits.ingest.idle(), 0.2)
    assert kits.acks == []
    other.execute("rollback")
    other.close()
    await kits.ingest.idle()
    assert [ack.through for _, ack in kits.acks] == [1]


async def test_a_store_that_fails_means_no_ack_and_recovers(
    kits: Kits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "PAUSE_FIRST_S", 0.0)
    pages = "pragma max_page_count = {}"
    await kits.store.write(lambda db: db.execute(pages.format(1)).fetchone())  # it is already larger: full
    first, refused = 1, 0
    while not refused:
        whole = batch(frames(first, first + 50), first=first)
        if await kits.send(whole) is None:
            refused = first
        first += 51
    assert kits.store.trouble == "database or disk is full"
    assert kits.ingest.dropped == 1
    await kits.store.write(lambda db: db.execute(pages.format(1_000_000)).fetchone())
    ack = await kits.send(batch(frames(refused, refused + 50), first=refused))
    assert ack is not None and ack.through == refused + 50
    assert kits.store.trouble is None


async def test_what_breaks_our_code_costs_the_others_nothing(
    kits: Kits, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = batches._Group._keep_batch

    def fail(self: "batches._Group", arrival: batches.Arrival) -> batches.Kept:
        if arrival.kit == OTHER:
            raise KeyError("a fault of ours")
        return real(self, arrival)

    monkeypatch.setattr(batches._Group, "_keep_batch", fail)
    for kit in (KIT, OTHER):
        kits.ingest.offer(f"homeward/1/{kit}/up", batch([frame(1)], first=1))
    await kits.ingest.idle()
    assert [topic for topic, _ in kits.acks] == [f"homeward/1/{KIT}/down/ack"]
    assert kits.ingest.dropped == 1
    assert "what Kit HW-0002 has sent can't be stored" in caplog.text


async def test_a_full_queue_says_so_and_has_room_again(kits: Kits) -> None:
    other = sqlite3.connect(kits.store.path, isolation_level=None)
    other.execute("begin immediate")
    sequence = 0
    while not kits.ingest.is_full:
        sequence += 1
        kits.ingest.offer(f"homeward/1/{KIT}/up", batch([frame(sequence)], first=sequence))
        await asyncio.sleep(0)
    assert QUEUE_LIMIT <= sequence <= QUEUE_LIMIT + GROUP_LIMIT
    waiting = asyncio.ensure_future(kits.ingest.room())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    other.execute("rollback")
    other.close()
    await waiting
    assert not kits.ingest.is_full
    await kits.ingest.idle()
    assert len(kits.acks) == sequence


async def test_ingest_is_quiet_when_all_is_stored_and_nothing_more_comes(kits: Kits) -> None:
    await asyncio.wait_for(kits.ingest.quiet(), 5)
    kits.ingest.offer(f"homeward/1/{KIT}/up", batch(frames(1, 2)))
    waiting = asyncio.create_task(kits.ingest.quiet())
    await kits.ingest.idle()
    kits.ingest.offer(f"homeward/1/{KIT}/up", batch(frames(3, 4), first=3))
    await waiting
    assert await kits.sequences() == [1, 2, 3, 4]


def test_the_offset_is_that_of_the_homes() -> None:
    london = ZoneInfo("Europe/London")
    assert offset_min(NOW_MS, london) == 60
    assert offset_min(NOW_MS - 150 * 86_400_000, london) == 0
    assert offset_min(NOW_MS, ZoneInfo("America/St_Johns")) == -150


@pytest.mark.parametrize(
    ("change_ms", "before", "after"),
    [(1_774_746_000_000, 0, 60), (1_792_890_000_000, 60, 0)],  # 2026-03-29 and 2026-10-25, 01:00 UTC
)
async def test_the_offset_changes_with_the_ack_at_the_second_of_the_change(
    kits: Kits, change_ms: int, before: int, after: int
) -> None:
    for kits.now_ms, offset in ((change_ms - 1, before), (change_ms, after)):
        ack = await kits.send(batch(uptime_ms=kits.now_ms - change_ms + 1, nonce=bytes(7) + bytes([offset])))
        assert ack is not None and ack.offset_min == offset
