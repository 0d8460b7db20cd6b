"""Reads and writes the records in a run's, a study's and an adapter's folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from doratune.errors import InputError
from doratune.records.analysis import AnalysisRecord
from doratune.records.base import Record
from doratune.records.files import read_jsonl, read_text, write_json_atomic, write_text_atomic
from doratune.records.former_study import from_version_1, from_version_2
from doratune.records.layout import (
    BASE_MODEL_NAME,
    CONFIG_NAME,
    DIVERGED_NAME,
    METRICS_NAME,
    RECORD_NAME,
    STUDY_NAME,
    TRAINING_DATA_NAME,
    has_diverged,
    is_recorded,
    is_started,
)
from doratune.records.run import DataRecord, Divergence, ModelRecord, RunRecord, TrainingDataRecord
from doratune.records.study import StudyRecord
from doratune.strict_json import strict_loads

Schema = TypeVar("Schema", RunRecord, StudyRecord, AnalysisRecord)
Part = TypeVar("Part", bound=Record)


def write_config(run: Path, config: Mapping[str, Any]) -> None:
    """Write ``run``/config.yaml."""
    write_text_atomic(run / CONFIG_NAME, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def write_record(run: Path, record: RunRecord) -> None:
    """Write ``run``/record.json."""
    write_json_atomic(run / RECORD_NAME, record.to_dict())


def write_study(folder: Path, record: StudyRecord) -> None:
    """Write ``folder``/study.json, on one line: indented, its many numbers take three times the space."""
    write_json_atomic(folder / STUDY_NAME, record.to_dict(), indent=None)


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
        return Divergence.model_validate_json(read_text(path), strict=True)
    except ValidationError as error:
        raise _invalid(path, error) from None


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
    return _read_schema(path, StudyRecord, older={1: from_version_1, 2: from_version_2})


def read_analysis(path: Path) -> AnalysisRecord:
    """Read an analysis.json.

    Raises:
        InputError: The file is missing, is not valid JSON, or is of another schema or version.
    """
    return _read_schema(path, AnalysisRecord)


def _read_schema(
    path: Path, schema: type[Schema], older: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
) -> Schema:
    text = read_text(path)
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
            text = json.dumps(_converted(convert, data, path))
        return schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise _invalid(path, error) from None


def _converted(
    convert: Callable[[dict[str, Any]], dict[str, Any]], data: dict[str, Any], path: Path
) -> dict[str, Any]:
    try:
        return convert(data)
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            "the file does not follow its schema",
            where=str(path),
            got=f"{type(error).__name__}: {error}",
            expected=f"{data['schema']} version {data['schema_version']}",
        ) from None


def _read_part(path: Path, schema: type[Part]) -> Part | None:
    """A file that need not be there and has no version; None where it is not there."""
    if not path.is_file():
        return None
    text = read_text(path)
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
