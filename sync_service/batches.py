"""Batches in the Store: the transaction that an Ack stands on.

The one rule: nothing is remembered between two transactions. How far a Journal is stored (`through`), whether
a Kit is revoked, what came before: each is read in the transaction that uses it, so that kill -9, a restored
backup and `kit revoke` in another process need no word to anyone. Three short queries a Batch are the price.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from typing import NamedTuple

from gateway.record import LOST, Lost, Record, decode_body, encode, encode_lost
from sync_service.arrival import Arrival, Refusal, Said, last_of
from sync_service.store import count

ROWS_PER_INSERT = 64
"""A full Batch; more than that come only from a Kit that breaks its own bound."""
QUARANTINED_PER_KIT = 1_000
"""A Kit of a future release sends one thing again and again under new nonces: a thousand tell enough."""


class Kept(NamedTuple):
    """What the Store knows of a Journal after a Batch, for its Ack."""

    through: int
    replay_from: int | None


class _Journal(NamedTuple):
    number: int
    through: int
    derived_through: int


def keep(
    db: sqlite3.Connection, arrivals: Sequence[Arrival | Said | Refusal], now_ms: int, *, sure: bool = True
) -> list[Kept | None]:
    """Store what has arrived in the caller's transaction; return for each what to ack, None: nothing.

    `sure`: the service's clock is not in doubt. Otherwise the receipts say nothing of the time.
    """
    return _Group(db, now_ms, sure).keep(arrivals)


class _Group:
    """What the arrivals of one transaction share."""

    def __init__(self, db: sqlite3.Connection, now_ms: int, sure: bool) -> None:
        self._db, self._now_ms, self._sure = db, now_ms, sure
        self._kits: dict[str, str | None] = {}  # state, None: not known
        self._seen_ms: dict[str, int] = {}
        self._counts: Counter[tuple[str, str]] = Counter()

    def keep(self, arrivals: Sequence[Arrival | Said | Refusal]) -> list[Kept | None]:
        kept = [self._keep(one) for one in arrivals]
        self._db.executemany(_SEEN, [(seen_ms, kit) for kit, seen_ms in self._seen_ms.items()])
        for (kit, name), n in self._counts.items():
            if n:
                count(self._db, kit, name, n)
        return kept

    def _keep(self, one: Arrival | Said | Refusal) -> Kept | None:
        state = self._state(one.kit)
        if isinstance(one, Refusal):
            self._refuse(one)
        elif state != "active":
            self._counts[one.kit if state else "", "Kit revoked" if state else "Kit unknown"] += 1
        elif isinstance(one, Said):
            self._db.execute(_STATUS, (one.json, one.received_ms, one.kit))
        else:
            return self._keep_batch(one)
        return None

    def _state(self, kit: str) -> str | None:
        if kit not in self._kits:
            row = self._db.execute("select state from kit where kit = ?", (kit,)).fetchone()
            self._kits[kit] = row and row[0]
        return self._kits[kit]

    def _refuse(self, refusal: Refusal) -> None:
        kit = refusal.kit if self._state(refusal.kit) else ""
        self._counts[kit, refusal.reason] += 1
        if (
            refusal.quarantine is not None and self._state(refusal.kit) == "active"
        ):  # else nothing is kept (P8)
            self._quarantine(kit, refusal.reason, refusal.quarantine)

    def _quarantine(self, kit: str, reason: str, content: bytes) -> None:
        self._db.execute(_QUARANTINE, (kit, reason, content, self._now_ms, kit, QUARANTINED_PER_KIT))

    def _keep_batch(self, arrival: Arrival) -> Kept:
        batch, kit = arrival.batch, arrival.kit
        journal = self._journal(arrival)
        self._seen_ms[kit] = arrival.received_ms
        if self._sure:
            self._db.execute(_RECEIPT, (journal.number, batch.boot, batch.uptime_ms, arrival.received_ms))
        if arrival.records:
            self._records(journal, arrival)
        for piece in arrival.broken:
            self._quarantine(kit, "record broken", piece)
        if arrival.is_whole:
            last = max(arrival.spans)[1]
            self._db.execute(_PEEK, (journal.number, batch.first, last, batch.acked_through))
        through = _extend(journal.through, arrival.spans)
        if arrival.records:
            through = self._beyond(journal.number, through)
        if through > journal.through:
            self._db.execute("update journal set through = ? where journal = ?", (through, journal.number))
        self._counts[kit, "batches"] += 1
        self._counts[kit, "records broken"] += len(arrival.broken)
        self._counts[kit, "records of unknown type"] += arrival.unknown
        return self._kept(arrival, through)

    def _journal(self, arrival: Arrival) -> _Journal:
        row = self._db.execute(_JOURNAL, (arrival.kit, arrival.batch.journal_id)).fetchone()
        if row is None:
            new = (arrival.kit, arrival.batch.journal_id, arrival.received_ms)
            row = self._db.execute(_NEW_JOURNAL, new).fetchone()
        return _Journal(*row)

    def _records(self, journal: _Journal, arrival: Arrival) -> None:
        """Insert what is new, compare what is not."""
        records = new = arrival.records
        stored: dict[int, Record] = {}
        # Sent again: its Ack was lost. A LOST may begin where a peeked Record stands.
        if min(arrival.spans)[0] <= journal.through or any(one.type == LOST for one in records):
            stored = self._stored(journal.number, records)
            new = [one for one in records if one.sequence not in stored]
        inserted = self._insert(journal.number, new, arrival.received_ms)
        if inserted < len(new):  # some of it was peeked
            stored = self._stored(journal.number, records)
        self._counts[arrival.kit, "records"] += inserted
        self._counts[arrival.kit, "records repeated"] += len(records) - inserted
        self._counts[arrival.kit, "records lost"] += sum(
            self._missing(journal.number, one.sequence, last_of(one)) for one in new if one.type == LOST
        )
        late = [one.sequence for one in new if one.sequence <= journal.derived_through]
        for one in records if stored else ():
            if one.sequence in stored and self._differs(journal.number, arrival, one, stored[one.sequence]):
                late.append(one.sequence)
        if late and min(late) <= journal.derived_through:
            self._db.execute(_DERIVE_AGAIN, (min(late) - 1, journal.number))
            self._counts[arrival.kit, "records late"] += len(late)

    def _insert(self, journal: int, records: Sequence[Record], received_ms: int) -> int:
        """Insert what is not there yet; return how many that were."""
        inserted = 0
        for at in range(0, len(records), ROWS_PER_INSERT):
            part = records[at : at + ROWS_PER_INSERT]
            rows = chain.from_iterable([(journal, received_ms, *one) for one in part])
            inserted += self._db.execute(_insert_records(len(part)), [*rows]).rowcount
        return inserted

    def _stored(self, journal: int, records: Sequence[Record]) -> dict[int, Record]:
        query = _STORED.format(",".join("?" * len(records)))
        rows = self._db.execute(query, (journal, *(one.sequence for one in records)))
        return {row[2]: Record(*row) for row in rows}

    def _differs(self, journal: int, arrival: Arrival, came: Record, stored: Record) -> bool:
        """Settle a sequence that is stored already; return whether its LOST gave way to the real Record."""
        if came == stored:
            return False
        if stored.type != LOST:
            settle = self._rest_lost if came.type == LOST else self._conflict
            settle(journal, arrival, came)
            return False
        if came.type != LOST or _width(came) > _width(stored):
            if came.type == LOST:
                grown = self._missing(journal, last_of(stored) + 1, last_of(came))
                self._counts[arrival.kit, "records lost"] += grown
            replace = (came.type, came.version, came.boot, came.uptime_ms, came.body, arrival.received_ms)
            self._db.execute(_REPLACE, (*replace, journal, came.sequence))
        return bool(came.type != LOST)

    def _conflict(self, journal: int, arrival: Arrival, came: Record) -> None:
        row = (journal, came.sequence, encode(*came), arrival.received_ms)
        self._counts[arrival.kit, "conflicts"] += self._db.execute(_CONFLICT, row).rowcount

    def _rest_lost(self, journal: int, arrival: Arrival, came: Record) -> None:
        """A LOST that begins with what is here: what it tells of the rest is kept where that begins (P2)."""
        first, last = self._beyond(journal, came.sequence) + 1, last_of(came)
        if first <= last:
            lost = decode_body(came.type, came.version, came.body)
            assert isinstance(lost, Lost)
            body = encode_lost(lost._replace(first=first))
            self._insert(journal, [came._replace(sequence=first, body=body)], arrival.received_ms)
            self._counts[arrival.kit, "records lost"] += self._missing(journal, first, last)

    def _missing(self, journal: int, first: int, last: int) -> int:
        """How many Records from `first` to `last` are not here."""
        (here,) = self._db.execute(_HERE, (journal, first, last, LOST)).fetchone()
        return last - first + 1 - int(here)

    def _beyond(self, journal: int, through: int) -> int:
        """Move on over what was stored ahead of its place: peeked, or after a gap that is now closed."""
        for row in self._db.execute(_AHEAD, (journal, through)):
            ahead = Record(*row)
            if ahead.sequence > through + 1:
                break
            through = max(through, ahead.sequence + _width(ahead) - 1)
        return through

    def _kept(self, arrival: Arrival, through: int) -> Kept:
        """Ask for a replay where the Kit believes stored, or has just sent, what does not join on."""
        batch = arrival.batch
        reached = batch.acked_through
        if arrival.spans and not arrival.is_peek:
            reached = max(reached, max(arrival.spans)[1])
        if reached <= through:
            return Kept(through, None)
        self._counts[arrival.kit, "replays asked"] += 1
        return Kept(through, through + 1)


def _extend(through: int, spans: Iterable[tuple[int, int]]) -> int:
    for first, last in sorted(spans):
        if first <= through + 1:
            through = max(through, last)
    return through


def _width(record: Record) -> int:
    """How many sequences the Record accounts for."""
    return last_of(record) - int(record.sequence) + 1


# --- Statements ---------------------------------------------------------------------------------------------

_JOURNAL = "select journal, through, derived_through from journal where kit = ? and journal_id = ?"
_NEW_JOURNAL = """
    insert into journal (kit, journal_id, created_ms) values (?, ?, ?)
    returning journal, through, derived_through"""
# The first Batch of a boot stays: it is the tightest bound for what came before it.
_RECEIPT = "insert or ignore into receipt (journal, boot, uptime_ms, received_ms) values (?, ?, ?, ?)"
_PEEK = "insert or ignore into peek (journal, first, last, after_sequence) values (?, ?, ?, ?)"
_STORED = """
    select type, version, sequence, boot, uptime_ms, body from record
    where journal = ? and sequence in ({})"""
_AHEAD = """
    select type, version, sequence, boot, uptime_ms, body from record
    where journal = ? and sequence > ? order by sequence"""
_HERE = "select count(*) from record where journal = ? and sequence between ? and ? and type <> ?"
_REPLACE = """
    update record set type = ?, version = ?, boot = ?, uptime_ms = ?, body = ?, received_ms = ?
    where journal = ? and sequence = ?"""
_DERIVE_AGAIN = "update journal set derived_through = ? where journal = ?"
_CONFLICT = "insert or ignore into conflict (journal, sequence, record, received_ms) values (?, ?, ?, ?)"
_QUARANTINE = """
    insert or ignore into quarantine (kit, reason, content, received_ms)
    select ?, ?, ?, ? where (select count(*) from quarantine where kit = ?) < ?"""
_STATUS = "update kit set status = ?, status_ms = ? where kit = ?"
_SEEN = "update kit set seen_ms = ? where kit = ?"


@cache
def _insert_records(rows: int) -> str:
    """Many rows in one statement: half the time of `executemany`, and the GIL is given up once for all."""
    return (
        "insert or ignore into record"
        " (journal, received_ms, type, version, sequence, boot, uptime_ms, body) values "
        + ",".join(["(?,?,?,?,?,?,?,?)"] * rows)
    )
