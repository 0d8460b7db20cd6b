"""Counts answers that rounding decides: one adapter, evaluated in float32 and in several ways in bfloat16.

    python benchmarks/answers_in_bfloat16.py --run runs/boolq --task boolq --data boolq/test.json \
        --eval-rows 300 --output answers.json

All use the protocol `generate`:

- `float32`: the adapter merged into a float32 base, where rounding decides almost nothing;
- `beside`: in bfloat16 as in `doratune eval`, with the adapter not merged;
- `merged`: the same on weights merged in bfloat16, as the original study merges them;
- `merged, one row at a time`: `benchmarks/pipeline/reference.py` on such weights.

The last two have the same weights and differ only in which rows run together. The record counts, for each
pair of ways, the rows with the same answer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel

from doratune.data.examples import build_examples
from doratune.data.source import LoadedData, load_split
from doratune.data.tasks import get_task
from doratune.environment import describe_environment
from doratune.evaluation.config import EvalConfig
from doratune.evaluation.generate import extract_answer, generate_answers
from doratune.models.load import load_model
from doratune.peft import enable
from doratune.records.files import write_json_atomic
from doratune.records.layout import ADAPTER_NAME
from doratune.records.storage import read_record
from pipeline import reference

SETTINGS = (
    "method",
    "rows",
    "epochs",
    "batch_size",
    "learning_rate",
    "warmup_steps",
    "rank",
    "alpha",
    "dropout",
    "loss_on",
    "dtype",
    "seed",
)
"""The settings of the run that go into the record."""

Answers = list[str | None]


def ours(options: argparse.Namespace, loaded: LoadedData) -> Iterator[tuple[str, Answers]]:
    """The answers of doratune's own `generate`, by way."""
    task = get_task(options.task)
    examples = build_examples(
        loaded.rows[: options.eval_rows], source=loaded.source, fmt="instruct", task=task
    )
    batch_size = EvalConfig.model_fields["eval_batch_size"].default
    for way, dtype, merges in (
        ("float32", "float32", True),
        ("beside", "bfloat16", False),
        ("merged", "bfloat16", True),
    ):
        base = load_model(options.model, dtype=dtype)
        model = PeftModel.from_pretrained(base.model, str(options.run / ADAPTER_NAME))
        enable(model)
        answering: torch.nn.Module = model.merge_and_unload() if merges else model
        texts = generate_answers(answering, base.tokenizer, examples, batch_size=batch_size)
        pairs = zip(texts, examples, strict=True)
        yield way, [extract_answer(text, task.pattern, example.labels) for text, example in pairs]


def one_row_at_a_time(options: argparse.Namespace) -> Answers:
    """The reference's answers in bfloat16."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "predictions.jsonl"
        own = {"adapter": str(options.run / ADAPTER_NAME), "dtype": "bfloat16", "output": file}
        reference.evaluate(argparse.Namespace(**{**vars(options), **own}))
        return [json.loads(line)["prediction"] for line in file.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="run directory of doratune train")
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--eval-rows", type=int)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    loaded = load_split(get_task(options.task), "test", data=options.data)
    answers = dict(ours(options, loaded))
    answers["merged, one row at a time"] = one_row_at_a_time(options)
    same = [
        {"ways": [a, b], "same": sum(x == y for x, y in zip(answers[a], answers[b], strict=True))}
        for a, b in itertools.combinations(answers, 2)
    ]
    for pair in same:
        print(f"{' | '.join(pair['ways'])}: {pair['same']} of {len(answers['float32'])}")
    write_json_atomic(
        options.output,
        {
            "task": options.task,
            "data_sha256": loaded.sha256,
            "rows": len(answers["float32"]),
            "run": {name: read_record(options.run).config[name] for name in SETTINGS},
            "agreement": same,
            "threads": torch.get_num_threads(),
            "environment": describe_environment().to_dict(),
        },
    )


if __name__ == "__main__":
    main()
