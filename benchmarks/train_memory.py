"""Compares the memory that ``doratune train --dry-run`` estimates with what the run then takes.

    python benchmarks/train_memory.py train-memory.json

Each run trains the built-in model for two steps, in a separate process. The rows of a step are sorted by
length into micro-batches, so the longest rows, for which the estimate is made, are in one of them.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from doratune.environment import describe_environment
from doratune.records.files import write_json_atomic
from doratune.records.storage import read_record

ROWS, WORDS = 16, (40, 200)
COMMON = f"--rows {ROWS} --batch-size {ROWS} --steps 2 --task multiple-choice --cutoff 512".split()
SETTINGS = {
    "DoRA": "--method dora --micro-batch-size 8",
    "DoRA, float32": "--method dora --micro-batch-size 8 --dtype float32",
    "DoRA, checkpointed": "--method dora --micro-batch-size 8 --gradient-checkpointing",
    "LoRA": "--method lora --micro-batch-size 8",
    "PEFT's DoRA, TRL's forward pass": "--method dora --micro-batch-size 8 --engine peft --speedups off",
    "all weights": "--method full --micro-batch-size 8",
}


def write_rows(path: Path) -> None:
    """Questions of different lengths about nothing."""
    draw = random.Random(0)
    words = ["river", "stone", "quiet", "seven", "under", "green", "walks", "paper", "light", "north"]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(ROWS):
            question = " ".join(draw.choices(words, k=draw.randint(*WORDS)))
            row = {"question": question, "choices": words[:4], "answer": draw.randrange(4)}
            file.write(json.dumps(row) + "\n")


def doratune(*arguments: str) -> str:
    command = [sys.executable, "-m", "doratune", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "rows.jsonl"
        write_rows(data)
        for number, (name, flags) in enumerate(SETTINGS.items()):
            run = Path(scratch) / str(number)
            given = ["train", *COMMON, *flags.split(), "--data", str(data), "--output", str(run)]
            estimate = json.loads(doratune(*given, "--dry-run", "--json"))
            doratune(*given)
            training = read_record(run).training
            assert training is not None
            measured, estimated = training.peak_memory_bytes, estimate["peak_bytes"]
            results.append(
                {
                    "name": name,
                    "flags": flags,
                    "estimated_bytes": estimated,
                    "parts": estimate["size"]["memory"]["parts"],
                    "measured_bytes": measured,
                    "ratio": estimated / measured,
                }
            )
            print(f"{name}: {estimated / 1e9:.2f} GB estimated, {measured / 1e9:.2f} GB measured")
    record = {"model": "smollm2-135m", "results": results, "environment": describe_environment().to_dict()}
    write_json_atomic(Path(sys.argv[1]), record)


if __name__ == "__main__":
    main()
