"""Training runs that are started in one or in several processes, and what is left of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from fsdp_on_cpus import use_fsdp2
from safetensors.torch import load_file

from doratune.errors import DoratuneError
from doratune.records.layout import checkpoints
from doratune.training.config import TrainConfig
from doratune.training.train import train

ROWS = 21
BASE: dict[str, Any] = {
    "task": ["sample-boolq"],
    "rows": ROWS,
    "batch_size": 8,
    "epochs": 3,
    "warmup_steps": 1,
    "cutoff": 512,
    "rank": 4,
    "dropout": 0.0,
    "dtype": "float32",
    "learning_rate": 5e-3,
}
"""Three epochs of two whole batches and one of five rows."""
TERM, INTERRUPT = int(signal.SIGTERM), int(signal.SIGINT)


@dataclass(frozen=True)
class Case:
    """A run to train.

    Attributes:
        output: Its folder.
        settings: What differs from ``BASE``.
        resume: As in ``train``.
        overwrite: As in ``train``.
        stop: A signal, the process that gets it, and the step after which it does.
        elsewhere: Processes that train into another folder, as if they did not share a file system.
    """

    output: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False
    overwrite: bool = False
    stop: tuple[int, int, int] | None = None
    elsewhere: Sequence[int] = ()


@dataclass(frozen=True)
class End:
    """How a run ended in one process; without an error, ``message`` is empty."""

    code: int
    kind: str
    message: str
    record: dict[str, Any] | None
    generator: bytes


def train_one(case: Case) -> End:
    """Train a run in this process, which may be one of several."""
    index = int(os.environ.get("RANK", "0"))
    output = case.output.with_name("elsewhere") if index in case.elsewhere else case.output
    config = TrainConfig(output=output, **{**BASE, **case.settings})
    if case.stop is not None and case.stop[1] == index:
        threading.Thread(target=_signal, args=(*case.stop[::2], output), daemon=True).start()
    code, kind, message, record = 0, "", "", None
    try:
        record = train(config, resume=case.resume, overwrite=case.overwrite).to_dict()
    except DoratuneError as error:
        code, kind, message = error.exit_code, type(error).__name__, error.message
    return End(code, kind, message, record, torch.get_rng_state().numpy().tobytes())


def everything(root: Path, cases: Mapping[str, Mapping[str, Any]]) -> dict[str, list[End]]:
    """All that the tests of two processes look at, so that they start once."""
    model = {"model": cases["dora"]["model"]}
    ends = {name: [train_one(Case(root / name, settings))] for name, settings in cases.items()}
    stop = ((TERM, 1, 4), (INTERRUPT, 0, 2))
    ends |= resumed(root / "whole", (1, 3, 5), {**model, "dropout": 0.1}, stop=stop)
    ends |= resumed(root / "peft", (5,), {**model, "dropout": 0.1, "engine": "peft", "speedups": "off"})
    few = {**model, "steps": 2}
    ends["refused"] = [
        train_one(Case(root / "locked", few)),
        train_one(Case(root / "apart", few, elsewhere=(1,))),
        train_one(Case(root / "whole", few)),
        train_one(Case(root / "whole", {**few, "batch_size": 9}, overwrite=True)),
    ]
    ends["again"] = [
        train_one(Case(root / "again", few)),
        train_one(Case(root / "again", {**few, "seed": 1, "steps": 3}, overwrite=True)),
    ]
    ends["diverged"] = [train_one(Case(root / "diverged", {**few, "learning_rate": 1e30}))]
    return ends


def alike(
    root: Path, cases: Mapping[str, Mapping[str, Any]], model: str, steps: Sequence[int]
) -> dict[str, list[End]]:
    """Runs to compare with those of other numbers of processes, and one that is resumed after some steps."""
    ends = {name: [train_one(Case(root / name, settings))] for name, settings in cases.items()}
    settings = {"model": model, "dropout": 0.1, "micro_batch_size": 1, "epochs": 2}
    return ends | resumed(root / "whole", steps, settings)


def sharded(root: Path, cases: Mapping[str, Mapping[str, Any]], model: str) -> dict[str, list[End]]:
    """Runs under FSDP2, and one that is resumed."""
    use_fsdp2()
    ends = {name: [train_one(Case(root / name, settings))] for name, settings in cases.items()}
    return ends | resumed(root / "whole", (4,), {"model": model, "dropout": 0.1, "epochs": 2})


def resumed(
    run: Path, steps: Sequence[int], settings: Mapping[str, Any], *, stop: Sequence[tuple[int, int, int]] = ()
) -> dict[str, list[End]]:
    """Train a run; train it again from each of its steps; and again with signals, resumed after them.

    Args:
        run: Its folder; the others lie next to it, as ``<run>-<step>`` and ``<run>-stop-<place in stop>``.
        steps: The steps to resume after.
        settings: What differs from ``BASE``.
        stop: As in ``Case``, one of each run.

    Returns:
        By the name of a run: how it ended each time.
    """
    every = {"save_steps": 1, "keep_checkpoints": 99, **settings}
    ends = {run.name: [train_one(Case(run, every))]}
    for step in steps:
        copy = run.with_name(f"{run.name}-{step}")
        if os.environ.get("RANK", "0") == "0":
            killed_after(run, step, copy)
        PartialState().wait_for_everyone()
        ends[copy.name] = [train_one(Case(copy, every, resume=True))]
    for place, one in enumerate(stop):
        output = run.with_name(f"{run.name}-stop-{place}")
        ends[output.name] = [
            train_one(Case(output, {**every, "save_steps": 99}, stop=one)),
            train_one(Case(output, {**every, "save_steps": 99}, resume=True)),
        ]
    return ends


def _signal(number: int, step: int, output: Path) -> None:
    while len(losses(output)) < step:
        time.sleep(0.005)
    os.kill(os.getpid(), number)


def losses(run: Path) -> list[float]:
    """The training losses of a run, step by step."""
    return [line["loss"] for line in _steps(run)]


def tokens(run: Path) -> list[int]:
    """The tokens trained on after each step of a run."""
    return [line["tokens"] for line in _steps(run)]


def _steps(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(json.loads, lines) if "loss" in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The weights that a run has written."""
    (file,) = [*run.glob("adapter/*.safetensors"), *run.glob("model/*.safetensors")]
    return load_file(file)


def killed_after(run: Path, step: int, copy: Path) -> Path:
    """A copy of a run that saved every step, as if it had been killed after one of them."""
    shutil.copytree(run, copy)
    (copy / "record.json").unlink()
    for name in ("adapter", "model"):
        shutil.rmtree(copy / name, ignore_errors=True)
    for saved, folder in checkpoints(copy).items():
        if saved > step:
            shutil.rmtree(folder)
    return copy
