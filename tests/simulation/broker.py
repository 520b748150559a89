"""The broker and the ways to it: QoS 0, retained statuses, one shared subscription of the workers.

It remembers nothing but the retained statuses. What is on its way may be lost, doubled, late or overtaken.
Each client can publish on its own topics alone, as the broker's ACL has it (P8).
"""

import asyncio
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from tests.simulation.engine import Process

if TYPE_CHECKING:
    from tests.simulation.world import World

Receive = Callable[[str, bytes], None]


class Connection:
    """One client's. `up` is what the client believes; `broken`: nothing passes any more."""

    def __init__(self, broker: "Broker", name: str, process: Process | None, receive: Receive) -> None:
        self.name, self.process, self.receive = name, process, receive
        self.up = True
        self.ended = asyncio.Event()
        self.broken = False
        self._broken_s = 0.0
        self._broker = broker

    @property
    def silent_s(self) -> float:
        """Since when no answer to a ping has come."""
        return self._broker.now_s - self._broken_s if self.broken else 0.0

    def publish(self, topic: str, whole: bytes) -> None:
        if not self.broken:
            self._broker.publish(self, topic, whole)

    def break_off(self) -> None:
        """Half open: the other end is gone and nobody says so."""
        self.broken, self._broken_s = True, self._broker.now_s

    def lose(self) -> None:
        if self.up:
            self.up = False
            self.broken = True
            self.ended.set()
            self._broker.gone(self)


class Broker:
    """`service` clients share what Kits send."""

    def __init__(self, world: "World", random: Random) -> None:
        self.up = True
        self.retained: dict[str, bytes] = {}
        self._world, self._random = world, random
        self._kits: dict[str, Connection] = {}
        self._workers: list[Connection] = []
        self._last_s: dict[str, float] = {}  # arrival of the newest message to each client

    @property
    def now_s(self) -> float:
        return self._world.loop.time()

    def connect(self, name: str, process: Process | None, receive: Receive) -> Connection:
        """A Kit's connection; an older one of the same name ends."""
        if name in self._kits:
            self._kits[name].lose()
        connection = self._kits[name] = Connection(self, name, process, receive)
        if self._world.faults.strikes("link half open", 0.02):
            self._world.loop.after(self._random.uniform(1, 7200), None, connection.break_off)
        return connection

    def connect_worker(self, process: Process, receive: Receive) -> Connection:
        """A worker's connection, which gets what is retained."""
        connection = Connection(self, "", process, receive)
        self._workers.append(connection)
        for topic, whole in self.retained.items():
            self._carry(connection, topic, whole)
        return connection

    def gone(self, connection: Connection) -> None:
        if self._kits.get(connection.name) is connection:
            del self._kits[connection.name]
        if connection in self._workers:
            self._workers.remove(connection)

    def restart(self, for_s: float) -> None:
        """Every connection ends."""
        self.up = False
        for connection in [*self._kits.values(), *self._workers]:
            connection.lose()
        self._world.loop.after(for_s, None, self._begin)

    def cut_workers(self) -> None:
        """The way to the service is gone; its workers notice."""
        for connection in self._workers[:]:
            connection.lose()

    def _begin(self) -> None:
        self.up = True

    def publish(self, sender: Connection, topic: str, whole: bytes) -> None:
        """Carry a message: a Kit's to one of the workers, a worker's to the Kit that the topic names."""
        kit = topic.split("/")[2]
        if sender.name and sender.name != kit:
            return  # the ACL
        if not sender.name:
            receiver = self._kits.get(kit)
            if receiver is not None:
                self._carry(receiver, topic, whole)
            return
        self._world.checks.published(kit, topic, whole)
        if topic.endswith("/status"):
            self.retained[topic] = whole
            for worker in self._workers:
                self._carry(worker, topic, whole)
        elif self._workers:
            self._carry(self._random.choice(self._workers), topic, whole)

    def _carry(self, receiver: Connection, topic: str, whole: bytes) -> None:
        strikes = self._world.faults.strikes
        if receiver.broken or strikes("message lost", 0.01):
            return
        self._send(receiver, topic, whole, self._random.uniform(0.01, 0.3))
        if strikes("message doubled", 0.01):
            self._send(receiver, topic, whole, self._random.uniform(0.01, 30.0))

    def _send(self, receiver: Connection, topic: str, whole: bytes, delay_s: float) -> None:
        if self._world.faults.strikes("message late", 0.01):
            delay_s += self._random.choice((5.0, 10.5, 11.5, 13.0, 15.0, 40.0, 300.0))
        at_s = self.now_s + delay_s
        key = receiver.name
        if at_s < self._last_s.get(key, 0.0):
            self._world.faults.happened("message overtaken")
        self._last_s[key] = max(at_s, self._last_s.get(key, 0.0))
        self._world.loop.after(delay_s, None, self._arrive, receiver, topic, whole)

    def _arrive(self, receiver: Connection, topic: str, whole: bytes) -> None:
        """Hand over. An answer that is late goes to the Kit's newest connection."""
        if receiver.name:
            receiver = self._kits.get(receiver.name, receiver)
        if not receiver.broken:
            self._world.loop.after(0.0, receiver.process, receiver.receive, topic, whole)
