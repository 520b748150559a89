"""Reach: why a try for the service came to nothing, found out without asking anybody but the service's host.

A network that wants its own page seen first answers for every host. So where a try has failed, port 80 of the
service's host is asked for a page that is not there: a redirect to another host, or a page, comes from
somebody who stands in the way. Nothing of the Kit is in the question.
"""

import errno

from gateway.port import const
from gateway.record import NET_AWAY, NET_CAPTIVE, NET_FOREIGN, NET_NO_INTERNET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firmware.wire import Wire

_HTTP_PORT = const(80)
_CONNECT_WAIT_MS = const(5_000)
_ANSWER_WAIT_MS = const(5_000)
"""Who intercepts is near; a page that needs longer is no use for the patient either."""
_NOBODY = (errno.ETIMEDOUT, errno.EHOSTUNREACH, 101, 118)
"""101 and 118: no route to the network, in Linux and in lwip."""
_NO_NAME = const(-256)
"""From here up to -1 an error is the resolver's; mbedTLS's begin below."""


async def why(error: Exception, wire: "Wire", host: str) -> int:
    """One of NET_*, for an error that has ended a try before the broker's consent. Uses the wire."""
    number = (error.errno or 0) if isinstance(error, OSError) else 0
    if _NO_NAME < number < 0:
        return NET_NO_INTERNET
    if await _is_captive(wire, host):
        return NET_CAPTIVE
    if isinstance(error, ValueError):  # mbedTLS says so of certificates alone
        return NET_FOREIGN
    return NET_NO_INTERNET if number in _NOBODY else NET_AWAY


async def _is_captive(wire: "Wire", host: str) -> bool:
    try:
        await wire.open(host, _HTTP_PORT, None, _CONNECT_WAIT_MS)
        wire.write(b"GET /homeward HTTP/1.0\r\nHost: " + host.encode() + b"\r\n\r\n")
        await wire.flush()
        return is_foreign(await wire.some(_ANSWER_WAIT_MS), host.encode())
    except OSError:
        return False
    finally:
        await wire.end()


def is_foreign(answer: bytes, host: bytes) -> bool:
    """Whether this begin of an HTTP answer comes from somebody else than the host: a page, another host's."""
    if not answer.startswith(b"HTTP/1."):
        return False
    code = answer[9:12]
    if code[:1] == b"3":
        target = _location(answer)
        return target != b"" and target != host
    return code in (b"200", b"511")


def _location(answer: bytes) -> bytes:
    """The host of the answer's Location, empty when it names none."""
    for line in answer.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"location":
            _, found, rest = value.strip().partition(b"://")
            return rest.split(b"/")[0].split(b"?")[0].split(b":")[0].lower() if found else b""
    return b""
