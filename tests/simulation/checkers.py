"""One checker for each promise, from the world's own ledgers, the rows of the Store and the JSON of the Hub.

Imports nothing of what it judges. Some checks are made while the world runs (P1 at each confirmation, P2 at
each Batch, P3 at each Ack), the others when it has come to rest.
"""

import struct
import traceback
import zlib
from collections import defaultdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.simulation.sensor import (
    BROKEN,
    CUFF,
    NEVER,
    OXIMETER,
    PLAIN_OXIMETER,
    QUESTIONABLE,
    STREAM,
    Kept,
    Measurement,
)

if TYPE_CHECKING:
    from tests.simulation.kit import Kit
    from tests.simulation.world import World

P1 = "P1 What a Sensor was told to forget was in flash before it was told."
P2 = "P2 What was confirmed is at the Hub, or held and shown, or its loss is in the Store."
P3 = "P3 What an Ack covers is committed."
P4 = "P4 Each measurement stands once at the Hub, and no two have become one."
P5 = "P5 An Observation is of the patient who was measured, and nothing that is certain is held."
P6 = "P6 The true time lies within the bound that is told."
P7 = "P7 What is no measurement never looks like one, and what is doubtful is marked."
P8 = "P8 A Kit stores what it has sent itself, and nothing once it is revoked."
LIVE = "When all faults have stopped, everything arrives."
WHOLE = "The code raises nothing but what it says."

SLACK_MS = 2
"""Half a bound, and a midpoint, are rounded to ms."""
MAX_BRACKET_MS = 43_200_000
MOST_REPORTED = 5
FRAME, ANCHOR, LOST = 1, 3, 6
_LOINC = "http://loinc.org"
_OWN = "https://homeward.example/fhir/"
_VALUES = {
    "2708-6": ("spo2",),
    "8867-4": ("pulse",),
    "8478-0": ("mean",),
    "85354-9": ("systolic", "diastolic"),
}
_CODES = {
    CUFF: {"85354-9", "8867-4", "8478-0"},
    OXIMETER: {"2708-6", "8867-4"},
    PLAIN_OXIMETER: {"2708-6", "8867-4"},
    STREAM: {"2708-6", "8867-4"},
}
_NO_VITAL = "no vital sign"


class Violation(NamedTuple):
    promise: str
    detail: str


class Row(NamedTuple):
    """A row of the Store's table `reading`, with its place."""

    reading: int
    journal: int
    kit: str
    journal_id: bytes
    sequence: int
    repeat_of: int | None
    earliest_ms: int | None
    latest_ms: int | None
    state: str
    reason: str | None
    barred: int
    outbox: str | None
    trust: str


class Checks:
    """What has been found. The world calls the first part while it runs, `finish` at its end."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.violations: list[Violation] = []
        self._sent: dict[str, set[tuple[bytes, int, int, bytes]]] = defaultdict(set)
        self._acked: dict[tuple[str, bytes], tuple[int, int]] = {}  # restores so far, verified through
        self._revoked: dict[str, int] = {}

    def found(self, promise: str, detail: str) -> None:
        self.violations.append(Violation(promise, detail))

    # --- While it runs --------------------------------------------------------------------------------------

    def crashed(self, what: str, error: BaseException) -> None:
        where = traceback.extract_tb(error.__traceback__)[-1]
        self.found(WHOLE, f"{what} at {where.filename}:{where.lineno}")

    def confirmed(self, kept: Kept) -> None:
        """P1, at the moment at which the Sensor forgets."""
        if not kept.in_flash:
            self.found(P1, f"{kept.kit} {kept.sequence}")

    def reused(self, kit: str, sequence: int) -> None:
        """P2, in flash: what has a sequence twice is lost once, since an Ack covers both."""
        self.found(P2, f"{kit} has written {sequence} twice, with other bytes")

    def published(self, kit: str, topic: str, whole: bytes) -> None:
        """P2, on the wire: Records in their order, LOST in its place. And what P8 compares with."""
        if not topic.endswith("/up"):
            return
        flags, journal, first, count = whole[1], whole[2:10], *struct.unpack_from("<IH", whole, 32)
        expected, records = first, 0
        for type, sequence, body in _records(whole[38:-4]):
            self._sent[kit].add((journal, sequence, type, body))
            if type == ANCHOR:
                self._check_anchor(kit, journal, sequence, body)
            records += 1
            if flags & 1:
                continue  # a peek: out of order, and comes again
            if sequence != expected:
                self.found(P2, f"{kit} sent {sequence} where {expected} stands")
            expected = (struct.unpack_from("<II", body)[1] if type == LOST else sequence) + 1
        if records != count:
            self.found(P2, f"{kit} sent {records} Records as {count}")

    def _check_anchor(self, kit_name: str, journal: bytes, sequence: int, body: bytes) -> None:
        """P6: what an Ack has told of the time was true when it came."""
        kit = self.world.kit_named(kit_name)
        utc_ms, uncertainty_ms, source = struct.unpack_from("<QIB", body)
        if kit is None or source != 1 or (journal, sequence) not in kit.anchored:
            return
        true_ms, is_right = kit.anchored[journal, sequence]
        if is_right and abs(utc_ms - true_ms) > uncertainty_ms + SLACK_MS:
            self.found(P6, f"{kit_name} {sequence}: an ANCHOR is off by {utc_ms - true_ms} ms")

    def acked(self, topic: str, ack: bytes) -> None:
        """P3, when an Ack leaves: every sequence that it covers stands in the Store."""
        kit, journal, through = topic.split("/")[2], ack[2:10], struct.unpack_from("<I", ack, 18)[0]
        database = self.world.database
        restores, verified = self._acked.get((kit, journal), (0, 0))
        if restores != database.restores:
            verified = 0
        if through <= verified:
            return
        rows = database.rows(
            """select sequence, type, body from record join journal using (journal)
            where kit = ? and journal_id = ? and sequence > ? and sequence <= ? order by sequence""",
            (kit, journal, verified - 200 if verified else 0, through),
        )
        reached = verified
        for sequence, type, body in rows:
            if sequence > reached + 1:
                break
            reached = max(reached, struct.unpack_from("<II", body)[1] if type == LOST else sequence)
        if reached < through and not self._wide_lost(kit, journal, reached):
            self.found(P3, f"{kit} acked {through}, stored {reached}")
        self._acked[kit, journal] = database.restores, through

    def _wide_lost(self, kit: str, journal: bytes, after: int) -> bool:
        """Whether a LOST that begins far before reaches beyond."""
        rows = self.world.database.rows(
            """select sequence, body from record join journal using (journal)
            where kit = ? and journal_id = ? and type = 6 and sequence <= ?""",
            (kit, journal, after + 1),
        )
        return any(struct.unpack_from("<II", body)[1] > after for _, body in rows)

    def was_revoked(self, kit: str) -> None:
        self._revoked[kit] = self._stored_of(kit)

    def _stored_of(self, kit: str) -> int:
        query = "select count(*) from record join journal using (journal) where kit = ?"
        return int(self.world.database.rows(query, (kit,))[0][0])

    # --- At rest --------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Everything that is compared when nothing moves any more."""
        for failure in self.world.loop.failures:
            self.found(WHOLE, failure)
        rows = self._readings()
        self._check_live(rows)
        self._check_kept(rows)
        self._check_rows(rows)
        self._check_own()
        self._check_hub(rows)

    def _readings(self) -> dict[tuple[str, bytes, int], Row]:
        found = self.world.database.rows(
            """select reading, journal, kit, journal_id, sequence, repeat_of, earliest_ms, latest_ms,
                reading.state, reason, barred, outbox.state, trust
            from reading join journal using (journal) left join outbox using (reading)"""
        )
        rows = [Row(*one) for one in found]
        return {(row.kit, row.journal_id, row.sequence): row for row in rows}

    def _check_live(self, rows: dict[tuple[str, bytes, int], Row]) -> None:
        for kit in self.world.kits:
            if kit.pending:
                self.found(LIVE, f"{kit.name} still holds {kit.pending} Records")
        waiting = [row.reading for row in rows.values() if row.outbox not in (None, "done")]
        waiting += [row.reading for row in rows.values() if row.state == "queued" and row.outbox is None]
        if waiting:
            self.found(LIVE, f"{len(waiting)} Readings wait for the Hub")
        held = [row for row in rows.values() if row.state == "held"]
        unbonded = [row.reading for row in held if (row.reason or "").startswith("the bond")]
        if unbonded:
            self.found(LIVE, f"{len(unbonded)} Readings wait for a bond that was accepted")
        behind = self.world.database.rows(
            "select kit, derived_through, through from journal where derived_through < through"
        )
        for kit_name, derived, through in behind:
            if self.world.kit_named(kit_name) is None:
                continue  # the thief gives no time to its boot
            rest = self.world.database.rows(
                """select count(*) from record join journal using (journal)
                where kit = ? and type = 1 and sequence > ? and sequence <= ?""",
                (kit_name, derived, through),
            )
            if rest[0][0]:
                self.found(LIVE, f"{kit_name} is derived to {derived} of {through}")

    def _check_kept(self, rows: dict[tuple[str, bytes, int], Row]) -> None:
        """P2 for each Frame that was confirmed."""
        for kit in self.world.kits:
            stored = self._stored_frames(kit.name)
            lost = self._lost(kit.name)
            for (journal, sequence), kept in kit.kept.items():
                where = f"{kit.name} {journal.hex()} {sequence}"
                if (journal, sequence) in stored:
                    if stored[journal, sequence][4:] != kept.value:
                        self.found(P2, f"{where}: other bytes are stored")
                    elif (kit.name, journal, sequence) not in rows and not self._quarantined(kept):
                        self.found(P2, f"{where}: stored and no Reading")
                elif not any(first <= sequence <= last for first, last in lost.get(journal, ())):
                    if kept.confirmed:
                        self.found(P2, f"{where}: not in the Store and not lost")
                elif kept.confirmed and self._still_in_flash(kit, kept):
                    self.found(P2, f"{where}: called lost and is in flash")

    def _stored_frames(self, kit: str) -> dict[tuple[bytes, int], bytes]:
        query = """select journal_id, sequence, body from record join journal using (journal)
            where kit = ? and type = 1"""
        return {(row[0], row[1]): row[2] for row in self.world.database.rows(query, (kit,))}

    def _lost(self, kit: str) -> dict[bytes, list[tuple[int, int]]]:
        query = """select journal_id, body from record join journal using (journal)
            where kit = ? and type = 6"""
        lost: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
        for journal, body in self.world.database.rows(query, (kit,)):
            lost[journal].append(struct.unpack_from("<II", body))
        return lost

    def _quarantined(self, kept: Kept) -> bool:
        if kept.measurement.trust != BROKEN:
            return False
        query = "select content from quarantine where kit = ?"
        rows = self.world.database.rows(query, (kept.kit,))
        return any(content[4:] == kept.value for (content,) in rows)

    def _still_in_flash(self, kit: "Kit", kept: Kept) -> bool:
        """Whole, by its CRC, in a block that the Journal has not let go."""
        if kit.journals[-1] != kept.journal:
            return False
        value = kept.value
        head = struct.pack("<HBBI", len(value) + 4, FRAME, 1, kept.sequence)
        at = kit.flash.cells.find(head)
        whole = bytes(kit.flash.cells[at : at + 26 + len(value)])
        if at // kit.flash.block_bytes in kit.flash.given_up:
            return False
        return at >= 0 and zlib.crc32(whole[:-4]) == int.from_bytes(whole[-4:], "little")

    def _check_rows(self, rows: dict[tuple[str, bytes, int], Row]) -> None:
        """P4, P5 and P6 on what the Store says, held Readings included."""
        numbers = {row.reading: row for row in rows.values()}
        assignments = self._assignments()
        journals = dict(
            self.world.database.rows(
                "select journal, episode from journal left join assignment using (assignment)"
            )
        )
        for row in rows.values():
            kept = self._kept(row)
            if kept is None:
                continue  # of the thief
            if row.state != "repeat":
                self._check_time(row, kept)
            else:
                first = self._kept(numbers[row.repeat_of or 0])
                if first is not None and first.measurement is not kept.measurement:
                    one, other = first.measurement.number, kept.measurement.number
                    self.found(P4, f"{row.kit} {row.sequence}: measurement {other} was taken for {one}")
            if row.state == "held" and not row.barred:
                self._check_held(row, assignments[row.kit], journals[row.journal])

    def _check_time(self, row: Row, kept: Kept) -> None:
        if row.earliest_ms is not None and row.latest_ms is not None:
            off_ms = max(
                row.earliest_ms - kept.measurement.taken_ms, kept.measurement.taken_ms - row.latest_ms
            )
            if off_ms > SLACK_MS:
                self.found(P6, f"{row.kit} {row.sequence} is {off_ms} ms out of its bound ({row.state})")

    def _assignments(self) -> dict[str, list[tuple[str, int, int]]]:
        found: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
        query = "select kit, episode, start_ms, coalesce(end_ms, 1 << 60) from assignment"
        for kit, *rest in self.world.database.rows(query):
            found[kit].append(tuple(rest))
        return found

    def _check_held(self, row: Row, assignments: list[tuple[str, int, int]], episode: str | None) -> None:
        """Nothing is held that lies within one Assignment."""
        if row.earliest_ms is None or row.latest_ms is None:
            return
        if row.latest_ms - row.earliest_ms > MAX_BRACKET_MS:
            return
        for name, start_ms, end_ms in assignments:
            if start_ms <= row.earliest_ms and row.latest_ms < end_ms and episode in (None, name):
                self.found(P5, f"{row.kit} {row.sequence} is held within {name}: {row.reason}")

    def _kept(self, row: Row) -> Kept | None:
        kit = self.world.kit_named(row.kit)
        return kit.kept.get((row.journal_id, row.sequence)) if kit is not None else None

    def _check_own(self) -> None:
        """P8: every stored Record was sent by its own Kit."""
        query = "select kit, journal_id, sequence, type, body from record join journal using (journal)"
        for kit, *record in self.world.database.rows(query):
            if tuple(record) not in self._sent[kit]:
                self.found(P8, f"{kit} {record[1]} was never sent by it")
        for kit, before in self._revoked.items():
            if self._stored_of(kit) != before:
                self.found(P8, f"{kit} is revoked and {self._stored_of(kit) - before} Records came after")
        for kit in self.world.kits:
            conflicts = self.world.database.rows(
                "select count(*) from conflict join journal using (journal) where kit = ?", (kit.name,)
            )
            if conflicts[0][0]:
                self.found(P2, f"{kit.name} has used {conflicts[0][0]} sequences twice")

    def _check_hub(self, rows: dict[tuple[str, bytes, int], Row]) -> None:
        at_hub: dict[tuple[Measurement, str], list[bool]] = defaultdict(list)
        arrived: dict[Measurement, set[str]] = defaultdict(set)
        for observation in self.world.hub.observations():
            kept = self._source(observation)
            if observation["status"] == "entered-in-error":
                continue  # taken back; its identifier is free again
            if kept is None:
                self.found(P5, f"an Observation that nobody has measured: {_provenance(observation)}")
                continue
            measurement = kept.measurement
            code = _code(observation)
            arrived[measurement].add(code)
            marked = any(
                tag["code"] == "possible-repeat" for tag in observation.get("meta", {}).get("tag", ())
            )
            at_hub[measurement, code].append(marked)
            self._check_observation(observation, code, kept)
        for (measurement, code), marks in at_hub.items():
            if marks.count(False) > 1:
                self.found(P4, f"measurement {measurement.number} ({measurement.kind}) stands {len(marks)} "
                               f"times as {code}")  # fmt: skip
        for measurement, codes in arrived.items():
            if codes != (_CODES[measurement.kind] if measurement.trust != NEVER else {_NO_VITAL}):
                self.found(P2, f"of measurement {measurement.number} the Hub has only {sorted(codes)}")
        self._check_arrived(rows, set(arrived))

    def _check_arrived(self, rows: dict[tuple[str, bytes, int], Row], arrived: set[Measurement]) -> None:
        """P2: what the Store believes delivered is at the Hub."""
        for row in rows.values():
            kept = self._kept(row)
            if kept is not None and row.outbox == "done" and kept.measurement not in arrived:
                self.found(P2, f"{row.kit} {row.sequence} is done and not at the Hub")

    def _source(self, observation: dict[str, Any]) -> Kept | None:
        kit_name, journal, sequence = _provenance(observation)
        kit = self.world.kit_named(kit_name)
        return kit.kept.get((bytes.fromhex(journal), sequence)) if kit is not None else None

    def _check_observation(self, observation: dict[str, Any], code: str, kept: Kept) -> None:
        measurement, where = kept.measurement, f"{kept.kit} {kept.sequence}"
        if observation["subject"]["reference"] != measurement.patient:
            self.found(P5, f"{where} is of {measurement.patient}, not {observation['subject']['reference']}")
        earliest, latest = _bounds(observation)
        if not earliest - SLACK_MS <= measurement.taken_ms <= latest + SLACK_MS:
            off = round(max(earliest - measurement.taken_ms, measurement.taken_ms - latest))
            self.found(P6, f"{where} at the Hub is {off} ms out of its bound")
        vital = bool(observation.get("category"))
        if measurement.trust in (NEVER, BROKEN):
            if vital or "valueQuantity" in observation or "component" in observation:
                self.found(P7, f"{where} is {measurement.trust} and stands there as a vital sign")
            return
        if not vital or _numbers(observation, code) != [measurement.values[name] for name in _VALUES[code]]:
            self.found(P7, f"{where} says {_numbers(observation, code)} for {measurement.values}")
        marked = observation["status"] == "preliminary" and bool(observation.get("interpretation"))
        if marked != (measurement.trust == QUESTIONABLE):
            self.found(P7, f"{where} is {measurement.trust} and {'is' if marked else 'is not'} marked")


def _records(body: bytes) -> list[tuple[int, int, bytes]]:
    """(type, sequence, body) of each Record of a Batch."""
    found = []
    at = 0
    while at < len(body):
        length, type, _, sequence = struct.unpack_from("<HBBI", body, at)
        found.append((type, sequence, body[at + 18 : at + 18 + length]))
        at += 22 + length
    return found


def _provenance(observation: dict[str, Any]) -> tuple[str, str, int]:
    parts = _extension(observation, "reading-provenance")
    return parts["kit"]["valueString"], parts["journal"]["valueString"], parts["sequence"]["valueUnsignedInt"]


def _extension(observation: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    for extension in observation["extension"]:
        if extension["url"] == f"{_OWN}StructureDefinition/{name}":
            return {part["url"]: part for part in extension["extension"]}
    return {}


def _code(observation: dict[str, Any]) -> str:
    codings = observation["code"]["coding"]
    return next((one["code"] for one in codings if one["system"] == _LOINC), _NO_VITAL)


def _numbers(observation: dict[str, Any], code: str) -> list[float]:
    if code == "85354-9":
        return [part["valueQuantity"]["value"] for part in observation.get("component", ())]
    return [observation["valueQuantity"]["value"]] if "valueQuantity" in observation else []


def _bounds(observation: dict[str, Any]) -> tuple[float, float]:
    if "effectivePeriod" in observation:
        period = observation["effectivePeriod"]
        return _ms(period["start"]), _ms(period["end"])
    bound = _extension(observation, "reading-time")["bound"]["valueQuantity"]["value"]
    at = _ms(observation["effectiveDateTime"])
    return at - bound, at + bound


def _ms(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp() * 1000
