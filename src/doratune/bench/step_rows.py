"""The rows of a case: the same for every provider, and in every process."""

from __future__ import annotations

import torch
from datasets import Dataset

from doratune.data.encode import IGNORED
from doratune.records.bench import StepCase


def draw_rows(case: StepCase, vocabulary: int) -> Dataset:
    """Rows of random tokens, drawn from a fixed seed.

    They are one batch, so that every optimizer step takes all of them: in whatever order a trainer draws
    them, all providers train on the same.

    Args:
        case: Number and length of the rows, and which tokens are trained on.
        vocabulary: Number of token ids.

    Returns:
        ``input_ids`` and ``labels`` (-100 where there is no loss), (rows, tokens) each.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (case.rows, case.tokens), generator=generator)
    labels = ids.clone()
    if case.loss_on == "answer":
        labels[:, : -case.answer_tokens] = IGNORED
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
