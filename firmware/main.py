"""The Gateway on an ESP32. All is made here, in order, and runs until power fails or the watchdog bites.

The brain is gateway/; every file of firmware/ is one peripheral of it and decides nothing.
"""

import _thread
import asyncio
import gc
import os

from firmware import board, clock, release
from firmware.bonds import Bonds
from firmware.clock import Clock
from firmware.flash import PartitionFlash
from firmware.front import Front
from firmware.identity import Identity, IdentityError
from firmware.indicator import Indicator
from firmware.mqtt import Link, tls_context
from firmware.radio import Radio
from firmware.sntp import Sntp
from firmware.supervisor import RADIO_MS, STORAGE_MS, UPLINK_MS, Supervisor
from firmware.wifi import Wifi
from firmware.wire import Wire
from gateway.gateway import Gateway
from gateway.journal import Journal
from gateway.message import JOURNAL_ID_BYTES, NONCE_BYTES
from gateway.network import STATES, Networks
from gateway.port import const
from gateway.uplink import Uplink

_HOUSEKEEPING_MS = const(1_000)


class Kit:
    """All parts of a Gateway, wired together. Raises IdentityError, JournalError, OSError."""

    def __init__(self, indicator: Indicator) -> None:
        self.indicator = indicator
        self.clock = Clock()
        self.identity = identity = Identity()
        clock.not_before(max(release.BUILT_UTC_S, identity.utc_s))
        bonds = Bonds(PartitionFlash(board.BONDS))
        # Its waiters sleep: NimBLE's task waits for at most one Record of the main loop.
        self.journal = Journal(PartitionFlash(board.JOURNAL), _thread.allocate_lock())
        if identity.wipe_asked:
            self.journal.format(os.urandom(JOURNAL_ID_BYTES))
            bonds.clear()
            identity.wiped()
        self.journal.mount()
        wire = Wire()
        uplink = Uplink(self.journal, lambda: os.urandom(NONCE_BYTES), buffer=wire.room)
        self.gateway = Gateway(
            identity.kit,
            release.RELEASE,
            journal=self.journal,
            uplink=uplink,
            bonds=bonds,
            stream_window_ms=identity.stream_window_ms,
        )
        self.supervisor = Supervisor(self.clock)
        self.stored = self.supervisor.alive("storage", STORAGE_MS)
        self.networks = Networks(self.gateway.append_event, self.gateway.may_speak)
        self.wifi = Wifi(identity.networks, identity.kit, see=self._see_network)
        self.link = Link(
            self.gateway,
            self.clock,
            wire,
            host=identity.host,
            port=identity.port,
            tls=tls_context(identity.ca, identity.certificate, identity.key),
            online=self.wifi.is_online,
            joins=lambda: self.wifi.joins,
            reached=self.wifi.reached,
            alive=self.supervisor.alive("uplink", UPLINK_MS),
        )
        identity.forget_keys()
        self.front = Front(self.gateway, self.clock, identity, self.wifi, self.networks, indicator)
        self.radio = Radio(
            self.gateway,
            self.clock,
            bonds,
            wake=self.link.wake,
            alive=self.supervisor.alive("radio", RADIO_MS),
            heard=self.front.heard,
        )

    async def run(self) -> None:
        """Say that this boot has begun, then run every part beside the others, for ever."""
        now_ms = self.clock.now_ms()
        self.gateway.start(now_ms, cause=board.reset_cause())
        self.gateway.open_pairing(now_ms, self.identity.take_pairing_s() * 1000)
        if self.identity.test_asked:  # at the bench alone: in a home its code shall take no heap
            __import__("firmware.self_test").self_test.begin(self)
        keep = self.supervisor.keep
        await asyncio.gather(
            self.supervisor.run(),
            keep("radio", self.radio.run),
            keep("wifi", self.wifi.run),
            keep("link", self.link.run),
            keep("sntp", Sntp(self.gateway, self.clock, self.identity.sntp, self.wifi.is_online).run),
            keep("journal", self._keep_house),
            keep("button", self.front.button.run),
            keep("front", self.front.run),
            keep("indicator", self.indicator.run),
        )

    def _see_network(self, place: int, state: int) -> None:
        if self.networks.states[place] != state:
            print("network", place, STATES[state])
        self.networks.see(place, state, self.clock.now_ms())
        self.gateway.rim["networks"] = self.networks.words()

    async def _keep_house(self) -> None:
        """Erase ahead of need, remember the time, show how things are."""
        while True:
            more = self.gateway.maintain()
            self.stored()
            now_ms = self.clock.now_ms()
            local = self.gateway.local_time(now_ms)
            if local is not None:
                utc_s = (local[0] - local[1] * 60_000) // 1000
                clock.set_utc_s(utc_s)
                self.identity.keep_utc_s(utc_s)
            self.networks.settle(now_ms)
            self.radio.settle(now_ms)
            self.gateway.rim["radio"] = self.radio.works
            self.front.show(connected=self.link.is_connected, radio_works=self.radio.works)
            await asyncio.sleep_ms(0 if more else _HOUSEKEEPING_MS)


async def run() -> None:
    """Run the Kit; one that can't be made shows why, and waits for the bench."""
    indicator = Indicator(board.light(), board.buzzer())
    gc.collect()  # what the imports have left would lie between the buffers
    try:
        kit = Kit(indicator)
    except IdentityError as error:
        print("not provisioned:", error)
        indicator.show("unprovisioned")
        await indicator.run()
    await kit.run()


asyncio.run(run())
