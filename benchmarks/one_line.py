"""Measures what `doratune.enable(model)` does to the optimizer steps of a user's script.

    python benchmarks/one_line.py float32 one-line.json

Stock TRL with PEFT's LoRA and DoRA is compared with the same two scripts plus that one line. As in
`doratune bench step`, each runs in a separate process, in turn, step by step, and must have the same losses
as its counterpart. TRL checkpoints activations by default; both ways are measured.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any, get_args

import torch

from doratune.bench.cases import in_dtype
from doratune.bench.figures import WARMUP_ROUNDS, time_ratios
from doratune.bench.step.bench import train_in_turn
from doratune.bench.step.cases import read_steps
from doratune.bench.step.providers import ONE_LINE
from doratune.environment import describe_environment
from doratune.models.builtin import resolve_builtin
from doratune.records.bench import DType, StepCase
from doratune.records.files import write_json_atomic

MODEL, CASE, ROUNDS = "smollm2-135m", "16x64-r32", 7


def measure(case: StepCase) -> dict[str, Any]:
    """Times, ratios to PEFT's and peak memory of each provider."""
    training = train_in_turn(case, MODEL, WARMUP_ROUNDS + ROUNDS, ONE_LINE)
    timed = {name: rounds[WARMUP_ROUNDS:] for name, rounds in training.milliseconds.items()}
    return {
        name: {
            "milliseconds": {"median": statistics.median(timed[name]), "rounds": timed[name]},
            "time_ratios": time_ratios(timed, name, ["peft-lora", "peft-dora"]),
            "peak_bytes": training.reports[name].peak_bytes,
            "losses": training.losses[name],
        }
        for name in timed
    }


def main() -> None:
    dtype, output = sys.argv[1], Path(sys.argv[2])
    if dtype not in get_args(DType):
        sys.exit(f"unknown dtype {dtype}: one of {', '.join(get_args(DType))}")
    resolve_builtin(MODEL)  # here, so that no two processes create it at once
    case = in_dtype(read_steps().select("headline", [CASE])[0].case(), dtype)  # pyright: ignore[reportArgumentType]
    results = []
    for checkpointed in (True, False):
        providers = measure(case.model_copy(update={"gradient_checkpointing": checkpointed}))
        results.append({"gradient_checkpointing": checkpointed, "providers": providers})
        for name, found in providers.items():
            lora, dora = (found["time_ratios"][other] for other in ("peft-lora", "peft-dora"))
            print(
                f"activations {'checkpointed' if checkpointed else 'kept'}, {name}: "
                f"{found['milliseconds']['median']:.0f} ms, {lora:.2f} of PEFT's LoRA, {dora:.2f} of DoRA, "
                f"{found['peak_bytes'] / 2**30:.2f} GB"
            )
    write_json_atomic(
        output,
        {
            "model": MODEL,
            "case": case.model_dump(mode="json", exclude={"gradient_checkpointing"}),
            "threads": torch.get_num_threads(),
            "results": results,
            "environment": describe_environment().to_dict(),
        },
    )


if __name__ == "__main__":
    main()
