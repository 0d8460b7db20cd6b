"""How much of DoRA adapters plain LoRA of several ranks can hold.

    python benchmarks/convert_ranks.py RUN [RUN ...] --data TEST.json --rows 500 --output convert-ranks.json

Each run is a DoRA run of one task. Its adapter is converted into LoRA of every rank of ``--rank auto``, and
each conversion is compared with it: the share of ‖ΔW‖ left out, the next-token distributions on some test
rows, and the accuracy on the first rows of the test set. Results in the output are kept and not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
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
from doratune.serving.best_lora import Conversion
from doratune.serving.check import compare_logits, logits_of
from doratune.serving.convert_config import RANKS
from doratune.serving.cost import compare, of_conversion, score

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


def measure(run: str, data: Path | None, rows: int) -> dict[str, Any]:
    source = open_adapted(run)
    assert source.record is not None
    settings = source.record.config
    (task,) = settings["task"]
    conversion = Conversion(source, RANKS[-1])
    whole = math.hypot(*(one.norm for one in conversion.layers(RANKS[-1])))
    deviation, magnitudes = magnitude(source)

    loaded = load_split(get_task(task), "test", data=data)
    examples = build_examples(
        loaded.rows[:CHECKED], source=loaded.source, fmt=settings["format"], task=get_task(task)
    )
    tokenizer = source.base.tokenizer
    ids = [torch.tensor([tokenizer(one.prompt + one.candidates[one.gold]).input_ids]) for one in examples]

    def logits(folder: Path) -> dict[int, torch.Tensor]:
        base = load_model(source.base_record.name, dtype="float32").model
        model = PeftModel.from_pretrained(base, str(folder))
        return {id(row): logits_of(model)(row) for row in ids}

    before = logits(source.adapter)
    evaluation = EvalConfig(target=run, task=[task], data=data, eval_rows=rows)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        answers = score(evaluation, place / "source")
        for rank in RANKS:
            folder = place / f"lora-{rank}"
            folder.mkdir()
            conversion.write(folder, rank)
            after = logits(folder)
            check = compare_logits(lambda row: before[id(row)], lambda row, after=after: after[id(row)], ids)
            config = of_conversion(evaluation, answers, folder, place)
            (accuracy,) = compare(answers, score(config, place / f"answers-{rank}"))
            found.append(
                {
                    "rank": rank,
                    "left_out": conversion.left_out(rank),
                    "kl": check.kl_mean,
                    "kl_largest": check.kl_largest,
                    "same_top": check.top1,
                    "positions": check.positions,
                    "accuracy": accuracy.converted,
                    "only_source": accuracy.only_source,
                    "only_converted": accuracy.only_converted,
                    "p_value": accuracy.p_value,
                }
            )
            print(f"{run}, LoRA of rank {rank}: {found[-1]}", flush=True)
    assert source.record.training is not None
    return {
        "rank": settings["rank"],
        "alpha": settings["alpha"],
        "steps": source.record.training.steps,
        "learning_rate": settings["learning_rate"],
        "train_rows": sum(one.rows for one in source.record.data),
        "accuracy": answers.evaluations[0].accuracy,
        "gain_deviation": deviation,
        "magnitude_share": magnitudes / whole,
        "same_rank_left_out": conversion.left_out(settings["rank"]),
        "task": task,
        "format": settings["format"],
        "ranks": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    configure_logging()
    results = json.loads(given.output.read_text())["results"] if given.output.exists() else []
    known = {(one["rank"], one["steps"], one["learning_rate"]) for one in results}
    for run in given.runs:
        record = open_adapted(run).record
        assert record is not None and record.training is not None
        if (record.config["rank"], record.training.steps, record.config["learning_rate"]) in known:
            continue
        results.append(measure(run, given.data, given.rows))
        write_json_atomic(
            given.output,
            {
                "model": record.model.name,
                "check_rows": CHECKED,
                "eval_rows": given.rows,
                "results": results,
                "environment": describe_environment().to_dict(),
            },
        )


if __name__ == "__main__":
    main()
