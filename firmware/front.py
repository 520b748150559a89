"""Front: what the patient meets: the button, the light, and the set-up page that the button opens."""

import asyncio

from firmware.button import ButtonWatch
from gateway.port import const
from gateway.record import (
    BUTTON,
    NET_CAPTIVE,
    NET_WRONG_PASSWORD,
    PORTAL,
    PORTAL_CLOSED,
    PORTAL_LEARNED,
    PORTAL_OPENED,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firmware.clock import Clock
    from firmware.identity import Identity
    from firmware.indicator import Indicator
    from firmware.wifi import Wifi
    from gateway.gateway import Gateway
    from gateway.network import Networks

_PAIRING_MS = const(120_000)
_SHOWN = {NET_WRONG_PASSWORD: "password", NET_CAPTIVE: "captive"}
"""What is shown of networks that do not serve; of any other trouble: offline."""


class Front:
    """`run` for ever; `show` now and then."""

    def __init__(
        self,
        gateway: "Gateway",
        clock: "Clock",
        identity: "Identity",
        wifi: "Wifi",
        networks: "Networks",
        indicator: "Indicator",
    ) -> None:
        self.button = ButtonWatch(pair=self._open_pairing, set_up=self._ask_for_page)
        self._gateway = gateway
        self._clock = clock
        self._identity = identity
        self._wifi = wifi
        self._networks = networks
        self._indicator = indicator
        self._asked = asyncio.Event()
        self._is_open = False  # the set-up page

    def show(self, *, connected: bool, radio_works: bool) -> None:
        """The one thing that matters most now."""
        if self._is_open:
            pattern = "portal"
        elif not radio_works:
            pattern = "no_radio"
        elif self._gateway.pairing(self._clock.now_ms()):
            pattern = "pairing"
        else:
            pattern = "ready" if connected else _SHOWN.get(self._networks.state, "offline")
        self._indicator.show(pattern)

    def heard(self, good: bool) -> None:
        """Somebody has just measured: a value is kept, or the measurement failed."""
        self._indicator.flash("kept" if good else "failed")

    def _open_pairing(self) -> None:
        now_ms = self._clock.now_ms()
        self._gateway.append_event(BUTTON, 0, b"", now_ms)
        self._gateway.open_pairing(now_ms, _PAIRING_MS)
        self._indicator.show("pairing")

    def _ask_for_page(self) -> None:
        """Who holds the button on does not want to pair."""
        self._gateway.open_pairing(self._clock.now_ms(), 0)
        self._asked.set()

    async def run(self) -> None:
        """Open the set-up page whenever the button asks for it."""
        while True:
            self._asked.clear()
            await self._asked.wait()
            self._is_open = True
            self._indicator.show("portal")
            try:
                await self._serve_page()
            finally:
                self._is_open = False

    async def _serve_page(self) -> None:
        from firmware.portal import Portal  # only now: most Kits never need what it takes of the heap

        identity = self._identity
        portal = Portal(
            identity.kit,
            identity.portal_key,
            self._wifi,
            identity.networks,
            keep=identity.keep_networks,
            refused=lambda: self._indicator.flash("refused"),
        )
        self._tell(PORTAL_OPENED)
        self._tell(PORTAL_LEARNED if await portal.run() else PORTAL_CLOSED)

    def _tell(self, what: int) -> None:
        print("set-up page:", ("", "opened", "learned a network", "closed")[what])
        self._gateway.append_event(PORTAL, 0, bytes([what]), self._clock.now_ms())
