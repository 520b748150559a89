"""Ports: the serial ports that boards are on. Where one board is meant, two are refused."""

import glob
import time

from hw.station import StationError

AUTO = "auto"
"""The one board on USB."""
_LOOK_S = 0.2


class PortError(StationError):
    """No board, or more than one."""


def ports(wanted: str) -> list[str]:
    """The ports that are meant and there: those on USB, those of a pattern, or the one that is named."""
    if wanted == AUTO:
        from serial.tools import list_ports

        return sorted(port.device for port in list_ports.comports() if port.vid is not None)
    return sorted(glob.glob(wanted)) if glob.has_magic(wanted) else [wanted]


def one_port(wanted: str) -> str:
    """The one port that is meant. Raises PortError when it is none, or more than one."""
    found = ports(wanted)
    if not found:
        raise PortError("no board is plugged in: use a cable that carries data, or name its port with --port")
    if len(found) > 1:
        raise PortError(
            f"{len(found)} boards are plugged in where one was meant ({', '.join(found)}): take the others "
            "out, or name one with --port"
        )
    return found[0]


def plugged_in(wanted: str) -> str:
    """Wait for a board; Ctrl-C ends it."""
    while not ports(wanted):
        time.sleep(_LOOK_S)
    return one_port(wanted)


def taken_out(port: str, wanted: str) -> None:
    """Wait until that port is gone; Ctrl-C ends it."""
    while port in ports(wanted):
        time.sleep(_LOOK_S)
