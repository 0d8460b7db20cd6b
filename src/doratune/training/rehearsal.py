"""Estimates a run's steps, time and memory without training or writing anything."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doratune.memory import peak_memory_bytes
from doratune.models.fingerprint import model_record
from doratune.training import run_directory
from doratune.training.callbacks import MetricsCallback, StopCallback
from doratune.training.checkpoints import refuse_other_base, refuse_other_data
from doratune.training.config import TrainConfig
from doratune.training.early import Rows, refuse_early
from doratune.training.estimate import compute, seconds_per_step
from doratune.training.train import build_trainer, encode_rows, load_base
from doratune.training.trainer import RowTrainer

ADAM_BYTES = 8
"""AdamW's two averages of each trained parameter, in float32."""


@dataclass(frozen=True)
class Rehearsal:
    """The estimate of a run.

    Attributes:
        rows: Training rows.
        longest: Tokens of the longest one.
        tokens: Tokens trained on, over all steps.
        steps: Optimizer steps.
        warmup_steps: How many of them warm up.
        seconds: Estimated time of training; None if no process has the whole model.
        memory_bytes: Peak memory of the process, measured with the longest rows; None likewise.
    """

    rows: int
    longest: int
    tokens: int
    steps: int
    warmup_steps: int
    seconds: float | None
    memory_bytes: int | None


def rehearse(
    config: TrainConfig, loaded: Rows, *, resume: bool = False, overwrite: bool = False
) -> Rehearsal:
    """Load a run's model and rows, and compute one micro-batch of its longest rows.

    Args:
        config: The resolved configuration.
        loaded: The result of ``load_rows`` for it.
        resume: As in ``train``, with the same refusals.
        overwrite: As in ``train``.

    Raises:
        InputError: As in ``train``.
    """
    refuse_early(config, resume=resume, overwrite=overwrite)
    checkpoint = run_directory.checkpoint_to_resume(config) if resume else None
    examples, data = loaded
    if checkpoint is not None:
        refuse_other_data(checkpoint, data)
    base = load_base(config)
    if checkpoint is not None:
        refuse_other_base(checkpoint, model_record(base))
    rows = encode_rows(config, base, examples)
    with tempfile.TemporaryDirectory(prefix="doratune-") as scratch:  # the Trainer creates its folder
        elsewhere = config.model_copy(update={"output": Path(scratch)})
        metrics = MetricsCallback(elsewhere.output)
        trainer, _ = build_trainer(elsewhere, base, rows, metrics, StopCallback())
        lengths = trainer.batches.lengths
        steps = config.total_steps(len(lengths))
        each = seconds_per_step(trainer)
        return Rehearsal(
            rows=len(lengths),
            longest=max(lengths),
            tokens=sum(trainer.batches.tokens(step) for step in range(steps)),
            steps=steps,
            warmup_steps=config.warmup(steps),
            seconds=None if each is None else each * steps,
            memory_bytes=None if each is None else _memory(trainer),
        )


def _memory(trainer: RowTrainer) -> int:
    """The highest memory of a step on the longest rows."""
    args, model = trainer.args, trainer.model
    adapted: Any = model
    if args.gradient_checkpointing:
        adapted.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
    lengths = trainer.batches.lengths
    longest = sorted(range(len(lengths)), key=lengths.__getitem__)[-args.per_device_train_batch_size :]
    compute(trainer, longest)
    trained = sum(one.numel() for one in adapted.parameters() if one.requires_grad)
    return peak_memory_bytes() + ADAM_BYTES * trained
