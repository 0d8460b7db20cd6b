"""Estimates a run's steps, memory and time without training or writing anything."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset

from doratune.models.builtin import BUILTIN
from doratune.models.fingerprint import model_record
from doratune.models.load import LoadedModel, load_model
from doratune.models.weights import weights_folder
from doratune.training import run_directory
from doratune.training.batches import RowBatches
from doratune.training.callbacks import MetricsCallback, StopCallback
from doratune.training.checkpoints import refuse_other_base, refuse_other_data
from doratune.training.config import TrainConfig
from doratune.training.early import Rows, refuse_early, uneven_batch
from doratune.training.estimate import seconds_per_step
from doratune.training.memory_estimate import Estimate, Sharding, Target, estimate_memory
from doratune.training.train import build_trainer, encode_rows, load_base

TIMED_BYTES = 1_000_000_000
"""A model with weights up to this size is loaded to measure how fast it trains; that takes seconds."""


@dataclass(frozen=True)
class Rehearsal:
    """The estimate of a run.

    Attributes:
        rows: Training rows.
        longest: Tokens of the longest one.
        tokens: Tokens trained on, over all steps.
        steps: Optimizer steps.
        warmup_steps: How many of them warm up.
        seconds: Estimated time of training; None if it was not measured.
        target: Where it will train.
        size: Parameters, and the memory of each process in a step.
        loading_bytes: What a process on a CPU holds while it loads the weights; None if the files are not
            here, or on a GPU, which holds no more then than in a step.
    """

    rows: int
    longest: int
    tokens: int
    steps: int
    warmup_steps: int
    seconds: float | None
    target: Target
    size: Estimate
    loading_bytes: int | None

    @property
    def peak_bytes(self) -> int:
        """The most that a process holds."""
        return max(self.size.memory.total, self.loading_bytes or 0)


def rehearse(
    config: TrainConfig,
    loaded: Rows,
    *,
    device: str | None = None,
    processes: int | None = None,
    sharding: Sharding = "none",
    resume: bool = False,
    overwrite: bool = False,
) -> Rehearsal:
    """Estimate a run from its configuration and its rows, in most cases without loading the weights.

    They are loaded to compare them with those of a run that is resumed, and where measuring the time is
    quick: see ``TIMED_BYTES``. GPUs are hidden from this process, which estimates on the CPU.

    Args:
        config: The resolved configuration.
        loaded: The result of ``load_rows`` for it.
        device: Where the run will train, cpu or cuda; None: as on this machine.
        processes: How many processes will train together; None: one.
        sharding: What they divide among them.
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
    here = "cuda" if _hide_gpus() else "cpu"
    target = Target(device or here, processes or 1, sharding)
    micro = config.micro_batch_size or max(config.batch_size // target.processes, 1)
    if config.batch_size % (micro * target.processes):
        raise uneven_batch(config, f"micro-batches of {micro} on {target.processes} device(s)")
    outline = load_model(
        config.model,
        dtype=_dtype(config, target),
        trust_remote_code=config.trust_remote_code,
        content=False,
    )
    rows = encode_rows(config, outline, examples)
    small = sum(one.nbytes for one in outline.model.parameters()) <= TIMED_BYTES
    size = estimate_memory(config, outline, rows, target)
    each = None
    if checkpoint is not None or (small and here == "cpu" and not (device or processes)):
        base = load_base(config)
        if checkpoint is not None:
            refuse_other_base(checkpoint, model_record(base))
        each = _seconds_per_step(config, base, rows)
    batches = RowBatches([len(row) for row in rows["input_ids"]], micro=config.batch_size, accumulation=1)
    steps = config.total_steps(len(rows))
    return Rehearsal(
        rows=len(rows),
        longest=max(batches.lengths),
        tokens=sum(batches.tokens(step) for step in range(steps)),
        steps=steps,
        warmup_steps=config.warmup(steps),
        seconds=None if each is None else each * steps,
        target=target,
        size=size,
        loading_bytes=_loading_bytes(config.model, size) if target.device == "cpu" else None,
    )


def _loading_bytes(model: str, size: Estimate) -> int | None:
    """A process with the loaded weights and, mapped into its memory, the files that they are read from."""
    if model not in BUILTIN and not Path(model).expanduser().is_dir():
        return None
    files = sum(file.stat().st_size for file in weights_folder(model).glob("*.safetensors"))
    return size.memory.process + size.memory.weights + files


def _seconds_per_step(config: TrainConfig, base: LoadedModel, rows: Dataset) -> float | None:
    with tempfile.TemporaryDirectory(prefix="doratune-") as scratch:  # the Trainer creates its folder
        elsewhere = config.model_copy(update={"output": Path(scratch)})
        metrics = MetricsCallback(elsewhere.output)
        trainer, _ = build_trainer(elsewhere, base, rows, metrics, StopCallback())
        return seconds_per_step(trainer)


def _dtype(config: TrainConfig, target: Target) -> str:
    """The dtype in which a run loads its weights. float16 is as large as bfloat16, which a CPU has too."""
    if config.dtype == "auto":
        if config.method == "full":
            return "float32"
        return "bfloat16" if target.device == "cuda" else "auto"
    return "bfloat16" if config.dtype == "float16" and target.device == "cuda" else config.dtype


def _hide_gpus() -> bool:
    """Hide this machine's GPUs from PyTorch, which has not used them yet.

    Returns:
        Whether there are any.
    """
    # PyTorch then counts them without a call to CUDA, after which they could not be hidden.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    found = torch.cuda.is_available()
    if found:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return found
