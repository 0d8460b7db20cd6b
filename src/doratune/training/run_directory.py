"""A run directory: whether a run may write to it, and what is in it.

config.yaml is written first and record.json last, so a directory with the first and without the second holds
an unfinished run.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from doratune.errors import InputError
from doratune.records.layout import (
    CONFIG_NAME,
    RUN_NAMES,
    checkpoints,
    is_recorded,
    is_started,
    write_config,
)
from doratune.settings import validate
from doratune.training.config import TrainConfig


def checkpoint_to_resume(config: TrainConfig) -> Path | None:
    """Where an unfinished run in ``config.output`` is resumed.

    Args:
        config: The configuration asked for now; it must be the one the run was started with.

    Returns:
        The last checkpoint, or None if the run was killed before its first one and starts again.

    Raises:
        InputError: If there is no unfinished run, or it was started with other settings.
    """
    output = config.output
    if is_recorded(output):
        raise InputError("the run is finished; there is nothing to resume", where="--resume", got=output)
    old = read_config(output).model_dump()
    new = config.model_dump()
    changed = [
        f"{key}: {old[key]!r} -> {new[key]!r}" for key in new if key != "output" and old[key] != new[key]
    ]
    if changed:
        raise InputError(
            "a run can only be resumed with the settings it was started with",
            where=str(output / CONFIG_NAME),
            got="; ".join(changed),
            fix="resume without these flags, or train into another folder",
        )
    latest_first = reversed(checkpoints(output).values())
    return next((checkpoint for checkpoint in latest_first if _whole(checkpoint)), None)


def _whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: its state, which comes last, can be read."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def refuse_taken(output: Path) -> None:
    """Check that no run is in ``output``.

    Raises:
        InputError: If there is one, or ``output`` is a file.
    """
    if output.exists() and not output.is_dir():
        raise InputError("the output is a file, not a folder", where="--output", got=output)
    if held := _held(output):
        raise InputError(
            "the output folder already holds a run",
            where="--output",
            got=f"{output} with {', '.join(held)}",
            fix="choose another folder, or add --resume to go on or --overwrite to start again",
        )


def start(config: TrainConfig) -> None:
    """Remove the run in ``config.output``, if any, and write config.yaml; other files are left alone."""
    for name in _held(config.output):
        path = config.output / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_config(config.output, config.model_dump(mode="json"))


def _held(output: Path) -> list[str]:
    return [name for name in sorted(RUN_NAMES) if (output / name).exists()]


def read_config(run: Path) -> TrainConfig:
    """Read the configuration of a run.

    Args:
        run: A run directory.

    Returns:
        The configuration, with ``output`` pointing to where the directory is now.

    Raises:
        InputError: If there is no config.yaml, or it is not one of ours.
    """
    path = run / CONFIG_NAME
    if not is_started(run):
        raise InputError(
            "the folder holds no run to resume", where=str(run), expected=f"a file {CONFIG_NAME}"
        )
    values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise InputError("config.yaml is not a mapping", where=str(path))
    return validate(TrainConfig, {**values, "output": run}, where=str(path))
