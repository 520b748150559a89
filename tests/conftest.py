"""What all tests share: lines that a test has to say to whoever reads the end of the run."""

from collections.abc import Iterator

import pytest

SAID = pytest.StashKey[list[str]]()
_KEY = "said"


class Said:
    """Collects the lines where the run is told of: tests may have run in other processes."""

    def __init__(self, config: pytest.Config) -> None:
        self._lines = config.stash[SAID] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self._lines += [str(line) for key, line in report.user_properties if key == _KEY]


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Said(config))


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines appended here stand in pytest's closing summary."""
    lines: list[str] = []
    yield lines
    request.node.user_properties += [(_KEY, line) for line in lines]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[SAID]:
        terminalreporter.write_line(line)
