"""The arms of a comparison, each trained and evaluated in a process of its own.

A process of its own gives every arm its own peak memory and the same fresh start; the runs are what
``doratune train`` and ``doratune eval`` would have written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from doratune.data.mix import without_mix
from doratune.errors import InputError
from doratune.records.layout import is_recorded, is_started, read_record
from doratune.records.run import Method
from doratune.study.config import CompareConfig
from doratune.study.process import run_alone, waiting_through_interrupts

ARMS: tuple[Method, ...] = ("base", "lora", "dora")


def run_arms(
    config: CompareConfig,
    overrides: Mapping[str, dict[str, Any]],
    *,
    resume: bool = False,
    overwrite: bool = False,
    initializer: Callable[[], None] | None = None,
) -> list[Path]:
    """Run base, LoRA and DoRA one after the other.

    Args:
        config: The comparison.
        overrides: Settings of single methods, as a preset gives them.
        resume: Keep the arms that are finished and go on with those that are not.
        overwrite: Start all arms again.
        initializer: Called first in each arm's process.

    Returns:
        The run directories.

    Raises:
        InputError: If the output folder holds arms and neither flag was given, or an arm's input is unusable.
    """
    folders = [config.output / arm for arm in ARMS]
    held = [str(folder) for folder in folders if folder.exists()]
    if held and not (resume or overwrite):
        raise InputError(
            "the output folder already holds a comparison",
            where="--output",
            got=", ".join(held),
            fix="choose another folder, or add --resume to go on or --overwrite to start again",
        )
    if overwrite:
        for folder in held:
            shutil.rmtree(folder)
    for arm in ARMS:
        with waiting_through_interrupts():
            run_alone(run_arm, arm, config, overrides.get(arm, {}), initializer=initializer)
    return folders


def run_arm(arm: Method, config: CompareConfig, overrides: dict[str, Any]) -> None:
    """Train and evaluate one arm, leaving out what its run directory already holds."""
    from doratune.evaluation.evaluate import evaluate
    from doratune.training.train import train

    folder = config.output / arm
    trained = is_recorded(folder)
    if arm != "base" and not trained:
        train(config.train_config(arm, overrides), resume=is_started(folder))
    evaluations = read_record(folder).evaluations if is_recorded(folder) else []
    done = {one.task for one in evaluations if one.protocol == config.protocol}
    left = [task for task in without_mix(config.task) if task not in done]
    if left:
        evaluate(config.eval_config(arm).model_copy(update={"task": left}))
