"""The set-up page on the virtual board, as a phone in its Wi-Fi meets it, and in a real browser."""

import asyncio
import json
import re
import socket
import struct
from pathlib import Path

import aiohttp
import pytest
from kit import Home, home
from on_micropython import HEAPS
from test_pulled_plug import WORDS

from gateway.record import NET_ONLINE, NETWORK, PORTAL, PORTAL_CLOSED, PORTAL_LEARNED, PORTAL_OPENED
from hw.virtual.board_host import Board
from tests.chromium import browsing

KEY = "four-words-on-a-label"
ADDRESS = "192.168.4.1"
BUTTON = 0
HOLD_S = 9.0
SHORT_MS = 3_000
_SHORT = f"import firmware.portal\nfirmware.portal.Portal.open_ms = {SHORT_MS}\n"
_SHOWN = "document.readyState == 'complete' && innerWidth > 0 && !!document.querySelector('%s')"
_COLLECTED = "document.documentElement"


class Phone:
    """A browser in the Kit's Wi-Fi."""

    def __init__(self, here: Home) -> None:
        self._ports = here.board.network.ports

    async def ask(
        self, path: str = "/", *, host: str = ADDRESS, form: dict[str, str] | None = None, **headers: str
    ) -> tuple[int, str, str]:
        """Status, Location, text."""
        url = f"http://127.0.0.1:{self._ports[80]}{path}"
        async with aiohttp.ClientSession(headers={"Host": host, **headers}) as session:
            method = "GET" if form is None else "POST"
            async with session.request(method, url, data=form, allow_redirects=False) as answer:
                return answer.status, answer.headers.get("Location", ""), await answer.text()

    async def token(self) -> str:
        found = re.search(r'name="token" value="(\w+)"', (await self.ask())[2])
        assert found is not None
        return found[1]

    async def give(self, name: str, password: str) -> str:
        """Send the form; return what the page says when the try is over."""
        form = {"token": await self.token(), "name": "", "other": name, "password": password}
        assert (await self.ask("/join", form=form))[:2] == (303, "/")
        async with asyncio.timeout(30):
            while "Trying" in (text := (await self.ask())[2]):  # noqa: ASYNC110 - as a browser does
                await asyncio.sleep(0.1)
        return text

    def resolve(self, name: str) -> str:
        """The address that the Kit's DNS names."""
        labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
        question = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(5)
            asking.sendto(question, ("127.0.0.1", self._ports[53]))
            return socket.inet_ntoa(asking.recv(512)[-4:])


def prepared(board: Board) -> None:
    """A Kit that knows a network which is not here, and whose label has a key."""
    known = json.dumps([["the router that was left at home", "correct horse"]]).encode()
    board.provision("homeward", {"wifi": known, "portal_key": KEY.encode()})
    board.wifi(True, ssid="Grandma & Grandpa's <Wi-Fi>", password="new horse")


async def hold_button(here: Home) -> None:
    here.board.set_pin(BUTTON, 0)
    await asyncio.sleep(HOLD_S)  # what a person does takes its time
    here.board.set_pin(BUTTON, 1)


async def opened(here: Home) -> Phone:
    """Hold the button until the page is there; it must not have been there before."""
    await here.board.says("network 0 absent")
    assert here.board.network.point is None
    await hold_button(here)
    await here.until(lambda: {53, 80} <= set(here.board.network.ports))
    return Phone(here)


def happened(here: Home) -> list[int]:
    return [event.detail[0] for event in here.service.events(PORTAL)]


@pytest.mark.parametrize("bits", WORDS)
async def test_patient_gives_a_network_and_a_wrong_password_is_said(bits: int, tmp_path: Path) -> None:
    async with home(tmp_path, bits, HEAPS[bits], prepare=prepared) as here:
        phone = await opened(here)
        point = here.board.network.point
        assert point is not None
        assert (point.ssid, point.key, point.security) == ("Homeward HW-0001", KEY, 3)
        assert await asyncio.to_thread(phone.resolve, "captive.apple.com") == ADDRESS
        page = (await phone.ask())[2]
        assert "Grandma &amp; Grandpa&#39;s &lt;Wi-Fi&gt;" in page and "<Wi-Fi>" not in page
        name = "Grandma & Grandpa's <Wi-Fi>"
        assert "is wrong" in await phone.give(name, "old horse")
        assert json.loads(here.board.nvs("homeward")["wifi"]) == [  # type: ignore[arg-type]
            ["the router that was left at home", "correct horse"]
        ]
        assert "Connected" in await phone.give(name, "new horse")
        await here.until(lambda: happened(here) == [PORTAL_OPENED, PORTAL_LEARNED])
        assert here.board.network.point is None
        assert json.loads(here.board.nvs("homeward")["wifi"])[1] == [name, "new horse"]  # type: ignore[arg-type]
        assert (1, NET_ONLINE) in [(e.detail[0], e.detail[1]) for e in here.service.events(NETWORK)]
        await here.board.kill()
        await here.board.start()
        await here.until(lambda: here.board.network.is_open)  # after a power cut it knows the way


async def test_what_comes_from_elsewhere_does_nothing(tmp_path: Path) -> None:
    async with home(tmp_path, 64, None, prepare=prepared) as here:
        phone = await opened(here)
        form = {"token": await phone.token(), "other": "evil", "password": "evil horse"}
        assert (await phone.ask("/generate_204", host="connectivitycheck.gstatic.com"))[:2] == (
            302,
            f"http://{ADDRESS}/",
        )
        assert (await phone.ask("/join", form=form, host="evil.example"))[0] == 302
        assert (await phone.ask("/join", form=form, Origin="http://evil.example"))[0] == 403
        assert (await phone.ask("/join", form=form | {"token": "0" * 16}))[0] == 403
        assert (await phone.ask("/../etc", form=None))[0] == 404
        assert (await phone.ask("/join", form={"x": "y" * 600}))[0] == 400
        for name, password, said in (("", "", "Please choose"), ("x", "short", "8 to 63")):
            assert said in await phone.give(name, password)
        assert "was not found" in await phone.give("nowhere", "")
        assert json.loads(here.board.nvs("homeward")["wifi"])[0][0].startswith("the router")  # type: ignore[arg-type]


async def test_page_closes_by_itself_and_never_opens_without_a_key(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    (tmp_path / "before/boot.py").write_text(_SHORT)
    async with home(tmp_path, 64, None, before=[tmp_path / "before"], prepare=prepared) as here:
        await opened(here)
        await here.until(lambda: here.board.network.point is None)
        await here.board.says("set-up page: closed")
        await here.board.kill()
        here.board.provision("homeward", {"portal_key": b"short"})
        await here.board.start()
        await here.until(lambda: "network 0 absent" in list(here.board.log)[-3:])
        await hold_button(here)
        await here.board.says("portal_key")
        assert here.board.network.point is None
        here.board.wifi(True, ssid="the router that was left at home")
        await here.until(lambda: PORTAL_CLOSED in happened(here))


@pytest.mark.parametrize("width", [320, 820])
async def test_page_is_read_and_filled_in_by_a_browser(width: int, tmp_path: Path) -> None:
    async with home(tmp_path, 64, None, prepare=prepared) as here:
        await opened(here)
        port = here.board.network.ports[80]
        rules = f"--host-resolver-rules=MAP {ADDRESS}:80 127.0.0.1:{port}"
        async with browsing(tmp_path / "chromium", rules) as page:
            await page.resize(width)
            await page.open(f"http://{ADDRESS}/", "!!document.querySelector('button')")
            (tmp_path / f"form-{width}.png").write_bytes(await page.screenshot())
            assert await page.evaluate(f"{_COLLECTED}.scrollWidth") <= width
            small = (
                "[...document.querySelectorAll('*')].filter(e => e.innerText && "
                "parseFloat(getComputedStyle(e).fontSize) < 16 && e.tagName != 'SMALL').length"
            )
            assert await page.evaluate(small) == 0
            assert await page.evaluate(
                "[...document.querySelectorAll('input:not([type=hidden]), select')]"
                ".every(e => e.labels.length == 1)"
            )
            await page.evaluate(
                "document.querySelector('select').selectedIndex = 1;"
                "document.querySelector('#password').value = 'old horse';"
                "document.querySelector('button').click()"
            )
            await page.until(_SHOWN % ".no")
            (tmp_path / f"wrong-{width}.png").write_bytes(await page.screenshot())
            await page.evaluate(
                "document.querySelector('#password').value = 'new horse';"
                "document.querySelector('button').click()"
            )
            await page.until(_SHOWN % ".yes")
            (tmp_path / f"done-{width}.png").write_bytes(await page.screenshot())
            assert await page.evaluate(f"{_COLLECTED}.scrollWidth") <= width
