"""The Gateway of a home: the firmware on a virtual ESP32, or the Linux Gateway, plugged in and out."""

import asyncio
import contextlib
import importlib.metadata
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from gateway.linux.config import Config
from gateway.linux.run import LinuxGateway, wipe
from hw.virtual import programs, romfs
from hw.virtual.bleak_backend import BumbleAdapter
from hw.virtual.board_host import Board
from hw.virtual.radio import Room

GATEWAYS = ("mpy64", "mpy32", "linux")
ROOT = Path(__file__).parents[2]
PAIRING_S = 60
"""How long unknown Sensors may bond after the Kit was wiped."""
BOARD_HEAP = "120k"
"""Of the 32-bit board: what an ESP32 without PSRAM leaves to Python with Wi-Fi and TLS up."""
POLL_S = 0.05
ACK_WAIT_MS = 2_000
"""Of the Linux Gateway: shorter than in a real home, so that a killed broker costs no minute of the demo."""
_FROM_1970_TO_2000_S = 946_684_800
_BUTTON = 0
"""Its pin (firmware/board.py): pressed is low."""

Identity = dict[str, int | bytes]


class Kit(Protocol):
    """What a home does with its Gateway."""

    async def plug_in(self) -> None:
        """Power on. After a wipe unknown Sensors may bond for a while."""

    async def pull_plug(self) -> None:
        """Power off in the middle of whatever it is doing."""

    async def wipe(self) -> None:
        """Forget everything; refuses while it knows of Records that wait."""

    def online(self, on: bool) -> None:
        """The home's network comes or goes."""

    def press(self, down: bool) -> None:
        """Hold the button, or let it go: held for a while, it lets unknown Sensors bond."""

    async def close(self) -> None:
        """Pull the plug for good."""


class LinuxKit:
    """The Linux Gateway in this process, on the bleak backend of the room."""

    def __init__(self, config: Config, room: Room, folder: Path, address: str) -> None:
        self._config = config
        self._adapter = BumbleAdapter(room, address, bonds=folder / "bonds.json")
        self._gateway: LinuxGateway | None = None
        self._running: asyncio.Task[None] | None = None

    async def plug_in(self) -> None:
        await self._adapter.start()
        self._gateway = LinuxGateway(
            self._config,
            scanner_backend=self._adapter.scanner_backend,
            client_backend=self._adapter.client_backend,
            ack_wait_ms=ACK_WAIT_MS,
        )
        if not self._adapter.bonds.peers:
            self._gateway.open_pairing(PAIRING_S)
        self._running = asyncio.create_task(self._gateway.run(), name="gateway")

    async def pull_plug(self) -> None:
        if self._gateway is None or self._running is None:
            return
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        self._gateway.close()
        self._gateway = None
        await self._adapter.stop()

    async def wipe(self) -> None:
        assert self._gateway is not None
        while self._gateway.pending:  # noqa: ASYNC110 - the last Acks are on their way
            await asyncio.sleep(POLL_S)
        await self.pull_plug()
        wipe(self._config)
        self._adapter.bonds.forget()
        await self.plug_in()

    def online(self, on: bool) -> None:
        assert self._gateway is not None
        self._gateway.link.set_online(on)

    def press(self, down: bool) -> None:
        """It has no button; a word does."""
        if down:
            assert self._gateway is not None
            self._gateway.open_pairing(PAIRING_S)

    async def close(self) -> None:
        await self.pull_plug()


class BoardKit:
    """The firmware, compiled as a release holds it, on real MicroPython on a virtual ESP32."""

    def __init__(
        self,
        config: Config,
        room: Room,
        folder: Path,
        address: str,
        *,
        bits: int,
        image: Path | None = None,
    ) -> None:
        self._config = config
        heap = BOARD_HEAP if bits == 32 else None
        program = [image or release(folder)]
        self.board = Board(room, folder / "board", address=address, program=program, bits=bits, heap=heap)
        self.board.wifi(True)
        self._provision()

    async def plug_in(self) -> None:
        await self.board.start()

    async def pull_plug(self) -> None:
        await self.board.kill()

    async def wipe(self) -> None:
        await self.pull_plug()
        self._provision()
        await self.plug_in()

    def online(self, on: bool) -> None:
        self.board.wifi(on)

    def press(self, down: bool) -> None:
        self.board.set_pin(_BUTTON, not down)

    async def close(self) -> None:
        await self.board.kill()
        await self.board.network.close()

    def _provision(self) -> None:
        self.board.provision("homeward", identity(self._config))


def choose(
    kind: str, config: Config, room: Room, folder: Path, address: str, *, image: Path | None = None
) -> Kit:
    """The Gateway that --gateway names: "linux", "mpy64", "mpy32". `image`: a `release` made before."""
    if kind == "linux":
        return LinuxKit(config, room, folder, address)
    return BoardKit(config, room, folder, address, bits=int(kind[-2:]), image=image)


def describe(kind: str) -> str:
    """The Gateway with its interpreter's version. Raises ProgramMissing when it can't be had."""
    if kind == "linux":
        return f"linux, CPython {platform.python_version()}, bleak {importlib.metadata.version('bleak')}"
    bits = int(kind[-2:])
    ask = "import sys; print('.'.join(str(n) for n in sys.implementation.version[:3]))"
    said = subprocess.run(
        [*programs.micropython(bits), "-c", ask], capture_output=True, text=True, check=True
    )
    programs.umqtt()
    return f"firmware, MicroPython {said.stdout.strip()} {bits}-bit on a virtual ESP32"


def identity(config: Config, *, network: str = "home", password: str = "correct horse") -> Identity:
    """What the Station writes into NVS (firmware/identity.py): who the Kit is, and that it begins anew."""
    certificates = [x509.load_pem_x509_certificate(p.read_bytes()) for p in (config.ca, config.certificate)]
    ca, certificate = (one.public_bytes(serialization.Encoding.DER) for one in certificates)
    return {
        "kit": config.kit.encode(),
        "host": config.host.encode(),
        "port": config.port,
        "wifi": json.dumps([[network, password]]).encode(),
        "ca": ca,
        "cert": certificate,
        "key": _der(config.key),
        "wipe": 1,
        "pair_s": PAIRING_S,
        "stream_s": config.stream_s,
        "utc_s": int(time.time()) - _FROM_1970_TO_2000_S,
    }


def release(folder: Path) -> Path:
    """The firmware's image: bytecode that is executed in flash, umqtt with it."""
    return romfs.release(ROOT, folder, programs.umqtt())


def _der(path: Path) -> bytes:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    form, plain = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.DER, form, plain)
