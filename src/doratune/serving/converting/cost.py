"""What a conversion costs: how far its predictions are from the adapter's, and its accuracy on tasks."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from doratune.evaluation.config import EvalConfig
from doratune.evaluation.evaluate import evaluate
from doratune.evaluation.found import find_trained
from doratune.records.answers import read_answers
from doratune.records.files import write_json_atomic
from doratune.records.run import Evaluation
from doratune.records.serving import LogitCheck, TaskAccuracy
from doratune.serving.adapted import open_adapted
from doratune.serving.check import Logits, compare_logits, filled, fits_whole, logits_of
from doratune.stats.seeds import sign_flip_p


@dataclass(frozen=True)
class Scored:
    """An adapter's answers.

    Attributes:
        evaluations: One for each task, in the order of the tasks.
        credits: What each row counts, from 0 to 1, for each task.
    """

    evaluations: list[Evaluation]
    credits: list[np.ndarray]


def check_written(before: Logits, folder: Path, rows: Sequence[Tensor]) -> LogitCheck:
    """Read a written adapter back and compare its predictions with those of its source.

    Args:
        before: The predictions of the source.
        folder: The new adapter.
        rows: What they are compared on.
    """
    written = open_adapted(str(folder), command="doratune convert", dequantised=None)
    with filled(written.model, written.trained_weight, keep=fits_whole(written)):
        return compare_logits(before, logits_of(written.model), rows)


def accuracies(
    evaluation: EvalConfig | None, folder: Path, *, base: Path | None = None
) -> list[TaskAccuracy]:
    """Compare the accuracies of an adapter and of the conversion in ``folder``; none without tasks.

    Args:
        evaluation: The evaluation of the adapter.
        folder: The conversion.
        base: The conversion's base, if it is not the adapter's.
    """
    if evaluation is None:
        return []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        before = score(evaluation, place / "source")
        converted = of_conversion(evaluation, before, folder, place)
        if base is not None:
            converted = converted.model_copy(update={"model": str(base)})
        after = score(converted, place / "converted")
    return compare(before, after)


def score(config: EvalConfig, folder: Path) -> Scored:
    """Evaluate an adapter.

    Args:
        config: The evaluation's settings; their output is not used.
        folder: Where the answers go.
    """
    record = evaluate(config.model_copy(update={"output": folder}), overwrite=True)
    known = {one.predictions: one for one in record.evaluations if (folder / one.predictions).is_file()}
    evaluations = list(known.values())
    credits = [read_answers(folder, one).credits for one in evaluations]
    return Scored(evaluations, [np.array([one[row] for row in sorted(one)]) for one in credits])


def of_conversion(config: EvalConfig, source: Scored, target: Path, scratch: Path) -> EvalConfig:
    """The same evaluation of a folder that was written, which does not know the run's format and tasks.

    Args:
        config: The evaluation of the source.
        source: Its result.
        target: The folder with the converted adapter.
        scratch: Where the definitions of tasks that only the run has are written.
    """
    found = find_trained(config.target)
    own: Mapping[str, Any] = {
        data.task: data.definition
        for data in (found.record.data if found.record else [])
        if data.task and data.definition is not None
    }
    tasks = []
    for name in config.task:
        if name in own:
            path = scratch / f"{name}.yaml"
            write_json_atomic(path, own[name])  # which YAML reads
            name = str(path)
        tasks.append(name)
    return config.model_copy(
        update={"target": str(target), "task": tasks, "format": source.evaluations[0].format}
    )


def compare(source: Scored, converted: Scored) -> list[TaskAccuracy]:
    """Compare two adapters row by row."""
    return [
        _compare(*one)
        for one in zip(
            source.evaluations, source.credits, converted.evaluations, converted.credits, strict=True
        )
    ]


def _compare(
    before: Evaluation, before_credits: np.ndarray, after: Evaluation, after_credits: np.ndarray
) -> TaskAccuracy:
    differences = after_credits - before_credits
    return TaskAccuracy(
        task=before.task,
        format=before.format,
        metric=before.metric,
        rows=before.rows,
        source=before.accuracy,
        source_interval=before.interval,
        converted=after.accuracy,
        converted_interval=after.interval,
        only_source=int((differences < 0).sum()),
        only_converted=int((differences > 0).sum()),
        p_value=min(1.0, sign_flip_p(differences)),
    )
