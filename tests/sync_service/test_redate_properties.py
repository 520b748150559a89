"""In whatever order things become known: in the end the Hub holds no false time, and each patient their own.

The world's faults: ANCHORs that lie (and are contradicted before their boot ends), SNTP servers that are or
become false, boots that nobody gave the time, and a service that derives and delivers at any moment between.
"""

import sqlite3
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from kit_journal import BIRTH_MS, DAY, HOUR, MINUTE, OXIMETER, SPOT, KitJournal, spot

import sync_service
from sync_service.amend import AMEND, RETRACT
from sync_service.assignments import assign
from sync_service.derive import Deriver
from sync_service.outbox import claim, settle
from sync_service.redate import ROUNDING_MS
from sync_service.retry import Done

SCHEMA = (Path(sync_service.__file__).parent / "schema.sql").read_text()
NOW = BIRTH_MS + 60 * DAY
HANDED_ON_MS = BIRTH_MS + 2 * DAY
"""Patient/1 has the Kit before, Patient/2 from then on."""
LIES_MS = (-30 * HOUR, -2 * HOUR, -MINUTE, MINUTE, 2 * HOUR, 30 * HOUR)

QUICK = settings(max_examples=600, deadline=None, derandomize=True, database=None)


class World:
    """True time, the Kit's Journal, the Store, and what the Hub holds."""

    def __init__(self, server: tuple[int, int]) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.db.executescript(SCHEMA)
        self.kit = KitJournal()
        self.kit.create(self.db)
        for number, start_ms, end_ms in ((1, BIRTH_MS - HOUR, HANDED_ON_MS), (2, HANDED_ON_MS, None)):
            patient = f"Patient/{number}"
            assign(self.db, "HW-0001", patient, patient, start_ms, now_ms=NOW, max_bracket_ms=DAY)
            self.db.execute("update assignment set end_ms = ? where patient = ?", (end_ms, patient))
        self.kit.begin()
        self.now_ms = BIRTH_MS + self.kit.uptime_ms
        self._server = server
        self._lied = False
        self.taken: dict[int, int] = {}  # sequence -> true ms
        self.hub: dict[int, tuple[str, int, int]] = {}  # Reading -> patient, earliest, latest
        self._deriver = Deriver()

    def wait(self, ms: int) -> None:
        self.now_ms += ms
        self.kit.uptime_ms += ms

    def step(self, what: str, ms: int) -> None:
        self.wait(ms)
        if what == "frame":
            self.taken[self.kit.frame(OXIMETER, SPOT, spot())] = self.now_ms
        elif what == "anchor":
            self.kit.anchor(self.now_ms)
        elif what == "lie":
            self.kit.anchor(self.now_ms + LIES_MS[ms % len(LIES_MS)])
            self._lied = True
        elif what == "hint":
            false_from, off_ms = self._server
            self.kit.hint(self.now_ms + (off_ms if self.kit.boot >= false_from else 0))
        elif what == "boot":
            self.end_boot()
            self.kit.boot, self.kit.uptime_ms = self.kit.boot + 1, 0
            self.now_ms += ms
            self.kit.event(1, 0)
        elif what == "derive":
            self.derive()
        elif what == "serve":
            self.derive()
            self.deliver()
        elif what == "cut":
            self.derive()
            self.deliver(answers=False)
        elif what == "kill":
            self._deriver = Deriver()

    def end_boot(self) -> None:
        if self._lied:
            self.wait(MINUTE)
            self.kit.anchor(self.now_ms)
            self._lied = False

    def derive(self) -> None:
        self.kit.store(self.db)
        while self._deriver.chunk(self.db, now_ms=NOW).records:
            pass

    def deliver(self, *, answers: bool = True) -> None:
        """The Hub takes all that is due, and keeps each once. Its answers may be lost."""
        while True:
            claimed = claim(self.db, now_ms=NOW, busy=frozenset(), patients=9).rows
            if not claimed:
                return
            for patient, rows in claimed.items():
                for row in rows:
                    if row.kind == RETRACT:
                        if row.reading in self.hub and self.hub[row.reading][0] == patient:
                            del self.hub[row.reading]
                        continue
                    held = self.hub.get(row.reading)
                    assert held is None or held[0] == patient, "created while another patient has it"
                    if held is None or row.kind == AMEND:  # a conditional create leaves what is there
                        self.hub[row.reading] = (patient, row.earliest_ms, row.latest_ms)
                if answers:
                    settle(self.db, decisions=[(row, Done("200")) for row in rows], now_ms=NOW)
            if not answers:
                return


OFTEN = {
    "frame": 3, "anchor": 1, "lie": 2, "hint": 2, "boot": 1, "derive": 1, "serve": 3, "cut": 2, "kill": 1
}  # fmt: skip
steps = st.tuples(
    st.sampled_from([what for what, times in OFTEN.items() for _ in range(times)]), st.integers(0, 4 * HOUR)
)
far = st.integers(MINUTE, 2 * DAY).flatmap(lambda by: st.sampled_from([by, -by]))
servers = st.tuples(st.integers(0, 5), far)


@QUICK
@given(st.lists(steps, min_size=10, max_size=50), servers)
def test_the_hub_ends_with_true_times_and_the_right_patients(
    plan: list[tuple[str, int]], server: tuple[int, int]
) -> None:
    world = World(server)
    for what, ms in plan:
        world.step(what, ms)
    world.end_boot()
    world.step("boot", HOUR)
    world.step("anchor", MINUTE)
    world.step("hint", 0)
    world.derive()
    world.deliver()
    sequences = dict(world.db.execute("select reading, sequence from reading"))
    assert sorted(sequences.values()) == sorted(world.taken), "each Frame has its Reading"
    for reading, (patient, earliest_ms, latest_ms) in world.hub.items():
        true_ms = world.taken[sequences[reading]]
        assert earliest_ms - ROUNDING_MS <= true_ms <= latest_ms + ROUNDING_MS
        assert patient == ("Patient/1" if true_ms < HANDED_ON_MS else "Patient/2")
    held = "select count(*) from reading where state = 'queued'"
    assert world.db.execute(held).fetchone() == (len(world.hub),), "what is not held is at the Hub"
    world.db.close()
