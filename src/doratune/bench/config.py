"""The settings of a bench. No torch here, so that ``--help`` stays fast."""

from __future__ import annotations

from typing import Annotated

import tyro
from pydantic import Field

from doratune.records.bench import CaseSet, DType, StepSet
from doratune.settings import LaxPath, Positive, Settings


class OpBenchConfig(Settings):
    """Which layers are measured and how."""

    case_set: Annotated[CaseSet | None, tyro.conf.arg(name="set")] = None
    """cpu: run the cases for a CPU there; gpu: those for a GPU; None: gpu if there is one."""
    case: list[str] = Field(default=[])
    """Only these cases of the set."""
    dtype: DType | None = None
    """Of input and layer in every case; None: what the case says."""
    rounds: Positive = 15
    """Rounds that are timed; each calls every provider once."""
    threads: Positive | None = None
    """Threads inside an operation; None: torch's own choice."""
    memory: bool = True
    """Measure what is saved for backward and the peak too; on a CPU each provider gets a process for it."""
    output: LaxPath | None = None
    """JSON file for the record; None: none is written."""


class StepBenchConfig(Settings):
    """Which training steps are measured and how."""

    model: str = "smollm2-135m"
    """Built-in name, local folder, .gguf file or hub id; random-llama-7b: LLaMA-7B with random weights."""
    step_set: Annotated[StepSet | None, tyro.conf.arg(name="set")] = None
    """headline: the cases that have targets; growth: more tokens, rows or rank; all: both; gpu: 16 x 512
    tokens, each provider alone, for a large model; None: headline, or all if cases are named."""
    case: list[str] = Field(default=[])
    """Only these cases of the set."""
    dtype: DType | None = None
    """Of the model in every case; None: what the case says."""
    rounds: Positive = 7
    """Rounds that are timed; in each, every provider trains one step."""
    threads: Positive | None = None
    """Threads inside an operation; None: torch's own choice."""
    output: LaxPath | None = None
    """JSON file for the record; None: none is written."""
