"""The demo itself: a run with every fault closes clean, and however it ends, nothing of it stays behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hw.demo.main import main

pytestmark = pytest.mark.timeout(300)
START_S = 90.0
END_S = 60.0
Process = tuple[int, str]  # process id, and when it started: an id is used again


class Demo:
    """One run of `homeward-demo`, with a folder of its own for temporary files."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self._said = folder.with_suffix(".err")
        folder.mkdir()
        with self._said.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hw.demo.main", *arguments],
                stdout=subprocess.PIPE,
                stderr=err,
                env={**os.environ, "TMPDIR": str(folder)},
            )

    @property
    def said(self) -> str:
        return self._said.read_text()

    def until_said(self, pattern: str) -> None:
        until(lambda: re.search(pattern, self.said) is not None, START_S)

    def line(self) -> dict[str, object]:
        """The closing line: the last one on stdout."""
        out, _ = self.process.communicate(timeout=280)
        line: dict[str, object] = json.loads(out.splitlines()[-1])
        return line


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    started: list[Demo] = []

    def start(*arguments: str) -> Demo:
        started.append(Demo(tmp_path / "demo", *arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def test_a_run_with_every_fault_closes_clean(demo: Callable[..., Demo]) -> None:
    run = demo(*("--until", "14", "--kill", "broker,service,hub", "--offline", "6", "--seed", "5", "--json"))
    line = run.line()
    assert run.process.returncode == 0, run.said
    wrong = ("missing", "duplicates", "wrong_patient", "false_vitals")
    assert [line[name] for name in wrong] == [0, 0, 0, 0]
    assert line["taken"] == line["at_hub"] == 14
    assert isinstance(line["possible_repeats"], int) and isinstance(line["offline_kept"], int)
    assert isinstance(line["seconds"], float) and isinstance(line["gateway"], str)
    kills = line["kills"]
    assert isinstance(kills, dict) and set(kills) == {"broker", "service", "hub"}
    assert all(kill["count"] == 1 and kill["in_flight"] >= 0 for kill in kills.values())
    assert list(run.folder.iterdir()) == []


@pytest.mark.parametrize("gateway", ["mpy64", "linux"])
def test_ctrl_c_lets_arrive_what_is_under_way_and_leaves_nothing_behind(
    demo: Callable[..., Demo], gateway: str
) -> None:
    run = demo("--seed", "6", "--json", "--gateway", gateway)
    run.until_said(r"\n[1-9]\d* measured")
    running = descendants(run.process.pid)
    run.process.send_signal(signal.SIGINT)
    line = run.line()
    assert run.process.returncode == 0, run.said
    assert "Traceback" not in run.said
    assert line["missing"] == 0 and line["taken"] == line["at_hub"]
    assert len(running) >= 5  # broker, service, Hub, two homes
    assert not [one for one in running if is_there(one)]
    assert list(run.folder.iterdir()) == []


@pytest.mark.parametrize("begun", [1, 2, 4])
def test_ctrl_c_while_the_parts_start_is_an_end_without_a_traceback(
    demo: Callable[..., Demo], begun: int
) -> None:
    run = demo("--seed", "6", "--gateway", "linux")
    until(lambda: len(descendants(run.process.pid)) >= begun, START_S)
    running = descendants(run.process.pid)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(END_S) == 130
    assert "Traceback" not in run.said
    assert not [one for one in running if is_there(one)]
    assert list(run.folder.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_kill_9_of_the_demo_ends_every_part_of_it(demo: Callable[..., Demo]) -> None:
    run = demo("--seed", "6", "--gateway", "mpy64")
    run.until_said("Each Kit's latest Readings")
    running = descendants(run.process.pid)
    run.process.kill()
    run.process.wait()
    assert len(running) >= 7  # broker, service, Hub, two homes with a board each
    until(lambda: not any(is_there(one) for one in running), END_S)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("--until 0", "argument --until: '0' is not a number of measurements"),
        ("--until many", "argument --until: 'many' is not a number of measurements"),
        ("--kill broker,disk", "argument --kill: 'disk' is none of gateway, broker, service, hub"),
        ("--kill gateway --gateway linux", "can't keep promise P1"),
        ("--offline -3", "argument --offline"),
        ("--offline nan", "argument --offline: 'nan' is not a number of seconds"),
        ("--seed x", "argument --seed: invalid int value: 'x'"),
        (f"--folder {__file__}", "is there and is not an empty folder"),
        ("--gateway esp", "argument --gateway: invalid choice: 'esp'"),
        ("--quick", "unrecognized arguments: --quick"),
    ],
)
def test_a_wrong_word_is_exit_2_and_a_sentence(
    arguments: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    assert why in capsys.readouterr().err


def descendants(pid: int) -> list[Process]:
    """Every process that this one has started, and those that they have."""
    children: dict[int, list[Process]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if stat := _stat(int(folder.name)):
            parent, started = int(stat[1]), stat[19]
            children.setdefault(parent, []).append((int(folder.name), started))
    found: list[Process] = []
    waiting = [pid]
    while waiting:
        of_one = children.get(waiting.pop(), [])
        found += of_one
        waiting += [child for child, _ in of_one]
    return found


def is_there(process: Process) -> bool:
    """Whether it runs still; a zombie does not."""
    stat = _stat(process[0])
    return bool(stat) and stat[19] == process[1] and stat[0] != "Z"


def _stat(pid: int) -> list[str]:
    """State, parent, ... as proc(5) has them from the third field on; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []


def until(true: Callable[[], bool], patience_s: float) -> None:
    """Wait for what other processes do."""
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)
