"""Writes the golden Journal dumps of a release: `python -m tests.vectors.dumps 0.1.0`. Refuses to change any.

Each file of tests/vectors/journals/ is a flash as a release has left it: what lies in its blocks, without the
0xFF behind it, what a mount must find, and every byte that is sent. Every later release must send the same.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from gateway.block import HEADER_BYTES
from gateway.gateway import Gateway
from gateway.journal import Journal
from gateway.record import BUTTON, INDICATED
from gateway.uplink import Uplink
from tests.power_cuts.flash import NorFlash
from tests.power_cuts.week import CUFF, Bonds, Lock, Service, Week

HERE = Path(__file__).parent / "journals"
BLOCKS, BLOCK_BYTES = 6, 1024


class BadBlock(NorFlash):
    """One block of it refuses to be erased."""

    position = 1

    def erase(self, position: int) -> None:
        if position == self.position:
            raise OSError(5)
        super().erase(position)


def first_lap() -> NorFlash:
    """Three boots of two Sensors; most is acked."""
    week = Week(BLOCKS, BLOCK_BYTES)
    week.begin()
    week.live(0)
    week.live(1)
    week.flash.blocks[5] = b"\xff" * BLOCK_BYTES
    return week.flash


def wrapped() -> NorFlash:
    """Four days off line: the ring has overwritten what nobody had acked."""
    week = Week(BLOCKS, BLOCK_BYTES)
    week.begin()
    for day in range(6):
        week.live(day)
    return week.flash


def torn() -> NorFlash:
    """A tear in the middle, said by the header after it, and one at the end that no header has said yet."""
    flash = NorFlash.erased(BLOCKS, BLOCK_BYTES)
    Journal(flash, Lock()).format(b"journal1")
    for number in range(2):
        journal = Journal(flash, Lock())
        journal.mount()
        gateway = gateway_on(journal)
        gateway.start(7, cause=number)
        for each in range(5):
            gateway.append_event(BUTTON, 0, bytes([number, each]), 1000 + each)
        tear(flash, journal, 12 + 4 * number)
    return flash


def broken() -> NorFlash:
    """A bad block that was skipped, a rotten Record, a rotten header, a type of the future; nothing acked."""
    flash = BadBlock([b"\xff" * BLOCK_BYTES] * BLOCKS)
    journal = Journal(flash, Lock())
    journal.format(b"journal1")
    flash.blocks[BadBlock.position] = b"\x0f" * BLOCK_BYTES
    journal.append(0x77, 9, b"of the future", 3)
    for each in range(85):
        journal.append_frame(CUFF, INDICATED, 0x2A35, bytes([0x16, each]) * 5, 0, each)
    for position, at in ((0, HEADER_BYTES + 200), (3, 9)):
        block = bytearray(flash.blocks[position])
        block[at] ^= 0x10
        flash.blocks[position] = bytes(block)
    return flash


def gateway_on(journal: Journal) -> Gateway:
    return Gateway("HW-0001", "0", journal=journal, uplink=Uplink(journal, lambda: b"n" * 8), bonds=Bonds())


def tear(flash: NorFlash, journal: Journal, words: int) -> None:
    """The power fails in the next append, after so many words."""
    left: list[bytes] = []
    flash.watch = lambda outcomes, program: left.append(b"".join(outcomes[words].blocks))
    journal.append_frame(CUFF, INDICATED, 0x2A35, bytes(range(60)), 0, 2000)
    flash.watch = None
    flash.blocks[:] = [left[-1][at : at + BLOCK_BYTES] for at in range(0, flash.size, BLOCK_BYTES)]


def described(flash: NorFlash) -> dict[str, object]:
    """The dump, and what this release finds in it."""
    journal = Journal(flash, Lock())
    journal.mount()
    buffer = bytearray(4096)
    sent, after = b"", 0
    service = Service()
    while after < journal.next_sequence - 1:
        _, _, end = journal.read_batch(buffer, 0, len(buffer), after)
        service.take(bytes(buffer[:end]))
        sent, after = sent + buffer[:end], service.through
    return {
        "journal": ["hex:" + journal.journal_id.hex(), journal.boot, journal.next_sequence, journal.acked],
        "block_bytes": BLOCK_BYTES,
        "blocks": ["hex:" + block.rstrip(b"\xff").hex() for block in flash.blocks],
        "sent": "hex:" + sent.hex(),
    }


MADE: tuple[Callable[[], NorFlash], ...] = (first_lap, wrapped, torn, broken)


def main(release: str) -> None:
    HERE.mkdir(exist_ok=True)
    for make in MADE:
        path = HERE / f"{release}-{make.__name__}.json"
        if path.exists():
            raise SystemExit(f"{path.name} is there already: a golden dump is never changed")
        path.write_text(json.dumps(described(make()), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
