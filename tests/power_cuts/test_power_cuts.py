"""The power-cut proof holds on the day on which the ring wraps; and it sees Journals that are broken."""

import pytest

import gateway.block
from gateway.block import HEADER_BYTES
from gateway.block import decode_header as checked
from gateway.journal import Journal
from gateway.record import CRC_BYTES, OVERWRITTEN, TORN, seal
from tests.power_cuts.proof import FAILURES, Proof

DAY = (5,)
"""Off line for the fourth day: at noon a block is begun and the oldest, not acked, is erased."""


class UsesSequencesAgain(Journal):
    """Skips nothing after a torn tail."""

    def _recover(self) -> None:
        first = self.next_sequence
        self._walk(self._newest)
        found, self.next_sequence = self.next_sequence, first
        super()._recover()
        self.next_sequence = found


class GoesOnInATornBlock(Journal):
    """Appends behind the last good Record, whatever lies there."""

    def _recover(self) -> None:
        tail, _ = self._walk(self._newest)
        super()._recover()
        self._head = tail


class ErasesOneTooFar(Journal):
    """Erases the block behind the one that it has given up."""

    def _erase(self, position: int) -> bool:
        super()._erase((position + 1) % self._blocks)
        return super()._erase(position)


class ConfirmsBeforeItKeeps(Journal):
    """Returns the sequence of a value that it writes with the next one."""

    _waits: tuple[int, int, int, bytes, int, int] | None = None

    def append_frame(self, sensor, flags, characteristic, value, hi, lo):  # type: ignore[no-untyped-def]
        waits, self._waits = self._waits, (sensor, flags, characteristic, bytes(value), hi, lo)
        if waits:
            super().append_frame(*waits)
        return self.next_sequence


class CountsBootsByHeaders(Journal):
    """Takes the boot number of the block alone."""

    def _walk(self, number: int) -> int:
        boot = self.boot
        tail = super()._walk(number)
        self.boot = boot
        return tail


@pytest.mark.parametrize("worn", [False, True])
def test_no_cut_of_the_fullest_day_loses_or_repeats_anything(worn: bool, say: list[str]) -> None:
    proof = Proof(DAY, hours=(12, 22), worn=worn)
    counts = proof.run()
    assert {name: counts[name] for name in FAILURES} == dict.fromkeys(FAILURES, 0)
    assert counts["cuts"] == counts["outcomes"] > 10_000
    assert proof.reasons >= {OVERWRITTEN, TORN}
    assert proof.week.service.through == proof.week.kept.last
    cuts = f"power cuts {'with' if worn else 'without'} worn-out blocks: {counts['cuts']}"
    say.append(f"{cuts} at {counts['operations']} flash operations, nothing lost")


@pytest.mark.parametrize(
    "kind",
    [UsesSequencesAgain, GoesOnInATornBlock, ErasesOneTooFar, ConfirmsBeforeItKeeps, CountsBootsByHeaders],
)
def test_the_proof_sees_a_broken_journal(kind: type[Journal]) -> None:
    assert found_with(kind)


def test_the_proof_sees_a_header_that_is_believed_without_its_crc(monkeypatch: pytest.MonkeyPatch) -> None:
    def believed(whole: bytes | bytearray | memoryview) -> gateway.block.Header | None:
        sealed = bytearray(whole)
        seal(sealed, HEADER_BYTES - CRC_BYTES)
        return checked(sealed)

    monkeypatch.setattr(gateway.block, "decode_header", believed)
    assert found_with(Journal)


def found_with(kind: type[Journal]) -> bool:
    """Whether the proof fails, be it that the week itself breaks down."""
    try:
        proof = Proof(DAY, hours=(12,), kind=kind, patience=1)
        proof.run()
    except AssertionError:
        return True
    return proof.failures > 0
