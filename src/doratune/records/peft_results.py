"""Results of PEFT's own ``method_comparison`` on MetaMathQA: a JSON file each, written by PEFT's script."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, Field, ValidationError

from doratune.errors import InputError
from doratune.records.base import FiniteOrNone
from doratune.strict_json import read_object

ROWS = 1319
"""Test rows of GSM8K, all of which every experiment answers; the files hold only the share."""
SHARE = "test accuracy"
UNKNOWN_SIZE = 99_999_999
"""What PEFT's script writes as the size of a file that it could not save."""
EXPECTED = "a file of method_comparison/MetaMathQA/results, in a clone of huggingface/peft"


def _text(value: str) -> str:
    """Refuse what no file can hold: half of a surrogate pair."""
    value.encode("utf-8")  # a UnicodeEncodeError is a ValueError
    return value


_Text = Annotated[str, AfterValidator(_text)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]


class _TrainConfig(BaseModel):
    model_id: _Text
    seed: int
    optimizer_kwargs: dict[str, Any]


class _PeftConfig(BaseModel):
    peft_type: str


class _RunInfo(BaseModel):
    experiment_name: _Text
    created_at: AwareDatetime
    train_config: _TrainConfig
    peft_config: _PeftConfig | None  #: None for full fine-tuning


class _TrainInfo(BaseModel):
    status: str
    metrics: list[dict[str, Any]]
    train_time: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    accelerator_memory_max: _Count
    file_size: _Count | None
    num_trainable_params: _Count


class _SystemInfo(BaseModel):
    accelerator: _Text | None = None


class _MetaInfo(BaseModel):
    system_info: _SystemInfo = _SystemInfo()


class _File(BaseModel):
    run_info: _RunInfo
    train_info: _TrainInfo
    meta_info: _MetaInfo


class _Share(BaseModel):
    value: float = Field(alias=SHARE, ge=0, le=1)
    forgetting: FiniteOrNone = None


@dataclass(frozen=True)
class PeftResult:
    """One experiment.

    Attributes:
        experiment: Its name, "method/variant".
        model: The base model.
        method: PEFT's name of the kind of adapter; "full" for full fine-tuning.
        learning_rate: None if the file does not tell.
        seed: Of its only run.
        created: When it ended, to tell repeated runs apart.
        correct: Test rows it had right, of ``ROWS``.
        forgetting: Rise of the loss on Wikipedia texts through training, in nats per token; None if unknown.
        parameters: Trainable ones.
        memory: Peak of the accelerator's memory in bytes.
        file_bytes: Size of the adapter's file; None if unknown.
        seconds: Training time.
        accelerator: The device; None if unknown.
    """

    experiment: str
    model: str
    method: str
    learning_rate: float | None
    seed: int
    created: datetime
    correct: int
    forgetting: float | None
    parameters: int
    memory: int
    file_bytes: int | None
    seconds: float
    accelerator: str | None

    @property
    def accuracy(self) -> float:
        """The share of test rows it had right."""
        return self.correct / ROWS


@dataclass(frozen=True)
class PeftResults:
    """The results of a folder, and why the other files in it are left out."""

    found: list[PeftResult]
    skipped: list[str] = field(default_factory=list)  #: a sentence each


def read_peft_results(folder: Path) -> PeftResults:
    """Read every JSON file of a folder; of an experiment that is there twice, the last run.

    Raises:
        InputError: The folder is missing or has no result, or a file in it has another shape.
    """
    if not folder.is_dir():
        raise InputError(
            "this is a file, not a folder" if folder.is_file() else "the folder is missing",
            where=str(folder),
            expected="method_comparison/MetaMathQA/results, in a clone of huggingface/peft",
        )
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    skipped = [f"{path.name} is left out: not a JSON file." for path in files if path.suffix != ".json"]
    results: dict[tuple[str, str], tuple[PeftResult, str]] = {}
    for path in (path for path in files if path.suffix == ".json"):
        found = _read(path)
        if isinstance(found, str):
            skipped.append(f"{path.name} is left out: {found}.")
            continue
        key = (found.model, found.experiment)
        earlier = results.get(key)
        if earlier:
            newer, older = sorted((earlier, (found, path.name)), key=lambda one: one[0].created, reverse=True)
            skipped.append(f"{older[1]} is left out: {newer[1]} is a later run of {found.experiment}.")
            results[key] = newer
        else:
            results[key] = (found, path.name)
    if not results:
        inner = folder / "results"
        raise InputError(
            "the folder has no result",
            where=str(folder),
            got=" ".join(skipped) or "no JSON file",
            expected=f"at least one {EXPECTED.removeprefix('a ')}",
            fix=f"give {inner}" if inner.is_dir() else None,
        )
    return PeftResults([one for one, _ in results.values()], skipped)


def _read(path: Path) -> PeftResult | str:
    """A file's result, or why it has none."""
    values = read_object(path, "a result of PEFT's method comparison")
    try:
        file = _File.model_validate(values)
    except ValidationError as error:
        raise _other_shape(path, error) from None
    run, train = file.run_info, file.train_info
    if train.status != "success":
        return f"its status is {train.status!r}"
    last = train.metrics[-1] if train.metrics else {}
    if SHARE not in last:
        raise InputError(
            f"a result has no {SHARE}, so nothing was counted on test rows",
            where=f"{path}, train_info, metrics, last entry",
            got=", ".join(last) or "nothing",
            expected=EXPECTED,
        )
    try:
        share = _Share.model_validate(last)
    except ValidationError as error:
        raise _other_shape(path, error, "train_info.metrics, last entry") from None
    correct = round(share.value * ROWS)
    if abs(share.value * ROWS - correct) > 1e-6:
        raise InputError(
            f"the {SHARE} is not a whole number of GSM8K's {ROWS:,} test rows",
            where=str(path),
            got=f"{share.value!r}, that is {share.value * ROWS:.3f} rows",
            expected="the whole test set, answered once",
        )
    return PeftResult(
        experiment=run.experiment_name,
        model=run.train_config.model_id,
        method=run.peft_config.peft_type if run.peft_config else "full",
        learning_rate=_rate(run.train_config.optimizer_kwargs.get("lr"), path),
        seed=run.train_config.seed,
        created=run.created_at,
        correct=correct,
        forgetting=share.forgetting,
        parameters=train.num_trainable_params,
        memory=train.accelerator_memory_max,
        file_bytes=None if train.file_size == UNKNOWN_SIZE else train.file_size,
        seconds=train.train_time,
        accelerator=file.meta_info.system_info.accelerator,
    )


def _rate(value: Any, path: Path) -> float | None:
    """The learning rate, which may be a text such as "1e-4"; None if there is none."""
    if value is None:
        return None
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = math.nan
    if not math.isfinite(rate):
        place = f"{path}, run_info.train_config.optimizer_kwargs.lr"
        raise InputError("the learning rate is not a number", where=place, got=value)
    return rate


def _other_shape(path: Path, error: ValidationError, within: str = "") -> InputError:
    faults = error.errors(include_url=False)
    first = faults[0]
    more = f"; and {len(faults) - 1} more faults" if len(faults) > 1 else ""
    place = ".".join(filter(None, [within, *map(str, first["loc"])]))
    return InputError(
        "a file is not a result of PEFT's method comparison",
        where=str(path),
        got=f"{place}: {_words(first['msg'])}{more}",
        expected=EXPECTED,
    )


def _words(message: str) -> str:
    return message[:1].lower() + message[1:]


def by_model(results: Iterable[PeftResult]) -> dict[str, list[PeftResult]]:
    """The results of each base model, the most accurate first."""
    found: dict[str, list[PeftResult]] = {}
    for one in sorted(results, key=lambda one: (one.model, -one.correct, one.experiment)):
        found.setdefault(one.model, []).append(one)
    return found
