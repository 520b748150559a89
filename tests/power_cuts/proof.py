"""The power-cut proof: a Kit's week, cut at every program and erase; `python -m tests.power_cuts.proof`.

The week is lived twice, on a flash without and on one with worn-out blocks, and is itself never cut. Before
each of its operations, for each way in which power can fail there, the next boot is started on a flash that
failed so: it mounts, sends, takes an indication and says that it has booted. Each operation of that is cut in
the same ways, and the boot after it is looked at. Mount writes nothing, so recovery has no other operations.

After each cut:
- what was returned for (an indication: confirmed) is sent with the same bytes; or the ring had given it up,
  and LOST stands in its place (P1, P2)
- all that is sent follows without a gap, and agrees with what the service has
- nothing that was or could have been sent before has its sequence, or its boot number, used again; also when
  it reads as torn by now, since its last bits had been programmed weakly

A program changes one block, and the others are the same objects: there the third boot's newest Records are
read, after an erase all of them.

Then the handler preempts the main loop's work at each bytecode (tests/gateway_linux/test_preemption.py).

Last line: JSON; all counts but `lost`, `unrecovered`, `changed`, `reused` are of work done. Exits with 1 if
one of these four is not 0.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from gateway.errors import HomewardError, JournalError
from gateway.journal import Journal
from gateway.record import INDICATED, LOST, OVERHEAD_BYTES, OVERWRITTEN, TORN, decode_body, length_at
from tests.gateway_linux.test_preemption import BURSTS, WORKS, preempt
from tests.power_cuts.flash import NorFlash, Watch
from tests.power_cuts.week import CUFF, HOURS, Bonds, Kept, Kit, Lock, Week

BLOCKS, BLOCK_BYTES, DAYS = 6, 1024, 7
"""The smallest ring in which the week's days off line wrap. Blocks of 1 KiB: four times the block ends."""
LAST_RECORDS = 12
"""Read after a cut program of the third boot: what its block held before, and what was being written."""
VALUE = b"\x06\x78\x00\x50\x00\x5d\x00\xe9\x07\x0b\x1a\x07\x00\x05\x48\x00"
NEXT_ID = b"journal2"
FAILURES = ("lost", "unrecovered", "changed", "reused")
_SHOWN = 5


class Violation(Exception):
    """A promise that a cut has broken: (which count, what happened)."""


class Sent:
    """All that a Journal sends after a sequence."""

    def __init__(self, journal: Journal, after: int) -> None:
        self.records: dict[int, bytes] = {}
        self.lost: list[tuple[int, int, int]] = []
        buffer = bytearray(4096)
        while after < journal.next_sequence - 1:
            _, count, end = journal.read_batch(buffer, 0, len(buffer), after)
            if not count:
                raise Violation("lost", f"nothing is sent after {after}")
            at = 0
            while at < end:
                length = length_at(buffer, at)
                after = self._take(bytes(buffer[at : at + length]), after + 1)
                at += length
        self.last = after

    def _take(self, whole: bytes, expected: int) -> int:
        sequence = int.from_bytes(whole[4:8], "little")
        if sequence != expected:
            raise Violation("lost", f"{sequence} is sent where {expected} stands")
        if whole[2] != LOST:
            self.records[sequence] = whole
            return sequence
        lost = decode_body(LOST, 1, whole[OVERHEAD_BYTES - 4 : -4])
        self.lost.append(lost)  # type: ignore[arg-type]
        return lost.last  # type: ignore[union-attr, return-value]


class Proof:
    """Runs the week with a Journal of this kind and counts."""

    def __init__(
        self,
        days: Sequence[int],
        *,
        hours: Sequence[int] = HOURS,
        worn: bool = False,
        kind: type[Journal] = Journal,
        patience: int = sys.maxsize,
    ) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(FAILURES, 0))
        self.reasons: set[int] = set()
        self._days = days
        self._hours = hours
        self._kind = kind
        self._patience = patience  # violations after which it is enough
        self._worn = worn
        self.week = Week(BLOCKS + 3 * worn, BLOCK_BYTES, kind)
        if worn:
            self._wear_out(self.week.flash)

    def run(self) -> dict[str, int]:
        """Live through the week, with every cut of these hours and of its end; return the counts."""
        week = self.week
        self._watched(self._cut if 0 in self._days else None, week.begin)
        for day in range(max(self._days) + 1):
            for hour in HOURS:
                cut = day in self._days and hour in self._hours
                self._watched(self._cut if cut else None, partial(week.spend, day, hour))
        self._watched(self._cut, week.end)
        if not self._worn:  # such a flash can't be wiped, and that is said
            self._watched(self._cut_wipe, partial(week.kit.journal.format, NEXT_ID))
        self.counts["confirmed"] = len(week.kept.confirmed)
        self.counts["laps"] = week.flash.erases // (week.flash.size // BLOCK_BYTES)
        return dict(self.counts)

    def _watched(self, watch: Watch | None, work: Callable[[], None]) -> None:
        """A piece of the week, cut at each of its operations."""
        flash = self.week.flash
        operations, outcomes = flash.operations, flash.outcomes
        flash.watch = watch
        work()
        if watch:
            self.counts["operations"] += flash.operations - operations
            self.counts["outcomes"] += flash.outcomes - outcomes

    def _wear_out(self, flash: NorFlash) -> None:
        """Three of the blocks are bad: one reads erased, one holds what can't be read, one keeps no bits."""
        flash.refuses.update((2, 5))
        flash.forgets.add(7)
        flash.blocks[5] = b"\x5a" * BLOCK_BYTES

    @property
    def failures(self) -> int:
        return sum(self.counts[name] for name in FAILURES)

    def _cut(self, outcomes: list[NorFlash], program: bool) -> None:
        """Power fails in one operation of the week."""
        given_up = self.week.kit.journal.first_sequence - 1
        if program and self.failures < self._patience:
            self._try(partial(self._faded, *outcomes[-2:]))
        for flash in outcomes:
            if self.failures < self._patience:
                self._try(partial(self._second_boot, flash, given_up))

    def _try(self, work: "partial[None]") -> None:
        self.counts["cuts"] += 1
        try:
            work()
        except Violation as broken:
            self._count(*broken.args)
        except (HomewardError, AssertionError) as error:
            self._count("unrecovered", repr(error))

    def _count(self, which: str, what: str) -> None:
        if self.failures < _SHOWN:
            week = self.week.flash
            print(f"operation {week.operations}, cut {self.counts['cuts']}: {which}: {what}", file=sys.stderr)
        self.counts[which] += 1

    def _second_boot(self, flash: NorFlash, given_up: int) -> None:
        """What the Kit does when power comes back, cut at each of its operations."""
        kept = Kept()
        kit = Kit(flash, Bonds(self.week.bonds.text), kept, self._kind)
        assert not flash.operations, "mount writes"
        seen = Sent(kit.journal, 0)
        self._hold(kit.journal, seen, given_up)
        flash.watch = partial(self._cut_again, kit, seen)
        kit.gateway.start(0, cause=1)
        kit.indicate(CUFF, VALUE, 1)
        kit.gateway.connected(2)
        flash.watch = None
        self.counts["operations"] += flash.operations
        self.counts["outcomes"] += flash.outcomes
        self._third_boot(flash, kit, seen, kept.last - LAST_RECORDS)

    def _hold(self, journal: Journal, seen: Sent, given_up: int) -> None:
        """What the second boot sends against what the first has returned for."""
        kept, service = self.week.kept, self.week.service
        if journal.next_sequence <= kept.last or journal.boot <= kept.boot:
            raise Violation("reused", f"goes on with {journal.next_sequence} in boot {journal.boot}")
        if not journal.acked <= service.through:
            raise Violation("lost", f"acked through {journal.acked}, stored through {service.through}")
        for sequence in range(given_up + 1, kept.last + 1):
            if seen.records.get(sequence) != kept.records.get(sequence):
                raise Violation("changed" if sequence in seen.records else "lost", f"Record {sequence}")
        for sequence, whole in seen.records.items():
            if not whole == kept.records.get(sequence, whole) == service.records.get(sequence, whole):
                raise Violation("changed", f"Record {sequence}")
        for first, last, reason in seen.lost:
            self.reasons.add(reason)
            if first <= kept.last if reason == TORN else last > given_up:
                raise Violation("lost", f"{first} to {last} for reason {reason}")

    def _cut_wipe(self, outcomes: list[NorFlash], program: bool) -> None:
        """Power fails while the Kit is wiped for the next patient."""
        if program and self.failures < self._patience:
            self._try(partial(self._faded, *outcomes[-2:]))
        for flash in outcomes:
            if self.failures < self._patience:
                self._try(partial(self._wiped_again, flash))

    def _wiped_again(self, flash: NorFlash) -> None:
        """The old Journal, which knows how far it had come, or the new one, or none; it is wiped again."""
        journal = self._kind(flash, Lock())
        with suppress(JournalError):
            journal.mount()
            if journal.journal_id != NEXT_ID and journal.next_sequence <= self.week.kept.last:
                raise Violation("reused", f"half wiped, goes on with {journal.next_sequence}")
            Sent(journal, 0)
        journal.format(NEXT_ID)
        journal.append_frame(CUFF, INDICATED, 0x2A35, VALUE, 0, 1)
        again = self._mounted(flash)
        if again.journal_id != NEXT_ID or list(Sent(again, 0).records) != [1]:
            raise Violation("unrecovered", "the wiped Kit keeps nothing")

    def _faded(self, torn: NorFlash, whole: NorFlash) -> None:
        """One boot reads a Record as whole and sends it; the next one finds it torn."""
        try:
            first = self._mounted(whole)
        except JournalError:  # the wipe has just ended the old Journal
            return
        if first.next_sequence == 1:  # it has just begun the new one, and no append has returned
            return
        if self._mounted(torn).next_sequence < first.next_sequence:
            raise Violation("reused", f"{first.next_sequence - 1} was sent before it faded")

    def _cut_again(self, kit: Kit, seen: Sent, outcomes: list[NorFlash], program: bool) -> None:
        """Power fails in one operation of the second boot."""
        after = max(0, self.week.kept.last - LAST_RECORDS) if program else 0
        if program:
            self._try(partial(self._faded, *outcomes[-2:]))
        for flash in outcomes:
            self._try(partial(self._third_boot, flash, kit, seen, after))

    def _third_boot(self, flash: NorFlash, kit: Kit, seen: Sent, after: int) -> None:
        """What the next boot finds of what the second one has sent and returned for."""
        journal = self._mounted(flash)
        kept = kit.kept
        last = max(seen.last, kept.last)
        if journal.next_sequence <= last or journal.boot <= kept.boot:
            raise Violation("reused", f"third boot goes on with {journal.next_sequence}")
        given_up = kit.journal.first_sequence - 1
        again = Sent(journal, max(0, after))
        for sequence in range(max(after, given_up) + 1, last + 1):
            whole = kept.records.get(sequence) or seen.records.get(sequence)
            if whole != again.records.get(sequence):
                which = "changed" if sequence in again.records else "lost"
                raise Violation(which, f"Record {sequence} in the third boot")

    def _mounted(self, flash: NorFlash) -> Journal:
        journal = self._kind(flash, Lock())
        journal.mount()
        return journal


def main() -> int:
    """Prove and print."""
    parser = argparse.ArgumentParser(description="Cut power at every flash operation of a Kit's week.")
    parser.parse_args()
    began = time.process_time()
    counts: Counter[str] = Counter()
    for worn in (False, True):
        proof = Proof(range(DAYS), worn=worn)
        counts.update(proof.run())
        assert proof.reasons >= {OVERWRITTEN, TORN}, proof.reasons
    assert counts["cuts"] == counts.pop("outcomes"), "a cut was left out"
    counts["preempted"] = sum(preempt(work, burst) for work in WORKS for burst in BURSTS)
    print(json.dumps({**counts, "cpu_s": round(time.process_time() - began, 1)}))
    return 1 if any(counts[name] for name in FAILURES) else 0


if __name__ == "__main__":
    sys.exit(main())
