"""Wire: what umqtt.simple takes for its `socket` module and for its socket. It never waits inside umqtt.

umqtt writes each packet in many small pieces, and reads as if everything were there. So what it writes is
collected until `flush` sends it in one piece, and a whole packet is brought in by `packet` before umqtt may
read it. Where it would read more than that, `read` raises Absent.

A Batch is not copied: it is made in `room`, which is the rest of the buffer behind the place of its header.

The end of the stream, silence and a packet that is too large are OSErrors, as everything that ends a link.
"""

import asyncio
import errno

from firmware.wait import for_answer
from gateway.limits import MAX_BATCH_BYTES
from gateway.port import const

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ssl import SSLContext

_HEAD_BYTES = const(128)
"""MQTT's header and the topic of a Batch, 34 bytes with a Kit's number of eight."""
_MAX_OUT_BYTES = _HEAD_BYTES + MAX_BATCH_BYTES
_MAX_IN_BYTES = const(512)
"""An Ack with its topic takes 80 bytes. A broker may not fill the heap."""
_SEND_WAIT_MS = const(15_000)
"""4 KiB over a mobile link at its edge, resent twice by TCP."""


class Absent(Exception):
    """umqtt reads what has not come yet."""


class Wire:
    """One connection at a time: `open`, use, `end`, and again."""

    def __init__(self) -> None:
        self._stream: asyncio.StreamWriter | None = None
        self._out = bytearray(_MAX_OUT_BYTES)
        self._out_view = memoryview(self._out)
        self._out_start = self._out_end = 0
        self.room = self._out_view[_HEAD_BYTES:]
        self._in = bytearray(_MAX_IN_BYTES)
        self._in_view = memoryview(self._in)
        self._at = self._end = 0  # of the packet that has not been read

    # --- The link -------------------------------------------------------------------------------------------

    async def open(self, host: str, port: int, tls: "SSLContext | None", wait_ms: int) -> None:
        """Connect. The TLS handshake happens with the first `flush`, and takes its time there."""
        self._out_start = self._out_end = self._at = self._end = 0
        opening = asyncio.open_connection(host, port, tls, host)  # type: ignore[arg-type]
        self._stream = (await for_answer(opening, wait_ms))[1]

    async def flush(self) -> None:
        """Send all that was written."""
        stream, start, end = self._stream, self._out_start, self._out_end
        self._out_start = self._out_end = 0
        if stream is None:
            raise OSError(errno.ENOTCONN)
        stream.write(self._out_view[start:end])
        await for_answer(stream.drain(), _SEND_WAIT_MS)

    async def end(self) -> None:
        """End the connection. May be called again."""
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                await stream.wait_closed()
            except OSError:
                pass

    async def packet(self, wait_ms: int) -> int:
        """Bring in the next packet; return its first byte."""
        self._at = self._end = 0
        await for_answer(self._fill(), wait_ms)
        return self._in[0]

    async def some(self, wait_ms: int) -> bytes:
        """Return what comes next, of whatever length; empty: the end."""
        assert self._stream is not None
        got = await for_answer(self._stream.readinto(self._in_view), wait_ms)
        return bytes(self._in_view[: got or 0])

    async def _fill(self) -> None:
        await self._bring(2)
        length = shift = 0
        while True:
            byte = self._in[self._end - 1]
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            await self._bring(1)
        await self._bring(length)

    async def _bring(self, count: int) -> None:
        """Read exactly so many bytes more."""
        stop = self._end + count
        if stop > _MAX_IN_BYTES:
            raise OSError(errno.ENOBUFS)
        while self._end < stop:
            assert self._stream is not None
            got = await self._stream.readinto(self._in_view[self._end : stop])
            if got == 0:
                raise OSError(errno.ECONNRESET)
            self._end += got or 0  # None: TLS has taken a record that holds nothing for us

    # --- What umqtt calls: its module `socket` --------------------------------------------------------------

    def socket(self) -> "Wire":
        """The socket is this."""
        return self

    def getaddrinfo(self, host: str, port: int) -> "tuple[tuple[None], ...]":
        """Nobody needs an address: it is connected."""
        return ((None,),)

    # --- What umqtt calls: its socket -----------------------------------------------------------------------

    def connect(self, address: object) -> None:
        """It is connected."""

    def setblocking(self, blocking: bool) -> None:
        """It never blocks."""

    def settimeout(self, seconds: "float | None") -> None:
        """The link has its own deadlines."""

    def write(self, piece: "bytes | bytearray | memoryview", count: int = -1) -> int:
        """Collect a piece, or its first `count` bytes. A view is one of `room`."""
        length = len(piece) if count < 0 else count
        if isinstance(piece, memoryview):
            self._join(length)
            return length
        end = self._out_end + length
        if end > _MAX_OUT_BYTES:
            raise OSError(errno.ENOBUFS)
        self._out[self._out_end : end] = memoryview(piece)[:length]
        self._out_end = end
        return length

    def _join(self, length: int) -> None:
        """Move the header up to the Batch."""
        head = self._out_end
        if head > _HEAD_BYTES or length > MAX_BATCH_BYTES:
            raise OSError(errno.ENOBUFS)
        self._out_start, self._out_end = _HEAD_BYTES - head, _HEAD_BYTES + length
        self._out[self._out_start : _HEAD_BYTES] = self._out[:head]

    def read(self, count: int) -> bytes:
        """Return exactly so many bytes of the packet that is here."""
        start = self._at
        if start + count > self._end:
            raise Absent
        self._at = start + count
        return bytes(self._in_view[start : self._at])

    def close(self) -> None:
        """The link ends it."""
