"""Writes run directories with made-up numbers, for the tests of comparisons and reports."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from doratune.records.files import write_json_atomic, write_jsonl_atomic
from doratune.records.run import RunRecord

Z = 1.959963984540054
PARAMETERS = {"base": 0, "lora": 2_441_216, "dora": 2_532_416}
SECONDS = {"lora": 112.3, "dora": 105.9}
CONFIG = {
    "model": "tiny",
    "format": "continuation",
    "rank": 16,
    "alpha": 32,
    "targets": ["q_proj", "v_proj"],
    "learning_rate": 0.0002,
    "batch_size": 16,
    "bf16": False,
}


def wilson(correct: int, rows: int) -> list[float]:
    share, z2 = correct / rows, Z * Z
    middle = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = Z * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows * rows)) / (1 + z2 / rows)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def evaluation(task: str, flags: list[bool], **changes: Any) -> dict[str, Any]:
    rows, correct = len(flags), sum(flags)
    entry = {
        "task": task,
        "sample": task.startswith("sample-"),
        "format": "continuation",
        "protocol": "likelihood",
        "metric": "accuracy",
        "rows": rows,
        "correct": correct,
        "tied": None,
        "accuracy": correct / rows,
        "interval": wilson(correct, rows),
        "accuracy_raw": correct / rows,
        "accuracy_norm": correct / rows,
        "measures": None,
        "unmatched": 0,
        "chance": 0.5,
        "majority": 0.525,
        "seconds": 12.5,
        "processes": 1,
        "predictions": f"predictions/{task}.jsonl",
        "data": {
            "task": task,
            "source": "built-in",
            "split": "test",
            "sha256": "ab" * 32,
            "rows": rows,
            "parts": None,
            "definition": None,
        },
        "limit": None,
        "speedups": [],
        "other_base": None,
        "scored": None,
    }
    return entry | changes


def text(losses: list[float]) -> dict[str, Any]:
    """The loss of a text whose paragraphs have 20 tokens and 80 bytes each."""
    per_token = sum(losses) / (20 * len(losses))
    return {
        "name": "plain-english",
        "sha256": "ef" * 32,
        "pieces": [{"tokens": 20, "bytes": 80, "nll": loss} for loss in losses],
        "nll_per_token": per_token,
        "nll_per_byte": per_token / 4,
        "perplexity": math.exp(per_token),
        "tokens_per_second": 250.0,
        "scored": {
            "weights": "base",
            "merged": False,
            "merge_difference": None,
            "dtype": "float32",
            "weights_checksum": None,
        },
        "other_base": None,
    }


def record(method: str, evaluations: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    trained = method != "base"
    trainable = PARAMETERS.get(method, PARAMETERS["lora"])
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).isoformat()
    training = {
        "seconds": SECONDS.get(method, 1.0),
        "steps": 60,
        "epochs": 1.0,
        "tokens": 138_666,
        "tokens_per_second": 138_666 / SECONDS.get(method, 1.0),
        "peak_memory_bytes": 2_213_000_000,
        "final_loss": 0.412,
        "speedups": [{"name": "packing", "taken": 1, "left": {}}],
    }
    data = {"task": "sample-boolq", "source": "built-in", "split": "train", "sha256": "cd" * 32, "rows": 2000}
    whole = {
        "schema": "doratune.run",
        "schema_version": 1,
        "name": method,
        "method": method,
        "config": CONFIG | {"method": method, "engine": "doratune", "output": f"runs/{method}"},
        "model": {
            "name": "tiny",
            "source": "local cache",
            "dtype": "float32",
            "parameters": 134_515_008,
            "fingerprint": "v2:00112233:44556677",
            "config": {"transformers": "5.23.0", "settings": {"model_type": "llama"}},
            "tokenizer": {
                "vocabulary": 2,
                "eos": 1,
                "ends": [1],
                "prompts": {"a": "0"},
                "completions": {"a": "0"},
            },
        },
        "parameters": {
            "trainable": trainable,
            "total": 134_515_008 + trainable,
            "share": trainable / (134_515_008 + trainable),
        },
        "data": [data] if trained else [],
        "seed": 0,
        "training": training if trained else None,
        "evaluations": evaluations,
        "text": None,
        "environment": {
            "doratune": "0.1.0",
            "python": "3.11.7",
            "platform": "Linux-6.1-x86_64",
            "cpu": "Made-up Processor 9000",
            "cores": 2,
            "gpu": None,
            "packages": {"torch": "2.13.0", "peft": "0.21.2"},
            "git_commit": None,
        },
        "started": now,
        "finished": now,
    }
    return whole | changes


def write_run(directory: Path, method: str, answers: dict[str, list[bool]], **changes: Any) -> Path:
    """A finished run with the rows of each task right as ``answers`` says and ``changes`` in its record."""
    for task, flags in answers.items():
        rows = [
            {"row": row, "answer": "a", "prediction": "a" if right else "b", "correct": right}
            for row, right in enumerate(flags)
        ]
        write_jsonl_atomic(directory / f"predictions/{task}.jsonl", rows)
    if method != "base":
        shift = 0.05 if method == "dora" else 0.0
        metrics = [
            {"step": step, "loss": 0.4 + 2.2 * math.exp(-step / 9) + 0.12 * math.sin(9 * step + shift)}
            for step in range(1, 61)
        ]
        write_jsonl_atomic(directory / "metrics.jsonl", [*metrics, {"step": 60, "eval_loss": 0.5}])
    whole = record(method, [evaluation(task, flags) for task, flags in answers.items()], **changes)
    RunRecord.model_validate(whole)
    write_json_atomic(directory / "record.json", whole)
    return directory


def flags(correct: int, rows: int, first: int = 0) -> list[bool]:
    """``rows`` flags of which ``correct`` in a row are True, from ``first`` on and around."""
    return [(row - first) % rows < correct for row in range(rows)]


def three_runs(root: Path) -> list[Path]:
    """Base, LoRA and DoRA on two samples: undecided on one, better on the other."""
    answers = {
        "base": {"sample-boolq": flags(205, 400), "sample-winogrande": flags(198, 400)},
        "lora": {"sample-boolq": flags(322, 400), "sample-winogrande": flags(241, 400)},
        "dora": {"sample-boolq": flags(328, 400, 20), "sample-winogrande": flags(293, 400, 5)},
    }
    return [write_run(root / method, method, answers[method]) for method in ("base", "lora", "dora")]
