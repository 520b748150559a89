"""Names: the answer to every question of DNS while the set-up page is open: it is here.

So that whatever page a phone looks for, it finds the set-up page (RFC 1035 section 4).
"""

import struct

from gateway.port import const

MAX_QUESTION_BYTES = const(512)
_HEADER_BYTES = const(12)
_RESPONSE = const(0x80)
_AUTHORITATIVE = const(0x04)
_RECURSION_DESIRED = const(0x01)
_IS_NO_QUERY = const(0xF8)  # a response, or an opcode other than QUERY
_A = const(1)
_ANY = const(255)
_INTERNET = const(1)
_TTL_S = const(10)
"""Nobody shall believe it for long after the page is closed."""


def answer(question: bytes, address: bytes) -> "bytes | None":
    """Return the answer that names this IPv4 address (4 bytes); None to what is no question."""
    if not _HEADER_BYTES < len(question) <= MAX_QUESTION_BYTES:
        return None
    number, flags, _, questions = struct.unpack_from(">HBBH", question)
    end = _end_of_name(question)
    if flags & _IS_NO_QUERY or questions != 1 or not end or end + 4 > len(question):
        return None
    kind, network = struct.unpack_from(">HH", question, end)
    is_address = kind in (_A, _ANY) and network == _INTERNET
    flags = _RESPONSE | _AUTHORITATIVE | flags & _RECURSION_DESIRED
    header = struct.pack(">HBBHHHH", number, flags, 0, 1, 1 if is_address else 0, 0, 0)
    whole = header + question[_HEADER_BYTES : end + 4]
    if is_address:
        whole += struct.pack(">HHHIH", 0xC000 | _HEADER_BYTES, _A, _INTERNET, _TTL_S, 4) + address
    return whole


def _end_of_name(question: bytes) -> int:
    """Where the name ends, 0: it does not. A pointer has nothing to point to in a question."""
    at = _HEADER_BYTES
    while at < len(question):
        length = question[at]
        if length == 0:
            return at + 1
        if length > 63:
            return 0
        at += 1 + length
    return 0
