"""Portal: the set-up page by which somebody in the home gives the Kit a network. Opened by the button alone.

A Wi-Fi of the Kit's own, encrypted with the key of its label; in it every name leads here, and here is one
form. What is given is tried at once, and kept only if it works. It closes by itself. Nothing else of the Kit
can be read or changed there, and it is bound to that Wi-Fi's address: the home's network never sees it.

A form from elsewhere does nothing: it lacks the token, which only the page has (CSRF), and a request whose
host is not this address gets nothing but the way here (DNS rebinding).
"""

import asyncio
import binascii
import errno
import os
import socket

from firmware import names, page
from firmware.request import MAX_BODY_BYTES, MAX_HEAD_BYTES, fields, parse
from firmware.wait import for_answer
from firmware.wifi import AccessPoint
from gateway.network import MAX_NETWORKS
from gateway.port import const
from gateway.record import NET_ABSENT, NET_NO_ADDRESS, NET_WRONG_PASSWORD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firmware.request import Request
    from firmware.wifi import Wifi

OPEN_MS = const(600_000)
"""Time to find the label, the password and one's glasses; then it is closed, whoever is still in it."""
_LINGER_MS = const(20_000)
"""The page that says "connected" asks again every 4 s; a phone that lost it comes back within 15."""
_HTTP_PORT = const(80)
_DNS_PORT = const(53)
_LOOK_MS = const(50)
_REQUEST_MS = const(5_000)
_MAX_CLIENTS = const(4)
"""A browser asks for four things at once; each takes 2 kB of heap."""
_MIN_KEY = const(8)
_MAX_KEY = const(63)
_MAX_NAME_BYTES = const(32)
_TOKEN_BYTES = const(8)

_TROUBLES = {
    NET_WRONG_PASSWORD: page.WRONG_PASSWORD,
    NET_ABSENT: page.ABSENT,
    NET_NO_ADDRESS: page.NO_ADDRESS,
}
_HEADERS = (
    "Content-Type: text/html; charset=utf-8\r\nCache-Control: no-store\r\nConnection: close\r\n"
    "X-Frame-Options: DENY\r\nReferrer-Policy: no-referrer\r\n"
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; form-action 'self'\r\n"
)


class Portal:
    """`run` once, for `open_ms`. `keep` writes the list of networks; `refused`: a password was wrong."""

    open_ms = OPEN_MS

    def __init__(
        self,
        kit: str,
        key: str,
        wifi: "Wifi",
        networks: "list[list[str]]",
        *,
        keep: "Callable[[], bool]",
        refused: "Callable[[], None]",
    ) -> None:
        self.learned = False
        self._kit = kit
        self._key = key
        self._wifi = wifi
        self._networks = networks
        self._keep = keep
        self._refused = refused
        self._point = AccessPoint()
        self._address = ""
        self._token = binascii.hexlify(os.urandom(_TOKEN_BYTES)).decode()
        self._near: list[str] = []
        self._name = ""  # that was given last
        self._trouble = ""  # what is to be said about it
        self._trial: asyncio.Task[None] | None = None
        self._clients = 0

    async def run(self) -> bool:
        """Open, serve, close; return whether a network was learned. Raises OSError without a key."""
        if not _MIN_KEY <= len(self._key) <= _MAX_KEY:
            raise OSError(errno.EINVAL, "no portal_key: the Station prints one on the label")
        self._address = self._point.open("Homeward " + self._kit, self._key)
        server = answering = None
        try:
            self._near = self._point.near()
            answering = asyncio.create_task(self._answer_names())
            server = await asyncio.start_server(self._serve, self._address, _HTTP_PORT)
            left_ms = self.open_ms
            while left_ms > 0 and not self.learned:
                await asyncio.sleep_ms(_LOOK_MS)
                left_ms -= _LOOK_MS
            if self.learned:
                await asyncio.sleep_ms(_LINGER_MS)
        finally:
            for task in (answering, self._trial):
                if task is not None:
                    task.cancel()
            if server is not None:
                server.close()
            self._point.close()
        return self.learned

    async def _answer_names(self) -> None:
        """Every name is here."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            listener.setblocking(False)
            listener.bind(socket.getaddrinfo(self._address, _DNS_PORT)[0][-1])
            here = bytes([int(part) for part in self._address.split(".")])
            while True:
                try:
                    question, whose = listener.recvfrom(names.MAX_QUESTION_BYTES)
                    reply = names.answer(question, here)
                    if reply is not None:
                        listener.sendto(reply, whose)
                except OSError:  # nothing is there, or who asked has gone
                    await asyncio.sleep_ms(_LOOK_MS)
        finally:
            listener.close()

    # --- The server -----------------------------------------------------------------------------------------

    async def _serve(self, reader: "asyncio.StreamReader", writer: "asyncio.StreamWriter") -> None:
        self._clients += 1
        try:
            if self._clients <= _MAX_CLIENTS:
                await for_answer(self._converse(reader, writer), _REQUEST_MS)
        except OSError:
            pass  # gone, or too slow
        finally:
            self._clients -= 1
            writer.close()
            await writer.wait_closed()

    async def _converse(self, reader: "asyncio.StreamReader", writer: "asyncio.StreamWriter") -> None:
        head, body = await _head(reader)
        request = parse(head)
        if request is None or request.length > MAX_BODY_BYTES:
            await _send(writer, "400 Bad Request", iter(()))
            return
        while len(body) < request.length:
            more = await reader.read(request.length - len(body))
            if not more:
                return
            body += more
        await self._reply(writer, request, body[: request.length])

    async def _reply(self, writer: "asyncio.StreamWriter", request: "Request", body: bytes) -> None:
        if request.host != self._address:  # a phone that looks whether this is the internet
            await _send(writer, "302 Found", iter(()), "Location: http://" + self._address + "/\r\n")
        elif request.method == "POST":
            status = self._take(request, body) if request.path == "/join" else "404 Not Found"
            await _send(writer, status, iter(()), "Location: /\r\n" if status[0] == "3" else "")
        elif request.path == "/":
            await _send(writer, "200 OK", self._page())
        else:
            await _send(writer, "404 Not Found", iter(()))

    def _page(self) -> "Iterator[str]":
        if self.learned:
            return page.done(self._name)
        if self._trial is not None:
            return page.trying(self._name)
        return page.form(self._token, self._near, self._name, self._trouble)

    def _take(self, request: "Request", body: bytes) -> str:
        """Begin to try what was given; return the status line. The page tells the rest."""
        given = fields(body)
        same = request.origin in ("", "null", "http://" + self._address)
        if not same or given.get("token") != self._token.encode():
            return "403 Forbidden"
        if self._trial is None and not self.learned:
            self._begin(given.get("other") or given.get("name") or b"", given.get("password") or b"")
        return "303 See Other"

    def _begin(self, name: bytes, password: bytes) -> None:
        try:
            self._name, key = name.decode().strip(), password.decode()
        except (UnicodeError, ValueError):
            self._name = key = ""
        if not 0 < len(self._name.encode()) <= _MAX_NAME_BYTES:
            self._trouble = page.BAD_NAME
        elif key and not _MIN_KEY <= len(key.encode()) <= _MAX_KEY:
            self._trouble = page.BAD_PASSWORD
        elif len(self._networks) >= MAX_NETWORKS and self._name not in [each[0] for each in self._networks]:
            self._trouble = page.NO_ROOM
        else:
            self._trial = asyncio.create_task(self._try(self._name, key))

    async def _try(self, name: str, key: str) -> None:
        """Try a network, and keep it if it works."""
        state = await self._wifi.learn(name, key)
        if state is None and self._keep():
            self.learned = True
        else:
            trouble = page.NO_ROOM if state is None else _TROUBLES.get(state, page.REFUSED)
            self._trouble = trouble % page.escaped(name) if "%s" in trouble else trouble
            if state == NET_WRONG_PASSWORD:
                self._refused()
        self._trial = None


async def _head(reader: "asyncio.StreamReader") -> "tuple[bytes, bytes]":
    """Return the head of a request without its empty line, and what has come of the body."""
    whole = b""
    while len(whole) < MAX_HEAD_BYTES:
        more = await reader.read(MAX_HEAD_BYTES - len(whole))
        if not more:
            break
        whole += more
        end = whole.find(b"\r\n\r\n")
        if end >= 0:
            return whole[:end], whole[end + 4 :]
    return b"", b""


async def _send(
    writer: "asyncio.StreamWriter", status: str, pieces: "Iterator[str]", headers: str = ""
) -> None:
    writer.write(("HTTP/1.0 " + status + "\r\n" + headers + _HEADERS + "\r\n").encode())
    for piece in pieces:
        writer.write(piece.encode())
        await writer.drain()
    await writer.drain()
