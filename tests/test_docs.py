"""Every file, command and `make` target that the prose names in backticks exists."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROSE = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^[\w.*/-]+(\.(py|md|toml|txt|sql|html|css)|/)$")
NOT_OURS = ("down/", "up/")  # topics


@pytest.mark.parametrize("name", PROSE)
def test_every_file_that_the_prose_names_exists(name: str) -> None:
    missing = []
    for word in _words(name):
        path, _, test = word.partition("::")
        if not _is_file(path):
            continue
        found = [*ROOT.glob(path.rstrip("/"))] or [*_sources(path)]
        if not found or (test and not any(f"def {test}(" in file.read_text() for file in found)):
            missing.append(word)
    assert not missing


@pytest.mark.parametrize("name", PROSE)
def test_every_make_target_that_the_prose_names_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for code in _code(name) for target in re.findall(r"\bmake ([a-z][a-z-]*)", code)}
    assert named <= targets


@pytest.mark.parametrize("name", PROSE)
def test_every_command_that_the_prose_names_exists(name: str) -> None:
    commands = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])
    named = {command for code in _code(name) for command in re.findall(r"(?<![\w/-])homeward-[a-z]+\b", code)}
    assert named <= commands


def _code(name: str) -> list[str]:
    return CODE.findall((ROOT / name).read_text())


def _words(name: str) -> list[str]:
    return [code.strip("`") for code in _code(name) if not code.startswith("```")]


def _is_file(word: str) -> bool:
    top = {path.name for path in ROOT.iterdir()}
    return (
        word in top or word.split("/")[0] in top and "/" in word and " " not in word or bool(FILE.match(word))
    )


def _sources(name: str) -> list[Path]:
    """Files that a bare name such as `record.py` can mean."""
    if "/" in name:
        return []
    return [path for part in ("gateway", "hw", "sync_service", "tests") for path in (ROOT / part).rglob(name)]
