"""Checks before torch is imported and a model is loaded: a mistake costs one second, not ten."""

from __future__ import annotations

import math
import os

from doratune.data.examples import Example
from doratune.errors import InputError, did_you_mean
from doratune.launch import launched, refuse_lone_process
from doratune.methods.find import get_method
from doratune.models.names import refuse_unknown_model
from doratune.records.folders import refuse_output
from doratune.records.run import DataRecord
from doratune.training import run_directory
from doratune.training.config import TrainConfig, check_method
from doratune.training.data import load_training_examples

SPLITS = tuple(f"PARALLELISM_CONFIG_{one}_SIZE" for one in ("TP", "CP", "SP"))
"""Where ``accelerate launch --parallelism_config_tp_size 2`` and the like say how often layers are split."""
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
    refuse_lone_process()
    refuse_split_layers(config)
    check_method(config, get_method(config.method))
    if config.batch_size % (config.micro_batch_size or 1):
        raise uneven_batch(config, f"micro-batches of {config.micro_batch_size}")
    if config.steps is not None:
        config.warmup(config.steps)
    refuse_output(config.output)
    if resume:
        run_directory.refuse_other_run(config)
    elif overwrite:
        run_directory.refuse_foreign(config)
    else:
        run_directory.refuse_taken(config.output)
    refuse_unknown_model(config.model)
    if config.report_to:
        _refuse_trackers(config.report_to)


def _refuse_trackers(names: list[str]) -> None:
    """Refuse trackers that transformers does not know, or that are not installed."""
    from doratune.training._internals import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

    known, installed = sorted(INTEGRATION_TO_CALLBACK), get_available_reporting_integrations()
    for name in names:
        if name not in known:
            raise InputError(
                "unknown tracker",
                where="--report-to",
                got=name,
                expected=f"one of {', '.join(known)}",
                fix=did_you_mean(name, known),
            )
        if name not in installed:
            raise InputError(
                "the tracker is not installed", where="--report-to", got=name, fix=f"pip install {name}"
            )


def refuse_split_layers(config: TrainConfig, processes: int | None = None) -> None:
    """Refuse to train a model whose layers, or rows, are split over processes, except by FSDP and DeepSpeed.

    Args:
        config: The resolved configuration.
        processes: How many train together; None: as many as were started.

    Raises:
        InputError: Tensor, context or sequence parallelism is asked for, or a ``device_map`` in several
            processes.
    """
    split = [name for name in SPLITS if os.environ.get(name, "1") not in ("", "1")]
    if config.device_map == "tp":
        split.append("--device-map tp")
    if split:
        raise InputError(
            "train does not split layers or rows across processes",
            where=", ".join(split),
            got="a plan of tensor, context or sequence parallelism",
            expected="whole models (DDP), or sharded ones (FSDP2)",
            fix="leave it out; if a GPU is too small: accelerate launch --use_fsdp --fsdp_version 2",
        )
    processes = processes or launched().processes
    if config.device_map is not None and processes > 1:
        raise InputError(
            "a model is spread over devices or trained by several processes, not both",
            where="--device-map",
            got=f"{config.device_map} in {processes} processes",
            fix="leave --device-map out, or start one process",
        )


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


def micro_batch(config: TrainConfig, processes: int) -> int:
    """Rows that each of so many processes computes at a time.

    Raises:
        InputError: The batch cannot be divided evenly.
    """
    micro = config.micro_batch_size or max(config.batch_size // processes, 1)
    if config.batch_size % (micro * processes):
        raise uneven_batch(config, f"micro-batches of {micro} on {processes} device(s)")
    return micro


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
