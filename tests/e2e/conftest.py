"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import SMALL, Cli, logging_kept


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cli]:
    """The command line, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    with logging_kept():
        yield Cli(capfd)


@pytest.fixture(scope="session")
def dora_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished DoRA run on sample-boolq; tests copy it before they change it."""
    from doratune.cli.main import main

    run = tmp_path_factory.mktemp("runs") / "dora"
    flags = ["--model", str(tiny_model), "--method", "dora", "--task", "sample-boolq", "--rows", "32"]
    with logging_kept():
        assert main(["train", *flags, *SMALL, "--learning-rate", "1e-2", "--output", str(run)]) == 0
    return run
