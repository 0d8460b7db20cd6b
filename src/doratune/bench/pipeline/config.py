"""The settings of ``doratune bench pipeline``. No torch here, so that ``--help`` stays fast."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from doratune.settings import LaxPath, Positive, Settings


class PipelineBenchConfig(Settings):
    """What is trained on and evaluated."""

    train_data: LaxPath
    """JSON or JSONL file in the LLM-Adapters layout to train on."""
    test_data: LaxPath
    """Such a file to evaluate on."""
    task: str = "boolq"
    """The task whose rows they are."""
    train_rows: Positive = 1000
    """At most this many training rows, drawn by the seed."""
    test_rows: Positive = 300
    """Only the first so many test rows."""
    model: str = "smollm2-135m"
    """Built-in name, local folder, .gguf file or hub id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the hardware is fast at it, else float32."""
    reference: LaxPath = Path("benchmarks/reference_pipeline.py")
    """The script that computes in the original study's way."""
    rounds: Positive = 1
    """Rounds, each of every command once; sides go first in turn."""
    threads: Positive | None = None
    """Threads inside an operation; None: torch's own choice."""
    output: LaxPath | None = None
    """JSON file for the record; None: none is written."""
