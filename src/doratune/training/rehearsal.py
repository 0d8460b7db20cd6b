"""Estimates a run's steps, memory and time without training or writing anything."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset

from doratune.engine._internals import FakeTensor
from doratune.errors import DoratuneError, InputError
from doratune.methods.find import get_method
from doratune.models.builtin import BUILTIN
from doratune.models.fingerprint import model_record
from doratune.models.gguf import first_line
from doratune.models.load import LoadedModel, load_model
from doratune.models.weights import weights_folder
from doratune.processes import join_processes
from doratune.training import run_directory
from doratune.training.batches import RowBatches
from doratune.training.callbacks import MetricsCallback, StopCallback
from doratune.training.checkpoints import refuse_other_base, refuse_other_data, refuse_other_method
from doratune.training.config import TrainConfig
from doratune.training.early import Rows, micro_batch, refuse_early, refuse_split_layers
from doratune.training.estimate import seconds_per_step
from doratune.training.memory_estimate import Estimate, Sharding, Target, estimate_memory
from doratune.training.train import build_trainer, encode_rows, load_base, split_rows

logger = logging.getLogger(__name__)

TIMED_BYTES = 1_000_000_000
"""A model with weights up to this size is loaded to measure how fast it trains; that takes seconds."""


@dataclass(frozen=True)
class Rehearsal:
    """The estimate of a run.

    Attributes:
        rows: Training rows, without those that validate.
        longest: Tokens of the longest one.
        tokens: Tokens trained on, over all steps.
        steps: Optimizer steps.
        warmup_steps: How many of them warm up.
        seconds: Estimated time of training; None if it was not measured.
        target: Where it will train.
        size: Parameters, and the memory of each process in a step; None if the model's code does not run
            without its weights.
        loading_bytes: What a process on a CPU holds while it loads the weights; None if it is not known, or
            on a GPU, which holds no more then than in a step.
    """

    rows: int
    longest: int
    tokens: int
    steps: int
    warmup_steps: int
    seconds: float | None
    target: Target
    size: Estimate | None
    loading_bytes: int | None

    @property
    def peak_bytes(self) -> int | None:
        """The most that a process holds; None if it is not known."""
        memory = self.size and self.size.memory
        return memory and max(memory.total, self.loading_bytes or 0)


def rehearse(
    config: TrainConfig,
    loaded: Rows,
    *,
    device: str | None = None,
    processes: int | None = None,
    sharding: Sharding | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Rehearsal:
    """Estimate a run from its configuration and its rows, in most cases without loading the weights.

    They are loaded to compare them with those of a run that is resumed, and where measuring the time is
    quick: see ``TIMED_BYTES``. This process computes on the CPU from then on, also where there are GPUs.

    Args:
        config: The resolved configuration.
        loaded: The result of ``load_rows`` for it.
        device: Where the run will train, cpu or cuda; None: as on this machine.
        processes: How many processes will train together; None: one.
        sharding: What they divide among them; None: nothing.
        resume: As in ``train``, with the same refusals.
        overwrite: As in ``train``.

    Raises:
        InputError: As in ``train``.
    """
    refuse_early(config, resume=resume, overwrite=overwrite)
    checkpoint = run_directory.checkpoint_to_resume(config) if resume else None
    examples, data = loaded
    if checkpoint is not None:
        refuse_other_method(checkpoint, get_method(config.method))
        refuse_other_data(checkpoint, data)
    here = "cuda" if torch.cuda.is_available() else "cpu"
    join_processes(cpu=True)  # GPUs are left alone
    count = processes or 1
    refuse_split_layers(config, count)
    micro_batch(config, count)
    if sharding not in (None, "none") and count == 1:
        raise InputError(
            "one process has nothing to divide",
            where="--sharding",
            got=sharding,
            fix="say how many processes will train: --processes N",
        )
    target = Target(device or here, count, sharding or "none")
    base = _outline(config, target)
    rows = encode_rows(config, base, examples)
    small = sum(one.nbytes for one in base.model.parameters()) <= TIMED_BYTES
    size = _size(config, base, rows, target)
    if checkpoint is not None:
        refuse_other_base(checkpoint, model_record(_load(config, target)))
    each = None
    if small and target == Target("cpu") and here == "cpu":
        each = _seconds_per_step(config, load_base(config), rows)
    training, _ = split_rows(config, rows)
    batches = RowBatches([len(row) for row in training["input_ids"]], micro=config.batch_size, accumulation=1)
    steps = config.total_steps(len(training))
    return Rehearsal(
        rows=len(training),
        longest=max(batches.lengths),
        tokens=sum(batches.tokens(step) for step in range(steps)),
        steps=steps,
        warmup_steps=config.warmup(steps),
        seconds=None if each is None else each * steps,
        target=target,
        size=size,
        loading_bytes=_loading_bytes(config.model, size) if target.device == "cpu" else None,
    )


def _load(config: TrainConfig, target: Target, *, content: bool = True) -> LoadedModel:
    """The base model on the CPU, in the dtype that the run will load it in; not quantised."""
    return load_model(
        config.model,
        dtype=_dtype(config, target),
        load_in_4bit=config.load_in_4bit and not content,  # refused if it cannot be
        trust_remote_code=config.trust_remote_code,
        content=content,
    )


def _outline(config: TrainConfig, target: Target) -> LoadedModel:
    """The base model without content, or with it if its code cannot create it without."""
    try:
        return _load(config, target, content=False)
    except InputError as error:
        base = _load(config, target)  # which has its own error if there is no such model
        problem = first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        logger.warning("the memory is not known: creating the model without its weights raises %s", problem)
        return base


def _size(config: TrainConfig, base: LoadedModel, rows: Dataset, target: Target) -> Estimate | None:
    if not isinstance(next(base.model.parameters()), FakeTensor):
        return None
    try:
        return estimate_memory(config, base, rows, target)
    except DoratuneError:
        raise
    except Exception as error:  # a model's own code may need values, and raise anything without them
        problem = f"{type(error).__name__}: {first_line(error)}"
        logger.warning("the memory is not known: a model without content raises %s", problem)
        return None


def _loading_bytes(model: str, size: Estimate | None) -> int | None:
    """A process with the loaded weights and, mapped into its memory, the files that they are read from."""
    if size is None or size.memory is None:
        return None
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
