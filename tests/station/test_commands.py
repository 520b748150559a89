"""The bench's commands against a real service: plan before act, one sentence for what can't be done."""

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hw.station import bench, doctor, monitor
from hw.station.console import Console
from hw.station.kit_folder import KitFolder
from hw.station.service import Service
from sync_service import identity
from sync_service.kit_id import kit_id
from sync_service.life import Step, record_test
from sync_service.store import connect
from tests.station.workshop import Wire, Workshop, workshop

KIT = "HW-0001-Z"
NOW_MS = 1_000 * int(time.time())


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Workshop]:
    async with workshop(tmp_path) as started:
        yield started


def passed(here: Workshop, kit: str = KIT) -> None:
    """Flashed, and its self-test passed."""
    db = connect(here.sync / "store.sqlite")
    db.execute("update kit set life = 'flashed' where kit = ?", (kit,))
    record_test(db, Step(kit, "pass", "ann", NOW_MS), [])
    db.close()


async def test_provision_makes_the_key_here_and_shows_its_plan_first(here: Workshop) -> None:
    dry = await here.station("provision", "--next", "3", "--dry-run")
    assert dry.code == 0 and "the key never leaves it" in dry.out and here.lives() == {}
    said = await here.station("provision", "--next", "3", "--json")
    kits = said.json["provisioned"]
    assert [kit[:7] for kit in kits] == ["HW-0001", "HW-0002", "HW-0003"]
    assert set(here.lives().values()) == {"provisioned"}
    folder = KitFolder.load(here.bench / "kits" / KIT)
    assert folder.networks == (("home", "correct horse"),) and re.fullmatch(
        r"(\w{4}-){2}\w{4}", folder.portal_key
    )
    for path in here.sync.rglob("*"):  # nowhere at the service
        assert path.is_dir() or folder.key not in path.read_bytes()
    assert len({KitFolder.load(here.bench / "kits" / kit).portal_key for kit in kits}) == 3
    again = await here.station("provision", KIT)
    assert again.code == 0 and KitFolder.load(here.bench / "kits" / KIT).key != folder.key
    assert "kit provision" in here.operator("kit", "history", KIT)


async def test_what_can_not_be_done_is_one_sentence(here: Workshop) -> None:
    assert (await here.station("provision", "--next")).code == 0
    for arguments, sentence in (
        (("provision", "HW-0001-X"), "is mistyped"),
        (("provision", kit_id("HW", 7)), "is not known"),
        (("provision", "--next", "101"), "--next takes 1 to 100"),
        (("label", "HW-0001-X"), "is mistyped"),
        (("ship", KIT), f"Kit {KIT} is provisioned: flash it first"),
        (("ship", KIT, KIT), "named twice"),
        (("receive", KIT), f"Kit {KIT} is provisioned: flash it first"),
        (("selftest", KIT, "--port", "/dev/no-such-port"), "the port /dev/no-such-port can't be opened"),
        (("monitor", "HW-0002-X", "--seconds", "1"), "is not known"),
        (("wipe", KIT, "--send"), "there is no receipt"),
    ):
        said = await here.station(*arguments)
        assert said.code == 1, arguments
        last = said.err.splitlines()[-1]
        assert last.startswith("homeward-station: ") and sentence in last, arguments
        assert "Traceback" not in said.err and "correct horse" not in said.err


async def test_a_kit_leaves_with_label_and_test_and_comes_back(here: Workshop) -> None:
    assert (await here.station("provision", "--next")).code == 0
    passed(here)
    unlabelled = await here.station("ship", KIT, "--without-sensors", "none in stock")
    assert unlabelled.code == 1 and "has no label: run `homeward-station label`" in unlabelled.err
    labelled = await here.station("label", KIT, "--json")
    assert labelled.code == 0 and labelled.json["pdf"].endswith("label.pdf")
    bare = await here.station("ship", KIT)
    assert bare.code == 1 and "has no bonded Sensor" in bare.err
    shelf = await here.station("ship", KIT, "--ready", "--without-sensors", "none in stock")
    assert shelf.code == 0 and here.lives()[KIT] == "ready"
    assert (await here.station("ship", KIT)).code == 0 and here.lives()[KIT] == "shipped"
    here.operator("assign", KIT, "--patient", "Patient/7", "--episode", "E-1")
    back = await here.station("receive", KIT, "--json")
    assert back.json == {"kits": {KIT: "returned"}, "still_assigned": [KIT]}
    assert "E-1" not in back.out + back.err and "Patient" not in back.out + back.err
    history = json.loads(here.operator("kit", "history", KIT, "--json"))
    assert [row["action"] for row in history][-4:] == ["kit ready", "kit ship", "assign", "kit receive"]
    assert "none in stock" in history[-4]["detail"]


async def test_a_hundred_kits_are_made_and_labelled_in_one_go(here: Workshop, say: list[str]) -> None:
    began = time.monotonic()
    said = await here.station("provision", "--next", "100", "--json")
    assert said.code == 0, said.err
    kits = said.json["provisioned"]
    assert len(set(kits)) == 100 == len(here.lives())
    labelled = await here.station("label", *kits, "--json")
    assert labelled.code == 0, labelled.err
    sheet = (here.bench / "papers/labels.pdf").read_bytes()
    assert sheet.count(b"/Type /Page\n") == 100
    say.append(f"station: a hundred Kits provisioned and labelled in {time.monotonic() - began:.1f} s")


async def test_sensors_of_the_kits_folder_are_told_to_the_service(here: Workshop) -> None:
    assert (await here.station("provision", "--next")).code == 0
    place = here.bench / "kits" / KIT
    card = json.loads((place / "kit.json").read_text())
    card["sensors"] = [{"reference": 1, "address_type": 1, "address": "c0ffee000001"}]
    (place / "kit.json").write_text(json.dumps(card))
    passed(here)
    assert (await here.station("label", KIT)).code == 0
    assert (await here.station("ship", KIT)).code == 0
    assert here.rows("select sensor, mark from sensor_mark") == [("C0:FF:EE:00:00:01", "bonded")]


async def test_the_monitor_tells_what_changes_and_what_the_board_says(here: Workshop) -> None:
    assert (await here.station("provision", "--next")).code == 0
    wire = Wire()
    service = Service(bench.load(here.bench))

    def watch() -> list[dict[str, object]]:
        events = []
        with Console(wire.port) as console:
            for event in monitor.follow(service, KIT, console, time.monotonic() + 60):
                events.append(event)
                if len(events) == 1:
                    wire.say("hello from the board")
                elif len(events) == 2:
                    service.step(KIT, "flash")
                else:
                    break
        return events

    first, second, third = await asyncio.to_thread(watch)
    wire.close()
    assert first["service"]["life"] == "provisioned"  # type: ignore[index]
    assert second["board"] == "hello from the board"
    assert third["service"] == {"life": "flashed"}
    lines = await here.station("monitor", KIT, "--json", "--seconds", "0.1")
    assert json.loads(lines.out.splitlines()[0])["service"]["life"] == "flashed"


async def test_the_doctor_finds_a_good_bench_good_and_says_what_to_do_about_a_bad_one(
    here: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = await here.station("doctor", "--json")
    assert good.code == 0, good.err
    names = [finding["name"] for finding in good.json["findings"]]
    assert good.json["good"] and {"bench.toml", "service", "clock", "esptool", "board"} <= set(names)
    # Another project's CA, a port that is none, a clock of yesterday.
    identity.init(tmp_path / "other")
    (here.bench / "ca.pem").write_bytes((tmp_path / "other/ca/ca.pem").read_bytes())
    bad = await here.station("doctor", "--port", "/dev/no-such-port")
    assert bad.code == 1 and "amiss: /dev/no-such-port, service" in bad.err
    assert "is not our service" in bad.out and "is the board plugged in?" in bad.out
    (here.bench / "ca.pem").write_bytes((here.sync / "ca/ca.pem").read_bytes())
    monkeypatch.setattr(doctor.time, "time", lambda: NOW_MS / 1000 - 86_400)
    late = await here.station("doctor")
    assert late.code == 1 and "amiss: clock" in late.err and "set this computer's clock" in late.out
    (here.bench / "bench.toml").chmod(0o644)
    open_file = await here.station("doctor")
    assert open_file.code == 1 and "chmod 600" in open_file.out


async def test_a_service_that_is_away_is_said(here: Workshop) -> None:
    text = (here.bench / "bench.toml").read_text()
    port = identity.free_port("127.0.0.1")
    service = next(line for line in text.splitlines() if line.startswith("service"))
    (here.bench / "bench.toml").write_text(text.replace(service, f'service = "https://127.0.0.1:{port}"'))
    said = await here.station("provision", "--next")
    assert said.code == 1 and "can't be reached" in said.err and "is it on line?" in said.err


def test_a_console_ends_when_the_board_goes_and_never_before() -> None:
    wire = Wire()
    with Console(wire.port) as console:
        threading.Timer(0.1, wire.say, ["one"]).start()
        assert console.line(10.0) == "one"
        assert console.line(0.01) is None
    wire.close()
