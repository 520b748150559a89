"""Journal: a circular log of Records directly on NOR flash. What is in it stays until it is overwritten.

Theory of operation. Blocks are numbered as they are begun; number % blocks is the place in the ring.

      ... | acked | sent | newest: Records, head, 0xFF | ready (erased) | target: next to erase ...

Sequences are contiguous in the order of flash. So nothing needs to say what is missing: where the reader
meets a sequence higher than the one it expects, it puts a LOST with that range, and the Ack can move on.
What is overwritten, rotten, in a bad block or skipped after a torn tail is all found in this one way.

Mount only reads. It takes the highest block number, walks that block, and appends go on behind its last
Record. If something else than 0xFF follows (a program was torn) the block is left as it is: the next append
begins a new block, with the sequence it would have if the one before were full, so that none is used twice.

Locks. `append_frame` runs in the indication handler and may preempt everything else here at any bytecode
that does not hold the lock. Under the lock the main loop writes one Record and never erases. To erase, it
first claims a block number under the lock; the handler, if it has to erase in the meantime, claims the one
after and leaves a hole.

The handler path allocates nothing and is at most 4 frames deep, `append_frame` and the flash's `program`
included. A slice would allocate, so there are views of the buffer for each number of words that the Records
of today have, and beyond that in coarser steps. Whole words, because chips program words: one that is torn
then holds bytes of one Record only. What stands behind a Record in its last words is 0xFF, which programs
nothing, and which a reader passes word by word.
"""

from gateway.block import (
    AFTER_TEAR,
    HEADER_BYTES,
    WORD_BYTES,
    is_erased,
    padded,
    put_header,
    read_header,
    read_record,
)
from gateway.errors import FormatError, JournalError
from gateway.limits import ACKED_EVERY, MAX_BATCH_RECORDS, MAX_BODY_BYTES, RESERVE_BLOCKS, TAIL_BLOCKS
from gateway.message import JOURNAL_ID_BYTES
from gateway.port import const
from gateway.record import (
    ACKED,
    BAD_BLOCK,
    ERASED_LATE,
    EVENT,
    FRAME,
    LOST,
    OVERHEAD_BYTES,
    OVERWRITTEN,
    ROTTEN,
    TORN,
    Event,
    Lost,
    begin,
    decode,
    encode,
    encode_event,
    encode_lost,
    frame_length,
    put_frame,
    seal,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol

    from gateway.block import Flash, Header
    from gateway.record import Record

    class Lock(Protocol):
        """The writer lock, given by the rim. While the main loop holds it the handler waits."""

        def acquire(self) -> object: ...
        def release(self) -> object: ...


_MAX_RECORD_BYTES = const(624)
"""OVERHEAD_BYTES + MAX_BODY_BYTES in whole words."""
_MIN_RECORD_BYTES = const(24)
"""OVERHEAD_BYTES in whole words."""
_FINE_BYTES = const(96)
"""A Record of up to this length, a Frame with a value of 70 bytes, takes just its words."""
_COARSE_BYTES = const(48)
"""A longer one is filled up to a multiple of this: a view for each of 156 lengths would be 3 kB of heap."""
_CHECK_BYTES = const(64)
"""What was programmed is read back in chunks of this size: the usual Frame fits one."""
_MIN_BLOCKS = RESERVE_BLOCKS + 2
"""The one that is written, those in reserve, and one that can be erased."""


class Journal:
    """Records of one Kit between two wipes. Raises JournalError where a flash is no Journal or takes no more.

    `journal_id` (8 bytes), `boot` (this one), `next_sequence` (of the next append) and `acked` (every Record
    up to here is stored at the service) are for reading only. Sequences and boots stay below 2^30.
    """

    def __init__(self, flash: "Flash", lock: "Lock") -> None:
        self._flash = flash
        self._lock = lock
        self._blocks = flash.size // flash.block_bytes
        if self._blocks < _MIN_BLOCKS or flash.block_bytes < HEADER_BYTES + _MAX_RECORD_BYTES:
            raise JournalError("a Journal needs %d blocks that hold the longest Record" % _MIN_BLOCKS)
        # Written only under the lock.
        self._buffer = bytearray(_MAX_RECORD_BYTES)
        self._views = _views(self._buffer)
        self._header = bytearray(HEADER_BYTES)
        self._header_view = memoryview(self._header)
        self._checks = _views(bytearray(_CHECK_BYTES))
        # The main loop's own.
        self._scratch = memoryview(bytearray(_MAX_RECORD_BYTES))
        self._reset(b"", -1)

    def _reset(self, journal_id: bytes, newest: int) -> None:
        """Begin from a newest block; what its walk finds comes later."""
        self.journal_id = journal_id
        self.boot = 0
        self.next_sequence = 1
        self.acked = 0
        self._newest = newest  # block number of the head
        self._head = self._end = 0  # flash offsets: of the next Record, and where its block ends
        self._torn = False  # sequences were skipped, and no block says so yet
        self._ready: list[int] = []  # numbers of erased blocks, ascending
        self._target = newest + 1  # next block number to erase
        self._failed = 0  # programs and erases refused in a row
        self._acked_written = 0
        self._late_hi = -1  # uptime of a Frame that had to wait for an erase, -1: none
        self._late_lo = 0
        self._first = (-1, 0)  # oldest block number, its first sequence: what `first_sequence` found last
        self._mark = (-1, 0, 0)  # a sequence, and where the reader goes on behind it: block number, offset

    # --- Begin ----------------------------------------------------------------------------------------------

    def format(self, journal_id: bytes) -> None:
        """Wipe: erase every block, then begin a Journal with this id. No append may happen meanwhile.

        The newest block is erased last, and only after its header has gone: half of it would give sequences
        again. A wipe that a power cut ends leaves the old Journal, which then says what it has lost, or none:
        it is wiped again.
        """
        assert len(journal_id) == JOURNAL_ID_BYTES
        newest = self._newest_header()
        after = 0 if newest is None else newest.number + 1
        self._reset(b"", -1)
        for number in range(after, after + self._blocks - 1):
            self._clear(number % self._blocks)
        last = (after - 1) % self._blocks
        if newest is not None:
            self._overwrite(last, HEADER_BYTES)
        self._clear(last)
        self._reset(journal_id, -1)
        while self._head == self._end:
            if self._ready:
                self._open()
            else:
                self._erase_late()
        self.boot = 1

    def mount(self) -> None:
        """Find the Journal in the flash; reads a few bytes of each block and all of one. Writes nothing."""
        newest = self._newest_header()
        if newest is None:
            raise JournalError("there is no Journal in this flash")
        self._reset(newest.journal_id, newest.number)
        self.boot = newest.boot
        self.next_sequence = newest.first_sequence
        self.acked = newest.acked
        self._recover()
        self.boot += 2 if self._torn else 1  # what is torn may have been all that a boot has left
        self._acked_written = self.acked
        for number in range(self._target, self._target + RESERVE_BLOCKS):
            start = self._start(number)
            if not is_erased(self._flash, start, start + self._flash.block_bytes, self._scratch):
                break
            self._ready.append(number)
            self._target = number + 1

    @property
    def first_sequence(self) -> int:
        """Oldest sequence that is still in flash, unless it is rotten; next_sequence when there is none."""
        oldest = self._oldest()
        if self._first[0] != oldest:
            header = self._header_from(oldest, self._newest)
            self._first = (oldest, self.next_sequence if header is None else header.first_sequence)
        return self._first[1]

    @property
    def pending(self) -> int:
        """Records that are not acked; those that were lost count until that is acked."""
        return self.next_sequence - 1 - self.acked

    @property
    def free(self) -> int:
        """Bytes of Records that can be appended before one that is not acked is overwritten."""
        oldest_unsent = self._seek(self.acked).number if self.pending else self._newest
        blocks = max(0, oldest_unsent + self._blocks - self._target)
        return blocks * (self._flash.block_bytes - HEADER_BYTES) + self._end - self._head

    # --- Append ---------------------------------------------------------------------------------------------

    def append(self, type: int, version: int, body: bytes, uptime_ms: int) -> int:
        """Keep a Record; return its sequence. When this returns the bytes are in flash."""
        while True:
            self._lock.acquire()
            try:
                sequence = self.next_sequence
                if self._keep(encode(type, version, sequence, self.boot, uptime_ms, body)):
                    self.next_sequence = sequence + 1
                    return sequence
            finally:
                self._lock.release()
            self._erase_ahead()

    def append_frame(
        self,
        sensor: int,
        flags: int,
        characteristic: int,
        value: "bytes | memoryview",
        uptime_hi: int,
        uptime_lo: int,
    ) -> int:
        """Keep a FRAME; return its sequence. The handler path. Uptime: `uptime_hi << 24 | uptime_lo` ms."""
        length = frame_length(len(value))
        if length > MAX_BODY_BYTES:
            raise FormatError("value of %d bytes" % len(value))
        self._lock.acquire()
        try:
            sequence = self.next_sequence
            begin(self._buffer, length, FRAME, 1, sequence, self.boot, uptime_hi, uptime_lo)
            end = seal(self._buffer, put_frame(self._buffer, sensor, flags, characteristic, value))
            view = self._padded(end)
            while not self._write(view):
                if self._ready:
                    self._open()
                else:
                    self._erase_late()
                    self._late_hi = uptime_hi
                    self._late_lo = uptime_lo
            self.next_sequence = sequence + 1
            return sequence
        finally:
            self._lock.release()

    def maintain(self) -> bool:
        """Erase one block ahead of need; True when there is more to do. Called from the main loop, often."""
        if self._late_hi >= 0:
            self._say_late()
        if len(self._ready) < RESERVE_BLOCKS:
            self._erase_ahead()
        return len(self._ready) < RESERVE_BLOCKS

    # --- Send and ack ---------------------------------------------------------------------------------------

    def read_batch(
        self, buffer: "bytearray | memoryview", offset: int, limit_bytes: int, after_sequence: int
    ) -> "tuple[int, int, int]":
        """Copy the Records after a sequence into the buffer; return (first sequence or 0, count, end offset).

        They come in order, as they lie in flash, and end at `limit_bytes` at most. A range that is gone comes
        as a LOST in its place, each time with the same bytes. There must be room for the longest Record.
        """
        view = memoryview(buffer)
        cursor = self._seek(after_sequence)
        expected, count, end = after_sequence + 1, 0, offset
        while expected < cursor.next_sequence and count < MAX_BATCH_RECORDS:
            sequence, length = self._look(cursor, expected)
            if sequence > expected:
                length = self._put_lost(cursor, expected, sequence - 1)
            if end + length > limit_bytes:
                break
            view[end : end + length] = self._scratch[:length]
            end += length
            count += 1
            if sequence == expected:
                cursor.offset += padded(length)
                sequence += 1
            expected = sequence
        self._mark = (expected - 1, cursor.number, cursor.offset)
        return (after_sequence + 1 if count else 0), count, end

    def read_one(self, sequence: int, buffer: "bytearray | memoryview", offset: int, limit_bytes: int) -> int:
        """Copy one Record; return the offset behind it, `offset` itself when it is gone or has no room."""
        cursor = self._seek(sequence - 1)
        if not 0 < sequence < cursor.next_sequence:
            return offset
        found, length = self._look(cursor, sequence)
        if found != sequence or not length or offset + length > limit_bytes:
            return offset
        memoryview(buffer)[offset : offset + length] = self._scratch[:length]
        return offset + length

    def read_tail(
        self,
        buffer: "bytearray | memoryview",
        offset: int,
        limit_bytes: int,
        limit_records: int,
        wants: "Callable[[Record], bool]",
        is_enough: "Callable[[], bool]",
    ) -> "tuple[int, int, int]":
        """Copy the newest unacked Records that are wanted; return (first, count, end offset).

        Every wanted Record from sequence `first` on is there, in order. From the newest block it goes back,
        TAIL_BLOCKS at most, until they fill the buffer or after a block `is_enough`. `wants` is asked twice.
        """
        after, stop, newest = self.acked, self.next_sequence, self._newest
        first, count, size, room = stop, 0, 0, limit_bytes - offset
        for number in range(newest, max(self._oldest(), newest - TAIL_BLOCKS + 1) - 1, -1):
            header = self._header_from(number, number)
            if header is None or header.first_sequence >= first:
                continue
            lower = max(header.first_sequence, after + 1)
            for record in self._records(lower, first):
                if wants(record):
                    count += 1
                    size += OVERHEAD_BYTES + len(record.body)
            first = lower
            if lower == after + 1 or count > limit_records or size > room or is_enough():
                break
        copied, end, view = 0, offset, memoryview(buffer)
        for record in self._records(first, stop):
            if not wants(record):
                continue
            length = OVERHEAD_BYTES + len(record.body)
            if count > limit_records or size > room:  # the oldest have no room
                count -= 1
                size -= length
                first = record.sequence + 1
            elif end + length <= limit_bytes:
                view[end : end + length] = self._scratch[:length]
                end += length
                copied += 1
        return first, copied, end

    def ack(self, through: int) -> bool:
        """Every Record up to `through` is stored; False: nothing new. Raises JournalError for the future.

        The position is appended every ACKED_EVERY Records, and stands in the header of each block.
        """
        if through >= self.next_sequence:
            raise JournalError("ack through %d, the last sequence is %d" % (through, self.next_sequence - 1))
        if through <= self.acked:
            return False
        self.acked = through
        if through - self._acked_written >= ACKED_EVERY:
            self._append_acked()
        return True

    def replay(self, from_sequence: int) -> None:
        """Send again from this sequence: the service has less than it said. What is gone comes as LOST."""
        self.acked = self._acked_written = max(0, min(self.acked, from_sequence - 1))

    def settle(self) -> None:
        """Put the Ack position into flash now, before an orderly end: the next boot begins with it."""
        if self.acked != self._acked_written:
            self._append_acked()
        if self.acked != self._acked_written:  # no room in this block: the next one's header says it
            self._lock.acquire()
            try:
                if self._ready:
                    self._open()
            finally:
                self._lock.release()

    # --- Writing: under the lock ----------------------------------------------------------------------------

    def _keep(self, whole: bytes) -> bool:
        """Write an encoded Record; False: no erased block is left. For the main loop."""
        self._buffer[: len(whole)] = whole
        view = self._padded(len(whole))
        while not self._write(view):
            if not self._ready:
                return False
            self._open()
        return True

    def _padded(self, end: int) -> memoryview:
        """Return a view of the Record in the buffer; behind its end stands 0xFF."""
        if end <= _FINE_BYTES:
            view = self._views[(end + WORD_BYTES - 1) // WORD_BYTES]
        else:
            view = self._views[
                (_FINE_BYTES // WORD_BYTES) + (end - _FINE_BYTES + _COARSE_BYTES - 1) // _COARSE_BYTES
            ]
        for i in range(end, len(view)):
            self._buffer[i] = 0xFF
        return view

    def _write(self, view: memoryview) -> bool:
        """Program at the head and read it back. False: no room, or a bad block, which is left."""
        size = len(view)
        if self._head + size > self._end:
            return False
        good = True
        try:
            self._flash.program(self._head, view)
            for at in range(0, size, _CHECK_BYTES):
                check = self._checks[min(_CHECK_BYTES, size - at) // WORD_BYTES]
                self._flash.read(self._head + at, check)
                for i in range(len(check)):
                    good = good and check[i] == view[at + i]
        except OSError:
            good = False
        self._head = self._head + size if good else self._end
        self._failed = 0 if good else self._failed + 1
        return good

    def _open(self) -> None:
        """Begin the next block that is ready. If the flash refuses its header the block has no room."""
        number = self._ready.pop(0)
        self._newest = number
        self._head = self._start(number)
        self._end = self._head + self._flash.block_bytes
        flags = AFTER_TEAR if self._torn else 0
        put_header(self._header, flags, self.journal_id, number, self.next_sequence, self.acked, self.boot)
        if self._write(self._header_view):
            self._torn = False
            self._acked_written = self.acked

    def _claim(self) -> int:
        """Return the number of the block to erase now; what it held is gone from here on."""
        if not self.journal_id:
            raise JournalError("not mounted")
        if self._failed > 2 * self._blocks:
            raise JournalError("the flash takes no more")
        number = self._target
        self._target = number + 1
        return number

    def _erase_late(self) -> None:
        """Erase in the handler: better late than lost."""
        number = self._claim()
        try:
            self._flash.erase(number % self._blocks)
        except OSError:
            self._failed += 1
            return
        self._ready.append(number)

    # --- Erasing and housekeeping: the main loop, without the lock ------------------------------------------

    def _erase_ahead(self) -> None:
        """Make one more block ready, or find that it is bad."""
        self._lock.acquire()
        try:
            number = self._claim()
        finally:
            self._lock.release()
        good = self._erase(number % self._blocks)
        self._lock.acquire()
        if not good:
            self._failed += 1
        elif number > self._newest:  # else the handler has gone past it
            self._ready.append(number)
        self._lock.release()

    def _erase(self, position: int) -> bool:
        """Erase, unless it is: a block is erased once per lap. False: the block is bad."""
        start = position * self._flash.block_bytes
        if is_erased(self._flash, start, start + self._flash.block_bytes, self._scratch):
            return True
        try:
            self._flash.erase(position)
        except OSError:
            return False
        return is_erased(self._flash, start, start + self._flash.block_bytes, self._scratch)

    def _clear(self, position: int) -> None:
        """Erase for a wipe. A block that can't be erased is overwritten, which needs no erase."""
        if not self._erase(position) and not self._overwrite(position, self._flash.block_bytes):
            raise JournalError("block %d can't be wiped" % position)

    def _overwrite(self, position: int, count: int) -> bool:
        """Program 0 over the first bytes of a block; False: the flash refuses."""
        start = position * self._flash.block_bytes
        zeros = bytearray(HEADER_BYTES)
        try:
            for offset in range(start, start + count, HEADER_BYTES):
                self._flash.program(offset, zeros)
        except OSError:
            return False
        return True

    def _say_late(self) -> None:
        """Append the EVENT of a handler that had to erase."""
        self._lock.acquire()
        uptime_ms = self._late_hi << 24 | self._late_lo
        self._late_hi = -1
        self._lock.release()
        self.append(EVENT, 1, encode_event(Event(ERASED_LATE, 0, b"")), uptime_ms)

    def _append_acked(self) -> None:
        whole = encode(ACKED, 1, self.acked, self.boot, 0, b"")
        self._lock.acquire()
        try:
            if self._head + padded(len(whole)) <= self._end and self._keep(whole):
                self._acked_written = self.acked
        finally:
            self._lock.release()

    # --- Reading --------------------------------------------------------------------------------------------

    def _start(self, number: int) -> int:
        """Flash offset of a block."""
        return number % self._blocks * self._flash.block_bytes

    def _oldest(self) -> int:
        """Number of the oldest block that has not been claimed."""
        return max(0, self._target - self._blocks)

    def _header_from(self, number: int, newest: int) -> "Header | None":
        """Return the header of the first block from `number` to `newest` that has one."""
        for each in range(number, newest + 1):
            header = read_header(self._flash, each % self._blocks, self._scratch)
            if header is not None and header.number == each and header.journal_id == self.journal_id:
                return header
        return None

    def _seek(self, after: int) -> "_Cursor":
        """Return a cursor before the first Record after a sequence: at the mark or its block's begin."""
        self._lock.acquire()
        cursor = _Cursor(self._newest, self._head, self.next_sequence, self._torn)
        self._lock.release()
        oldest = self._oldest()
        sequence, number, offset = self._mark
        if sequence == after and number >= oldest:
            self._enter(cursor, number)
            cursor.offset = offset
            return cursor
        low, high = oldest, cursor.newest
        while (
            low < high
        ):  # the last block that begins at or before the sequence; those without a header count not
            middle = (low + high + 1) // 2
            header = self._header_from(middle, high)
            if header is None or header.first_sequence > after + 1:
                high = middle - 1
            else:
                low = header.number
        self._enter(cursor, low)
        return cursor

    def _records(self, first: int, stop: int) -> "Iterator[Record]":
        """Each good Record from sequence `first` on and before `stop`. The one looked at is in scratch."""
        cursor = self._seek(first - 1)
        while first < stop:
            sequence, length = self._look(cursor, first)
            if length and sequence < stop:
                yield decode(self._scratch[:length])
                cursor.offset += padded(length)
                sequence += 1
            first = sequence

    def _enter(self, cursor: "_Cursor", number: int) -> None:
        """Put the cursor at the begin of a block. Its Records end where the next block's sequences begin."""
        start = self._start(number)
        cursor.number = number
        cursor.offset = start + HEADER_BYTES
        cursor.stop = cursor.head if number == cursor.newest else start + self._flash.block_bytes
        cursor.header = self._header_from(number, number)
        cursor.boot = 0 if cursor.header is None else cursor.header.boot
        following = self._header_from(number + 1, cursor.newest)
        cursor.bound = cursor.next_sequence if following is None else following.first_sequence

    def _look(self, cursor: "_Cursor", expected: int) -> "tuple[int, int]":
        """Return (sequence, length) of the first Record from `expected` on; it is in scratch then.

        A sequence higher than expected says that all before it is gone, for `cursor.reason`. The cursor
        stays before what was found. A block without a good header is walked too: Records have their own CRCs.
        """
        while True:
            while cursor.offset < cursor.stop:
                record = read_record(self._flash, cursor.offset, cursor.stop, self._scratch)
                if record is None:
                    # A block that was left is erased to its end: thousands of reads if word by word.
                    erased = is_erased(self._flash, cursor.offset, cursor.stop, self._scratch)
                    cursor.offset = cursor.stop if erased else cursor.offset + WORD_BYTES
                    continue
                length = OVERHEAD_BYTES + len(record.body)
                if record.type != ACKED and expected <= record.sequence < cursor.bound:
                    cursor.reason = BAD_BLOCK if cursor.header is None else ROTTEN
                    return record.sequence, length
                cursor.offset += padded(length)
            cursor.reason = BAD_BLOCK if cursor.header is None else ROTTEN
            if cursor.number == cursor.newest:
                if cursor.torn:  # as the next block will say
                    cursor.reason, cursor.boot = TORN, self.boot
                return cursor.next_sequence, 0
            self._enter(cursor, cursor.number + 1)
            if cursor.header is not None and expected < cursor.header.first_sequence:
                if cursor.header.flags & AFTER_TEAR:
                    cursor.reason = TORN
                return cursor.header.first_sequence, 0

    def _put_lost(self, cursor: "_Cursor", first: int, last: int) -> int:
        """Put the LOST of a range into scratch; return its length. Its boot is that of the block's header."""
        reason = OVERWRITTEN if first < self.first_sequence else cursor.reason
        whole = encode(LOST, 1, first, cursor.boot, 0, encode_lost(Lost(first, last, reason)))
        self._scratch[: len(whole)] = whole
        return len(whole)

    # --- Recovery -------------------------------------------------------------------------------------------

    def _newest_header(self) -> "Header | None":
        """Return the header with the highest block number in the flash."""
        newest = None
        for position in range(self._blocks):
            header = read_header(self._flash, position, self._scratch)
            if header is None or header.number % self._blocks != position:
                continue
            if newest is None or header.number > newest.number:
                newest = header
        return newest

    def _recover(self) -> None:
        """Find the head behind the newest block's last Record."""
        number, first = self._newest, self.next_sequence
        tail, clean = self._walk(number)
        self._newest = self._last_begun()
        if self._newest > number:
            self._target = self._newest + 1
            self._walk(self._newest)
            clean = False
        self._head = tail if clean else self._end
        if not clean:
            self._torn = True
            # As if all of these blocks were full: no matter how much of them the next boot can still read.
            full = first + self._sequences(self._newest - number + 1)
            self.next_sequence = max(self.next_sequence, full)

    def _sequences(self, blocks: int) -> int:
        """How many so many blocks can hold."""
        return blocks * ((self._flash.block_bytes - HEADER_BYTES) // _MIN_RECORD_BYTES)

    def _walk(self, number: int) -> "tuple[int, bool]":
        """Take in what the Records of a block say; return the offset behind the last good one, and if all is.

        Not all is good when bytes that no Record explains may hide a sequence behind the last one: of a torn
        Record, or of rotten ones, also with a good ACKED behind them. Records with sequences that can't have
        come yet are bytes of a value that a Sensor sent, found because the Record around them is broken.
        """
        tail = offset = self._start(number) + HEADER_BYTES
        clean = True
        self._end = self._start(number) + self._flash.block_bytes
        bound = self.next_sequence + self._sequences(RESERVE_BLOCKS + 2)
        while offset < self._end:
            record = read_record(self._flash, offset, self._end, self._scratch)
            if record is None or record.sequence >= bound:
                if is_erased(self._flash, offset, self._end, self._scratch):
                    break
                clean = clean and is_erased(self._flash, offset, offset + WORD_BYTES, self._scratch)
                offset += WORD_BYTES
                continue
            tail = offset = offset + padded(OVERHEAD_BYTES + len(record.body))
            self.boot = max(self.boot, record.boot)
            # The Record that an Ack covers may be rotten: its sequence has been used.
            self.next_sequence = max(self.next_sequence, record.sequence + 1)
            if record.type == ACKED:
                self.acked = record.sequence
            else:
                clean = True
        return tail, clean

    def _last_begun(self) -> int:
        """Return the number of the last block that was begun: the newest, or one whose header is rotten.

        Without this look the sequences in that one would be used twice. The blocks in between may be bad.
        """
        found = self._newest
        for number in range(self._newest + 1, self._newest + RESERVE_BLOCKS + 2):
            start = self._start(number)
            stop = start + self._flash.block_bytes
            if read_header(self._flash, number % self._blocks, self._scratch) is None and not is_erased(
                self._flash, start + HEADER_BYTES, stop, self._scratch
            ):
                found = number if self._holds_newer(number, stop) else found
        return found

    def _holds_newer(self, number: int, stop: int) -> bool:
        """Whether a block without a header has Records with sequences still to come."""
        cursor = _Cursor(number, stop, self.next_sequence + self._sequences(RESERVE_BLOCKS + 2), False)
        self._enter(cursor, number)
        return self._look(cursor, self.next_sequence)[1] > 0


class _Cursor:
    """Where a reader stands, and the Journal's end as it was when the reader set out."""

    def __init__(self, newest: int, head: int, next_sequence: int, torn: bool) -> None:
        self.newest = newest
        self.head = head
        self.next_sequence = next_sequence
        self.torn = torn
        self.number = 0  # block
        self.offset = 0  # flash offset
        self.stop = 0  # where this block's Records end
        self.bound = 0  # sequences from here on belong to later blocks
        self.header: Header | None = None
        self.boot = 0  # of a LOST found here
        self.reason = 0  # why what lies before the last thing found is gone


def _views(buffer: bytearray) -> "tuple[memoryview, ...]":
    """Return views of the first 0, 1, 2, ... words of the buffer, then in coarse steps to its end."""
    view = memoryview(buffer)
    fine = [view[:length] for length in range(0, min(len(buffer), _FINE_BYTES) + 1, WORD_BYTES)]
    return tuple(
        fine
        + [view[:length] for length in range(_FINE_BYTES + _COARSE_BYTES, len(buffer) + 1, _COARSE_BYTES)]
    )
