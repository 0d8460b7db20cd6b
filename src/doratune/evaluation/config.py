"""The settings of an evaluation. No torch here, so that ``--help`` stays fast."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from tyro.conf import Positional

from doratune.records.run import Format, Protocol
from doratune.settings import Dtype, LaxPath, OnOff, Positive, Settings


class EvalConfig(Settings):
    """What is evaluated, on which rows, and how."""

    target: Annotated[str, Positional]
    """Run directory, adapter folder or base model (built-in name, folder, .gguf file, hub id)."""
    task: list[str] = Field(default=[])
    """Tasks to evaluate; commonsense-mix is its eight tasks, one by one."""
    text: bool = False
    """Also score doratune's English text: loss per token and per byte, perplexity, speed without merging."""
    data: LaxPath | None = None
    """JSON or JSONL file with the rows of the (one) task, instead of the hub."""
    split: Literal["test", "validation"] = "test"
    """How the rows are recorded; validation: rows of --data used to choose something."""
    format: Format | None = None
    """instruct or continuation; None: the format of the run, else instruct."""
    protocol: Protocol = "likelihood"
    """likelihood: rank the candidate answers; generate: the paper's beam search and answer pattern."""
    eval_rows: Positive | None = None
    """Only this many rows of each task, from the first on."""
    eval_batch_size: Positive = 32
    """Rows per forward pass."""
    output: LaxPath | None = None
    """Where record.json and predictions/ go; None: the run directory, else runs/eval-<name>."""
    model: str | None = None
    """Base model of an adapter folder, if it is not where its adapter_config.json says."""
    allow_other_base: bool = False
    """Evaluate an adapter also on a base model with other weights than it was trained on."""
    dtype: Dtype = "auto"
    """Type of the weights; auto: float32 on a CPU; on a GPU the run's type, else the one it is fast at."""
    load_in_4bit: bool = False
    """Load a base model in 4 bits; a run trained in 4 bits always is."""
    speedups: OnOff | None = None
    """off: transformers' own code only; None: as the run was trained, else on."""
    device_map: str | None = None
    """transformers' device_map, such as auto; None: this process's device."""
    trust_remote_code: bool = False
    """Let a hub model run its own code."""
