"""Peek: which Records go past a backlog, so that the newest Readings need not wait for it.

A peek holds the newest Records that are not streamed, back to `first`: Frames, ANCHORs, SENSORs, the reads of
the Sensors' clocks, what says that a Sensor was empty, and the bonds. So whoever has it knows everything
since `first` that a Frame's time, key and patient depend on. Of what lies between the acked Records and
`first` it adds the newest ANCHOR of this boot and, for each Sensor, the newest SENSOR and the newest bond
EVENT. Where the Gateway does not know which those are, the peek is not whole, and nothing can be concluded
from what it lacks.

Only positions are kept, no Records: each peek reads the Journal anew, and moves no cursor of it.
"""

from gateway.errors import FormatError
from gateway.limits import MAX_BATCH_RECORDS, PEEK_RECORDS
from gateway.port import const
from gateway.reading import NEVER, Reading
from gateway.record import (
    ANCHOR,
    BOND_CHANGED,
    BOND_MADE,
    EVENT,
    FRAME,
    FROM_STORAGE,
    SENSOR,
    SENSOR_CLOCK,
    SENSOR_DRAINED,
    UUID_INDEX,
    Record,
)
from gateway.sensors import decode, is_measurement
from gateway.sensors.pulse_oximeter import PLX_CONTINUOUS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.journal import Journal

_EVENTS = (BOND_MADE, BOND_CHANGED, SENSOR_DRAINED)
_ALWAYS = (ANCHOR, SENSOR, SENSOR_CLOCK)
_FRAME_BYTES = const(4)  # before the raw value
_NONE = const(0)  # no such Record: sequences begin with 1


class Peek:
    """`live`: sequence of the newest value that was not streamed and not stored; the handler sets it.

    `anchor`: of this boot's newest ANCHOR. `marks` returns the sequences of the Sensors' newest SENSOR
    and bond EVENT, None when one is not known.
    """

    def __init__(self, journal: "Journal") -> None:
        self.live = _NONE
        self.anchor = _NONE
        self.marks: Callable[[], list[int] | None] = _no_marks
        self.is_whole = False
        self._journal = journal
        self._held = _NONE  # the newest live value that an acked peek has held, or was found not worth one
        self._reads = _NONE  # the newest that this peek looks at
        self._clinical = _NONE  # the newest value of a patient in it
        self._count = 0  # of those values
        self._shown = _NONE  # the newest value of a patient that an acked peek has held
        self._apart: list[int] = []

    @property
    def has_news(self) -> bool:
        """A live value has come that no peek has held."""
        return self.live > self._held

    def read(self, buffer: "bytearray | memoryview", offset: int, limit_bytes: int) -> "tuple[int, int, int]":
        """Fill the buffer; return (first, count, end offset), count 0 when nothing is worth a peek."""
        journal = self._journal
        self._reads = self.live
        self._clinical = self._count = 0
        marks = self.marks()
        self.is_whole = marks is not None
        self._apart = sorted({each for each in (marks or []) + [self.anchor] if each > journal.acked})
        end, count = offset, 0
        for sequence in self._apart:
            after = journal.read_one(sequence, buffer, end, limit_bytes)
            self.is_whole = self.is_whole and after > end
            count += after > end
            end = after
        first, more, end = journal.read_tail(
            buffer, end, limit_bytes, MAX_BATCH_RECORDS - count, self._wants, self._is_enough
        )
        if self._clinical <= self._shown:
            self._held = max(self._held, self._reads)
            return 0, 0, offset
        return first, count + more, end

    def acked(self) -> None:
        """The service has what was last read."""
        self._held = max(self._held, self._reads)
        self._shown = max(self._shown, self._clinical)

    def _wants(self, record: Record) -> bool:
        """Whether a Record belongs into a peek. Values of patients are counted on the way."""
        if record.sequence in self._apart:
            return False
        if record.type in _ALWAYS:
            return True
        if record.type == EVENT:
            return len(record.body) > 1 and record.body[0] | record.body[1] << 8 in _EVENTS
        if record.type != FRAME or _characteristic(record.body) == PLX_CONTINUOUS:
            return False
        if is_clinical(record):
            self._count += 1
            self._clinical = max(self._clinical, record.sequence)
        return True

    def _is_enough(self) -> bool:
        """Whether the peek need not reach back further than the block it has come to."""
        return self._count >= PEEK_RECORDS


def is_clinical(record: Record) -> bool:
    """Whether a FRAME holds what may reach a clinician as a vital sign (P7)."""
    body = record.body
    characteristic = _characteristic(body)
    if record.version != 1 or not is_measurement(characteristic) or body[1] & UUID_INDEX:
        return False
    try:
        reading = decode(characteristic, body[_FRAME_BYTES:])
    except FormatError:
        return False
    return isinstance(reading, Reading) and bool(reading.trust != NEVER)


def is_live(characteristic: int, flags: int) -> bool:
    """Whether a value has just been taken, and alone. Does not allocate: the handler asks."""
    return characteristic != PLX_CONTINUOUS and not flags & FROM_STORAGE


def _characteristic(body: bytes) -> int:
    """Of a FRAME's body; 0 when it ends too early."""
    return body[2] | body[3] << 8 if len(body) >= _FRAME_BYTES else 0


def _no_marks() -> "list[int] | None":
    """Nobody knows the Sensors' Records."""
    return None
