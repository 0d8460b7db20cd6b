"""Measures the cost of ranking candidate answers, relative to one forward pass over the same prompts.

    python benchmarks/likelihood_cost.py hellaswag path/to/hellaswag/test.json likelihood.json

Both process the same rows in the same batches, in turn, three times. The plain pass runs every prompt in
full, with logits only at its last token. `score_candidates` runs the tokens that the prompts share once, and
then all candidates after each prompt. Candidates are labels ("ending3") in the format `instruct` and whole
endings in `continuation`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from doratune.data.encode import encode_prompts
from doratune.data.examples import Example, build_examples
from doratune.data.source import load_split
from doratune.data.tasks import get_task
from doratune.environment import describe_environment
from doratune.evaluation.batching import batches_by_length
from doratune.evaluation.likelihood import score_candidates
from doratune.models.load import LoadedModel, load_model
from doratune.records.files import write_json_atomic

ROWS, BATCH, ROUNDS = 128, 32, 3


@torch.inference_mode()
def run_prompts(base: LoadedModel, examples: Sequence[Example]) -> None:
    """One forward pass over every prompt, in the batches of `score_candidates`."""
    model: Any = base.model
    prompts = encode_prompts(base.tokenizer, [example.prompt for example in examples])
    for batch in batches_by_length([len(prompt) for prompt in prompts], BATCH):
        width = max(len(prompts[row]) for row in batch)
        ids, mask = (torch.zeros(len(batch), width, dtype=torch.long) for _ in range(2))
        for place, row in enumerate(batch):
            start = width - len(prompts[row])
            ids[place, start:], mask[place, start:] = torch.tensor(prompts[row]), 1
        # By index: for the slice of logits_to_keep=1, the head's product copies its weight row by row.
        last = torch.tensor([width - 1])
        model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=last)


def timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    task, path, output = get_task(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    base, loaded = load_model("smollm2-135m"), load_split(task, "test", data=path)
    results: list[dict[str, Any]] = []
    for fmt in ("instruct", "continuation"):
        examples = build_examples(loaded.rows[:ROWS], source=loaded.source, fmt=fmt, task=task)
        rounds = []
        for number in range(ROUNDS + 1):
            passes = timed(lambda: run_prompts(base, examples))  # noqa: B023 called at once
            scores = timed(
                lambda: score_candidates(base.model, base.tokenizer, examples, batch_size=BATCH)  # noqa: B023
            )
            if number:  # the first one warms up
                rounds.append({"prompts_seconds": passes, "likelihood_seconds": scores})
        ratio = statistics.median(one["likelihood_seconds"] / one["prompts_seconds"] for one in rounds)
        candidates = len(examples[0].candidates)
        results.append({"format": fmt, "candidates": candidates, "ratio": ratio, "rounds": rounds})
        print(f"{task.name} {fmt}: {candidates} candidates, {ratio:.2f} of one pass over the prompts")
    write_json_atomic(
        output,
        {
            "task": task.name,
            "rows": ROWS,
            "batch_size": BATCH,
            "data_sha256": loaded.sha256,
            "threads": torch.get_num_threads(),
            "results": results,
            "environment": describe_environment().to_dict(),
        },
    )


if __name__ == "__main__":
    main()
