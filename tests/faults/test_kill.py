"""``kill -9`` at random moments, and what is left after it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from faults_support import RUN, command, doratune

from doratune.records.layout import checkpoints
from doratune.training.checkpoints import SEAL_NAME

KILLS = 30


def steps(run: Path) -> list[int]:
    """The steps in metrics.jsonl; a half line at its end is not one."""
    path = run / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line)["step"] for line in text.split("\n")[:-1]]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> bool:
    """Wait until ``condition`` holds; whether it did before the process ended."""
    deadline = time.monotonic() + 300
    while process.poll() is None:
        assert time.monotonic() < deadline, "nothing happens"
        if condition():
            return True
        time.sleep(0.001)
    return False


def is_saving(run: Path) -> bool:
    """Whether the newest checkpoint is being written."""
    found = checkpoints(run)
    return bool(found) and not (found[max(found)] / SEAL_NAME).exists()


@pytest.mark.timeout(3600)
def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    tiny_model: Path, whole_run: Path, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    random.seed(0)
    run, kills, saving = tmp_path / "run", 0, 0
    train = command("train", "--model", tiny_model, *RUN, "--output", run)
    while kills < KILLS:
        with (
            (tmp_path / "log").open("ab") as log,
            subprocess.Popen(
                [*train, *(["--resume"] if (run / "config.yaml").exists() else [])], stderr=log
            ) as process,
        ):
            before = max(steps(run), default=0)
            goal = before + random.choice((0, 1, 2, 3))
            if wait_for(lambda goal=goal: max(steps(run), default=0) >= goal, process):
                if kills % 2:
                    wait_for(lambda: is_saving(run), process)
                time.sleep(random.uniform(0, 0.03))
            if process.poll() is None:
                saving += is_saving(run)
                process.kill()
                kills += 1
            else:
                assert process.returncode == 0, (tmp_path / "log").read_text()
                break
    assert kills >= KILLS - 10, "it was done before it could be killed often"
    if not (run / "record.json").exists():
        doratune("train", "--model", tiny_model, *RUN, "--output", run, "--resume")
    name = "adapter/adapter_model.safetensors"
    assert (run / name).read_bytes() == (whole_run / name).read_bytes()
    assert steps(run) == list(range(1, 61))
    tell(f"train: killed {kills} times, {saving} of them while a checkpoint was written; adapter bit-equal")


@pytest.mark.timeout(3600)
def test_a_killed_study_goes_on_as_if_nothing_had_happened(
    tiny_model: Path, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    random.seed(0)
    plan = tmp_path / "plan.yaml"
    task = {"train": "sample-boolq", "formats": ["continuation"], "rows": 160, "validation_rows": 24}
    settings = {"epochs": 1.0, "warmup_steps": 1, "batch_size": 8, "cutoff": 512, "dtype": "float32"}
    values: dict[str, Any] = {"title": "Tiny", "question": "Does it come out the same?"}
    values |= {"models": [str(tiny_model)], "methods": ["lora", "dora"], "tasks": [{**task, "eval_rows": 40}]}
    values |= {"ranks": [4], "learning_rates": [1e-3, 3e-2], "seeds": [0, 1], "choose": {"extend": 1}}
    plan.write_text(yaml.safe_dump({**values, "settings": {**settings, "save_steps": 2}}), encoding="utf-8")
    doratune("study", plan, "--output", tmp_path / "whole", "--threads", 1)
    study, kills, finished = tmp_path / "study", 0, 0
    conduct = command("study", plan, "--output", study, "--threads", 1)
    while kills < KILLS or not finished:
        files = count(study)
        # In a separate process group, so that processes that outlive it can be found.
        with (
            (tmp_path / "log").open("ab") as log,
            subprocess.Popen(conduct, stdout=log, stderr=log, start_new_session=True) as process,
        ):
            if kills < KILLS:
                goal = files + random.choice((1, 2, 3, 5, 8))
                wait_for(lambda goal=goal: count(study) >= goal, process)
                time.sleep(random.uniform(0, 0.2))
                process.kill()
            killed = process.wait() == -signal.SIGKILL
        assert killed or process.returncode == 0, (tmp_path / "log").read_text()
        kills += killed
        if killed:
            assert wait_for_the_end(process.pid), "a run's process outlived the study"
        else:
            assert results(study) == results(tmp_path / "whole")
            shutil.rmtree(study)
            finished += 1
    tell(f"study: killed {kills} times in {finished} studies; every answer, loss and chosen rate equal")


def count(folder: Path) -> int:
    """How many files a folder has, of which some may disappear meanwhile."""
    return sum(len(files) for _, _, files in os.walk(folder))


def wait_for_the_end(group: int) -> bool:
    """Whether no process of the group is left, soon after its leader was killed."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def results(study: Path) -> dict[str, Any]:
    """All that a study found, without times and memory."""
    record = json.loads((study / "study.json").read_text(encoding="utf-8"))
    for run in (run for cell in record["cells"] for arm in cell["arms"] for run in arm["runs"]):
        del run["inference_tokens_per_second"]
        for measured in ("seconds", "cpu_seconds", "tokens_per_second", "peak_memory_bytes"):
            del run["training"][measured]
    found: dict[str, Any] = {"cells": record["cells"]}
    for path in sorted((study / "runs").rglob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found[str(path.relative_to(study))] = [
            {key: value for key, value in row.items() if key not in ("seconds", "cpu_seconds")}
            for row in rows
        ]
    return found
