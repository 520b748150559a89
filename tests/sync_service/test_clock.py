"""The service gives time to nobody while its own is in doubt, and again when it is not."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from hub_server import serve_hub

from sync_service import clock, store
from sync_service.clock import BOUND_MS, STEADY_MS, UNCONFIRMED, Clock, Look
from sync_service.hub import Hub

# aiohttp warns the development Hub of a key that is a plain string.
pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web.NotAppKeyWarning")

NOW_MS = 1_783_641_600_000


class Host:
    """A host whose clock is set now and then."""

    def __init__(self) -> None:
        self.true_ms, self.off_ms = NOW_MS, 0
        self.clock = Clock(
            wall_ms=lambda: self.true_ms + self.off_ms, steady_ms=lambda: self.true_ms - NOW_MS
        )

    def look(self, off_ms: int = 0, *, took_ms: int = 20) -> None:
        """The Hub, whose clock is off by so much, answers."""
        before_ms = self.clock.now_ms()
        shown_ms = (self.true_ms + took_ms // 2 + off_ms) // 1000 * 1000
        self.true_ms += took_ms
        self.clock.heard("the Hub", Look(before_ms, self.clock.now_ms(), shown_ms, 1000))


def test_no_time_before_somebody_has_confirmed_it() -> None:
    host = Host()
    assert host.clock.doubt == UNCONFIRMED
    host.look()
    assert host.clock.doubt is None


@pytest.mark.parametrize("off_ms", [0, 900, -900, BOUND_MS, -BOUND_MS])
def test_what_rounding_and_the_way_explain_is_no_doubt(off_ms: int) -> None:
    for phase in range(0, 1000, 50):
        host = Host()
        host.true_ms += phase
        host.look(off_ms)
        assert host.clock.doubt is None


@pytest.mark.parametrize("off_ms", [BOUND_MS + 1100, -BOUND_MS - 1100, 3_600_000, -86_400_000 * 365])
def test_a_witness_that_contradicts_is_a_doubt_until_it_agrees(off_ms: int) -> None:
    for phase in range(0, 1000, 50):
        host = Host()
        host.look()
        host.true_ms += phase
        host.look(off_ms)
        assert host.clock.doubt is not None and "the Hub's" in host.clock.doubt
        assert ("behind" if off_ms > 0 else "ahead of") in host.clock.doubt
        host.look()
        assert host.clock.doubt is None


def test_one_witness_that_agrees_does_not_silence_the_other() -> None:
    host = Host()
    host.look()
    host.look(3_600_000)
    host.clock.heard("the Store", Look(host.true_ms, host.true_ms, host.true_ms, 1), confirms=False)
    assert host.clock.doubt is not None and "the Hub's" in host.clock.doubt


def test_a_store_with_our_own_clock_confirms_nothing_and_another_one_contradicts() -> None:
    host = Host()
    host.clock.heard("the Store", Look(host.true_ms, host.true_ms, host.true_ms, 1), confirms=False)
    assert host.clock.doubt == UNCONFIRMED
    host.look()
    off_ms = host.true_ms - 60_000
    host.clock.heard("the Store", Look(host.true_ms, host.true_ms, off_ms, 1), confirms=False)
    assert host.clock.doubt is not None and "the Store's" in host.clock.doubt


def test_a_hub_that_tells_no_time_leaves_ours_as_it_is() -> None:
    host = Host()
    host.clock.silent("the Hub")
    assert host.clock.doubt is None


@pytest.mark.parametrize("by_ms", [BOUND_MS + 1, -BOUND_MS - 1])
def test_a_clock_that_is_set_is_doubted_at_once(by_ms: int) -> None:
    host = Host()
    host.look()
    host.true_ms += 30_000
    host.off_ms = by_ms
    assert host.clock.doubt is not None and "was set" in host.clock.doubt
    host.off_ms = 0
    assert host.clock.doubt is None


def test_an_answer_that_took_long_confirms_nothing() -> None:
    host = Host()
    host.look(took_ms=BOUND_MS + 1)
    assert host.clock.doubt == UNCONFIRMED


def test_a_day_without_a_witness_is_a_doubt() -> None:
    host = Host()
    host.look()
    host.true_ms += STEADY_MS
    assert host.clock.doubt is None
    host.true_ms += 1
    assert host.clock.doubt == "nobody has confirmed the service's clock for a day"


async def test_every_answer_of_the_hub_is_a_look_at_its_clock(tmp_path: Path) -> None:
    off = Clock(wall_ms=lambda: NOW_MS)
    async with serve_hub(tmp_path) as server:
        for own, doubt in ((Clock(), None), (off, "the Hub's")):
            async with Hub(server.url, clock=own) as hub:
                await hub.find(["no such key"])
                assert own.doubt is doubt if doubt is None else doubt in str(own.doubt)
                await hub.ask_time()
                assert own.doubt is doubt if doubt is None else doubt in str(own.doubt)


async def test_an_answer_out_of_a_cache_says_nothing_and_one_without_a_date_does_not_contradict() -> None:
    headers = {"Age": "7", "Date": "Thu, 01 Jan 2026 00:00:00 GMT"}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n{fields}\r\n".encode())
        writer.close()

    own = Clock()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, Hub(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", clock=own) as hub:
        await hub.ask_time()
        assert own.doubt == UNCONFIRMED
        headers.clear()
        await hub.ask_time()
        assert own.doubt is None


async def test_a_hub_that_is_not_there_confirms_nothing() -> None:
    own = Clock()
    async with Hub("http://127.0.0.1:9", clock=own) as hub:
        await hub.ask_time()
    assert own.doubt == UNCONFIRMED


def test_the_store_shows_its_clock() -> None:
    own = Clock()
    db = sqlite3.connect(":memory:")
    before_ms = own.now_ms()
    shown_ms = store.utc_ms(db)
    assert before_ms - 1 <= shown_ms <= own.now_ms() + 1
    db.close()
    assert clock.BOUND_MS > 1000, "a Date shows whole seconds"
