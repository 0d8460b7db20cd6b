"""Reads the runs to analyse, and refuses those that cannot be analysed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from doratune.errors import InputError
from doratune.records.base_model import check_one_base_model
from doratune.records.layout import CHECKPOINTS_NAME, checkpoints, required_weights
from doratune.records.run import RunRecord
from doratune.records.storage import read_record
from doratune.records.study import StudyMethod, method_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnalysedRun:
    """A finished run with its checkpoints.

    Attributes:
        name: The run's name, or its directory if two runs share a name.
        method: The method it was trained with.
        directory: The path as the user gave it.
        record: Its record.json.
        checkpoints: Steps and folders of adapters or models, ascending; the last one is the final result.
    """

    name: str
    method: StudyMethod
    directory: Path
    record: RunRecord
    checkpoints: list[tuple[int, Path]]


def load_runs(directories: Sequence[Path]) -> list[AnalysedRun]:
    """Read runs to analyse side by side.

    Args:
        directories: One or more run directories.

    Raises:
        InputError: There is no directory; or a run is missing, unfinished or given twice, trained nothing,
            has a quantised base or no checkpoints, or has another base model than the others.
    """
    if not directories:
        raise InputError("there is nothing to analyse", expected="one or more run directories")
    records = [read_record(directory) for directory in directories]
    repeated = [path for path, count in Counter(path.resolve() for path in directories).items() if count > 1]
    if repeated:
        raise InputError("a run is given twice", where=str(repeated[0]), fix="name each run directory once")
    unique = len({record.name for record in records}) == len(records)
    runs = [
        AnalysedRun(
            record.name if unique else str(directory),
            _method(record, directory),
            directory,
            record,
            _checkpoints(record, directory),
        )
        for record, directory in zip(records, directories, strict=True)
    ]
    notes = check_one_base_model(
        {str(run.directory): run.record.model for run in runs}, fix="analyse runs of one base model"
    )
    for note in notes:
        logger.warning(note)
    return runs


def _method(record: RunRecord, directory: Path) -> StudyMethod:
    if record.method == "base":
        raise InputError(
            "nothing was trained in this run, so nothing moved",
            where=str(directory),
            expected="a run of doratune train",
        )
    if record.config.get("load_in_4bit"):
        raise InputError(
            "the base model of this run was quantised while it was loaded, so no file has its weights",
            where=str(directory),
            expected="runs without --load-in-4bit",
        )
    return method_of(record)


def _checkpoints(record: RunRecord, directory: Path) -> list[tuple[int, Path]]:
    if record.training is None:
        raise InputError("the run has no checkpoints", where=str(directory), got="a bare adapter's record")
    found = checkpoints(directory)
    if not found:
        raise InputError(
            "the run has no checkpoints",
            where=str(directory / CHECKPOINTS_NAME),
            expected="folders checkpoint-N",
            fix="train again with --save-steps and --keep-checkpoints, and keep the folder",
        )
    found[record.training.steps] = required_weights(directory, record.method)
    return sorted(found.items())
