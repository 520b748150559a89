"""Self-test: what a Kit tries at the bench, while everything else runs as in a home. Asked for in NVS, once.

Each check prints one line, `TEST {"name": , "passed": , "detail": }`, and the last line is `TEST done {...}`.
The Station (hw/station/selftest.py) listens, asks the technician what only eyes can tell, and hears from the
service whether the test Reading has come. That Reading is nobody's, twice over: no Sensor has reference 0,
and its status says "data for testing", which no decoder takes for a vital sign (P7).

A check that fails leaves the wish in NVS: after the next plug the test begins again.
"""

import asyncio
import json
import sys

from firmware import board
from gateway.port import const
from gateway.record import Frame, decode, decode_body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from firmware.main import Kit

_WAIT_MS = const(45_000)
"""For each check: Wi-Fi needs 20 s at worst, an advert a few, a technician's hand some more."""
_LOOK_MS = const(100)
_COLOURS = ("fault", "kept", "pairing")  # red; green with a beep; blue
_COLOUR_LOOKS = const(15)  # the longest of the three patterns
_TIMES = const(2)
_SPOT_CHECK = const(0x2A5E)
_TEST_VALUE = b"\x02\x61\x00\x48\x00\x00\x08"
"""PLX Spot-Check of 97 % and 72/min whose measurement status is "data for testing" (PLX 1.0.1, 3.1.1.5)."""
_MAX_RECORD_BYTES = const(640)


def begin(kit: "Kit") -> None:
    """Test the Kit beside everything else that it does."""
    asyncio.create_task(SelfTest(kit).run())


class SelfTest:
    """`run` once."""

    def __init__(self, kit: "Kit") -> None:
        self._kit = kit
        self._passed = True
        self._heard_ms = kit.supervisor.seen_ms("radio")
        self.sequence = 0

    async def run(self) -> None:
        """Every check, and the last line whatever happens: the Station waits for it."""
        journal = self._kit.journal
        try:
            await self._run()
            if self._passed:
                self._kit.identity.tested()
        except Exception as error:
            self._passed = False
            sys.print_exception(error)
        done = {"journal": journal.journal_id.hex(), "sequence": self.sequence, "passed": self._passed}
        print("TEST done", json.dumps(done))

    async def _run(self) -> None:
        """One that fails does not stop the others."""
        kit = self._kit
        self._say("journal", self._journal(), "a Record was written and read back")
        await self._show()
        await self._check("button", board.Button().is_down, "pressed")
        await self._check("radio", self._has_heard, "an advert was heard")
        await self._check("wifi", kit.wifi.is_online, "joined")
        await self._check("tls", lambda: kit.link.is_connected, "the broker was believed and has accepted us")
        await self._check("ack", lambda: kit.journal.acked >= self.sequence, "the test Reading was acked")

    def _journal(self) -> bool:
        """Keep the test Reading as the handler would, and read it out of the flash again."""
        kit = self._kit
        kit.clock.mark()
        self.sequence = kit.gateway.received(0, _SPOT_CHECK, _TEST_VALUE, 0, kit.clock.hi, kit.clock.lo)
        kit.link.wake()
        buffer = bytearray(_MAX_RECORD_BYTES)
        first, count, _ = kit.journal.read_batch(buffer, 0, _MAX_RECORD_BYTES, self.sequence - 1)
        if first != self.sequence or not count:
            return False
        record = decode(buffer)
        return decode_body(record.type, record.version, record.body) == Frame(0, 0, _SPOT_CHECK, _TEST_VALUE)

    async def _show(self) -> None:
        """Every colour, and the buzzer."""
        print("TEST light red, green with a beep, blue")
        for _ in range(_TIMES):
            for colour in _COLOURS:
                self._kit.indicator.flash(colour)
                await asyncio.sleep_ms(_LOOK_MS * _COLOUR_LOOKS)
        self._say("light", True, "shown")

    async def _check(self, name: str, holds: "Callable[[], bool]", detail: str) -> None:
        """Wait until it holds."""
        print("TEST wait", name)
        for _ in range(_WAIT_MS // _LOOK_MS):
            if holds():
                self._say(name, True, detail)
                return
            await asyncio.sleep_ms(_LOOK_MS)
        self._say(name, False, "not within %d s" % (_WAIT_MS // 1000))

    def _has_heard(self) -> bool:
        return self._kit.supervisor.seen_ms("radio") != self._heard_ms

    def _say(self, name: str, passed: bool, detail: str) -> None:
        self._passed = self._passed and passed
        print("TEST", json.dumps({"name": name, "passed": passed, "detail": detail}))
