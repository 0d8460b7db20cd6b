"""Checkpoints sealed with checksums, which are checked before a run resumes from one.

An old checkpoint is deleted only once a newer one is sealed, so a run killed at any moment, even while
saving, still has the last one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from doratune.errors import DoratuneError, InputError
from doratune.methods.method import Method
from doratune.processes import together
from doratune.records.base_model import compare_base_models
from doratune.records.files import write_json_atomic
from doratune.records.layout import METHOD_NAME, checkpoints, is_started
from doratune.records.run import DataRecord, ModelRecord
from doratune.records.storage import (
    read_base_model,
    read_training_data,
    write_base_model,
    write_training_data,
)
from doratune.strict_json import read_object
from doratune.training.card import name_base

logger = logging.getLogger(__name__)

SEAL_NAME = "checksums.json"
STATE_NAME = "trainer_state.json"


class CheckpointCallback(TrainerCallback):
    """Seals each checkpoint when it is written, then deletes the oldest.

    Args:
        run: The run directory.
        keep: How many are kept.
        model: The base model as the user named it.
        base: The base model's record, written to each checkpoint.
        data: The records of the training rows, written to each checkpoint.
        method: The method, written to each checkpoint; None: it does not say.
    """

    def __init__(
        self,
        run: Path,
        *,
        keep: int,
        model: str,
        base: ModelRecord | None = None,
        data: Sequence[DataRecord] = (),
        method: Method | None = None,
    ) -> None:
        self._model = model
        self._run = run
        self._keep = keep
        self._base = base
        self._data = data
        self._method = method
        self._there = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note whether ``train`` started a run in the directory."""
        self._there = is_started(self._run)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Seal the checkpoint; called in every process after it has written its part.

        Raises:
            DoratuneError: The run directory has been removed; in the first process.
            OtherProcessError: The first process failed; in the others.
        """
        PartialState().wait_for_everyone()
        # A process that went on might end, and its launcher then ends the first one too, before it is done.
        with together():
            if state.is_world_process_zero:
                self._complete(state.global_step)

    def _complete(self, step: int) -> None:
        """Add what the Trainer does not write, seal the checkpoint of a step, and delete the oldest."""
        if self._there and not is_started(self._run):
            raise DoratuneError(
                "the run directory was removed during training",
                where=str(self._run),
                fix="train again; two runs must not share a folder",
            )
        found = checkpoints(self._run)
        name_base(found[step], self._model)
        if self._base is not None:
            write_base_model(found[step], self._base)
        if self._data:
            write_training_data(found[step], self._data)
        if self._method is not None:
            write_json_atomic(found[step] / METHOD_NAME, self._method.deciding)
        seal(found[step])
        for folder in list(found.values())[: -self._keep]:
            shutil.rmtree(folder)


def seal(checkpoint: Path) -> None:
    """Write the checksums of a checkpoint's files."""
    write_json_atomic(checkpoint / SEAL_NAME, {"xxh3_128": _checksums(checkpoint)})


def refuse_other_base(checkpoint: Path, base: ModelRecord) -> None:
    """Refuse to resume from a checkpoint of another base model; what cannot be compared is logged.

    Args:
        checkpoint: The checkpoint to resume from.
        base: The base model as it is now.

    Raises:
        InputError: It is not the one that training began with.
    """
    begun = read_base_model(checkpoint)
    if begun is None:
        logger.warning("%s does not say what its base model was, so it was not compared", checkpoint.name)
        return
    found = compare_base_models(begun, base)
    if not found.same:
        raise InputError(
            "the run was started with another base model",
            where=str(checkpoint),
            got=f"base {base.name} ({base.source}): {found.difference}",
            expected=f"base {begun.name} ({begun.source})",
            fix="restore the model that it was started with, or train again with --overwrite",
        )
    for note in found.notes:
        logger.warning(note)


def refuse_other_method(checkpoint: Path, method: Method) -> None:
    """Refuse to go on from a checkpoint of another method; one that does not tell its own is logged.

    Args:
        checkpoint: Where training would go on.
        method: The method as its file is now.

    Raises:
        InputError: Something that decides the result has changed, such as LoRA+'s ratio.
    """
    path = checkpoint / METHOD_NAME
    if not path.is_file():
        logger.warning("%s does not say what its method was, so it was not compared", checkpoint.name)
        return
    begun, now = read_object(path, "the checkpoint's method"), method.deciding
    changed = [key for key in {**begun, **now} if begun.get(key) != now.get(key)]
    if changed:
        raise InputError(
            "the run was started with another method",
            where=str(checkpoint),
            got=", ".join(f"{key} {now.get(key, 'not given')}" for key in changed),
            expected=", ".join(f"{key} {begun.get(key, 'not given')}" for key in changed),
            fix="put back the method's file that it was started with, or train again with --overwrite",
        )


def refuse_other_data(checkpoint: Path, data: Sequence[DataRecord]) -> None:
    """Refuse to go on from a checkpoint of other training rows; one that does not tell them is logged.

    Args:
        checkpoint: Where training would go on.
        data: The training rows as they are now.

    Raises:
        InputError: They are others than training began with, or are asked in another way.
    """
    begun = read_training_data(checkpoint)
    if begun is None:
        logger.warning(
            "%s does not say what rows it was trained on, so they were not compared", checkpoint.name
        )
        return
    if [one.asked for one in begun] == [one.asked for one in data]:
        return
    changed = [
        f"{then.source}: {difference}"
        for then, now in zip(begun, data, strict=False)
        if (difference := _data_difference(then, now))
    ]
    if len(begun) != len(data):
        changed.append(f"{len(begun)} sources then, {len(data)} now")
    raise InputError(
        "the run was started with other training data",
        where=str(checkpoint),
        got="; ".join(changed),
        fix="put back the data it was started with, or train again with --overwrite",
    )


def _data_difference(then: DataRecord, now: DataRecord) -> str:
    """What makes one source of training rows another one; empty where it is the same."""
    if then.sha256 != now.sha256:
        rows = f"{then.rows:,} rows then, {now.rows:,} now"
        return rows if then.rows != now.rows else f"other content in its {now.rows:,} rows"
    if then.asked == now.asked:
        return ""
    changed = [
        key
        for key in ("layout", "row")
        if (then.definition or {}).get(key) != (now.definition or {}).get(key)
    ]
    return f"the task {now.task} has another {' and '.join(changed)} in its file"


def last_whole(run: Path) -> Path | None:
    """The newest checkpoint whose files are intact; those passed over are logged.

    Args:
        run: The run directory.

    Returns:
        Its folder, or None if no checkpoint was ever completed.

    Raises:
        InputError: There are checkpoints, and all of them are damaged.
    """
    newest_first = list(reversed(checkpoints(run).values()))
    passed_over: list[str] = []
    for folder in newest_first:
        reason = _damage(folder)
        if reason is None:
            if passed_over:
                logger.warning("%s; %s is used instead", "; ".join(passed_over), folder.name)
            return folder
        passed_over.append(f"{folder.name} cannot be used: {reason}")
    for folder in newest_first:
        if _has_state(folder) and not (folder / SEAL_NAME).exists():
            logger.warning("%s has no checksums, as in older versions; it is used unchecked", folder.name)
            return folder
    if any((folder / SEAL_NAME).exists() for folder in newest_first):
        raise InputError(
            "no checkpoint of the run can be used",
            where=str(run),
            got="; ".join(passed_over),
            fix="train again with --overwrite, or into another folder",
        )
    if newest_first:
        logger.warning("%s; training starts again from the first step", "; ".join(passed_over))
    return None


def changed_weights(checkpoint: Path) -> str | None:
    """The first weights file of a checkpoint that has changed since it was sealed.

    Also None for a checkpoint without a seal. The optimizer's state, which may be gone, is not checked.
    """
    try:
        sealed = json.loads((checkpoint / SEAL_NAME).read_text(encoding="utf-8"))["xxh3_128"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return SEAL_NAME
    found = _checksums(checkpoint, "*.safetensors")
    weights = {name for name in sealed if name.endswith(".safetensors")} | found.keys()
    return min((name for name in weights if sealed.get(name) != found.get(name)), default=None)


def _damage(checkpoint: Path) -> str | None:
    """The fault of a checkpoint; None if it is intact."""
    try:
        sealed = json.loads((checkpoint / SEAL_NAME).read_text(encoding="utf-8"))["xxh3_128"]
        found = _checksums(checkpoint)
        if missing := sorted(sealed.keys() - found.keys()):
            return f"{missing[0]} is missing"
        if changed := sorted(name for name, checksum in sealed.items() if found[name] != checksum):
            return f"{changed[0]} has changed since it was written"
    except FileNotFoundError:
        return "it was not written completely"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{SEAL_NAME} cannot be read"
    return None


def _has_state(checkpoint: Path) -> bool:
    """Whether the Trainer's state, which it writes last, is there and complete."""
    try:
        json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _checksums(checkpoint: Path, files: str = "*") -> dict[str, str]:
    """The xxh3 of each file whose name matches, by its path in the checkpoint."""
    found = {}
    for path in sorted(checkpoint.rglob(files)):
        if path.is_file() and path.name != SEAL_NAME:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, xxhash.xxh3_128)  # pyright: ignore[reportArgumentType]
            found[path.relative_to(checkpoint).as_posix()] = digest.hexdigest()
    return found
