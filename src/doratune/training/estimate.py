"""Estimates a run's time before its first step, from the forward and backward passes of a few rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from doratune.speedups._internals import has_fused_head
from doratune.training.trainer import RowTrainer

ROWS = 4
"""Rows of the first measurement, if a micro-batch has as many. Each further one has this many times more."""
ENOUGH_SECONDS = 0.5
"""A measurement this long is scaled to a whole step. In a shorter one, fixed costs weigh too much."""
RECOMPUTED = 4 / 3
"""Time with gradient checkpointing, relative to without; it is not yet on when the rows are measured."""


def seconds_per_step(trainer: RowTrainer) -> float | None:
    """Seconds per optimizer step, estimated from a few rows of typical length.

    The model and the random numbers that training will draw stay as they are.

    Args:
        trainer: A trainer that has not begun.

    Returns:
        The estimate; None if no process has the whole model.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return None
    args, lengths = trainer.args, trainer.batches.lengths
    checkpointed = bool(args.gradient_checkpointing)
    count = 1 if checkpointed else min(ROWS, args.per_device_train_batch_size)
    rows = _usual(lengths, count)
    compute(trainer, rows)  # the first call also allocates memory and tries out which code is fastest
    seconds = compute(trainer, rows)
    # Without checkpointing, more rows might not fit into the memory.
    while not checkpointed and seconds < ENOUGH_SECONDS and len(rows) < args.per_device_train_batch_size:
        rows = _usual(lengths, min(ROWS * len(rows), args.per_device_train_batch_size))
        if len(rows) == count:  # there are no more
            break
        count, seconds = len(rows), compute(trainer, rows)
    each = seconds / sum(lengths[row] for row in rows)
    in_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    tokens = min(in_step, len(lengths)) * sum(lengths) / len(lengths)
    return each * tokens * (RECOMPUTED if checkpointed else 1.0)


def _usual(lengths: Sequence[int], count: int) -> list[int]:
    """Rows of about the median length."""
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    start = max((len(by_length) - count) // 2, 0)
    return by_length[start : start + count]


def compute(trainer: RowTrainer, rows: list[int]) -> float:
    """Seconds of a forward and backward pass; the model and the random numbers stay as they are."""
    model: Any = trainer.model
    inputs = trainer.inputs(rows)
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    model.train()
    with torch.random.fork_rng(gpus):
        _wait()
        started = time.perf_counter()
        with trainer.accelerator.autocast():
            loss = loss_of(model, inputs)
        loss.backward()
        _wait()
        seconds = time.perf_counter() - started
    model.zero_grad(set_to_none=True)
    return seconds


def loss_of(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """The loss as SFTTrainer computes it: by TRL's head, which never forms the logits of a whole batch.

    TRL before 1.15 has no such head, and forms them.
    """
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if has_fused_head(inner):
        return -model(**inputs, fused_lm_head=True).log_probs.mean()
    return model(**inputs).loss


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
