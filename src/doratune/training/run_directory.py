"""A run directory: whether a run may write to it, and its settings.

config.yaml is written first and record.json last, so a directory with only the first holds an unfinished run.
torch is imported only to write or to resume, after all refusals.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from doratune.errors import DivergedError, DoratuneError, InputError
from doratune.methods.former import without_switches
from doratune.named_yaml import read_mapping
from doratune.records.layout import (
    CHECKPOINTS_NAME,
    CONFIG_NAME,
    DIVERGED_NAME,
    RUN_NAMES,
    checkpoints,
    has_diverged,
    has_run,
    is_recorded,
    is_started,
)
from doratune.records.lock import locked
from doratune.records.run import Divergence
from doratune.records.storage import write_config, write_divergence
from doratune.settings import validate
from doratune.training.config import TrainConfig

logger = logging.getLogger(__name__)

FULL = 1 << 20
"""A disk with less free space than this, in bytes, counts as full."""


def checkpoint_to_resume(config: TrainConfig) -> Path | None:
    """The checkpoint from which the unfinished run in ``config.output`` resumes.

    Args:
        config: The configuration given now, which must be the one the run was started with.

    Returns:
        The last intact checkpoint, or None if there is none and the run starts again.

    Raises:
        InputError: If there is no unfinished run, or it was started with other settings.
    """
    refuse_other_run(config)
    if has_diverged(config.output):
        logger.warning(
            "training in %s diverged before, and will diverge again unless the cause is gone", config.output
        )
    from doratune.training.checkpoints import last_whole

    return last_whole(config.output)


def refuse_other_run(config: TrainConfig) -> None:
    """Check that ``config.output`` holds an unfinished run of this configuration.

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
            fix=f"resume with --config {output / CONFIG_NAME} and without these flags, or train into another "
            "folder",
        )


def refuse_taken(output: Path) -> None:
    """Check that no run is in ``output``.

    Raises:
        InputError: If there is one.
    """
    if held := _taken(output):
        raise InputError(
            "the output folder already holds a run",
            where="--output",
            got=f"{output} with {', '.join(held)}",
            fix="choose another folder, or add --overwrite to start again"
            if has_diverged(output)
            else "choose another folder, or add --resume to continue or --overwrite to start again",
        )


def refuse_foreign(config: TrainConfig) -> None:
    """Check that starting again removes nothing but a run.

    Raises:
        InputError: The folder has files under a run's names and is no run, or what the run reads is among
            those that would be removed.
    """
    output = config.output
    held = _taken(output)
    if held and not has_run(output):
        raise InputError(
            "--overwrite would remove files that are not of a run",
            where="--output",
            got=f"{output} with {', '.join(held)}",
            expected=f"a run's folder, with its {CONFIG_NAME}",
            fix="choose another folder",
        )
    removed = [(output / name).resolve() for name in held]
    for flag, path in (("--model", Path(config.model).expanduser()), ("--data", config.data)):
        if path is not None and path.exists() and any(path.resolve().is_relative_to(one) for one in removed):
            raise InputError(
                "--overwrite would remove what the run reads",
                where=flag,
                got=path,
                fix="choose another --output",
            )


@contextmanager
def opened(config: TrainConfig, *, again: bool, afresh: bool) -> Iterator[None]:
    """Lock the run directory of ``config.output`` while a run is written to it.

    Of several processes the first locks it and writes; the others wait until it is open.

    Args:
        config: The content of config.yaml.
        again: Whether a run may be there already.
        afresh: Remove a run that is there and write config.yaml; other files are left alone.

    Raises:
        InputError: Another process is training into it, or has begun a run there since ``refuse_taken``.
        DoratuneError: Something could not be written; files already written are kept.
        DivergedError: Training diverged; this is also written to the run directory.
    """
    from accelerate import PartialState

    from doratune.processes import together

    first = PartialState().is_main_process
    with ExitStack() as stack:
        with together():
            if first:
                stack.enter_context(locked(config.output))
                with _write_errors(config.output):
                    if not again and is_started(config.output):
                        refuse_taken(config.output)
                    if afresh:
                        _start(config)
                    (config.output / DIVERGED_NAME).unlink(missing_ok=True)
        with together():
            _refuse_unshared(config.output)
        started = time.perf_counter()
        try:
            with _write_errors(config.output):
                yield
        except DivergedError as error:
            if first:
                seconds = time.perf_counter() - started
                write_divergence(
                    config.output,
                    Divergence(message=error.message, seconds=seconds, config=config.model_dump(mode="json")),
                )
            raise


def _refuse_unshared(output: Path) -> None:
    """Check that this process sees the run directory that the first one has opened.

    Raises:
        InputError: It does not, so its part of a checkpoint would be lost.
    """
    if not is_started(output):
        raise InputError(
            "a process does not see the run directory that the first one opened",
            where="--output",
            got=str(output.absolute()),
            expected="a folder that all processes share",
            fix="name a folder on a file system that all machines have in common",
        )


@contextmanager
def _write_errors(output: Path) -> Iterator[None]:
    """Turn the exceptions of Python and the libraries for a full or lost disk into one message."""
    try:
        yield
    except Exception as error:
        where, reason = output, str(error)
        if isinstance(error, OSError):
            where, reason = error.filename or output, error.strerror or reason
        elif "inline_container" in reason:  # torch.save, which does not say why
            if output.exists() and shutil.disk_usage(output).free < FULL:
                reason = "No space left on device"
        elif "(os error " not in reason:  # as safetensors and tokenizers, written in Rust, say it
            raise
        raise DoratuneError(
            "the run could not be written",
            where=str(where),
            got=reason,
            fix="fix the cause, then run the same command with --resume to continue from the last checkpoint",
        ) from error


def _start(config: TrainConfig) -> None:
    for name in _held(config.output):
        path = config.output / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_config(config.output, config.model_dump(mode="json"))


def _taken(output: Path) -> list[str]:
    """What ``output`` holds, but for the Trainer's empty folder, left by a process killed at its start."""
    held = _held(output)
    return [] if held == [CHECKPOINTS_NAME] and not checkpoints(output) else held


def _held(output: Path) -> list[str]:
    return [name for name in sorted(RUN_NAMES) if (output / name).exists()]


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a config.yaml, for another run.

    Args:
        path: The file, in a run directory or elsewhere.

    Returns:
        The settings by name, without the output.

    Raises:
        InputError: There is no such file, or it is not a run's configuration.
    """
    if path.is_dir():
        path /= CONFIG_NAME
    if not path.is_file():
        raise InputError("there is no such configuration", where="--config", got=path, fix="check the path")
    values = read_mapping(path, kind="configuration")
    config = validate(TrainConfig, {**without_switches(values), "output": "-"}, where=str(path))
    return config.model_dump(exclude={"output"})


def read_config(run: Path) -> TrainConfig:
    """Read the configuration of a run.

    Args:
        run: A run directory.

    Returns:
        The configuration, with ``output`` pointing to where the directory is now.

    Raises:
        InputError: If there is no config.yaml, or doratune did not write it.
    """
    path = run / CONFIG_NAME
    if not is_started(run):
        raise InputError(
            "the folder holds no run to resume", where=str(run), expected=f"a file {CONFIG_NAME}"
        )
    values = read_mapping(path, kind="configuration")
    return validate(TrainConfig, {**without_switches(values), "output": run}, where=str(path))
