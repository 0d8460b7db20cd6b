"""A small batch of rows that begin alike, and one step on it as SFTTrainer takes it."""

from __future__ import annotations

from typing import Any

import torch

from doratune.data.encode import IGNORED

PREFIX, ROWS = 10, 4
LENGTHS = (20, 17, 13, 15)


def batch(
    *, padding: str = "right", supervise_all: bool = False, rows: int = ROWS
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = LENGTHS * (rows // ROWS)
    width = max(lengths)
    prefix = torch.randint(1, 50, (PREFIX,), generator=generator)
    ids = torch.zeros(rows, width, dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        tokens = torch.cat([prefix, torch.randint(1, 50, (length - PREFIX,), generator=generator)])
        place = slice(0, length) if padding == "right" else slice(width - length, width)
        ids[row, place], mask[row, place] = tokens, 1
        supervised = tokens.clone()
        # The first token follows nothing but padding.
        supervised[: 1 if supervise_all else PREFIX + 1 + row % 2] = IGNORED
        labels[row, place] = supervised
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def step(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Sums of what SFTTrainer reads, and the gradients."""
    model.zero_grad(set_to_none=True)
    outputs = model(**inputs, use_cache=False, fused_lm_head=True)
    (-outputs.log_probs.sum() / outputs.label_mask.sum()).backward()
    names = ("log_probs", "entropy", "is_top1", "label_mask")
    read = {name: float(outputs[name].detach().sum()) for name in names}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return read, gradients
