"""A Kit: board, flash, boots, watchdog, and the rim around the real Gateway core.

The flash is NOR: programming only clears bits, and a power cut leaves a prefix, random bits of one word, or a
half-erased block. The writer lock defers the handler, as the board's does; where the main loop does not hold
it, the handler may come at any call of the flash or the lock.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any

from firmware.bonds import Bonds
from gateway.errors import JournalError, SensorError
from gateway.gateway import Gateway
from gateway.journal import Journal
from gateway.limits import MAX_BODY_BYTES
from gateway.message import ack_topic, status_topic, up_topic
from gateway.record import ACKED, OVERHEAD_BYTES
from gateway.sensor_session import DISCONNECT, SUBSCRIBE, WRITE
from gateway.sensor_session import READ as READ_STEP
from gateway.uplink import Uplink
from tests.simulation.broker import Connection
from tests.simulation.engine import Process
from tests.simulation.sensor import Kept, Measurement, Sensor

if TYPE_CHECKING:
    from tests.simulation.world import World

POWER_ON, WATCHDOG = 1, 3
SILENCE_S = 60.0
STATUS_EVERY_S = 6 * 3600.0
"""The firmware's five minutes would be most of what a run does."""
HOUSEKEEPING_S = 1800.0


class PowerCut(BaseException):
    """The power has failed in an operation of the flash."""


class NorFlash:
    """Raises AssertionError for a 1 over a 0: that is a mistake of the code under test."""

    def __init__(self, blocks: int, block_bytes: int, random: Random) -> None:
        self.block_bytes = block_bytes
        self.size = blocks * block_bytes
        self.cells = bytearray(b"\xff" * self.size)
        self.cut_in: int | None = None  # operations until the power fails
        self.cut_in_erase = False  # the next one
        self.on_cut: Callable[[str], None] = lambda kind: None
        self.troubles: Callable[[str, float], bool] = lambda kind, chance: False
        self.programmed: Callable[[bytes], None] = lambda new: None
        self.interrupt: Callable[[], None] | None = None  # the handler wants to run
        self.recent: deque[bytes] = deque(maxlen=8)  # what was programmed last
        self.last = (0, 0)  # offset and length of the last program
        self.given_up: set[int] = set()  # blocks that have refused an erase: what they hold is let go
        self._rotten: set[int] = set()  # blocks that may hold a 0 which nobody has programmed
        self._random = random

    def read(self, offset: int, buffer: "bytearray | memoryview") -> None:
        if self.interrupt is not None:
            self.interrupt()
        buffer[:] = self.cells[offset : offset + len(buffer)]

    def program(self, offset: int, buffer: "bytearray | memoryview") -> None:
        if self.interrupt is not None:
            self.interrupt()
        new, length = bytes(buffer), len(buffer)
        before = int.from_bytes(self.cells[offset : offset + length], "little")
        ones = int.from_bytes(new, "little")
        if ones & ~before:
            assert offset // self.block_bytes in self._rotten, "a 1 over a 0"
            new = (ones & before).to_bytes(length, "little")
        if self.cut_in is not None and self._cut():
            done = self._random.randrange(-1, length // 4 + 1) * 4  # -4: nothing
            if done >= 0:
                self.cells[offset : offset + done] = new[:done]
                for i in range(done, min(done + 4, length)):
                    self.cells[offset + i] &= new[i] | self._random.getrandbits(8)
            self._fail("power cut in a program")
        if self.troubles("flash refuses", 0.0002):
            raise OSError(5)
        if self.troubles("flash forgets", 0.0003):
            new = (before & (ones | 1 << self._random.randrange(8 * length))).to_bytes(length, "little")
        self.cells[offset : offset + length] = new
        self.recent.append(new)
        self.last = (offset, length)
        self.programmed(bytes(buffer))

    def erase(self, position: int) -> None:
        if self.interrupt is not None:
            self.interrupt()
        start = position * self.block_bytes
        self._rotten.discard(position)
        if (self.cut_in is not None and self._cut()) or self.cut_in_erase:
            self.cut_in_erase = False
            done = self._random.randrange(self.block_bytes + 1)
            self.cells[start : start + done] = b"\xff" * done
            for i in range(start + done, min(start + done + 16, start + self.block_bytes)):
                self.cells[i] |= self._random.getrandbits(8)
            self._fail("power cut in an erase")
        if self.troubles("flash refuses", 0.01):
            self.given_up.add(position)
            raise OSError(5)
        self.given_up.discard(position)
        self.cells[start : start + self.block_bytes] = b"\xff" * self.block_bytes

    def rot(self, offset: int) -> None:
        """One bit goes from 1 to 0, or back."""
        self.cells[offset] ^= 1 << self._random.randrange(8)
        self._rotten.add(offset // self.block_bytes)

    def _cut(self) -> bool:
        assert self.cut_in is not None
        self.cut_in -= 1
        return self.cut_in < 0

    def _fail(self, kind: str) -> None:
        self.cut_in = None
        self.on_cut(kind)
        raise PowerCut


class Lock:
    """The writer lock. While the main loop holds it no handler runs; one that waits comes at its release."""

    def __init__(self, flash: NorFlash) -> None:
        self.held = False
        self._flash = flash

    def acquire(self) -> None:
        if self._flash.interrupt is not None:
            self._flash.interrupt()
        assert not self.held, "the lock is taken twice"
        self.held = True

    def release(self) -> None:
        self.held = False
        if self._flash.interrupt is not None:
            self._flash.interrupt()


class Kit:
    """One Kit over all its boots. `place` says whether there is a network."""

    def __init__(self, world: "World", name: str, random: Random, *, blocks: int, block_bytes: int) -> None:
        self.world, self.name, self.random = world, name, random
        self.flash = NorFlash(blocks, block_bytes, random)
        self.bonds_flash = NorFlash(8, 1024, random)
        for flash in (self.flash, self.bonds_flash):
            flash.on_cut = self._cut_in_flash
        self.flash.troubles = world.faults.strikes
        self.flash.programmed = self._programmed
        self._written: dict[tuple[bytes, int], bytes] = {}
        self.sensors: list[Sensor] = []
        self.process: Process | None = None
        self.online = True  # of its place
        self.sntp_wrong_ms = 0
        self.kept: dict[tuple[bytes, int], Kept] = {}
        self.anchored: dict[tuple[bytes, int], tuple[int, bool]] = {}  # true ms of ANCHORs; whether to check
        self.journals: list[bytes] = []
        self.visits: list[Visit] = []
        self.cuts = 0
        self._rate = 1 + random.uniform(-90, 90) / 1e6
        self._began_ms = 0
        self._off_s = 0.0
        self.gateway: Gateway
        self.journal: Journal
        self.uplink: Uplink
        self.news: asyncio.Event
        self.link: Connection | None = None
        self._wipe = True

    # --- Power ----------------------------------------------------------------------------------------------

    def boot(self, cause: int = POWER_ON) -> None:
        """Begin a boot. The first one, and the one after a wipe was asked for, format the Journal."""
        if self.process is not None:
            return
        self.process = Process(self.name, self._ended)
        self._began_ms = self.world.now_ms
        self.news = asyncio.Event()
        lock = Lock(self.flash)
        try:
            bonds = Bonds(self.bonds_flash)
            self.journal = Journal(self.flash, lock)
            if self._wipe:
                self.journal.format(self.random.randbytes(8))
                bonds.clear()
                self._wipe = False
                self.journals.append(self.journal.journal_id)
            self.journal.mount()
            self.uplink = Uplink(self.journal, lambda: self.random.randbytes(8))
            self.gateway = Gateway(
                self.name, "1", journal=self.journal, uplink=self.uplink, bonds=bonds, frame_flags=0
            )
            self.lock = lock
            self.gateway.start(self.uptime_ms, cause=cause)
        except PowerCut:
            return
        except (JournalError, OSError):  # the flash has refused: the firmware begins again
            self.world.faults.happened("watchdog")
            self.off(60.0, "watchdog", WATCHDOG)
            return
        self.world.loop.spawn(self.process, self._run_link(), f"{self.name} link")
        self.world.loop.spawn(self.process, self._keep_house(), f"{self.name} house")
        self.world.loop.spawn(self.process, self._ask_time(), f"{self.name} time")

    def off(self, for_s: float, kind: str = "power cut", cause: int = POWER_ON) -> None:
        """The power fails, or the watchdog bites; it comes back after a while."""
        if self.process is not None:
            self.cuts += kind != "watchdog"
            self._off_s = for_s
            self.process.kill()
            self.world.loop.after(for_s, None, self.boot, cause)

    def _cut_in_flash(self, kind: str) -> None:
        self.world.faults.happened(kind)
        self.off(self.random.choice((2.0, 30.0, 900.0, 7200.0)), kind)

    def _programmed(self, new: bytes) -> None:
        """A whole Record stands in flash: its sequence is used, whatever becomes of it."""
        length, type, _, sequence = struct.unpack_from("<HBBI", new)
        if length <= MAX_BODY_BYTES and type != ACKED:
            whole = new[: OVERHEAD_BYTES + length]
            if self._written.setdefault((self.journal.journal_id, sequence), whole) != whole:
                self.world.checks.reused(self.name, sequence)

    def _ended(self) -> None:
        self.process = None
        self.flash.interrupt = None
        self.calm()
        if self.link is not None:
            self.link.lose()
            self.link = None
        for visit in self.visits[:]:
            visit.end()

    def calm(self) -> None:
        """No power cut is to come."""
        for flash in (self.flash, self.bonds_flash):
            flash.cut_in, flash.cut_in_erase = None, False

    def wipe(self) -> None:
        """At the bench: forget everything, at the next boot. Only what is empty is wiped."""
        assert self.process is not None and self.journal.pending == 0
        self._wipe = True
        self.off(5.0, "watchdog")

    @property
    def uptime_ms(self) -> int:
        """Of this boot, by this board's crystal."""
        return int((self.world.now_ms - self._began_ms) * self._rate)

    @property
    def pending(self) -> int:
        return self.journal.pending if self.process is not None else 1

    # --- The link to the broker -----------------------------------------------------------------------------

    async def _run_link(self) -> None:
        world = self.world
        while True:
            await asyncio.sleep(self.random.uniform(0.2, 20.0))
            if not self.online or not world.broker.up:
                await asyncio.sleep(self.random.uniform(30.0, 400.0))
                continue
            self.link = world.broker.connect(self.name, self.process, self._received)
            self.gateway.connected(self.uptime_ms)
            told_s = -STATUS_EVERY_S
            while self.link.up:
                if self.link.silent_s > SILENCE_S or self.uplink.is_stuck(self.uptime_ms):
                    self.link.lose()
                    break
                batch = self.uplink.next_batch(self.uptime_ms)
                if batch is not None:
                    self.link.publish(up_topic(self.name), bytes(batch))
                elif world.loop.time() - told_s >= STATUS_EVERY_S:
                    told_s = world.loop.time()
                    self.link.publish(status_topic(self.name), self.gateway.status(self.uptime_ms))
                await self._wait()
            self.uplink.disconnected(self.uptime_ms)
            self.link = None

    async def _wait(self) -> None:
        """Until something is due. Records that come together go together."""
        self.news.clear()
        due_s = (self.uplink.due_ms(self.uptime_ms) - self.uptime_ms) / 1000
        if self.link is not None and self.link.broken:
            due_s = min(due_s, SILENCE_S)
        if due_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(due_s):
                    await self.news.wait()
                await asyncio.sleep(self.random.choice((0.0, 1.0, 8.0)))

    def _received(self, topic: str, whole: bytes) -> None:
        assert topic == ack_topic(self.name)
        sequence = self.journal.next_sequence
        with suppress(PowerCut):
            self.gateway.receive_ack(whole, self.uptime_ms)
            self.news.set()
        for each in range(sequence, self.journal.next_sequence):  # an ANCHOR may be among them
            is_right = self.world.now_ms > self.world.wrong_until_ms
            self.anchored[self.journal.journal_id, each] = (self.world.now_ms, is_right)

    async def _keep_house(self) -> None:
        while True:
            while self.gateway.maintain():
                await asyncio.sleep(0.05)
            self.news.set()
            await asyncio.sleep(self.random.uniform(10.0, HOUSEKEEPING_S))

    async def _ask_time(self) -> None:
        """Of an SNTP server, whenever the Gateway wants to know; at home it may be any router's."""
        while True:
            await asyncio.sleep(self.random.uniform(300.0, 900.0))
            if not self.online or not self.gateway.wants_sntp(self.uptime_ms):
                continue
            self.gateway.sntp.asked(self.uptime_ms)
            nonce, sent_ms = self.random.randbytes(8), self.uptime_ms
            late = self.world.faults.strikes("SNTP late", 0.1)
            await asyncio.sleep(self.random.uniform(0.01, 6.0 if late else 0.8))
            packet = self.world.sntp_answer(nonce, self.sntp_wrong_ms)
            await asyncio.sleep(self.random.uniform(0.01, 0.8))
            self.gateway.receive_sntp(
                packet, nonce, sent_ms=sent_ms, now_ms=self.uptime_ms, floor_ms=self.world.epoch_ms
            )
            self.news.set()

    # --- The radio ------------------------------------------------------------------------------------------

    def call(self, sensor: Sensor) -> None:
        """A Sensor advertises: connect to it, if we are there and not with it already."""
        if self.process is not None and sensor.visit is None and sensor in self.sensors:
            self.world.loop.spawn(self.process, self._visit(sensor), f"{self.name} visit")

    async def _visit(self, sensor: Sensor) -> None:
        await asyncio.sleep(self.random.uniform(0.3, 2.0))
        if sensor.visit is not None:
            return
        with suppress(SensorError):
            reference = self.gateway.reference_of(sensor.address)
            if not (reference and sensor.has_bond):
                if not self.gateway.pairing(self.uptime_ms):
                    return
                reference = self.gateway.bond(1, sensor.address, self.uptime_ms)
                sensor.has_bond = True
            await Visit(self, sensor, reference).run()

    def open_pairing(self) -> None:
        if self.process is not None:
            self.gateway.open_pairing(self.uptime_ms, 600_000)


class Visit:
    """One connection to one Sensor: the rim's side, in the boot's process, and what the Sensor sees of it."""

    def __init__(self, kit: Kit, sensor: Sensor, reference: int) -> None:
        self.kit, self.sensor, self.reference = kit, sensor, reference
        self.up = True
        self.subscriptions: set[int] = set()
        self.news = asyncio.Event()
        self.last_s = kit.world.loop.time()
        self._indicated: deque[tuple[int, bytes]] = deque()
        self._flags = 0
        self._process = kit.process
        sensor.visit = self
        kit.visits.append(self)

    def end(self) -> None:
        """The link is gone."""
        if self.up:
            self.up = False
            self.kit.visits.remove(self)
            self.sensor.left()
            self.news.set()

    async def run(self) -> None:
        kit, sensor = self.kit, self.sensor
        session = kit.gateway.session(
            self.reference,
            name=sensor.kind,
            services=sensor.services,
            table=sensor.table,
            now_ms=kit.uptime_ms,
        )
        while self.up:
            while self._indicated:
                session.value_received(*self._indicated.popleft(), kit.uptime_ms)
            step = session.next_step(kit.uptime_ms)
            if step is None:
                await self._idle((session.due_ms(kit.uptime_ms) - kit.uptime_ms) / 1000)
            elif step[0] == DISCONNECT:
                break
            else:
                self._flags = session.frame_flags(0x01)
                await self._do(session, *step)
                kit.news.set()
        self.end()
        session.closed(kit.uptime_ms)
        kit.news.set()

    async def _idle(self, due_s: float) -> None:
        """Until something comes. The Sensor leaves after a quiet time."""
        self.news.clear()
        left_s = self.last_s + self.sensor.linger_s - self.kit.world.loop.time()
        if left_s <= 0:
            self.end()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.01, min(due_s, left_s))):
                await self.news.wait()

    async def _do(self, session: Any, what: str, uuid: int, argument: Any) -> None:
        """One GATT operation, and what can go wrong with it."""
        kit, sensor, strikes = self.kit, self.sensor, self.kit.world.faults.strikes
        await asyncio.sleep(kit.random.uniform(0.03, 0.2))
        if self.up and strikes("link dropped", 0.004):
            self.end()
        if not self.up:
            return
        if strikes("no answer", 0.002):
            await asyncio.sleep(10.0)
            session.step_failed("no answer", kit.uptime_ms)
            self.end()
            return
        if what != SUBSCRIBE and strikes("operation refused", 0.003):
            session.step_failed("refused", kit.uptime_ms, refused=True)
            return
        answer = None
        if what == READ_STEP:
            answer = sensor.read(uuid)
            await asyncio.sleep(kit.random.uniform(0.03, 0.4))
        elif what == WRITE:
            sensor.write(uuid, argument)
        else:
            self.subscriptions.add(uuid)
            sensor.subscribed(uuid)
        if self.up:
            session.step_done(answer, kit.uptime_ms)

    # --- What the Sensor calls ------------------------------------------------------------------------------

    async def indicate(self, uuid: int, value: bytes, measurement: Measurement | None) -> bool:
        """Indicate a value; return whether it was confirmed. The handler runs before the confirmation."""
        kit, strikes = self.kit, self.kit.world.faults.strikes
        await asyncio.sleep(kit.random.uniform(0.03, 0.15))
        if not self.up:
            return False
        if measurement is None:
            self._indicated.append((uuid, value))
            self.news.set()
            return True
        before = len(measurement.frames)
        if strikes("handler preempts", 0.06):
            await self._preempt(uuid, value, measurement)
        if self.up and len(measurement.frames) == before:
            self._handle(uuid, value, measurement, self._flags)
        if not self.up or len(measurement.frames) == before:
            return False
        self.last_s = kit.world.loop.time()
        kept = measurement.frames[-1]
        await asyncio.sleep(kit.random.uniform(0.0, 0.05))
        if self.up and strikes("confirmation lost", 0.03):
            self.end()
        if not self.up:
            return False
        kept.confirmed = measurement.confirmed = True  # and the Sensor forgets
        kit.world.checks.confirmed(kept)
        return True

    def notify(self, uuid: int, value: bytes, measurement: Measurement) -> bool:
        """Stream a value, which nobody confirms; return whether it was kept: most are thinned."""
        uptime_ms = self.kit.uptime_ms
        halves = uptime_ms >> 24, uptime_ms & 0xFFFFFF
        if self.kit.gateway.thins(self.reference, uuid, value, *halves):
            return False
        self._handle(uuid, value, measurement, 0x02)
        return bool(measurement.frames)

    def _handle(self, uuid: int, value: bytes, measurement: Measurement, flags: int) -> None:
        """The handler, of indications and notifications alike. All run in one task: none preempts another."""
        kit = self.kit
        waits, kit.flash.interrupt = kit.flash.interrupt, None
        try:
            self._keep_value(uuid, value, measurement, flags)
        finally:
            if kit.process is not None:
                kit.flash.interrupt = waits

    def _keep_value(self, uuid: int, value: bytes, measurement: Measurement, flags: int) -> None:
        kit = self.kit
        uptime_ms = kit.uptime_ms
        kit.flash.recent.clear()
        try:
            sequence = kit.gateway.received(
                self.reference, uuid, value, flags, uptime_ms >> 24, uptime_ms & 0xFFFFFF
            )
        except PowerCut:  # the last word may have been whole
            self._keep(kit.journal.next_sequence, measurement, value)
            return
        except JournalError:
            self.end()
            return
        kept = self._keep(sequence, measurement, value)
        kept.in_flash = any(value in programmed for programmed in kit.flash.recent)
        measurement.frames.append(kept)
        self._indicated.append((uuid, b""))
        self.news.set()
        kit.news.set()

    def _keep(self, sequence: int, measurement: Measurement, value: bytes) -> Kept:
        kept = Kept(self.kit.name, self.kit.journal.journal_id, sequence, measurement, value)
        self.kit.kept[kept.journal, sequence] = kept
        return kept

    async def _preempt(self, uuid: int, value: bytes, measurement: Measurement) -> None:
        """Come at some call of the main loop to its flash or lock; give up after a while."""
        kit = self.kit
        came = asyncio.Event()
        calls = kit.random.randrange(12)

        def interrupt() -> None:
            nonlocal calls
            calls -= 1
            if calls < 0 and not kit.lock.held and kit.process is not None:
                kit.flash.interrupt = None
                if self.up:
                    self._handle(uuid, value, measurement, self._flags)
                came.set()
                if kit.process is None:  # the power has failed in the handler: the main loop is gone too
                    raise PowerCut

        if kit.flash.interrupt is None:
            kit.flash.interrupt = interrupt
            with suppress(TimeoutError):
                async with asyncio.timeout(1.5):
                    await came.wait()
            if kit.flash.interrupt is interrupt:
                kit.flash.interrupt = None
