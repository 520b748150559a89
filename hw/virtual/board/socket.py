# mypy: ignore-errors
"""
Module socket: every address leads to the home's router, which the host can cut off from the world.

What is bound to the board's own address lies at some port of loopback, which the host knows.
"""

import sys

import chip

_path = sys.path[:]
sys.path.clear()
try:
    from socket import *  # noqa: F403
    from socket import getaddrinfo as _getaddrinfo
finally:
    sys.path[:] = _path


def getaddrinfo(host: str, port: int, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> list:
    """OSError -202 when a name cannot be resolved, as lwip says it."""
    address, port = chip.ask("route", host=host, port=port)
    return _getaddrinfo(address, port, family, type or SOCK_STREAM)  # noqa: F405
