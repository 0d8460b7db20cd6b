"""One evaluation, from tasks to predictions and accuracies in a record."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from doratune.data.examples import Example, build_examples
from doratune.data.mix import without_mix
from doratune.data.source import LoadedData, load_split
from doratune.data.tasks import Task, get_tasks
from doratune.errors import DoratuneError, InputError
from doratune.evaluation.config import EvalConfig
from doratune.evaluation.early import refuse_early, refuse_generated_texts
from doratune.evaluation.found import Found
from doratune.evaluation.generate import extract_answer, generate_answers
from doratune.evaluation.held import (
    held_record,
    refuse_other_target,
    refuse_other_weights,
    refuse_repeated,
    refuse_repeated_text,
)
from doratune.evaluation.likelihood import score_candidates
from doratune.evaluation.merge import ROWS
from doratune.evaluation.target import TEXTS, Target, load_target
from doratune.processes import in_first, join_processes, together
from doratune.records.answers import count_rows, counted
from doratune.records.files import write_jsonl_atomic
from doratune.records.layout import predictions_name
from doratune.records.lock import locked
from doratune.records.run import DataRecord, Evaluation, Format, Metric, RunRecord, TextLoss, way_of_asking
from doratune.records.storage import write_record
from doratune.stats.accuracy import accuracy_with_interval, majority_share
from doratune.stats.measures import run_measures

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskRows:
    """A task's rows as examples."""

    task: Task
    loaded: LoadedData
    examples: list[Example]


@dataclass(frozen=True)
class _Asked:
    """What an evaluation needs.

    Attributes:
        format: How a row becomes a prompt and its candidate answers.
        tasks: The rows.
        target: Who answers them.
        record: The record before the evaluation.
    """

    format: Format
    tasks: list[TaskRows]
    target: Target
    record: RunRecord


def evaluate(config: EvalConfig, *, overwrite: bool = False) -> RunRecord:
    """Evaluate a run, an adapter or a base model.

    All checks of the input come before the model is loaded. Each task is written as soon as it is done.
    Several processes of a launcher share the rows; the first one writes.

    Args:
        config: The evaluation's settings.
        overwrite: Replace evaluations that are already in the record.

    Returns:
        The record with the new evaluations.

    Raises:
        InputError: If the target, a task or its data cannot be used.
        OtherProcessError: Another process failed.
    """
    join_processes()
    with together():
        asked = _prepare(config, overwrite=overwrite)
    record = asked.record
    if asked.target.text is not None:
        _log_text(asked.target.text)
        record = in_first(partial(_add, asked.target.text, record, asked.target.output))
    for rows in asked.tasks:
        evaluation, predictions = _evaluate_task(asked.target, rows, config, asked.format)
        write = partial(_write, evaluation, predictions, record, asked.target.output)
        record = in_first(write)
    return record


def _prepare(config: EvalConfig, *, overwrite: bool) -> _Asked:
    """Check the input and load the rows and the model."""
    found, fmt, tasks = read_tasks(config)
    held = held_record(config.output or found.run)
    if not overwrite:
        for rows in tasks:
            refuse_repeated(held, rows.task.name, fmt, config)
        refuse_repeated_text(held, config)
    first = [one.prompt + one.candidates[one.gold] for task in tasks for one in task.examples[:ROWS]]
    target = load_target(config, found, first[:ROWS] or TEXTS)
    if held is not None:
        refuse_other_target(held, target.record, where=str(target.output))
        replaced = [predictions_name(one.task.name, fmt, config.protocol) for one in tasks]
        refuse_other_weights(held, target, replaced, text=not config.text)
    return _Asked(fmt, tasks, target, held or target.record)


def read_tasks(config: EvalConfig) -> tuple[Found, Format, list[TaskRows]]:
    """Check the input and load the rows, but no model.

    Returns:
        What the target is, the format, and the rows of each task.

    Raises:
        InputError: The target, a task or its data cannot be used.
        DoratuneError: The hub cannot be reached.
    """
    found = refuse_early(config)
    fmt: Format = config.format or (found.record.config.get("format") if found.record else None) or "instruct"
    refuse_generated_texts(config, fmt)
    return found, fmt, _load_tasks(config, fmt, found.record)


def _log_text(text: TextLoss) -> None:
    logger.info(
        "%s: perplexity %.4g, %.4f nats per token, %.4f per byte",
        text.name,
        text.perplexity or math.inf,
        text.nll_per_token,
        text.nll_per_byte,
    )


def _write(
    evaluation: Evaluation, predictions: list[dict[str, Any]], record: RunRecord, folder: Path
) -> RunRecord:
    """Write an evaluation, and return the record with it."""
    write_jsonl_atomic(folder / evaluation.predictions, predictions)
    return _add(evaluation, record, folder)


def _add(new: Evaluation | TextLoss, record: RunRecord, folder: Path) -> RunRecord:
    """Add a result to the record on disk, which another process may have changed meanwhile."""
    with locked(folder, wait=True):
        found = held_record(folder) or record
        if found.training is not None and found.started != record.started:
            raise DoratuneError(
                "the run was trained again while it was evaluated",
                where=str(folder),
                fix="evaluate it again",
            )
        if isinstance(new, TextLoss):
            found = found.model_copy(update={"text": new})
        else:
            others = [one for one in found.evaluations if one.predictions != new.predictions]
            found = found.model_copy(update={"evaluations": [*others, new]})
        write_record(folder, found)
    return found


def _load_tasks(config: EvalConfig, fmt: Format, run: RunRecord | None) -> list[TaskRows]:
    names = without_mix(config.task)
    trained = {data.task: data.definition for data in (run.data if run else []) if data.task}
    recorded = {name: definition for name, definition in trained.items() if definition is not None}
    loaded = []
    for task in get_tasks(names, recorded=recorded):
        _refuse_changed(task, recorded, config)
        data = load_split(task, "test", data=config.data)
        examples = build_examples(data.rows[: config.eval_rows], source=data.source, fmt=fmt, task=task)
        loaded.append(TaskRows(task, data, examples))
    return loaded


def _refuse_changed(task: Task, recorded: Mapping[str, Mapping[str, Any]], config: EvalConfig) -> None:
    """Refuse a task file that differs from the one of this name that the run was trained with."""
    trained = recorded.get(task.name)
    if trained is not None and way_of_asking(task.definition) != way_of_asking(trained):
        raise InputError(
            f"the file of the task {task.name} was changed since the run was trained",
            where=config.target,
            got=f"another layout or row in {' '.join(config.task)}",
            expected="what the run's record holds",
            fix=f"evaluate with --task {task.name}, which is taken from the record, or give the changed file "
            "another name",
        )


def _evaluate_task(
    target: Target, rows: TaskRows, config: EvalConfig, fmt: Format
) -> tuple[Evaluation, list[dict[str, Any]]]:
    started = time.perf_counter()
    answer = _answer_by_likelihood if config.protocol == "likelihood" else _answer_by_generation
    metric: Metric = rows.task.layout.metric if fmt == "continuation" else "accuracy"
    with _progress(rows.task.name, len(rows.examples)) as advance:
        predictions = answer(target, rows, config, metric, advance)
    seconds = time.perf_counter() - started
    answers = count_rows(predictions, metric)
    accuracy = accuracy_with_interval(answers.total, len(predictions))
    evaluation = Evaluation(
        task=rows.task.name,
        sample=rows.task.sample,
        format=fmt,
        protocol=config.protocol,
        metric=metric,
        rows=len(predictions),
        correct=answers.right,
        tied=answers.tied,
        accuracy=accuracy.value,
        interval=(accuracy.low, accuracy.high),
        accuracy_raw=_share(predictions, rows.examples, "scores"),
        accuracy_norm=_share(predictions, rows.examples, "scores_norm"),
        measures=run_measures(list(answers.scored.values())) if answers.scored else None,
        unmatched=sum(one["prediction"] is None for one in predictions),
        chance=sum(1 / len(example.candidates) for example in rows.examples) / len(rows.examples),
        majority=majority_share([example.labels[example.gold] for example in rows.examples]),
        seconds=seconds,
        processes=PartialState().num_processes,
        predictions=predictions_name(rows.task.name, fmt, config.protocol),
        data=DataRecord(
            task=rows.task.name,
            source=rows.loaded.source,
            split=config.split,
            sha256=rows.loaded.sha256,
            rows=len(rows.loaded.rows),
            definition=rows.task.definition,
        ),
        limit=config.eval_rows,
        speedups=list(target.speedups),
        scored=target.scored,
        other_base=target.other_base,
    )
    logger.info(
        "%s: %d of %d rows right (%.1f %%)",
        rows.task.name,
        answers.right,
        len(predictions),
        100 * accuracy.value,
    )
    if answers.many_tied:
        logger.warning(
            "%s: on %d of %d rows several candidates tie for the best score, so they count as fractions",
            rows.task.name,
            answers.tied,
            len(predictions),
        )
    return evaluation, predictions


def _answer_by_likelihood(
    target: Target, rows: TaskRows, config: EvalConfig, metric: Metric, advance: Callable[[int], None]
) -> list[dict[str, Any]]:
    scores = score_candidates(
        target.model, target.tokenizer, rows.examples, batch_size=config.eval_batch_size, progress=advance
    )
    predictions = []
    for example, score in zip(rows.examples, scores, strict=True):
        judged = score.normalised if metric == "accuracy_norm" else score.raw
        found = counted(judged, example.gold)
        predictions.append(
            {
                "row": example.row,
                "answer": example.labels[example.gold],
                "right": example.gold,
                "prediction": example.labels[judged.index(max(judged))],  # the first if several tie
                "correct": found.credit == 1,
                "tied": found.tied,
                "credit": found.credit,
                "scores": list(score.raw),
                "scores_norm": list(score.normalised),
                "text": None,
            }
        )
    return predictions


def _answer_by_generation(
    target: Target, rows: TaskRows, config: EvalConfig, metric: Metric, advance: Callable[[int], None]
) -> list[dict[str, Any]]:
    texts = generate_answers(
        target.model, target.tokenizer, rows.examples, batch_size=config.eval_batch_size, progress=advance
    )
    predictions = []
    for example, text in zip(rows.examples, texts, strict=True):
        prediction = extract_answer(text, rows.task.pattern, example.labels)
        correct = prediction == example.labels[example.gold]
        predictions.append(
            {
                "row": example.row,
                "answer": example.labels[example.gold],
                "right": example.gold,
                "prediction": prediction,
                "correct": correct,
                "tied": None,
                "credit": float(correct),
                "scores": None,
                "scores_norm": None,
                "text": text,
            }
        )
    return predictions


def _share(predictions: list[dict[str, Any]], examples: list[Example], key: str) -> float | None:
    """The accuracy by the scores under ``key``, or None if there are none."""
    if predictions[0][key] is None:
        return None
    credits = [
        counted(one[key], example.gold).credit for one, example in zip(predictions, examples, strict=True)
    ]
    return math.fsum(credits) / len(credits)


@contextmanager
def _progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    shown = console.is_terminal and PartialState().is_main_process
    with Progress(*columns, console=console, disable=not shown) as bar:
        task = bar.add_task(f"evaluating {label}", total=total)
        yield lambda rows: bar.advance(task, rows)
