"""The settings, and the command that a user would type for each phase on either side."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from doratune.records.layout import ADAPTER_NAME
from doratune.records.run import Protocol
from doratune.settings import Dtype, LaxPath, Positive, Settings
from doratune.training.config import LLAMA_TARGETS
from pipeline.record import Phase, PipelineSettings

DORATUNE = [sys.executable, "-m", "doratune"]
REFERENCE = [sys.executable, str(Path(__file__).with_name("reference.py"))]
RUN_NAME = "doratune"
REFERENCE_NAME = "reference"
ANSWERS_NAME = "reference.jsonl"


class PipelineBenchConfig(Settings):
    """The data and the model to measure with."""

    train_data: LaxPath
    """JSON or JSONL file in the LLM-Adapters layout to train on."""
    test_data: LaxPath
    """Such a file to evaluate on."""
    task: str = "boolq"
    """The task of both files."""
    train_rows: Positive = 1000
    """At most this many training rows, drawn by the seed."""
    test_rows: Positive = 300
    """Only this many test rows, from the start."""
    model: str = "smollm2-135m"
    """Built-in name, local folder, .gguf file or hub id."""
    dtype: Dtype = "auto"
    """auto: bfloat16 where the hardware is fast at it, otherwise float32."""
    rounds: Positive = 1
    """Rounds; each runs every command once, and the sides go first alternately."""
    threads: Positive | None = None
    """Threads inside an operation; None: torch's own choice."""
    output: LaxPath | None = None
    """JSON file for the record; None: no file."""


def settings_of(config: PipelineBenchConfig) -> PipelineSettings:
    """The settings that both sides train with: the paper's, for one short epoch.

    The loss is on answers only; the study trained on prompts too. This makes the adapters comparable.
    """
    return PipelineSettings(
        rank=32,
        alpha=64.0,
        dropout=0.0,
        targets=[*LLAMA_TARGETS],
        batch_size=16,
        epochs=1.0,
        cutoff=256,
        learning_rate=2e-4,
        warmup_steps=0,
        format="instruct",
        loss_on="answer",
        seed=0,
        dtype=config.dtype,
    )


def phase_commands(
    config: PipelineBenchConfig, settings: PipelineSettings, folder: Path
) -> dict[Phase, list[str]]:
    """The command line of every phase.

    Both sides evaluate the adapter that doratune trained, so that the times are for the same answers.

    Args:
        config: Data and model.
        settings: The settings that both sides train with.
        folder: Where their files go, under this module's names.
    """
    run = folder / RUN_NAME
    training = [
        *_flags({"model": config.model, "data": config.train_data, "rows": config.train_rows}),
        *_flags(settings.model_dump(exclude={"targets", "format"})),
        *("--targets", *settings.targets),
    ]
    test = _flags({"task": config.task, "data": config.test_data, "eval-rows": config.test_rows})
    base = _flags({"model": config.model, "dtype": settings.dtype})
    return {
        "doratune-train": [
            *(*DORATUNE, "train", "--method", "dora", "--output", str(run)),
            *(*training, "--format", settings.format),
        ],
        "doratune-generate": evaluation(str(run), test, "generate"),
        "doratune-likelihood": evaluation(str(run), test, "likelihood"),
        "reference-train": [*REFERENCE, "train", "--output", str(folder / REFERENCE_NAME), *training],
        "reference-generate": [
            *(*REFERENCE, "eval", "--adapter", str(run / ADAPTER_NAME), *base, *test),
            *("--output", str(folder / ANSWERS_NAME)),
        ],
    }


def rehearsal(config: PipelineBenchConfig, folder: Path) -> list[str]:
    """A command before the timed ones, which fetches the model and fails if it or a row is unusable."""
    test = _flags({"task": config.task, "data": config.test_data, "eval-rows": 1, "dtype": config.dtype})
    return [*evaluation(config.model, test, "likelihood"), "--output", str(folder / "rehearsal")]


def evaluation(target: str, flags: list[str], protocol: Protocol) -> list[str]:
    """The command line of ``doratune eval``."""
    return [*DORATUNE, "eval", target, *flags, "--protocol", protocol]


def _flags(values: Mapping[str, object]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
