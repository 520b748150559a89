"""LinuxGateway: the pure core with a bleak radio, an MQTT link and a file as flash. For bench and demo.

It cannot keep P1: the operating system confirms an indication before this process has it. Its Frames
and its status say so. Everything else is the code of the ESP32.
"""

import asyncio
import logging
import os
import threading
from importlib.metadata import PackageNotFoundError, version

from bleak.backends.client import BaseBleakClient
from bleak.backends.scanner import BaseBleakScanner

from gateway.errors import JournalError
from gateway.gateway import Gateway
from gateway.journal import Journal
from gateway.limits import ACK_WAIT_MS
from gateway.linux.bonds import BondsFile
from gateway.linux.clock import Clock
from gateway.linux.config import Config, ConfigError
from gateway.linux.flash import FileFlash
from gateway.linux.link import Link, tls_context
from gateway.linux.radio import Radio
from gateway.message import JOURNAL_ID_BYTES, NONCE_BYTES
from gateway.record import HOST_CONFIRMED
from gateway.uplink import Uplink

_HOUSEKEEPING_S = 1.0

_log = logging.getLogger(__name__)


class LinuxGateway:
    """`run` until cancelled, then `close`. The backends replace BlueZ. Raises ConfigError."""

    def __init__(
        self,
        config: Config,
        *,
        scanner_backend: type[BaseBleakScanner] | None = None,
        client_backend: type[BaseBleakClient] | None = None,
        ack_wait_ms: int = ACK_WAIT_MS,
    ) -> None:
        self.clock = Clock()
        tls = tls_context(config)
        self._flash, self.gateway = _open(config, ack_wait_ms)
        self.journal = self.gateway.journal
        self.link = Link(self.gateway, self.clock, host=config.host, port=config.port, tls=tls)
        self.radio = Radio(
            self.gateway,
            self.clock,
            wake=self.link.wake,
            scanner_backend=scanner_backend,
            client_backend=client_backend,
        )

    @property
    def pending(self) -> int:
        """Records that the service has not acked."""
        return self.journal.pending

    def open_pairing(self, seconds: float) -> None:
        """Let unknown Sensors bond for a while."""
        self.gateway.open_pairing(self.clock.now_ms(), int(seconds * 1000))

    async def run(self) -> None:
        """Run the radio, the link and the housekeeping; the first of them that fails ends all."""
        _log.warning("kit %s: P1 cannot hold on this system, for bench and demo only", self.gateway.kit)
        self.gateway.start(self.clock.now_ms())
        async with asyncio.TaskGroup() as group:
            group.create_task(self.radio.run(), name="radio")
            group.create_task(self.link.run(), name="link")
            group.create_task(self._keep_house(), name="journal")

    def close(self) -> None:
        """End in order, and let go of the Journal's file."""
        self.gateway.close()
        self._flash.close()

    async def _keep_house(self) -> None:
        while True:
            more = self.gateway.maintain()
            await asyncio.sleep(0 if more else _HOUSEKEEPING_S)


def wipe(config: Config, *, force_unsent: bool = False) -> None:
    """Forget every Record and Sensor; a new Journal begins. Raises JournalError while Records wait."""
    flash, gateway = _open(config, ACK_WAIT_MS)
    try:
        gateway.wipe(os.urandom(JOURNAL_ID_BYTES), force_unsent=force_unsent)
    finally:
        flash.close()


def _open(config: Config, ack_wait_ms: int) -> tuple[FileFlash, Gateway]:
    """Mount the Journal, made now if the flash is new. Raises ConfigError: it is something else."""
    try:
        flash = FileFlash(config.journal, config.journal_kib * 1024)
    except (OSError, ValueError) as error:
        raise ConfigError(f"journal: {config.journal}: {error}") from None
    journal = Journal(flash, threading.Lock())
    try:
        if _is_erased(flash):
            journal.format(os.urandom(JOURNAL_ID_BYTES))
        journal.mount()
        bonds = BondsFile(config.sensors)
        uplink = Uplink(journal, lambda: os.urandom(NONCE_BYTES), ack_wait_ms=ack_wait_ms)
        return flash, Gateway(
            config.kit,
            _release(),
            journal=journal,
            uplink=uplink,
            bonds=bonds,
            frame_flags=HOST_CONFIRMED,
            stream_window_ms=config.stream_s * 1000,
        )
    except JournalError as error:
        flash.close()
        raise ConfigError(
            f"journal: {config.journal}: {error}; remove the file to begin a new Journal"
        ) from None


def _is_erased(flash: FileFlash) -> bool:
    whole = bytearray(flash.size)
    flash.read(0, whole)
    return not whole.strip(b"\xff")


def _release() -> str:
    try:
        return version("homeward")
    except PackageNotFoundError:  # run from a source tree
        return "0"
