"""A real Mosquitto of a test's own: its folder, a free port, ended by its process id."""

import asyncio
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiomqtt

from hw.virtual.programs import mosquitto
from sync_service.config import load

START_S = 10.0
_RELOADED = "Reloading config."


class Broker:
    """Mosquitto with the configuration that `homeward-sync init` wrote into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = load(folder).broker.port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        command = [*mosquitto(), "-c", str(self.folder / "broker/mosquitto.conf")]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _until(lambda: _listens(self.port), "Mosquitto does not listen")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it by its process id."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(START_S)
            self._process = None

    def hang(self) -> None:
        """Let it answer nothing more, and reset nothing, until it wakes."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Go on where it hung."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def reload(self) -> None:
        """Make it read its ACL and the revoked certificates again."""
        assert self._process is not None
        before = self.log().count(_RELOADED)
        self._process.send_signal(signal.SIGHUP)
        _until(lambda: self.log().count(_RELOADED) > before, "Mosquitto does not reload")

    def log(self) -> str:
        return (self.folder / "broker/mosquitto.log").read_text()

    def kit(self, kit: str, *, client_id: str | None = None) -> aiomqtt.Client:
        """A client with a Kit's certificate."""
        return self._client(self.folder / "kits" / kit / "kit", client_id or kit)

    def service(self) -> aiomqtt.Client:
        """A client with the service's certificate. It takes the place of a running service."""
        return self._client(self.folder / "service/service", "service")

    def _client(self, pair: Path, client_id: str) -> aiomqtt.Client:
        tls = ssl.create_default_context(cafile=self.folder / "ca/ca.pem")
        tls.load_cert_chain(pair.with_suffix(".pem"), pair.with_suffix(".key"))
        return aiomqtt.Client("127.0.0.1", self.port, identifier=client_id, tls_context=tls, timeout=5)


@contextmanager
def running(folder: Path) -> Iterator[Broker]:
    """A broker that is stopped at the end."""
    broker = Broker(folder)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


async def next_message(client: aiomqtt.Client, timeout_s: float = 10.0) -> aiomqtt.Message:
    """The next message of a client's subscriptions. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        return await anext(aiter(client.messages))


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds. Raises AssertionError when it never does."""
    for _ in range(2_000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


def _until(condition: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < until, otherwise
        time.sleep(0.01)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
