"""The files of runs, comparisons, studies and analyses: their names, and how they are read and written.

A run directory holds ``CONFIG_NAME`` from the start and ``RECORD_NAME`` once it is finished. In between come
``METRICS_NAME``, ``CHECKPOINTS_NAME`` and the trained weights: ``ADAPTER_NAME``, or ``MODEL_NAME`` after full
fine-tuning. Evaluations add ``PREDICTIONS_NAME``. A file is either complete or not there.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from doratune.errors import LONGEST, InputError
from doratune.hub import looks_like_path
from doratune.records.analysis import AnalysisRecord
from doratune.records.base import Record
from doratune.records.run import (
    DataRecord,
    Divergence,
    Format,
    Method,
    ModelRecord,
    Protocol,
    RunRecord,
    TrainingDataRecord,
)
from doratune.records.study import StudyRecord, from_version_1
from doratune.strict_json import strict_loads

CONFIG_NAME = "config.yaml"
METRICS_NAME = "metrics.jsonl"
CHECKPOINTS_NAME = "checkpoints"
ADAPTER_NAME = "adapter"
MODEL_NAME = "model"
RECORD_NAME = "record.json"
DIVERGED_NAME = "diverged.json"
"""In place of the record of a run that diverged."""
PREDICTIONS_NAME = "predictions"
RUN_NAMES = frozenset(
    {
        CONFIG_NAME,
        METRICS_NAME,
        CHECKPOINTS_NAME,
        ADAPTER_NAME,
        MODEL_NAME,
        RECORD_NAME,
        DIVERGED_NAME,
        PREDICTIONS_NAME,
    }
)
"""Everything that training and evaluation write into a run directory."""
OWN_FOLDERS = frozenset({CHECKPOINTS_NAME, ADAPTER_NAME, MODEL_NAME, PREDICTIONS_NAME})
"""Folders in a run directory that hold nothing but what belongs to the run."""

ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's file that marks a folder as an adapter."""
BASE_MODEL_NAME = "base_model.json"
"""The base model's record in an adapter's folder or a checkpoint."""
TRAINING_DATA_NAME = "training_data.json"
"""The records of a checkpoint's training rows."""
MODEL_CONFIG = "config.json"
"""transformers' file that marks a folder as a model."""

ROOM_FOR_NAMES = 256
"""Bytes reserved in a path for the files in an output folder."""

RUNS_NAME = "runs"
"""The folder of a study's run directories, in the study's folder."""
VALIDATION_NAME = "validation"
"""The folder of the answers to the validation rows and their record, in a run directory of a study."""

COMPARISON_NAME = "comparison.json"
"""The record of ``compare`` in versions before it wrote a study's record."""
STUDY_NAME = "study.json"
ANALYSIS_NAME = "analysis.json"

Schema = TypeVar("Schema", RunRecord, StudyRecord, AnalysisRecord)
Part = TypeVar("Part", bound=Record)


def is_started(run: Path) -> bool:
    """Whether training has begun in ``run``."""
    return (run / CONFIG_NAME).is_file()


def is_recorded(run: Path) -> bool:
    """Whether ``run`` has a record: its training is finished, or a base model was evaluated there."""
    return (run / RECORD_NAME).is_file()


def has_diverged(run: Path) -> bool:
    """Whether ``run`` ended without a result because its training diverged."""
    return (run / DIVERGED_NAME).is_file() and not is_recorded(run)


def weights_path(run: Path, method: Method) -> Path:
    """Where training by ``method`` writes its weights in ``run``."""
    return run / (MODEL_NAME if method == "full" else ADAPTER_NAME)


def trained_weights(run: Path, method: Method) -> Path | None:
    """``weights_path``, if the adapter or the model is there."""
    folder = weights_path(run, method)
    file = MODEL_CONFIG if method == "full" else ADAPTER_CONFIG
    return folder if (folder / file).is_file() else None


def required_weights(run: Path, method: Method) -> Path:
    """``weights_path`` of a finished run.

    Raises:
        InputError: The adapter or the model is not there.
    """
    weights = trained_weights(run, method)
    if weights is None:
        raise InputError(
            "the run's weights are not there",
            where=str(weights_path(run, method)),
            fix="copy the folder again from where it was trained, or train again with --overwrite",
        )
    return weights


def unfinished(run: Path) -> InputError:
    """The error for a run directory without a record."""
    if has_diverged(run):
        return InputError(
            "the run has no result: its training diverged",
            where=str(run),
            got=read_divergence(run).message.partition("\n")[0],
            fix="train again with --overwrite and a lower --learning-rate, or with --on-nonfinite skip if "
            "only some rows cause it; --resume would diverge again",
        )
    if is_started(run):
        return InputError(
            "the run is not finished",
            where=str(run),
            expected=f"a file {RECORD_NAME}",
            fix="finish it with the command it was started with and --resume",
        )
    return InputError(
        "the directory holds no finished run",
        where=str(run),
        expected=f"a file {RECORD_NAME}",
        fix="give a directory that `doratune train` or `doratune eval` wrote",
    )


def checkpoints(run: Path) -> dict[int, Path]:
    """The folders of a run's checkpoints by step, ascending."""
    found = {}
    for folder in (run / CHECKPOINTS_NAME).glob("checkpoint-*"):
        step = folder.name.removeprefix("checkpoint-")
        if step.isdecimal():
            found[int(step)] = folder
    return dict(sorted(found.items()))


def runs_of_study(study: Path) -> list[Path]:
    """The run directories of a study, finished or not, each followed by its validation."""
    folders = [part for run in sorted((study / RUNS_NAME).glob("*")) for part in (run, run / VALIDATION_NAME)]
    return [folder for folder in folders if is_started(folder) or is_recorded(folder)]


def predictions_name(task: str, form: Format, protocol: Protocol) -> str:
    """The path of an evaluation's predictions in its run: the task's name, then non-default choices."""
    parts = [task]
    if form != "instruct":
        parts.append(form)
    if protocol != "likelihood":
        parts.append(protocol)
    return f"{PREDICTIONS_NAME}/{'.'.join(parts)}.jsonl"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text_atomic(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` through a temporary file, so that no reader sees half of it."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` through a temporary file in its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name:.40}.{os.getpid()}.part")  # within the system's limit
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json_atomic(path: Path, data: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Write ``data`` as JSON, on one line if ``indent`` is None; NaN and infinities are refused.

    Raises:
        ValueError: A number is not finite.
    """
    write_text_atomic(path, json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl_atomic(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, compressed if the name ends with ".gz".

    Raises:
        ValueError: A number is not finite.
    """
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    content = "".join(lines).encode("utf-8")
    # Without a timestamp, the same rows always give the same bytes.
    write_bytes_atomic(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object per line; blank lines are skipped.

    Raises:
        InputError: The file cannot be read, or a line is not a JSON object.
    """
    rows = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = strict_loads(line)
        except json.JSONDecodeError as error:
            place = f"{path}, line {number}, column {error.colno}"
            raise InputError("a line is not valid JSON", where=place, got=error.msg) from None
        except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
            raise InputError("a line cannot be read", where=f"{path}, line {number}", got=error) from None
        if not isinstance(row, dict):
            place = f"{path}, line {number}"
            raise InputError("a line is not a JSON object", where=place, got=type(row).__name__)
        rows.append(row)
    return rows


def drop_half_line(path: Path) -> None:
    """Cut off an incomplete last line, left by a killed process or a full disk."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_bytes_atomic(path, whole)


def write_config(run: Path, config: Mapping[str, Any]) -> None:
    """Write ``run``/config.yaml."""
    write_text_atomic(run / CONFIG_NAME, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def write_record(run: Path, record: RunRecord) -> None:
    """Write ``run``/record.json."""
    write_json_atomic(run / RECORD_NAME, record.to_dict())


def write_base_model(folder: Path, base: ModelRecord) -> None:
    """Write ``folder``/base_model.json."""
    write_json_atomic(folder / BASE_MODEL_NAME, base.to_dict())


def read_base_model(folder: Path) -> ModelRecord | None:
    """Read ``folder``/base_model.json; None if there is none, as in folders that PEFT wrote.

    Raises:
        InputError: It is not what ``write_base_model`` wrote.
    """
    return _read_part(folder / BASE_MODEL_NAME, ModelRecord)


def write_training_data(folder: Path, data: Sequence[DataRecord]) -> None:
    """Write ``folder``/training_data.json."""
    write_json_atomic(folder / TRAINING_DATA_NAME, TrainingDataRecord(data=list(data)).to_dict())


def read_training_data(folder: Path) -> list[DataRecord] | None:
    """Read ``folder``/training_data.json; None where there is none, as in checkpoints of older versions.

    Raises:
        InputError: It is not what ``write_training_data`` wrote.
    """
    found = _read_part(folder / TRAINING_DATA_NAME, TrainingDataRecord)
    return found.data if found is not None else None


def write_divergence(run: Path, divergence: Divergence) -> None:
    """Write ``run``/diverged.json."""
    write_json_atomic(run / DIVERGED_NAME, divergence.to_dict())


def read_divergence(run: Path) -> Divergence:
    """Read ``run``/diverged.json.

    Raises:
        InputError: The file is missing, or it is not what ``write_divergence`` wrote.
    """
    path = run / DIVERGED_NAME
    try:
        return Divergence.model_validate_json(_read_text(path), strict=True)
    except ValidationError as error:
        raise _invalid(path, error) from None


def refuse_missing_folder(name: str, what: str, *, where: str) -> None:
    """Refuse a name that can only be a folder's path if there is no such folder, without asking the hub.

    Args:
        name: The name that the user gave.
        what: What the folder should hold, for the message.
        where: Where the user named it, for the message.

    Raises:
        InputError: If it looks like a path and there is no such folder, or it is a file.
    """
    path = Path(name).expanduser()
    if path.suffix == ".gguf" or path.is_dir():
        return
    if path.is_file():
        raise InputError(f"this is a file, not a {what} folder", where=where, got=name)
    if looks_like_path(name) or path.is_symlink():
        raise InputError(f"there is no such {what} folder", where=where, got=name, fix="check the path")


def refuse_output(output: Path, *, where: str = "--output") -> None:
    """Refuse an output folder that cannot be created or written to, before anything is computed.

    Args:
        output: The folder, which need not exist.
        where: Where the user named it, for the message.

    Raises:
        InputError: It or a parent folder is a file, leads nowhere, may not be written to, or has a name that
            the system does not allow; or it is among a run's files.
    """
    if strange := [one for one in str(output) if unicodedata.category(one) in ("Cc", "Cs")]:
        raise InputError(
            "the output's name has a control character or invalid Unicode",
            where=where,
            got=f"{str(output)[:LONGEST]!r}, with {strange[0]!r}",
            fix="choose another name",
        )
    place = next(one for one in (output, *output.parents) if os.path.lexists(one))
    try:
        if not place.is_dir():
            what = "is a link that leads nowhere" if place.is_symlink() else "is a file, not a folder"
            raise InputError(f"the output {what}", where=where, got=place)
        if not os.access(place, os.W_OK | os.X_OK):
            raise InputError(
                "the output folder may not be written to",
                where=where,
                got=place,
                fix="choose another folder, or fix its permissions",
            )
        longest = os.pathconf(place, "PC_NAME_MAX")
        long = [name for name in output.parts if len(os.fsencode(name)) > longest]
        if long or len(os.fsencode(output.absolute())) + ROOM_FOR_NAMES > os.pathconf(place, "PC_PATH_MAX"):
            raise InputError("the output's name is too long", where=where, got=output)
        real = Path(os.path.realpath(output))
        for one in (real, *real.parents):
            if one.name in OWN_FOLDERS and is_started(one.parent):
                raise InputError(
                    "the output would be among a run's own files",
                    where=where,
                    got=f"{output}, in {one.name} of the run {one.parent}",
                    fix="choose another folder",
                )
    except OSError as error:
        raise InputError(
            "the output folder cannot be used", where=where, got=f"{place}: {error.strerror}"
        ) from error


def read_record(run: Path) -> RunRecord:
    """Read ``run``/record.json.

    Raises:
        InputError: The run or its file is missing, is not valid JSON, or is of another schema or version.
    """
    if not run.is_dir():
        raise InputError("there is no such run directory", where=str(run))
    if not is_recorded(run):
        raise unfinished(run)
    return _read_schema(run / RECORD_NAME, RunRecord)


def training_curve(run: Path) -> list[tuple[int, float | None]]:
    """The training loss by step, None where it was not finite.

    Raises:
        InputError: The metrics cannot be read.
    """
    path = run / METRICS_NAME
    points = [row for row in read_jsonl(path) if "loss" in row]
    for row in points:
        if not isinstance(row.get("step"), int) or not isinstance(row["loss"], int | float | None):
            raise InputError("a line has no step or no loss that is a number", where=str(path), got=row)
    return [(row["step"], row["loss"]) for row in points]


def read_study(path: Path) -> StudyRecord:
    """Read a study.json.

    Raises:
        InputError: The file is missing, is not valid JSON, or is of another schema or a newer version.
    """
    return _read_schema(path, StudyRecord, older={1: from_version_1})


def read_analysis(path: Path) -> AnalysisRecord:
    """Read an analysis.json.

    Raises:
        InputError: The file is missing, is not valid JSON, or is of another schema or version.
    """
    return _read_schema(path, AnalysisRecord)


def _read_schema(
    path: Path, schema: type[Schema], older: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
) -> Schema:
    text = _read_text(path)
    try:
        data = strict_loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}, line {error.lineno}, column {error.colno}"
        raise InputError("the file is not valid JSON", where=place, got=error.msg) from None
    except (RecursionError, ValueError) as error:
        raise InputError("the file cannot be read", where=str(path), got=error) from None
    found = (data.get("schema"), data.get("schema_version")) if isinstance(data, dict) else (None, None)
    convert = older.get(found[1]) if found[0] == schema.kind and isinstance(found[1], int) else None
    if convert is None and found != (schema.kind, schema.version):
        raise InputError(
            "the file is of a schema that this version of doratune does not read",
            where=str(path),
            got=f"{found[0]} version {found[1]}",
            expected=f"{schema.kind} version {schema.version}",
        )
    try:
        if convert is not None:
            text = json.dumps(convert(data))
        return schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise _invalid(path, error) from None


def _read_part(path: Path, schema: type[Part]) -> Part | None:
    """A file that need not be there and has no version; None where it is not there."""
    if not path.is_file():
        return None
    text = _read_text(path)
    try:
        strict_loads(text)
        return schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise _invalid(path, error) from None
    except (RecursionError, ValueError) as error:
        raise InputError("the file cannot be read", where=str(path), got=error) from None


def _invalid(path: Path, error: ValidationError) -> InputError:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    place = f"{path}, {field}" if field else str(path)
    return InputError("the file does not follow its schema", where=place, expected=first["msg"])


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except FileNotFoundError:
        raise InputError("the file is missing", where=str(path)) from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError("the file cannot be read", where=str(path), got=str(error)) from None
