"""The Station's API over real TLS: only technicians, only what is whole, one sentence for everything else."""

import json
import sqlite3
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from kit_journal import BIRTH_MS, SPOT, KitJournal, spot

from sync_service import config, identity, station_api, technicians
from sync_service.command import main
from sync_service.life import Step, take
from sync_service.station_api import PREFIX, Rate, StationService
from sync_service.store import Store, connect

CHECK = {"name": "led", "passed": True, "detail": "seen"}
RECEIPT = {"kit": "HW-0001-Z", "residue_bytes": 0}


class Bench:
    """What a technician's program has."""

    def __init__(self, base: str, token: str, ca: Path, folder: Path) -> None:
        self.base, self.token, self.ca, self.folder = base, token, ca, folder
        self.address = ""

    async def ask(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, **more: Any
    ) -> tuple[int, Any]:
        """Status and JSON."""
        context = ssl.create_default_context(cafile=str(self.ca))
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        if body is not None:
            more["json"] = body
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), headers=headers) as session,
            session.request(method, self.base + path, **more) as answer,
        ):
            return answer.status, await answer.json()

    def db(self) -> sqlite3.Connection:
        return connect(self.folder / "store.sqlite")


@pytest.fixture
async def bench(folder: Path) -> AsyncIterator[Bench]:
    async with serving(folder) as started:
        yield started


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Bench]:
    assert main(["--dir", str(folder), "station", "--kit-host", "broker.example"]) == 0
    settings = config.load(folder)
    assert settings.station is not None
    with closing(connect(settings.store)) as db:
        token = technicians.add(db, "ann", BIRTH_MS)
    async with Store.open(settings.store) as store:
        runner = web.AppRunner(StationService(store, settings, settings.station).application())
        await runner.setup()
        context = station_api.tls_context(settings.station)
        await web.TCPSite(runner, "127.0.0.1", settings.station.port, ssl_context=context).start()
        base = f"https://127.0.0.1:{settings.station.port}{PREFIX}/"
        try:
            yield Bench(base, token, folder / "ca/ca.pem", folder)
        finally:
            await runner.cleanup()


def request_for(name: str, key: Any = None) -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder(subject).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


async def provisioned(bench: Bench) -> str:
    assert await bench.ask("POST", "kits", {"series": "HW", "count": 1}) == (201, {"kits": ["HW-0001-Z"]})
    status, _ = await bench.ask("POST", "kits/HW-0001-Z/provision", {"request": request_for("HW-0001-Z")})
    assert status == 200
    return "HW-0001-Z"


# --- Who may ask --------------------------------------------------------------------------------------------


async def test_the_service_says_who_one_is_and_what_time_it_is(bench: Bench) -> None:
    status, said = await bench.ask("GET", "status")
    assert (status, said["technician"], said["version"]) == (200, "ann", 1)
    assert said["now_ms"] > BIRTH_MS


async def test_without_a_good_token_nothing_is_told(bench: Bench) -> None:
    for token in ("wrong", "", bench.token + "x"):
        status, said = await bench.ask("GET", "kits/HW-0001", token=token)
        assert (status, list(said)) == (401, ["problem"])
    status, _ = await bench.ask("GET", "status", headers={"Authorization": f"Basic {bench.token}"})
    assert status == 401


async def test_a_revoked_token_is_refused_from_the_next_request_on(bench: Bench) -> None:
    assert (await bench.ask("GET", "status"))[0] == 200
    assert main(["--dir", str(bench.folder), "technician", "revoke", "ann"]) == 0
    assert (await bench.ask("GET", "status"))[0] == 401


async def test_whoever_tries_tokens_has_to_wait_and_the_good_one_with_him(bench: Bench) -> None:
    statuses = [(await bench.ask("GET", "status", token="guess"))[0] for _ in range(12)]
    assert statuses == [401] * station_api.REFUSALS_PER_MINUTE + [429] * 2
    assert (await bench.ask("GET", "status"))[0] == 429


async def test_a_technician_who_asks_too_much_has_to_wait(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(station_api, "BURST", 20)
    monkeypatch.setattr(station_api, "PER_MINUTE", 60)
    async with serving(folder) as bench:
        statuses = [(await bench.ask("GET", "status"))[0] for _ in range(station_api.BURST + 10)]
    assert statuses[: station_api.BURST] == [200] * station_api.BURST
    assert 429 in statuses


def test_a_rate_fills_again_and_forgets_the_oldest() -> None:
    now = [0.0]
    rate = Rate(2, 60, clock=lambda: now[0])
    assert [rate.take("a") for _ in range(3)] == [True, True, False]
    now[0] = 1.0
    assert [rate.take("a"), rate.take("a"), rate.take("b")] == [True, False, True]
    for n in range(station_api.REMEMBERED):
        rate.take(str(n))
    assert len(rate._buckets) == station_api.REMEMBERED


async def test_the_token_stands_nowhere_in_the_store(bench: Bench) -> None:
    for path in bench.folder.glob("store.sqlite*"):
        assert bench.token.encode() not in path.read_bytes()


async def test_a_service_of_another_project_is_not_believed(bench: Bench, tmp_path: Path) -> None:
    identity.init(tmp_path / "other")
    bench.ca = tmp_path / "other/ca/ca.pem"
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await bench.ask("GET", "status")


async def test_a_service_by_another_name_is_not_believed(bench: Bench) -> None:
    bench.base = bench.base.replace("127.0.0.1", "localhost")
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await bench.ask("GET", "status")


# --- Kits ---------------------------------------------------------------------------------------------------


async def test_the_certificate_is_for_the_benchs_own_key_and_the_one_before_it_is_revoked(
    bench: Bench,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    await bench.ask("POST", "kits", {"series": "HW", "count": 1})
    status, first = await bench.ask(
        "POST", "kits/HW-0001-Z/provision", {"request": request_for("HW-0001-Z", key)}
    )
    assert (status, first["host"], first["life"]) == (200, "broker.example", "provisioned")
    certificate = x509.load_pem_x509_certificate(first["certificate"].encode())
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(first["ca"].encode()))
    await bench.ask("POST", "kits/HW-0001-Z/provision", {"request": request_for("HW-0001-Z")})
    revoked = x509.load_pem_x509_crl((bench.folder / "broker/revoked.pem").read_bytes())
    assert [one.serial_number for one in revoked] == [certificate.serial_number]
    assert not [
        path for path in bench.folder.rglob("*") if "HW-0001-Z" in path.name and path.suffix == ".key"
    ]


@pytest.mark.parametrize(
    ("request_pem", "sentence"),
    [
        ("no request", "can't be read"),
        (request_for("HW-0002-X"), "is not for Kit HW-0001-Z"),
        (request_for("HW-0001-Z", rsa.generate_private_key(65537, 2048)), "a Kit's key is P-256"),
        (request_for("HW-0001-Z", ec.generate_private_key(ec.SECP384R1())), "a Kit's key is P-256"),
    ],
)
async def test_a_request_for_anything_else_is_refused_and_changes_nothing(
    bench: Bench, request_pem: str, sentence: str
) -> None:
    await bench.ask("POST", "kits", {"series": "HW", "count": 1})
    status, said = await bench.ask("POST", "kits/HW-0001-Z/provision", {"request": request_pem})
    assert status == 409 and sentence in said["problem"]
    assert (await bench.ask("GET", "kits/HW-0001-Z"))[1]["life"] == "made"


async def test_a_self_test_counts_only_when_its_reading_is_in_the_store(bench: Bench) -> None:
    kit = await provisioned(bench)
    await bench.ask("POST", f"kits/{kit}/steps", {"step": "flash"})
    claim = {"checks": [CHECK], "journal": b"journal1".hex(), "sequence": 1}
    status, said = await bench.ask("POST", f"kits/{kit}/self-tests", claim)
    assert status == 409 and "has not come here" in said["problem"]
    with closing(bench.db()) as db:
        journal = KitJournal(kit)
        journal.create(db)
        journal.frame(0, SPOT, spot())
        journal.store(db)
    assert await bench.ask("POST", f"kits/{kit}/self-tests", claim) == (200, {"life": "tested"})
    failed = {"checks": [CHECK, CHECK | {"passed": False}]}
    assert await bench.ask("POST", f"kits/{kit}/self-tests", failed) == (200, {"life": "flashed"})


async def test_a_kit_leaves_comes_back_and_is_wiped_with_its_receipt(bench: Bench) -> None:
    kit = await provisioned(bench)
    await bench.ask("POST", f"kits/{kit}/steps", {"step": "flash"})
    with closing(bench.db()) as db:
        take(db, Step(kit, "pass", "ann", BIRTH_MS))
        db.execute(
            "insert into self_test (kit, at_ms, who, passed, content) values (?, ?, 'ann', 1, '[]')",
            (kit, 2**44),
        )  # in the future of this test
    assert (await bench.ask("POST", f"kits/{kit}/label", {}))[0] == 200
    sensor = {"sensor": "C0:FF:EE:00:00:01", "mark": "bonded"}
    assert (await bench.ask("POST", f"kits/{kit}/sensors", sensor))[0] == 200
    for step, now in (("ready", "ready"), ("ship", "shipped"), ("receive", "returned")):
        assert await bench.ask("POST", f"kits/{kit}/steps", {"step": step}) == (200, {"life": now})
    assert await bench.ask("POST", f"kits/{kit}/wipe", {"receipt": RECEIPT}) == (
        201,
        {"life": "wiped", "number": 1},
    )
    _, told = await bench.ask("GET", f"kits/{kit}")
    assert (told["life"], told["state"]) == ("wiped", "revoked")
    with closing(bench.db()) as db:
        assert json.loads(db.execute("select receipt from wipe").fetchone()[0]) == RECEIPT
    _, said = await bench.ask("GET", f"kits/{kit}/history")
    assert [row["action"] for row in said["history"]][-1] == "kit wipe"
    assert {row["who"] for row in said["history"]} == {"bench/ann", "ann"}  # the latter by the test itself
    assert len(x509.load_pem_x509_crl((bench.folder / "broker/revoked.pem").read_bytes())) == 1


async def test_a_lost_kit_stores_nothing_and_can_send_its_records_when_it_is_found(bench: Bench) -> None:
    kit = await provisioned(bench)
    assert await bench.ask("POST", f"kits/{kit}/steps", {"step": "lose"}) == (200, {"life": "lost"})
    assert (await bench.ask("GET", f"kits/{kit}"))[1]["state"] == "revoked"
    assert len(x509.load_pem_x509_crl((bench.folder / "broker/revoked.pem").read_bytes())) == 0
    assert await bench.ask("POST", f"kits/{kit}/steps", {"step": "receive"}) == (200, {"life": "returned"})
    assert (await bench.ask("GET", f"kits/{kit}"))[1]["state"] == "active"
    assert await bench.ask("POST", f"kits/{kit}/steps", {"step": "revoke"}) == (200, {"life": "revoked"})
    assert len(x509.load_pem_x509_crl((bench.folder / "broker/revoked.pem").read_bytes())) == 1


async def test_unsent_records_forbid_the_wipe_until_they_are_given_up_with_a_reason(bench: Bench) -> None:
    kit = await provisioned(bench)
    status = {"online": True, "journal": b"journal1".hex(), "acked": 2, "pending": 3}
    with closing(bench.db()) as db:
        db.execute("update kit set status = ?, status_ms = 1 where kit = ?", (json.dumps(status), kit))
    code, said = await bench.ask("POST", f"kits/{kit}/wipe", {"receipt": RECEIPT})
    assert code == 409 and "still has 5 unsent Records" in said["problem"]
    given_up = {"receipt": RECEIPT, "given_up": "flash is broken"}
    assert (await bench.ask("POST", f"kits/{kit}/wipe", given_up))[0] == 201
    _, said = await bench.ask("GET", f"kits/{kit}/history")
    assert "unsent given up: flash is broken" in said["history"][-1]["detail"]


async def test_the_bench_sees_of_a_kit_with_a_patient_only_that_it_is(bench: Bench) -> None:
    kit = await provisioned(bench)
    given = ("assign", kit, "--patient", "Patient/7", "--episode", "E-1")
    assert main(["--dir", str(bench.folder), *given]) == 0
    for path in (f"kits/{kit}", f"kits/{kit}/history"):
        _, said = await bench.ask("GET", path)
        assert "Patient" not in json.dumps(said) and "E-1" not in json.dumps(said)
    assert (await bench.ask("GET", f"kits/{kit}"))[1]["assigned"] is True
    code, said = await bench.ask("POST", f"kits/{kit}/wipe", {"receipt": RECEIPT})
    assert code == 409 and "still with" in said["problem"] and "E-1" not in said["problem"]


@pytest.mark.parametrize("receipt", [{}, RECEIPT | {"kit": "HW-0002-X"}, RECEIPT | {"residue_bytes": 1}])
async def test_a_receipt_of_another_kit_or_with_residue_is_none(
    bench: Bench, receipt: dict[str, Any]
) -> None:
    kit = await provisioned(bench)
    assert (await bench.ask("POST", f"kits/{kit}/wipe", {"receipt": receipt}))[0] == 400
    assert (await bench.ask("GET", f"kits/{kit}"))[1]["life"] == "provisioned"


# --- Hostile bodies -----------------------------------------------------------------------------------------

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("path", "raw", "status"),
    [
        ("kits", b"", 400),
        ("kits", b"{", 400),
        ("kits", b"[]", 400),
        ("kits", b"\xff\xfe", 400),
        ("kits", b'{"series": "HW"}', 400),
        ("kits", b'{"series": "HW", "count": "2"}', 400),
        ("kits", b'{"series": "HW", "count": true}', 400),
        ("kits", b'{"series": "HW", "count": NaN}', 400),
        ("kits", b'{"series": "HW", "count": 1, "admin": true}', 400),
        ("kits", b'{"series": "hw\'; drop table kit", "count": 1}', 400),
        ("kits", b'{"series": "HW", "count": 101}', 409),
        ("kits", b'{"series": "HW", "count": -1}', 409),
        ("kits", b"[" * 50_000, 400),
        ("kits", b'{"series": "' + b"A" * 70_000 + b'"}', 413),
        ("kits/HW-0001/steps", b'{"step": "pass"}', 400),
        ("kits/HW-0001/steps", b'{"step": "wipe"}', 400),
        ("kits/HW-0001/steps", b'{"step": "flash", "note": "a\\nb"}', 400),
        ("kits/HW-0009/steps", b'{"step": "flash"}', 404),
        ("kits/hw%2F..%2F/steps", b'{"step": "flash"}', 400),
        ("kits/HW-0001/self-tests", b'{"checks": []}', 400),
        ("kits/HW-0001/self-tests", b'{"checks": [1]}', 400),
        ("kits/HW-0001/self-tests", b'{"checks": [{"name": "a", "passed": 1, "detail": ""}]}', 400),
        ("kits/HW-0001/self-tests", b'{"checks": [{"name": "a", "passed": true, "detail": ""}]}', 400),
        ("kits/HW-0001/sensors", b'{"sensor": "C0", "mark": "bonded"}', 400),
        ("kits/HW-0001/sensors", b'{"sensor": "C0:FF:EE:00:00:01", "mark": "lost"}', 409),
        ("kits/HW-0001/wipe", b'{"receipt": ' + b'{"a":' * 40 + b"1" + b"}" * 40 + b"}", 400),
        ("nowhere", b"{}", 404),
    ],
)
async def test_a_hostile_body_is_one_sentence_and_changes_nothing(
    bench: Bench, path: str, raw: bytes, status: int
) -> None:
    with closing(bench.db()) as db:
        before = db.execute("select count(*), max(id) from audit").fetchone()
    got, said = await bench.ask(
        "POST", path, data=raw, headers=JSON | {"Authorization": f"Bearer {bench.token}"}
    )
    assert (got, list(said)) == (status, ["problem"])
    assert "\n" not in said["problem"] and "Traceback" not in said["problem"]
    with closing(bench.db()) as db:
        assert db.execute("select count(*), max(id) from audit").fetchone() == before


async def test_a_deep_receipt_of_the_right_kit_is_refused(bench: Bench) -> None:
    kit = await provisioned(bench)
    deep: Any = 1
    for _ in range(20):
        deep = [deep]
    code, said = await bench.ask("POST", f"kits/{kit}/wipe", {"receipt": RECEIPT | {"more": deep}})
    assert code == 400 and "nested too deeply" in said["problem"]


async def test_a_form_is_no_json(bench: Bench) -> None:
    status, said = await bench.ask("POST", "kits", data={"series": "HW"})
    assert status == 415 and "application/json" in said["problem"]


# --- The operator's side ------------------------------------------------------------------------------------


def test_the_api_is_off_until_the_operator_lets_the_bench_in(folder: Path) -> None:
    assert config.load(folder).station is None
    assert main(["--dir", str(folder), "station", "--name", "bench.example", "--listen", "127.0.0.1"]) == 0
    station = config.load(folder).station
    assert station is not None and station.host == "127.0.0.1"
    certificate = x509.load_pem_x509_certificate(station.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["bench.example"]
    assert station.key.stat().st_mode & 0o077 == 0
    assert main(["--dir", str(folder), "station"]) == 1


def test_a_token_is_shown_once_and_a_name_has_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dir", str(folder), "technician", "add", "ann"]) == 0
    token = capsys.readouterr().out.splitlines()[-1]
    with closing(connect(folder / "store.sqlite")) as db:
        assert technicians.whose(db, token) == "ann"
        assert token not in str(db.execute("select * from audit").fetchall())
    assert main(["--dir", str(folder), "technician", "add", "ann"]) == 1
    assert "revoke it first" in capsys.readouterr().err
    assert main(["--dir", str(folder), "technician", "list", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == ["ann"]
    assert main(["--dir", str(folder), "technician", "add", "../x"]) == 1


def test_the_history_of_a_kit_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["--dir", str(folder), "kit", "history", "HW-0001", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["action"], row["detail"]) == ("kit add", "HW-0001") and row["who"] and row["at_ms"]
    assert main(["--dir", str(folder), "kit", "history", "HW-0009"]) == 1
