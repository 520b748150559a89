"""The firmware in homes whose networks are not what they should be: said, survived, and nothing lost."""

import asyncio
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from kit import Home, home
from on_micropython import HEAPS
from test_pulled_plug import WORDS

from gateway.record import (
    BOOTED,
    NET_ABSENT,
    NET_CAPTIVE,
    NET_FOREIGN,
    NET_NO_ADDRESS,
    NET_NO_INTERNET,
    NET_ONLINE,
    NET_WRONG_PASSWORD,
    NETWORK,
)
from hw.virtual.board_host import Board
from sync_service import identity

_HOUSEKEEPING_S = 1.5
"""The value has made this boot known; within so long its trouble with the network is in the Journal too."""
SECOND = ["second", "another horse"]


def networks(*pairs: list[str]) -> dict[str, int | bytes]:
    return {"wifi": json.dumps(pairs).encode()}


def told(here: Home) -> list[tuple[int, int]]:
    """(place, state) of each NETWORK EVENT that has arrived, in order."""
    return [(event.detail[0], event.detail[1]) for event in here.service.events(NETWORK)]


def words(here: Home) -> list[str]:
    found = [status["networks"] for status in here.service.statuses if status["online"]]
    return list(found[-1]) if found else []


async def said(here: Home, text: str) -> None:
    """On the board's console: it tells no one else while it is off line."""
    await here.until(lambda: any(text in line for line in here.board.log))


async def a_reading_arrives(here: Home) -> None:
    before = len(here.service.frames())
    here.cuff.measure(123, 60, 80, 70)
    await here.until(lambda: len(here.service.frames()) > before)


@pytest.mark.parametrize("bits", WORDS)
async def test_wrong_password_is_said_and_the_next_network_serves(bits: int, tmp_path: Path) -> None:
    def prepare(board: Board) -> None:
        board.provision("homeward", networks(["home", "old password"], SECOND))
        board.wifi(True, others=dict([SECOND]))

    async with home(tmp_path, bits, HEAPS[bits], prepare=prepare) as here:
        await here.until(lambda: told(here) == [(0, NET_WRONG_PASSWORD), (1, NET_ONLINE)])
        await here.until(lambda: words(here) == ["wrong_password", "online"])
        await here.pair()
        await a_reading_arrives(here)
        # Somebody gives the router the password that the Kit has; the neighbour's is switched off.
        here.board.wifi(True, password="old password")
        await here.until(lambda: told(here)[-1] == (0, NET_ONLINE))
        await a_reading_arrives(here)
        assert here.board.boots == 1


async def test_captive_network_is_told_apart_and_left(tmp_path: Path) -> None:
    def prepare(board: Board) -> None:
        board.provision("homeward", networks(["home", "correct horse"], SECOND))
        board.wifi(True, captive=True, others=dict([SECOND]))

    async with home(tmp_path, 64, None, prepare=prepare) as here:
        await here.until(lambda: told(here) == [(0, NET_CAPTIVE), (1, NET_ONLINE)])
        here.board.wifi(True)  # somebody has agreed to its page; the other network is switched off
        await here.until(lambda: (0, NET_ONLINE) in told(here))


async def test_router_without_internet_and_one_without_an_address(tmp_path: Path) -> None:
    async with home(tmp_path, 64, None, prepare=lambda board: board.wifi(True, internet=False)) as here:
        await said(here, "network 0 no_internet")
        here.board.wifi(True)
        await here.until(lambda: told(here) == [(0, NET_NO_INTERNET), (0, NET_ONLINE)])
        here.board.wifi(False)
        await here.until(lambda: not here.board.network.is_open)
        here.board.wifi(True, address=False)
        await said(here, "network 0 no_address")
        here.board.wifi(True)
        await here.until(lambda: told(here)[-2:] == [(0, NET_NO_ADDRESS), (0, NET_ONLINE)])


async def test_network_that_is_gone_for_a_while_leaves_two_events(tmp_path: Path) -> None:
    async with home(tmp_path, 64, None) as here:
        await here.until(lambda: told(here) == [(0, NET_ONLINE)])
        here.board.wifi(False)
        await said(here, "network 0 absent")
        here.board.wifi(True)
        await here.until(lambda: told(here) == [(0, NET_ONLINE), (0, NET_ABSENT), (0, NET_ONLINE)])


@pytest.mark.parametrize("bits", WORDS)
async def test_foreign_authority_gets_nothing_and_nothing_is_lost(bits: int, tmp_path: Path) -> None:
    identity.init(tmp_path / "other")
    ours: list[int | bytes] = []

    def prepare(board: Board) -> None:
        ours.append(board.nvs("homeward")["ca"])
        board.provision("homeward", {"ca": der(tmp_path / "other/ca/ca.pem")})

    async with home(tmp_path, bits, HEAPS[bits], prepare=prepare) as here:
        await said(here, "network 0 foreign_certificate")
        here.cuff.pairing_mode()
        here.cuff.measure(123, 60, 80, 70)
        await here.until(lambda: not here.held())
        await asyncio.sleep(_HOUSEKEEPING_S)
        assert not here.service.records and not here.service.statuses
        await here.board.kill()
        here.board.provision("homeward", {"ca": ours[0]})
        await here.board.start()
        await here.until(lambda: here.service.frames())
        assert told(here)[0] == (0, NET_FOREIGN)
        await here.until(lambda: told(here)[-1] == (0, NET_ONLINE))
        assert here.service.values()[0][1] == 123
        assert here.service.clashes == 0 and len(here.service.events(BOOTED)) == 2


def der(path: Path) -> bytes:
    return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(serialization.Encoding.DER)
