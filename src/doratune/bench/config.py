"""The settings of the benchmarks. No torch here, so that ``--help`` stays fast."""

from __future__ import annotations

from typing import Annotated

import tyro
from pydantic import Field

from doratune.records.bench import CaseSet, DType, StepSet
from doratune.settings import LaxPath, Positive, Settings


class OpBenchConfig(Settings):
    """Which layers are measured and how."""

    case_set: Annotated[CaseSet | None, tyro.conf.arg(name="set")] = None
    """cpu: run the CPU cases on the CPU; gpu: run the GPU cases on the GPU; None: gpu if there is one."""
    case: list[str] = Field(default=[])
    """Only these cases of the set."""
    dtype: DType | None = None
    """Dtype of input and layer in every case; None: the case's own."""
    rounds: Positive = 15
    """Timed rounds; each calls every provider once."""
    threads: Positive | None = None
    """Threads inside an operation; None: torch's own choice."""
    memory: bool = True
    """Also measure memory saved for backward and the peak; on a CPU, in a separate process per provider."""
    output: LaxPath | None = None
    """JSON file for the record; None: no file."""


class StepBenchConfig(Settings):
    """Which training steps are measured and how."""

    model: str = "smollm2-135m"
    """Built-in name, local folder, .gguf file or hub id; random-llama-7b: LLaMA-7B with random weights."""
    step_set: Annotated[StepSet | None, tyro.conf.arg(name="set")] = None
    """headline: the cases with targets; growth: more tokens, rows or rank; all: both; gpu: 16 x 512 tokens,
    one provider at a time, for a large model; None: headline, or all if cases are named."""
    case: list[str] = Field(default=[])
    """Only these cases of the set."""
    dtype: DType | None = None
    """Dtype of the model in every case; None: the case's own."""
    rounds: Positive = 7
    """Timed rounds; in each, every provider trains one step."""
    threads: Positive | None = None
    """Threads inside an operation; None: torch's own choice."""
    output: LaxPath | None = None
    """JSON file for the record; None: no file."""


class InferBenchConfig(Settings):
    """Which calls of ``generate`` are measured and how."""

    model: str = "smollm2-135m"
    """Built-in name, local folder, .gguf file or hub id."""
    case: list[str] = Field(default=[])
    """Only these cases."""
    dtype: DType | None = None
    """Dtype of the model in every case; None: the case's own."""
    rounds: Positive = 7
    """Timed rounds; in each, every provider generates once."""
    threads: Positive | None = None
    """Threads inside an operation; None: torch's own choice."""
    output: LaxPath | None = None
    """JSON file for the record; None: no file."""
