"""A run to compare with, and a line on what was done for the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from faults_support import RUN, doratune

DONE = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def whole_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of ``RUN`` to which nothing happened."""
    run = tmp_path_factory.mktemp("whole") / "run"
    doratune("train", "--model", tiny_model, *RUN, "--output", run)
    return run


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Adds a line to what is printed when all tests are done."""
    return request.config.stash.setdefault(DONE, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was done."""
    for line in terminalreporter.config.stash.get(DONE, []):
        terminalreporter.write_line(line)
