"""The settings of a comparison and of how a study is carried out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from tyro.conf import Positional

from doratune.records.run import Protocol
from doratune.records.study import StudyMethod
from doratune.settings import LaxPath, Positive, Settings
from doratune.training.config import TrainingSettings

COMPARED: tuple[StudyMethod, ...] = ("lora", "dora")
"""What a comparison trains."""


class CompareConfig(TrainingSettings):
    """Base, LoRA and DoRA on the same rows, order, seeds and budget."""

    output: LaxPath
    """Folder for the runs, the table and the report."""
    test_data: LaxPath | None = None
    """JSON or JSONL file with the test rows, for a comparison on --data."""
    protocol: Protocol = "likelihood"
    """likelihood: rank the candidate answers; generate: beam search and answer pattern."""
    limit: Positive | None = None
    """Only the first so many test rows of each task."""
    eval_batch_size: Positive = 32
    """Rows per forward pass in evaluation."""

    seeds: list[Annotated[int, Field(ge=0)]] | None = None
    """Runs with each of these seeds, instead of --seed."""
    learning_rates: list[Annotated[float, Field(gt=0)]] | None = None
    """Peak learning rates, instead of --learning-rate; of several the best one on held-out rows is tested."""
    validation_rows: Positive = 500
    """Training rows held out to choose among several learning rates; with one rate none are."""


class StudyConfig(Settings):
    """Where and how a plan is carried out; nothing of it changes a result."""

    plan: Annotated[str, Positional]
    """Name of a shipped plan, or a YAML file."""
    output: LaxPath
    """Folder of the study; one that holds runs of the plan is resumed."""
    data: LaxPath | None = None
    """Folder with <task>/train.json and <task>/test.json, instead of the hub; overrides the plan's."""
    runner: Literal["local", "ray"] = "local"
    """local: this machine; ray: a Ray cluster whose machines share the output folder."""
    jobs: Positive = 1
    """Runs at a time on this machine."""
    threads: Positive | None = None
    """Threads of each run; None: the cores divided among the jobs."""
