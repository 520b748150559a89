"""Request: what a browser asks of the set-up page, and what it sends in a form. Everybody in radio range with
the key of the label may send anything: every length is bounded, and what makes no sense is None.
"""

from collections import namedtuple

from gateway.port import const

MAX_HEAD_BYTES = const(1024)
"""A phone's browser sends 400 to 800."""
MAX_BODY_BYTES = const(512)
"""A name of 32 bytes twice and a password of 63, each byte as %XX, and a token."""

Request = namedtuple("Request", ("method", "path", "host", "origin", "length"))
"""`length`: of the body; `host` and `origin`: as sent, in lower case, "" when not sent."""

_HEX = b"0123456789abcdef"


def parse(head: bytes) -> "Request | None":
    """Take the lines up to the empty one."""
    try:
        first, *lines = head.decode().split("\r\n")
    except (UnicodeError, ValueError):
        return None
    words = first.split(" ")
    if len(words) != 3 or words[0] not in ("GET", "HEAD", "POST") or not words[2].startswith("HTTP/1."):
        return None
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip().lower()
    length = headers.get("content-length", "0")
    if not length.isdigit() or len(length) > 4 or "transfer-encoding" in headers:
        return None
    path = words[1].split("?")[0]
    return Request(words[0], path, headers.get("host", ""), headers.get("origin", ""), int(length))


def fields(body: bytes) -> "dict[str, bytes]":
    """The fields of a form as a browser encodes it. Values are bytes: a network's name need not be text."""
    found = {}
    for pair in body.split(b"&"):
        name, _, value = pair.partition(b"=")
        try:
            found[_plain(name).decode()] = _plain(value)
        except (UnicodeError, ValueError):
            pass  # a field that no form of ours has
    return found


def _plain(encoded: bytes) -> bytes:
    """Undo %XX and +. A % that is followed by something else raises ValueError."""
    plain = bytearray()
    at = 0
    while at < len(encoded):
        byte = encoded[at]
        if byte == 0x25:
            pair = encoded[at + 1 : at + 3].lower()
            if len(pair) != 2 or pair[0] not in _HEX or pair[1] not in _HEX:
                raise ValueError("%")
            byte = int(pair, 16)
            at += 2
        plain.append(0x20 if byte == 0x2B and encoded[at] == 0x2B else byte)
        at += 1
    return bytes(plain)
