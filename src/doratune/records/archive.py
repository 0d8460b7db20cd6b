"""A study's runs as two files small enough for a repository: records with metrics, and all predictions.

``RUNS_FILE`` has a line of compressed JSON for each run directory, ``PREDICTIONS_FILE`` a row of Parquet for
each row that a run answered. Scores are exact, so ties stay ties; scores per byte are stored as numbers of
bytes. Training rows, weights, checkpoints and logs are left out. Paths inside the study are relative to it.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from doratune.errors import InputError
from doratune.records.answers import check_rows, read_answers
from doratune.records.files import read_jsonl, write_bytes_atomic, write_jsonl_atomic
from doratune.records.layout import (
    METRICS_NAME,
    RUNS_NAME,
    VALIDATION_NAME,
    has_diverged,
    has_run,
    is_recorded,
    is_started,
    runs_of_study,
)
from doratune.records.run import Divergence, RunRecord
from doratune.records.storage import (
    read_divergence,
    read_record,
    write_config,
    write_divergence,
    write_record,
)

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

RUNS_FILE = "runs.jsonl.gz"
PREDICTIONS_FILE = "predictions.parquet"
_KEPT = ("row", "answer", "right", "prediction", "correct", "tied", "credit", "scores", "text")
_COLUMNS = ("run", "predictions", "row", "answer", "prediction", "correct", "scores", "bytes", "text")
"""Those of every version; older ones lack ties and the position of the right candidate."""
_REPEATING = [
    "run",
    "predictions",
    "row",
    "answer",
    "right",
    "prediction",
    "correct",
    "tied",
    "bytes.list.element",
]
_ZSTD_LEVEL = 19
_RESTORING = ".restoring"


def has_archive(folder: Path) -> bool:
    """Whether a folder holds the archive of a study, or a part of it."""
    return (folder / RUNS_FILE).is_file() or (folder / PREDICTIONS_FILE).is_file()


def loses_nothing(folder: Path, study: Path) -> bool:
    """Whether ``study`` has every run of the archive in ``folder``, so that its own archive may replace it.

    Raises:
        InputError: The archive's runs cannot be read.
    """
    lines = read_jsonl(folder / RUNS_FILE)
    finished = {
        run.relative_to(study).as_posix()
        for run in runs_of_study(study)
        if is_recorded(run) or has_diverged(run)
    }
    return all(line.get("run") in finished for line in lines)


def write_archive(study: Path, folder: Path) -> list[Path]:
    """Archive the finished runs of a study.

    Args:
        study: The study's folder. Unfinished runs in it are named in a warning and left out.
        folder: Where the two files go; may be the same.

    Returns:
        The paths of the files.

    Raises:
        InputError: There are no finished runs, or a file of one cannot be read or does not match its record.
    """
    runs = runs_of_study(study)
    diverged = [run for run in runs if has_diverged(run)]
    left_out = [str(run) for run in runs if not is_recorded(run) and run not in diverged]
    if left_out:
        logger.warning("not finished, so not archived: %s", ", ".join(left_out))
    records = {run: read_record(run) for run in runs if is_recorded(run)}
    if not records:
        raise InputError("there are no finished runs to archive", where=str(study))
    lines = [
        {
            "run": run.relative_to(study).as_posix(),
            "record": _relative(record.to_dict(), study),
            "metrics": read_jsonl(run / METRICS_NAME) if is_started(run) else None,
        }
        for run, record in records.items()
    ]
    lines += [
        {
            "run": run.relative_to(study).as_posix(),
            "diverged": _relative(read_divergence(run).to_dict(), study),
            "metrics": read_jsonl(run / METRICS_NAME),
        }
        for run in diverged
    ]
    paths = [folder / RUNS_FILE, folder / PREDICTIONS_FILE]
    predictions = _to_parquet([row for run in records for row in _predictions(study, run, records[run])])
    write_jsonl_atomic(paths[0], lines)
    write_bytes_atomic(paths[1], predictions)
    return paths


def restore_runs(folder: Path, study: Path) -> list[Path]:
    """Write the archived run directories that ``study`` does not have.

    A run and its validation appear together, so an interrupted restoration leaves no half of a run.

    Args:
        folder: Holds the archive.
        study: Where the run directories go; may be the same.

    Returns:
        The run directories that were written.

    Raises:
        InputError: The archive cannot be read, or a row's credit does not follow from its scores.
    """
    table = _read_parquet(folder)
    together: dict[str, list[_Line]] = {}
    for line in read_jsonl(folder / RUNS_FILE):
        record = _checked_line(line, folder)
        place = _place(line["run"], folder)
        together.setdefault(place.parts[0], []).append(_Line(place, line, record))
    runs = study / RUNS_NAME
    scratch = runs / _RESTORING  # on the runs' own file system, where a folder can be renamed
    shutil.rmtree(scratch, ignore_errors=True)
    written: list[Path] = []
    for name, lines in together.items():
        whole = not has_run(runs / name)
        wanted = lines if whole else _missing_parts(runs, lines)
        for one in wanted:
            _restore(scratch / one.place, one, table, folder)
        for place in [Path(name)] if whole else [one.place for one in wanted]:
            shutil.rmtree(runs / place, ignore_errors=True)
            (scratch / place).rename(runs / place)
        written += [runs / one.place for one in wanted]
    shutil.rmtree(scratch, ignore_errors=True)
    return written


@dataclass(frozen=True)
class _Line:
    """A run directory in an archive: its place among the runs, its line, and the record in it."""

    place: Path
    line: Mapping[str, Any]
    record: RunRecord | Divergence


def _missing_parts(runs: Path, lines: Sequence[_Line]) -> list[_Line]:
    """What an older version left out when it was interrupted, of a run that is there and the archive's."""
    run = lines[0]
    archived = run.record.training if isinstance(run.record, RunRecord) else None
    here = runs / run.place
    missing = [one for one in lines if not is_recorded(runs / one.place)]
    if archived is None or not missing or not is_recorded(here):
        return []
    try:
        return missing if read_record(here).training == archived else []
    except InputError:  # what uses the run says what is wrong with it
        return []


def _restore(run: Path, one: _Line, table: pa.Table, folder: Path) -> None:
    """Write one run directory."""
    line, record = one.line, one.record
    if isinstance(record, Divergence):
        write_jsonl_atomic(run / METRICS_NAME, line["metrics"])
        write_config(run, record.config)
        write_divergence(run, record)
        return
    own = _rows_of(table, "run", line["run"])
    for entry in record.evaluations:
        path = _inside(run, entry.predictions, folder)
        where = f"{folder / PREDICTIONS_FILE}, {line['run']}, {entry.predictions}"
        found = _rows_of(own, "predictions", entry.predictions).to_pylist()
        rows = [_prediction(row, where=where) for row in found]
        check_rows(rows, entry.metric, where=where)
        write_jsonl_atomic(path, rows)
    if line["metrics"] is not None:
        write_jsonl_atomic(run / METRICS_NAME, line["metrics"])
        write_config(run, record.config)
    write_record(run, record)


def _checked_line(line: Mapping[str, Any], folder: Path) -> RunRecord | Divergence:
    """The run's record or divergence in a line of the archive."""
    try:
        if not isinstance(line["run"], str) or not isinstance(line["metrics"], list | None):
            raise TypeError("run is not a text, or metrics is not a list")
        if "diverged" in line:
            if line["metrics"] is None:
                raise TypeError("a run that diverged has no metrics")
            return Divergence.model_validate(line["diverged"])
        return RunRecord.model_validate(line["record"])
    except (KeyError, TypeError, ValidationError) as error:
        first = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
        got = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else f"{error}"
        raise InputError(
            "a line of the archive is not a run", where=f"{folder / RUNS_FILE}, {line.get('run')}", got=got
        ) from None


def _relative(value: Any, study: Path) -> Any:
    """``value`` with every path inside the study relative to it, as an archive is read on other machines."""
    if isinstance(value, Mapping):
        return {key: _relative(one, study) for key, one in value.items()}
    if isinstance(value, list):
        return [_relative(one, study) for one in value]
    if isinstance(value, str):
        for folder in (study, study.resolve()):
            if value.startswith(f"{folder}{os.sep}"):
                return Path(value).relative_to(folder).as_posix()
    return value


def _predictions(study: Path, run: Path, record: RunRecord) -> Iterator[dict[str, Any]]:
    """The archived fields of each row that a run answered."""
    for entry in record.evaluations:
        path = run / entry.predictions
        read_answers(run, entry)  # refuses predictions that do not match the record
        for row in read_jsonl(path):
            kept = {key: row.get(key) for key in _KEPT}
            kept |= {"run": run.relative_to(study).as_posix(), "predictions": entry.predictions}
            yield kept | {"bytes": _bytes(row, path)}


def _bytes(row: Mapping[str, Any], path: Path) -> list[int] | None:
    """The number of bytes by which each candidate's score was divided; 0 for a score of 0."""
    scores, per_byte = row.get("scores"), row.get("scores_norm")
    if scores is None or per_byte is None:
        return None
    found = [round(score / share) if share else 0 for score, share in zip(scores, per_byte, strict=True)]
    if _per_byte(scores, found) != per_byte:
        raise InputError("scores_norm are not scores per byte", where=f"{path}, row {row['row']}")
    return found


def _per_byte(scores: Sequence[float], sizes: Sequence[int]) -> list[float]:
    return [score / size if size else 0.0 for score, size in zip(scores, sizes, strict=True)]


def _prediction(row: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """A line of a run's predictions, as evaluation wrote it."""
    scores, sizes = row["scores"], row["bytes"]
    scores_of = scores or ()
    if sizes is not None and (len(scores_of) != len(sizes) or None in (*scores_of, *sizes) or not sizes):
        raise InputError(
            "a row has not as many scores as sizes",
            where=f"{where}, row {row['row']}",
            got=f"{scores}, {sizes}",
        )
    # Predictions of versions that did not record ties have neither.
    ties = {key: row[key] for key in ("tied", "credit") if row.get("credit") is not None}
    right = {"right": row["right"]} if row.get("right") is not None else {}  # nor which candidate is right
    given = {} if row["answer"] is None else {"prediction": row["prediction"]}
    return {
        "row": row["row"],
        "answer": row["answer"],
        **right,
        **given,
        "correct": row["correct"],
        **ties,
        "scores": scores,
        "scores_norm": None if sizes is None else _per_byte(scores_of, sizes),
        "text": row["text"],
    }


def _to_parquet(rows: list[dict[str, Any]]) -> bytes:
    """The rows, sorted by test row, because answers and sizes repeat there."""
    import pyarrow as pa
    from pyarrow import parquet

    rows.sort(key=lambda one: (one["predictions"], one["row"], one["run"]))
    buffer = pa.BufferOutputStream()
    parquet.write_table(
        pa.Table.from_pylist(rows, schema=_schema()),
        buffer,
        compression="zstd",
        compression_level=_ZSTD_LEVEL,
        use_dictionary=_REPEATING,  # pyright: ignore[reportArgumentType]
        use_byte_stream_split=["scores.list.element"],  # pyright: ignore[reportArgumentType]
    )
    return buffer.getvalue().to_pybytes()


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("run", pa.string()),
            ("predictions", pa.string()),
            ("row", pa.int64()),
            ("answer", pa.string()),
            ("right", pa.int64()),
            ("prediction", pa.string()),
            ("correct", pa.bool_()),
            ("tied", pa.int64()),
            ("credit", pa.float64()),
            ("scores", pa.list_(pa.float64())),
            ("bytes", pa.list_(pa.int64())),
            ("text", pa.string()),
        ]
    )


def _read_parquet(folder: Path) -> pa.Table:
    import pyarrow as pa
    from pyarrow import parquet

    path = folder / PREDICTIONS_FILE
    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError("the archive cannot be read", where=str(path), got=str(error)) from None
    if missing := [name for name in _COLUMNS if name not in table.column_names]:
        raise InputError(
            "the file is not the predictions of an archive", where=str(path), got=f"no {', '.join(missing)}"
        )
    expected = pa.schema([field for field in _schema() if field.name in table.column_names])
    try:
        return table.select(expected.names).cast(expected)
    except (ValueError, pa.ArrowException) as error:
        raise InputError(
            "the file is not the predictions of an archive", where=str(path), got=str(error)
        ) from None


def _rows_of(table: pa.Table, column: str, value: str) -> pa.Table:
    from pyarrow import dataset

    return table.filter(dataset.field(column) == value)


def _place(name: str, archive: Path) -> Path:
    """Where among a study's runs the run directory of a line is: a run, or its validation."""
    path = Path(name)
    of_runs, *place = path.parts or ("",)
    if (
        of_runs != RUNS_NAME
        or len(place) not in (1, 2)
        or place[1:] not in ([], [VALIDATION_NAME])
        or place[0] in ("..", _RESTORING)
        or "\0" in name
    ):
        raise InputError("the archive names a file outside of its study's runs", where=str(archive), got=name)
    return Path(*place)


def _inside(parent: Path, name: str, archive: Path) -> Path:
    """``parent``/``name``, which must lead into it."""
    parts = Path(name).parts
    if not parts or ".." in parts or "\0" in name or Path(name).is_absolute():
        raise InputError("the archive names a file outside of its study", where=str(archive), got=name)
    return parent / name
