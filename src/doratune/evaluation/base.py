"""Which base model an adapter belongs to, and whether the one that was loaded is that one."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doratune.errors import InputError
from doratune.evaluation.found import Found
from doratune.models.builtin import BUILTIN
from doratune.models.names import cached_builtin, refuse_absent_folder
from doratune.peft.adapter_file import read_adapter_config, refuse_other_settings
from doratune.records.base_model import compare_base_models
from doratune.records.run import ModelRecord
from doratune.records.storage import read_base_model
from doratune.records.weights import checked_weights, weights_checksum

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What the user asked for.

    Attributes:
        target: The run or adapter that they named.
        base: The base model that they named, if any.
        allow_other: Whether it may differ from the one in the record.
        command: How the command begins, for messages.
        flag: The flag that names the base.
        does: What the command does with another base that is allowed, for messages.
    """

    target: str
    base: str | None = None
    allow_other: bool = False
    command: str = "doratune eval"
    flag: str = "--model"
    does: str = "evaluated"

    @property
    def example(self) -> str:
        """The command with its base model."""
        return f"{self.command} {shlex.quote(self.target)} {self.flag} FOLDER ..."


def trained_checksum(found: Found) -> str | None:
    """The checksum of the trained weights, if any; a run's must be those that its training left.

    Raises:
        InputError: A run's weights or their settings have changed.
    """
    weights, training = found.adapter or found.model, found.record.training if found.record else None
    if weights is None:
        return None
    if found.record is None or training is None:
        return weights_checksum(weights)
    if found.adapter is not None:
        refuse_other_settings(found.record, weights)
    return checked_weights(weights, training.weights_checksum)


def base_name(found: Found, asked: Asked) -> str:
    """The name of the base model of a run or an adapter.

    Raises:
        InputError: The adapter does not name its base, or the base's folder is missing.
    """
    if asked.base is not None:
        return asked.base
    record, adapter = found.record, found.adapter
    assert record is not None or adapter is not None
    name = record.model.name if record is not None else _named_base(adapter, asked)  # pyright: ignore
    saved = record.model if record is not None else read_base_model(adapter)  # pyright: ignore
    if saved is not None:
        refuse_absent_folder(
            saved,
            where=asked.target,
            fix="work in the folder where it was trained, or name the base with "
            f"{asked.flag}: {asked.example}",
        )
    return name


@contextmanager
def loading_base(name: str, found: Found, asked: Asked) -> Iterator[None]:
    """Say of a base model that cannot be loaded that it is the adapter's, unless the user named it."""
    try:
        yield
    except InputError as error:
        if found.adapter is None or asked.base is not None:
            raise
        raise InputError(
            "the base model of the adapter cannot be loaded",
            where=str(found.adapter),
            got=f"{name}: {error.what}",
            fix=f"name it with {asked.flag}: {asked.example}",
        ) from error


def trained_on(found: Found, loaded: ModelRecord, asked: Asked) -> ModelRecord:
    """The base model that was trained on, as the record or the adapter describes it.

    It is the loaded one if the adapter gives only a name.
    """
    if found.record is not None:
        return found.record.model
    if found.adapter is None:
        return loaded
    saved = read_base_model(found.adapter)
    if saved is not None:
        return saved
    named = read_adapter_config(found.adapter).base_model_name_or_path
    if asked.base not in (None, named):
        logger.warning(
            "the adapter gives only the name of its base model, %s, so %s was not compared with it",
            named,
            loaded.name,
        )
    return loaded


def other_base(
    trained: ModelRecord, loaded: ModelRecord, asked: Asked, *, full: bool = False
) -> ModelRecord | None:
    """The loaded model, if it is allowed and differs from the one that was trained on.

    Args:
        trained: The base model in the record.
        loaded: The model that was loaded.
        asked: What the user asked for.
        full: Whether it is a fully fine-tuned model, whose weights differ from the base's.

    Raises:
        InputError: It differs and is not allowed to.
    """
    found = compare_base_models(trained, loaded, weights=not full)
    if found.same:
        for note in found.notes:
            logger.warning(note)
        return None
    what = "the adapter was trained for another base model"
    fix = f"leave out {asked.flag}, or name the model it was trained on with it"
    if full:
        what = "the model's configuration or tokenizer is not the one it was trained with"
        fix = "copy its folder again from where it was trained"
    error = InputError(
        what,
        where=asked.target,
        got=f"base {loaded.name} ({loaded.source}): {found.difference}",
        expected=f"base {trained.name} ({trained.source})",
        fix=f"{fix}, or add --allow-other-base",
    )
    if not asked.allow_other:
        raise error
    logger.warning("%s; %s nevertheless, because of --allow-other-base", error.what, asked.does)
    return loaded


def _named_base(adapter: Path, asked: Asked) -> str:
    """The base model that a plain adapter names."""
    saved: Any = read_adapter_config(adapter)
    name = cached_builtin(saved.base_model_name_or_path or "")
    if not name:
        raise InputError(
            "the adapter does not say what its base model is", where=str(adapter), fix=f"add {asked.flag}"
        )
    if saved.revision not in (None, "main") and name not in BUILTIN and not Path(name).expanduser().exists():
        raise InputError(
            "the adapter was trained on another revision of its base than the hub's newest",
            where=str(adapter),
            got=f"{name}, revision {saved.revision}",
            fix=f"download that revision (hf download {name} --revision {saved.revision} --local-dir DIR) "
            f"and name it with {asked.flag}",
        )
    return name
