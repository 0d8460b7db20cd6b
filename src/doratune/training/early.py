"""Checks before torch is imported and a model is loaded: a mistake costs one second, not ten."""

from __future__ import annotations

import math

from doratune.data.examples import Example
from doratune.errors import InputError
from doratune.models.names import refuse_unknown_model
from doratune.records.folders import refuse_output
from doratune.records.run import DataRecord
from doratune.training import run_directory
from doratune.training.config import TrainConfig, check_method
from doratune.training.data import load_training_examples

Rows = tuple[list[Example], list[DataRecord]]
"""Training rows and the records of their sources, as ``load_training_examples`` returns them."""


def refuse_early(config: TrainConfig, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse unusable settings, folders and names, as far as can be told without rows or a model.

    Args:
        config: The resolved configuration.
        resume: Continue from the last checkpoint in ``config.output``.
        overwrite: Replace the run in ``config.output``.

    Raises:
        InputError: Something cannot be used.
    """
    if resume and overwrite:
        raise InputError(
            "a run is resumed or replaced, not both",
            where="--resume, --overwrite",
            fix="give one of the two",
        )
    check_method(config)
    if config.batch_size % (config.micro_batch_size or 1):
        raise uneven_batch(config, f"micro-batches of {config.micro_batch_size}")
    if config.steps is not None:
        config.warmup(config.steps)
    refuse_output(config.output)
    if resume:
        run_directory.refuse_other_run(config)
    elif not overwrite:
        run_directory.refuse_taken(config.output)
    refuse_unknown_model(config.model)


def load_rows(config: TrainConfig) -> Rows:
    """The training rows, checked to be enough for the warm-up.

    Raises:
        InputError: They cannot be used.
        DoratuneError: The hub cannot be reached.
    """
    examples, records = load_training_examples(config)
    held_out = math.ceil(config.validation_share * len(examples))
    config.warmup(config.total_steps(len(examples) - held_out))
    return examples, records


def uneven_batch(config: TrainConfig, how: str) -> InputError:
    """The error for a batch that cannot be divided evenly.

    Args:
        config: The configuration with its size.
        how: The parts to divide it into.
    """
    return InputError(
        "the batch cannot be divided evenly",
        where="--batch-size, --micro-batch-size",
        got=f"{config.batch_size} rows in {how}",
        expected="batch size = micro-batch size x devices x a whole number",
    )
