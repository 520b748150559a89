"""Everything the demo runs, each part a process of its own: broker, service, Hub, and a home for each Kit."""

import asyncio
import contextlib
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from hw.demo.checker import Verdict, compare, observations
from hw.demo.part import Part, PartFailed, ended, free_port, listening, python
from hw.virtual.ledger import Ledger, Measurement
from hw.virtual.programs import die_with_parent, mosquitto

FHIR = "application/fhir+json"
NHS_NUMBER = "https://fhir.nhs.uk/Id/nhs-number"
PATIENCE_S = 60.0
"""The Hub comes back within seconds after a kill."""
SETTLE_S = 1.5
"""Between the last Reading and the hand-over: wider than the bound of any time in the demo."""


class World:
    """One run. `folder` holds every file of it; `async with` starts and stops all parts."""

    def __init__(self, folder: Path, kits: list[str], gateway: str) -> None:
        self.folder = folder
        self.kits = kits
        self.patients: dict[str, str] = {}  # Episode -> "Patient/<id>" at the Hub
        broker_port, console_port, hub_port = free_port(), free_port(), free_port()
        self.hub_url = f"http://127.0.0.1:{hub_port}"
        self.console_url = f"http://127.0.0.1:{console_port}/"
        self._sync = folder / "sync"
        self._ports = broker_port, console_port
        self.broker = Part(
            "broker",
            [*mosquitto(), "-c", str(self._sync / "broker" / "mosquitto.conf")],
            log=folder / "broker.log",
            ready=lambda: listening(broker_port),
        )
        self.hub = Part(
            "hub",
            python("hw.virtual.hub", "--port", str(hub_port), "--store", str(folder / "hub.sqlite")),
            log=folder / "hub.log",
            ready=lambda: listening(hub_port),
        )
        self.service = Part(
            "service",
            python("sync_service.command", "--dir", str(self._sync), "serve"),
            log=folder / "service.log",
            ready=lambda: listening(console_port),
        )
        self.homes = {
            kit: Home(kit, folder / kit, self._sync / "kits" / kit, broker_port, gateway) for kit in kits
        }
        self._http: aiohttp.ClientSession

    @property
    def parts(self) -> dict[str, Part]:
        """The processes of the service's side."""
        return {"broker": self.broker, "service": self.service, "hub": self.hub}

    def part(self, name: str, chance: random.Random) -> "Part | Plug":
        """What --kill names; "gateway" is that of one of the homes."""
        return self.parts[name] if name in self.parts else Plug(self.homes[chance.choice(self.kits)])

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20))
        try:
            broker_port, console_port = self._ports
            options = f"--port {broker_port} --console-port {console_port} --hub {self.hub_url}"
            await self.sync("init", str(self._sync), *options.split())
            for kit in self.kits:
                await self.sync("kit", "add", kit)
            await asyncio.gather(self.broker.start(), self.hub.start())
            await self.service.start()
            await asyncio.gather(*(home.start() for home in self.homes.values()))
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End every part, the homes first, so that each part ends with nothing to wait for."""
        await asyncio.gather(*(home.stop() for home in self.homes.values()))
        for part in (self.service, self.broker, self.hub):
            await part.stop()
        await self._http.close()

    async def sync(self, *arguments: str) -> None:
        """Run `homeward-sync` as an operator would. Raises PartFailed with what it said."""
        where = () if arguments[0] == "init" else ("--dir", str(self._sync))
        process = await asyncio.create_subprocess_exec(
            *python("sync_service.command", *where, *arguments),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=die_with_parent,
        )
        try:
            _, said = await process.communicate()
        finally:
            await ended(process)
        if process.returncode:
            raise PartFailed(f"homeward-sync {' '.join(arguments)}: {said.decode().strip()}")

    async def admit(self, kit: str, episode: str, number: int) -> None:
        """A new patient at the Hub, to whom the Kit is assigned from now on."""
        patient = {
            "resourceType": "Patient",
            "identifier": [{"system": NHS_NUMBER, "value": f"999000{number:04}"}],
            "name": [{"family": f"Demo{number}", "given": ["Only"]}],
        }
        self.patients[episode] = await self._create(patient)
        await self.sync("assign", kit, "--patient", self.patients[episode], "--episode", episode)

    async def _create(self, patient: dict[str, Any]) -> str:
        """Create a Patient once; the Hub may be down just now."""
        identifier = patient["identifier"][0]
        headers = {
            "Content-Type": FHIR,
            "If-None-Exist": f"identifier={identifier['system']}|{identifier['value']}",
        }
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with self._http.post(
                        f"{self.hub_url}/Patient", json=patient, headers=headers
                    ) as answer:
                        answer.raise_for_status()
                        return f"Patient/{(await answer.json(content_type=None))['id']}"
                await asyncio.sleep(0.2)

    async def hand_back(self, kit: str) -> None:
        """The Kit's Assignment is ended, and it is wiped for the next patient."""
        await asyncio.sleep(SETTLE_S)
        await self.sync("return", kit)
        await self.homes[kit].ask("wipe")

    def measurements(self) -> list[Measurement]:
        """What all Sensors have measured so far."""
        return [m for home in self.homes.values() for m in home.measurements()]

    async def check(self) -> Verdict:
        """Compare the ledgers with the Hub. Raises aiohttp.ClientError while the Hub is down."""
        seen = await observations(self._http, self.hub_url, tuple(self.patients.values()))
        return compare(self.measurements(), self.patients, seen)


class Home:
    """A home's process, and questions to it."""

    def __init__(self, kit: str, folder: Path, identity: Path, broker_port: int, gateway: str) -> None:
        self.kit = kit
        self._folder = folder
        folder.mkdir(parents=True)
        config = folder / "gateway.toml"
        config.write_text(
            f'kit = "{kit}"\njournal = "journal.flash"\njournal_kib = 256\nsensors = "sensors.json"\n\n'
            f'[broker]\nhost = "127.0.0.1"\nport = {broker_port}\n'
            f'ca = "{identity / "ca.pem"}"\n'
            f'certificate = "{identity / "kit.pem"}"\nkey = "{identity / "kit.key"}"\n'
        )
        self._part = Part(
            f"home of {kit}",
            python("hw.demo.home", "--config", str(config), "--folder", str(folder), "--gateway", gateway),
            log=folder / "home.log",
            ready=self._up,
            talks=True,
        )
        self._asked: dict[int, asyncio.Future[str | None]] = {}
        self._listening: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process; raises PartFailed."""
        await self._part.start()
        self._listening = asyncio.create_task(self._listen(), name=f"answers of {self.kit}")

    async def stop(self) -> None:
        """End the process."""
        await self._part.stop()
        if self._listening:
            await self._listening

    async def ask(self, do: str, **what: Any) -> None:
        """Ask the home for something and wait until it is done. Raises PartFailed."""
        process = self._part.process
        assert process.stdin
        number = len(self._asked) + 1
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        process.stdin.write(json.dumps({"id": number, "do": do, **what}).encode() + b"\n")
        if why := await answer:
            raise PartFailed(f"home of {self.kit}: {why}; see {self._folder / 'home.log'}")

    def measurements(self) -> list[Measurement]:
        """What this home's Sensors have measured so far."""
        return [m for path in sorted(self._folder.glob("ledger-*.jsonl")) for m in Ledger.read(path).taken]

    async def _up(self) -> bool:
        assert self._part.process.stdout
        return bool(await self._part.process.stdout.readline())

    async def _listen(self) -> None:
        """Hand each answer to who has asked; tell all of them when the process ends."""
        stdout = self._part.process.stdout
        assert stdout
        while line := await stdout.readline():
            answer = json.loads(line)
            self._tell(answer["id"], answer.get("why"))
        for number in self._asked:
            self._tell(number, "its process has ended")

    def _tell(self, number: int, why: str | None) -> None:
        if not self._asked[number].done():  # after Ctrl-C nobody waits for it any more
            self._asked[number].set_result(why)


class Plug:
    """The plug of a home's Gateway, to be pulled like any other part."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.kills = 0

    async def kill(self) -> None:
        """SIGKILL to the interpreter: whatever it was doing is cut off."""
        await self._home.ask("pull_plug")
        self.kills += 1

    async def start(self) -> None:
        """Power on again."""
        await self._home.ask("plug_in")


@contextlib.contextmanager
def world_folder(keep: Path | None) -> Iterator[Path]:
    """A folder of its own for one run: the given one, or a new one that goes when nothing went wrong."""
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    folder = Path(tempfile.mkdtemp(prefix="homeward-demo-"))
    try:
        yield folder
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
            print(f"the logs of this run are in {folder}", file=sys.stderr)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
