"""How much of DoRA adapters plain LoRA of several ranks can hold.

    python benchmarks/convert_ranks.py RUN [RUN ...] --work FOLDER --output convert-ranks.json

Each run is a DoRA run of one task. Its adapter is converted into LoRA of every rank of ``--rank auto``, and
each conversion is compared with it: the share of ‖ΔW‖ left out, the next-token distributions on some test
rows, and the accuracy on the first rows of the test set. What the output holds is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from doratune.cli.output import configure_logging
from doratune.data.examples import build_examples
from doratune.data.source import load_split
from doratune.data.tasks import get_task
from doratune.environment import describe_environment
from doratune.evaluation.config import EvalConfig
from doratune.models.load import load_model
from doratune.records.files import write_json_atomic
from doratune.serving.adapted import AdaptedBase, open_adapted
from doratune.serving.check import compare_logits, logits_of
from doratune.serving.converting.best_lora import Conversion
from doratune.serving.converting.config import RANKS
from doratune.serving.converting.cost import compare, of_conversion, score

CHECKED = 32
"""Test rows on which next-token distributions are compared."""


def magnitude(source: AdaptedBase) -> tuple[float, float]:
    """The root mean square of g - 1 over all rows, and ‖(g - 1) ⊙ W‖."""
    deviations, norms = [], []
    for layer in source.layers():
        W = layer.weight()
        gain = layer.gain(W)
        assert gain is not None
        deviations.append((gain - 1).square())
        norms.append(((gain - 1)[:, None] * W).norm().item())
    return torch.cat(deviations).mean().sqrt().item(), math.hypot(*norms)


def texts_of(task: str, form: Any, data: Path | None) -> list[str]:
    """The first test rows, with their right answers."""
    loaded = load_split(get_task(task), "test", data=data)
    examples = build_examples(loaded.rows[:CHECKED], source=loaded.source, fmt=form, task=get_task(task))
    return [one.prompt + one.candidates[one.gold] for one in examples]


def convert(run: str, data: Path | None, work: Path) -> dict[str, Any]:
    """Convert an adapter into every rank, into folders of ``work``, and compare the distributions."""
    source = open_adapted(run)
    assert source.record is not None and source.record.training is not None
    settings = source.record.config
    (task,) = settings["task"]
    conversion = Conversion(source, RANKS[-1])
    deviation, magnitudes = magnitude(source)
    tokenizer = source.base.tokenizer
    ids = [torch.tensor([tokenizer(one).input_ids]) for one in texts_of(task, settings["format"], data)]

    def logits(folder: Path) -> dict[int, torch.Tensor]:
        base = load_model(source.base_record.name, dtype="float32").model
        model = PeftModel.from_pretrained(base, str(folder))
        return {id(row): logits_of(model)(row) for row in ids}

    before = logits(source.adapter)
    found = []
    for rank in RANKS:
        folder = work / Path(run).name / f"lora-{rank}"
        folder.mkdir(parents=True, exist_ok=True)
        conversion.write(folder, rank)
        after = logits(folder)
        check = compare_logits(lambda row: before[id(row)], lambda row, after=after: after[id(row)], ids)
        found.append(
            {
                "rank": rank,
                "left_out": conversion.left_out(rank),
                "kl": check.kl_mean,
                "kl_largest": check.kl_largest,
                "same_top": check.top1,
                "positions": check.positions,
            }
        )
        print(f"{run}, LoRA of rank {rank}: {found[-1]}", flush=True)
    return {
        "name": Path(run).name,
        "task": task,
        "format": settings["format"],
        "rank": settings["rank"],
        "alpha": settings["alpha"],
        "steps": source.record.training.steps,
        "learning_rate": settings["learning_rate"],
        "train_rows": sum(one.rows for one in source.record.data),
        "gain_deviation": deviation,
        "magnitude_share": magnitudes / math.hypot(*(one.norm for one in conversion.layers(RANKS[-1]))),
        "same_rank_left_out": conversion.left_out(settings["rank"]),
        "ranks": found,
    }


def answer(result: dict[str, Any], run: str, given: argparse.Namespace, save: Callable[[], None]) -> None:
    """Compare the accuracies of an adapter and of its conversions into some ranks."""
    evaluation = EvalConfig(target=run, task=[result["task"]], data=given.data, eval_rows=given.rows)
    place = given.work / result["name"]
    before = score(evaluation, place / "answers")
    result["accuracy"] = before.evaluations[0].accuracy
    for one in result["ranks"]:
        if one["rank"] not in (*given.accuracy, result["rank"]) or "accuracy" in one:
            continue
        folder = place / f"lora-{one['rank']}"
        (found,) = compare(
            before, score(of_conversion(evaluation, before, folder, place), folder / "answers")
        )
        one |= {
            "accuracy": found.converted,
            "only_source": found.only_source,
            "only_converted": found.only_converted,
            "p_value": found.p_value,
        }
        print(f"{run}, LoRA of rank {one['rank']}: {one}", flush=True)
        save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data", type=Path, help="the rows of the test set")
    parser.add_argument("--rows", type=int, default=500, help="how many of them")
    parser.add_argument(
        "--accuracy", type=int, nargs="*", default=RANKS, help="LoRA ranks besides DoRA's own"
    )
    parser.add_argument("--work", type=Path, required=True, help="a folder for the conversions and answers")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    configure_logging()
    record = json.loads(given.output.read_text()) if given.output.exists() else {"results": []}
    results: list[dict[str, Any]] = record["results"]

    def save() -> None:
        write_json_atomic(
            given.output,
            {
                "model": "smollm2-135m",
                "check_rows": CHECKED,
                "eval_rows": given.rows,
                "results": sorted(results, key=lambda one: (one["steps"], one["rank"])),
                "environment": describe_environment().to_dict(),
            },
        )

    for run in given.runs:
        if Path(run).name not in [one["name"] for one in results]:
            results.append(convert(run, given.data, given.work))
            save()
    for run in given.runs:
        if given.accuracy:
            answer(next(one for one in results if one["name"] == Path(run).name), run, given, save)
    save()


if __name__ == "__main__":
    main()
