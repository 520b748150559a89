"""What all tests share: lines that a test has to say to whoever reads the end of the run."""

import pytest

SAID = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SAID] = []


@pytest.fixture
def say(request: pytest.FixtureRequest) -> list[str]:
    """Lines appended here stand in pytest's closing summary."""
    return request.config.stash[SAID]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[SAID]:
        terminalreporter.write_line(line)
