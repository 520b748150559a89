"""The console: everything that a Reading can be is shown as what it is, to people, and no patient with it."""

import asyncio
import json
import os
import re
import sqlite3
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from kit_journal import BIRTH_MS, BP, CUFF, DAY, HOUR, MINUTE, OXIMETER, SPOT, KitJournal, spot

from gateway import record
from hw.virtual.programs import ProgramMissing
from sync_service import console
from sync_service.assignments import assign, end
from sync_service.context import BOND_CHANGED
from sync_service.derive import Deriver
from sync_service.store import Store, connect, count
from tests.chromium import Page, browsing

NOW = BIRTH_MS + 10 * HOUR
FAILED_BP = bytes.fromhex("16FF07FF07FF07E80706170E230AFF070000")
HOSTILE = "<img src=x onerror=\"document.title='taken'\">"
LONG_SERIAL = b"SN" + b"0123456789ABCDEF" * 4
PATIENT = re.compile(r"Patient/\w")
REFUSED = "422 invariant Patient/...: a quantity needs a unit " + HOSTILE
CLIP = 3


WIDTHS = (320, 390, 820, 1400)
# Elements that reach beyond the screen, or whose content reaches beyond them.
CUT_OFF = """[...document.querySelectorAll("body *")]
    .filter((e) => e.getBoundingClientRect().right > innerWidth
        || (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline"))
    .map((e) => e.className)"""
# Texts whose contrast with what is behind them is below 4.5 (WCAG 2.2, 1.4.3).
FAINT = """(() => {
    const rgba = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = (color) => rgba(color).slice(0, 3).map((c) => c / 255)
        .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (e) => {
        const color = getComputedStyle(e).backgroundColor;
        return rgba(color)[3] === 0 ? behind(e.parentElement) : color;
    };
    return [...document.querySelectorAll("body *")].filter((e) => {
        const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
        return e.innerText?.trim() && (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
    }).map((e) => e.className + ": " + e.innerText);
})()"""


# --- What the page is told ----------------------------------------------------------------------------------


@pytest.fixture
def shown(tmp_path: Path) -> dict[str, Any]:
    """`console.state` of the filled Store, as it arrives."""
    db = connect(tmp_path / "store.sqlite")
    fill(db)
    state: dict[str, Any] = json.loads(json.dumps(console.state(db, NOW)))
    db.close()
    return state


def test_every_reading_is_shown_with_its_state_its_time_quality_and_its_trust(shown: dict[str, Any]) -> None:
    columns = ("state", "quality", "trust", "possible_repeat")
    readings = [
        (" ".join(value[1] for value in one["values"]), *(one[name] for name in columns))
        for one in shown["kits"][0]["readings"]
    ]
    assert readings == [  # the newest first
        ("128/82 97 71", "queued", "bracketed", "good", False),
        ("95 80", "done", "bracketed", "good", True),
        ("95 80", "done", "bracketed", "good", False),
        ("141/90 107 64", "parked", "bracketed", "good", False),
        ("", "done", "bracketed", "never", False),
        ("", "done", "synced", "never", False),
        ("91 104", "done", "synced", "questionable", False),
        ("97 71", "done", "synced", "good", False),
        ("118/76 90 71", "repeat", "sensor_corrected", "good", False),
        ("118/76 90 71", "done", "sensor_corrected", "good", False),
    ]


def test_values_have_names_and_units_and_times_a_bound(shown: dict[str, Any]) -> None:
    newest = shown["kits"][0]["readings"][0]
    assert newest["values"] == [["BP", "128/82", "mmHg"], ["mean", "97", "mmHg"], ["pulse", "71", "/min"]]
    assert shown["kits"][0]["readings"][-3]["values"] == [["SpO\u2082", "97", "%"], ["pulse", "71", "/min"]]
    for kit in shown["kits"]:
        for one in kit["readings"]:
            assert BIRTH_MS - MINUTE <= one["earliest_ms"] < one["latest_ms"] <= NOW


def test_a_value_for_demonstration_shows_its_word_and_no_number(shown: dict[str, Any]) -> None:
    demonstration = [one for one in shown["kits"][0]["readings"] if "data for demonstration" in one["words"]]
    assert [one["values"] for one in demonstration] == [[]]


def test_what_is_refused_or_held_is_listed_with_the_reason(shown: dict[str, Any]) -> None:
    assert [(one["kit"], one["state"], one["why"]) for one in shown["attention"]] == [
        ("HW-0001", "parked", REFUSED),
        ("HW-0002", "held", BOND_CHANGED),
        ("HW-0002", "held", "no Assignment of the Kit holds the whole time in which it was taken"),
    ]


def test_a_refused_retraction_is_shown_as_that_and_a_self_test_not_at_all(
    tmp_path: Path,
) -> None:
    db = connect(tmp_path / "store.sqlite")
    kit = _kit(db, 1, said(True), BIRTH_MS - HOUR)
    kit.frame(OXIMETER, SPOT, spot(97, 71))
    kit.frame(0, SPOT, spot(98, 72))
    kit.store(db)
    Deriver().chunk(db, now_ms=NOW)
    end(db, kit.kit, BIRTH_MS + 1_000)
    db.execute("update outbox set state = 'parked', answer = ?", (REFUSED,))
    shown = console.state(db, NOW)
    assert [(one["state"], one["why"]) for one in shown["attention"]] == [("parked", REFUSED)]
    assert (shown["totals"]["held"], shown["totals"]["parked"]) == (1, 1)
    db.close()


def test_totals_count_all_readings(shown: dict[str, Any]) -> None:
    counted = {"waiting": 1, "parked": 1, "held": 2, "delivered": 8, "conflicts": 0, "quarantined": 0}
    assert shown["totals"] == counted | {"undated": 0}


def test_what_nothing_tells_the_time_of_is_counted(tmp_path: Path) -> None:
    db = connect(tmp_path / "store.sqlite")
    kit = KitJournal()
    kit.create(db)
    kit.sensor(OXIMETER)
    kit.frame(OXIMETER, SPOT, spot(97, 71))
    kit.store(db)
    Deriver().chunk(db, now_ms=NOW)
    assert console.state(db, NOW)["totals"]["undated"] == 1
    db.close()


def test_kits_are_shown_as_they_are(shown: dict[str, Any]) -> None:
    columns = ("kit", "state", "online", "host_confirmed", "pending", "episode")
    assert [tuple(kit[name] for name in columns) for kit in shown["kits"]] == [
        ("HW-0001", "active", True, True, 3, f"E-1 {HOSTILE}"),
        ("HW-0002", "active", False, False, None, None),
        ("HW-0003", "revoked", False, False, None, f"E-3 {HOSTILE}"),
        ("HW-0004", "active", None, False, None, None),
    ]
    assert (shown["kits"][3]["readings"], shown["kits"][3]["seen_ms"]) == ([], None)


@pytest.mark.parametrize("pending", ["9" * 30, '"<b>"', "[" * 500 + "]" * 500, "null"])
def test_a_kit_that_says_nonsense_of_itself_hides_no_other(tmp_path: Path, pending: str) -> None:
    db = connect(tmp_path / "store.sqlite")
    fill(db)
    db.execute("update kit set status = ?", (f'{{"online": true, "pending": {pending}}}',))
    kits = console.state(db, NOW)["kits"]
    db.close()
    assert [(kit["online"], kit["pending"]) for kit in kits] == [(True, None)] * 4


@pytest.mark.parametrize(
    ("identity", "name"),
    [
        ("serial:A%26D/UA-651/518071", "A&D UA-651 518071"),
        ("serial://50123", "50123"),
        ("address:C0:FF:EE:00:00:01", "address C0:FF:EE:00:00:01"),
        ("system-id:01-02", "system-id 01-02"),
        ("unknown:HW-0001/6a6f/7", "unknown Sensor 7"),
    ],
)
def test_a_sensor_is_named_as_it_is_labelled(identity: str, name: str) -> None:
    assert console.sensor_name(identity) == name


# --- Over HTTP ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(store: Store, port: int) -> AsyncIterator[str]:
    """The console's address."""
    running = asyncio.create_task(console.run(store, host="127.0.0.1", port=port))
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store.open(tmp_path / "store.sqlite") as opened:
        await opened.write(fill)
        yield opened


@pytest.fixture
async def address(store: Store, unused_tcp_port: int) -> AsyncIterator[str]:
    async with served(store, unused_tcp_port) as url:
        yield url


async def answers(url: str, path: str, method: str = "GET") -> tuple[aiohttp.ClientResponse, str]:
    """The console's answer, from its first moment on."""
    async with aiohttp.ClientSession() as http, asyncio.timeout(10):
        while True:
            with suppress(aiohttp.ClientConnectionError):
                async with http.request(method, url + path) as answer:
                    return answer, await answer.text()
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("path", ["", "console.css", "console.js", "state.json", "nothing", "../sync.toml"])
async def test_every_answer_forbids_foreign_content_and_caches(address: str, path: str) -> None:
    answer, _ = await answers(address, path)
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) == {"'self'", "data:"} and policy["script-src"] == "'self'"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"


async def test_nothing_that_is_served_names_a_patient(address: str) -> None:
    for path in ("", "console.css", "console.js", "state.json"):
        answer, said = await answers(address, path)
        assert answer.status == 200
        assert not PATIENT.search(said)
        assert not answer.url.query_string


async def test_an_unknown_path_is_404_and_nothing_can_be_changed(address: str) -> None:
    assert (await answers(address, "patients"))[0].status == 404
    assert (await answers(address, "state.json", "POST"))[0].status == 405


async def test_a_store_that_cannot_be_read_is_said_and_not_a_fault(store: Store, address: str) -> None:
    await store.close()
    assert (await answers(address, "state.json"))[0].status == 503


# --- In a browser -------------------------------------------------------------------------------------------


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    """A real Chromium. Where there is none the test is skipped, but not in continuous integration."""
    try:
        async with browsing(tmp_path / "chromium") as opened:
            yield opened
    except ProgramMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))


async def test_the_page_is_readable_at_every_width_by_day_and_by_night(page: Page, address: str) -> None:
    await page.open(address, "document.querySelectorAll('.kit').length === 4")
    assert await page.evaluate("document.querySelector('h1').offsetWidth > 50")  # the browser has fonts
    for scheme in ("light", "dark"):
        await page.dress(scheme)
        assert await page.evaluate(FAINT) == []
        for width in WIDTHS:
            await page.resize(width)
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert await page.evaluate(CUT_OFF) == []


async def test_the_page_says_what_the_store_holds_and_text_is_only_text(page: Page, address: str) -> None:
    await page.resize(390)
    await page.open(address, "document.querySelectorAll('.kit').length === 4")
    said = re.sub(r"\s+", " ", await page.evaluate("document.body.innerText"))
    for words in (
        "BP 128/82 mmHg mean 97 mmHg pulse 71 /min \u2192 on its way",
        "no valid measurement \u2713 delivered",
        "pulse 104 /min \u2713 delivered ? questionable",
        "\u21bb repeat, not sent again",
        "? possible repeat",
        "time uncertain",
        "clock checked",
        "Sensor\u2019s clock, corrected",
        f"The Hub said: {REFUSED}",
        f"Why: {BOND_CHANGED}",
        f"Episode E-1 {HOSTILE}",
        "3 Records waited on the Kit at ",
        "bench Gateway, not for patients",
        LONG_SERIAL.decode(),
        "HW-0002 \u25cb off line with no patient",
        "HW-0003 \u2715 revoked",
        "HW-0004 \u2013 not heard yet with no patient \u00b7 nothing received yet No Reading yet.",
    ):
        assert words in said
    assert await page.evaluate("[document.title, document.images.length]") == ["Homeward", 0]
    assert not PATIENT.search(await page.evaluate("document.documentElement.outerHTML + location.href"))


async def test_the_page_updates_itself_leaves_the_rest_alone_and_says_when_it_cannot(
    page: Page, store: Store, unused_tcp_port: int
) -> None:
    async with served(store, unused_tcp_port) as url:
        await answers(url, "")
        await page.open(url, "document.querySelectorAll('.kit').length === 4")
        await page.evaluate("window.before = [...document.querySelectorAll('.kit')]")
        await store.write(lambda db: _answer(db, bp(128, 82, 97, 71), "done", "201"))
        await page.until("!document.body.innerText.includes('on its way')")
        assert await page.evaluate("before.map((card) => card.isConnected)") == [False, True, True, True]
        assert await page.evaluate("document.getElementById('alarm').textContent") == ""
    await page.until("document.getElementById('alarm').textContent.includes('does not answer')")


# --- A Store with everything in it --------------------------------------------------------------------------


def fill(db: sqlite3.Connection) -> None:
    """Four Kits with Readings in every state: derived from Records, then answered as the Hub would."""
    _kit_with_patient(db)
    _kit_without_patient(db)
    _revoked_kit(db)
    db.execute("insert into kit (kit, state, created_ms) values ('HW-0004', 'active', ?)", (BIRTH_MS,))
    deriver = Deriver()
    while deriver.chunk(db, now_ms=NOW).records:
        pass
    db.execute("update outbox set state = 'done', attempts = 1, answer = '201'")
    _answer(db, bp(141, 90, 107, 64), "parked", REFUSED)
    _answer(db, bp(128, 82, 97, 71), "queued", None)
    count(db, "", "delivered", 8)
    count(db, "HW-0001", f"refused {HOSTILE}", 2)


def _kit_with_patient(db: sqlite3.Connection) -> None:
    kit = _kit(db, 1, said(True, pending=3, host_confirmed=True), BIRTH_MS - HOUR)
    kit.clock(CUFF, record.CLOCK_BEFORE, (2026, 7, 10, 1, 1, 0))
    kit.uptime_ms += 2 * HOUR
    kit.anchor()
    kit.clock(CUFF, record.CLOCK_BEFORE, (2026, 7, 10, 3, 1, 0))
    kit.uptime_ms += 5_000
    kit.frame(CUFF, BP, bp(118, 76, 90, 71, at=(2026, 7, 10, 2, 0, 0)))
    kit.frame(CUFF, BP, bp(118, 76, 90, 71, at=(2026, 7, 10, 2, 0, 0)))
    kit.frame(OXIMETER, SPOT, spot(97, 71))
    kit.frame(OXIMETER, SPOT, struct.pack("<BHHH", 0x02, 91, 104, 0x4000))  # questionable
    kit.frame(OXIMETER, SPOT, struct.pack("<BHHH", 0x02, 99, 60, 0x0400))  # for demonstration
    kit.frame(CUFF, BP, FAILED_BP)
    kit.frame(CUFF, BP, bp(141, 90, 107, 64))
    kit.sensor(CLIP, (record.MODEL, HOSTILE.encode()), (record.SERIAL, LONG_SERIAL))
    kit.event(record.SENSOR_DRAINED, CLIP)
    kit.boot, kit.uptime_ms = 2, MINUTE  # it never had a network: its times are bracketed
    kit.frame(CLIP, SPOT, spot(95, 80))
    kit.frame(CLIP, SPOT, spot(95, 80))
    kit.boot, kit.uptime_ms = 3, 0
    kit.anchor(BIRTH_MS + 6 * HOUR)
    kit.uptime_ms += 2 * HOUR
    kit.frame(CUFF, BP, bp(128, 82, 97, 71))
    kit.store(db)


def _kit_without_patient(db: sqlite3.Connection) -> None:
    kit = _kit(db, 2, said(False), None)
    kit.frame(OXIMETER, SPOT, spot(88, 110))
    kit.event(record.BOND_CHANGED, CUFF)
    kit.frame(CUFF, BP, bp(120, 80, 93, 60))
    kit.store(db)


def _revoked_kit(db: sqlite3.Connection) -> None:
    kit = _kit(db, 3, said(False), BIRTH_MS - HOUR)
    kit.frame(OXIMETER, SPOT, spot(96, 66))
    kit.store(db)
    db.execute("update kit set state = 'revoked' where kit = ?", (kit.kit,))


def _kit(db: sqlite3.Connection, number: int, status: str, assigned_ms: int | None) -> KitJournal:
    kit = KitJournal(f"HW-000{number}", b"journal" + bytes([number]), number=number)
    kit.create(db)
    row = (status, NOW, NOW - 65_000, kit.kit)
    db.execute("update kit set status = ?, status_ms = ?, seen_ms = ? where kit = ?", row)
    if assigned_ms:
        episode, patient = f"E-{number} {HOSTILE}", f"Patient/471{number}"
        assign(db, kit.kit, episode, patient, assigned_ms, now_ms=NOW, max_bracket_ms=DAY)
    kit.begin()
    return kit


def _answer(db: sqlite3.Connection, value: bytes, state: str, answer: str | None) -> None:
    """What the Hub said to the Reading that has this value."""
    db.execute(
        """update outbox set state = ?, answer = ? where reading in (select reading from reading
            join record using (journal, sequence) where record.type = 1 and instr(record.body, ?))""",
        (state, answer, value),
    )


def bp(systolic: int, diastolic: int, mean: int, pulse: int, at: tuple[int, ...] | None = None) -> bytes:
    """A blood pressure in mmHg with a pulse rate, and with the cuff's time stamp if `at` is given."""
    stamp = struct.pack("<HBBBBB", *at) if at else b""
    flags = 0x06 if at else 0x04
    return struct.pack("<BHHH", flags, systolic, diastolic, mean) + stamp + struct.pack("<H", pulse)


def said(online: bool, **more: Any) -> str:
    """A Kit's status."""
    return json.dumps({"version": 1, "online": online, **more})
