"""A real headless Chromium of a test's own, driven over the DevTools protocol."""

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from hw.virtual.programs import chromium

START_S = 30.0
"""A cold start from the disk takes 5 s on two busy cores."""
FLAGS = (
    "--headless",
    "--no-sandbox",  # needs root or user namespaces, and all that is shown is our own page
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


class Page:
    """The browser's one tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol; return its result."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while (answer := await self._socket.receive_json()).get("id") != number:
            pass  # an event
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, awaited when it is a Promise."""
        done = await self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until the expression is true in the page. Raises TimeoutError."""
        async with asyncio.timeout(START_S):
            while not await self.evaluate(expression):  # noqa: ASYNC110 - no promise outlives a navigation
                await asyncio.sleep(0.02)

    async def open(self, url: str, ready: str) -> None:
        """Go there, and wait until the expression is true."""
        await self.send("Page.navigate", url=url)
        await self.until(ready)

    async def dress(self, scheme: str) -> None:
        """Prefer `light` or `dark`."""
        preferred = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.send("Emulation.setEmulatedMedia", features=preferred)

    async def resize(self, width: int, height: int = 900) -> None:
        """Show the page as a screen of this size, in CSS pixels."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    async def screenshot(self) -> bytes:
        """The whole page as PNG."""
        shot = await self.send("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])


@asynccontextmanager
async def browsing(folder: Path, *flags: str) -> AsyncIterator[Page]:
    """A browser that keeps its files in `folder` and is closed at the end. Raises ProgramMissing."""
    command = [*chromium(), *FLAGS, *flags, f"--user-data-dir={folder}", "about:blank"]
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdin=quiet, stdout=quiet, stderr=quiet)
    try:
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{await _port(folder)}") as http,
            http.ws_connect(await _tab(http), max_msg_size=0) as socket,
        ):
            page = Page(socket)
            yield page
            await page.send("Browser.close")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _port(folder: Path) -> int:
    """The port that the browser has chosen: it writes it down when it listens."""
    said = folder / "DevToolsActivePort"
    async with asyncio.timeout(START_S):
        while not (lines := _lines(said))[1:]:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.02)
    return int(lines[0])


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def _tab(http: aiohttp.ClientSession) -> str:
    async with http.get("/json/list") as answer:
        tabs = await answer.json()
    return str(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"))
