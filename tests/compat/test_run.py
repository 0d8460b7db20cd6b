"""``doratune train`` and ``eval`` on a tiny model, each in a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = ("--task", "sample-boolq", "--rows", "24", "--steps", "3", "--warmup-steps", "1", "--batch-size", "8")


@pytest.mark.parametrize("method", ["dora", "lora", "full"])
def test_three_steps_and_an_evaluation(method: str, tiny_model: Path, tmp_path: Path) -> None:
    doratune("train", "--model", tiny_model, "--method", method, *TRAIN, "--output", tmp_path / "run")
    doratune("eval", tmp_path / "run", "--task", "sample-boolq", "--eval-rows", "8")
    record = json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))
    assert record["training"]["steps"] == 3 and record["training"]["changes"]
    assert record["evaluations"][0]["rows"] == 8


def doratune(*arguments: object) -> None:
    command = [sys.executable, "-m", "doratune", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
