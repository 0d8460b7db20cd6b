"""Running the command line inside the test's process."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from doratune.cli.main import main

SMALL = [
    *("--epochs", "1", "--warmup-steps", "1", "--batch-size", "8", "--cutoff", "512", "--rank", "4"),
    *("--dtype", "float32"),
]
"""Flags that make a training run of a tiny model last a second, in float32 also where less is faster."""


@dataclass(frozen=True)
class Outcome:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str


class Cli:
    """Calls ``doratune`` and captures what it prints."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *arguments: object) -> Outcome:
        self._capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # tyro's own exit on wrong flags and --help
            code = end.code if isinstance(end.code, int) else 1
        printed = self._capfd.readouterr()
        return Outcome(code, printed.out, printed.err)


@contextmanager
def logging_kept() -> Iterator[None]:
    """Undo the command line's logging set-up, which is meant for a process of its own."""
    logger = logging.getLogger("doratune")
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def forget_checksum(run: Path) -> None:
    """Make a run's record one of an older version, which had no checksum of the weights."""
    path = run / "record.json"
    record = json.loads(path.read_text())
    del record["training"]["weights_checksum"]
    path.write_text(json.dumps(record))


def swap_weights(weights: Path) -> None:
    """Give a file of weights other values: every tensor has its name, shape and type."""
    tensors = load_file(weights)
    save_file({key: one.flip(-1) for key, one in tensors.items()}, weights, metadata={"format": "pt"})


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def losses(run: Path) -> list[float]:
    """The training losses of a run, step by step."""
    return [line["loss"] for line in lines(run / "metrics.jsonl") if "loss" in line]
