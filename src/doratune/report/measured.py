"""Tables of the measures other than accuracy, and of what was forgotten."""

from __future__ import annotations

import math
from collections.abc import Sequence

from doratune.records.run import RowMeasures, RunRecord, TextLoss
from doratune.records.study import (
    Forgetting,
    MeasureDifference,
    MeasureMean,
    RowMeasure,
    StudyArm,
    StudyRecord,
    arm_name,
)
from doratune.report import numbers
from doratune.report.blocks import NONE, Entry, Table
from doratune.report.view import NamedCell, View, arm_title, tasks_of
from doratune.wording import listed

SHOWN: tuple[RowMeasure, ...] = ("nll", "nll_per_byte", "brier")
NAMES = {"nll": "NLL", "nll_per_byte": "NLL per byte", "brier": "Brier"}
MEANING = (
    "NLL is the negative log-likelihood of the right answer among the candidates, in nats; per byte, it "
    "takes the scores per byte. Brier is the squared error of the candidates' probabilities. Less is better. "
    "Calibration is the expected calibration error, over ten bins of confidence"
)
MEASURE_NOTE = (
    f"{MEANING}; below it, the mean confidence. Intervals are 95 %, over the rows and, of several runs, over "
    "the seeds. Differences are paired; their p is not corrected, as verdicts are about accuracy only."
)
RUN_NOTE = f"{MEANING}; below it, the mean confidence."


def has_measures(view: View) -> bool:
    """Whether any arm has measures other than accuracy."""
    return any(arm.measures for named in view.cells for arm in named.cell.arms)


def measure_table(view: View) -> Table:
    """For each cell, the base, every arm and every compared pair, a row each."""
    single = len(view.cells) == 1
    rows = [row for named in view.cells for row in _measure_rows(named, "" if single else named.label)]
    heading = Entry("Method", "" if single else view.noun)
    columns = [heading, *(Entry(NAMES[one], "interval") for one in SHOWN), Entry("Calibration", "confidence")]
    return Table("Measures other than accuracy", columns, rows, grouped=not single)


def _measure_rows(named: NamedCell, label: str) -> list[list[Entry]]:
    cell = named.cell
    rows = []
    if cell.base is not None and cell.base.measures is not None:
        rows.append([Entry("Base", label, cell.sample), *_run_entries(cell.base.measures)])
    for arm in cell.arms:
        if arm.measures:
            means = [_mean(arm.measures.get(one)) for one in SHOWN]
            rows.append([Entry(arm_title(arm.name), label, cell.sample), *means, _calibration(arm)])
    pairs = dict.fromkeys((one.from_arm, one.to_arm) for one in cell.measures)
    for first, second in pairs:
        found = {
            one.measure: one.difference
            for one in cell.measures
            if (one.from_arm, one.to_arm) == (first, second)
        }
        name = f"{arm_title(second)} {numbers.MINUS} {arm_name(first)}"
        rows.append(
            [Entry(name, label, cell.sample), *(_difference(found.get(one)) for one in SHOWN), Entry(NONE)]
        )
    return rows


def _run_entries(found: RowMeasures) -> list[Entry]:
    values = (found.nll, found.nll_per_byte, found.brier)
    error = Entry(numbers.nats(found.calibration_error), numbers.percent(found.confidence))
    return [*(Entry(numbers.nats(value)) for value in values), error]


def _calibration(arm: StudyArm) -> Entry:
    """Means over the seeds."""
    found = [run.result.measures for run in arm.runs if run.result.measures]
    if not found:
        return Entry(NONE)
    error = math.fsum(one.calibration_error for one in found) / len(found)
    confidence = math.fsum(one.confidence for one in found) / len(found)
    return Entry(numbers.nats(error), numbers.percent(confidence))


def _mean(found: MeasureMean | None) -> Entry:
    if found is None:
        return Entry(NONE)
    return Entry(numbers.nats(found.mean), "–".join(map(numbers.nats, found.interval)))


def _difference(found: MeasureDifference | None, factor: float = 1.0, digits: int = 3) -> Entry:
    if found is None:
        return Entry(NONE)
    bounds = (factor * found.interval[0], factor * found.interval[1])
    digits = max(digits, numbers.digits_of(bounds))
    low, high = (numbers.signed(bound, digits) for bound in bounds)
    mean = numbers.signed(factor * found.mean, digits)
    return Entry(mean, f"{low} to {high}; {numbers.p_value(found.p_value)}")


def evaluation_measures(record: RunRecord) -> Table | None:
    """The measures of a run's evaluations, a row each; None if none has them."""
    rows = [
        [Entry(one.task, f"{one.format}, {one.protocol}", one.sample), *_run_entries(one.measures)]
        for one in record.evaluations
        if one.measures is not None
    ]
    columns = [Entry("Task"), *(Entry(NAMES[one]) for one in SHOWN), Entry("Calibration", "confidence")]
    return Table(f"Measures of {record.name} other than accuracy", columns, rows) if rows else None


def text_sentence(text: TextLoss) -> str:
    """How well a model predicts the built-in text."""
    return (
        f"Built-in text ({text.name}): perplexity {numbers.perplexity(text.nll_per_token)}, "
        f"{numbers.nats(text.nll_per_token)} nats per token, {numbers.nats(text.nll_per_byte)} per byte; "
        f"{numbers.rate(text.tokens_per_second)} tokens/s without merging."
    )


def forgetting_table(record: StudyRecord) -> Table | None:
    """What the arms keep of what they were not trained on: a row for the base and each arm; or None."""
    if not record.forgetting:
        return None
    labels = forgetting_labels(record.forgetting)
    rows = [
        row for one, label in zip(record.forgetting, labels, strict=True) for row in _kept_rows(one, label)
    ]
    compared = _compared(record)
    columns = [
        Entry("Method", "of what"),
        Entry("Kept", "interval"),
        Entry(f"{numbers.MINUS} base", "interval; p"),
    ]
    if compared:
        against = arm_name(compared[0]) if len(compared) == 1 else "compared"
        columns.append(Entry(f"{numbers.MINUS} {against}", "interval; p"))
    rows = [row[: len(columns)] for row in rows]
    return Table("What is kept of what was not trained on", columns, rows, grouped=True)


def forgetting_note(record: StudyRecord) -> str:
    """How to read the table."""
    compared = _compared(record)
    against = (
        f" The last column is the difference from {listed([arm_name(one) for one in compared], 'or')}."
        if compared
        else ""
    )
    text = ""
    if any(one.measure == "nll_per_token" for one in record.forgetting):
        text = (
            " Of the built-in English text it is the negative log-likelihood of a token, in nats; below it "
            "the perplexity and the nats per byte."
        )
    return (
        "Accuracy differs in percentage points, NLL in nats (less is better). Differences are paired by row "
        f"and seed, their p is not corrected, and no verdict or mean over cells includes them.{against}{text}"
    )


def _compared(record: StudyRecord) -> list[str]:
    """The arms that others are compared with."""
    return list(dict.fromkeys(pair.from_arm for one in record.forgetting for pair in one.differences))


def _kept_rows(one: Forgetting, label: str) -> list[list[Entry]]:
    factor, digits = (100.0, 1) if one.measure == "accuracy" else (1.0, 3)
    against = {pair.to_arm: pair.difference for pair in one.differences}
    rows = []
    if one.base is not None:
        rows.append([Entry("Base", label), _kept(one, one.base, None), Entry(NONE), Entry(NONE)])
    for arm in one.arms:
        rows.append(
            [
                Entry(arm_title(arm.name), label),
                _kept(one, arm.value.mean, arm.value.interval),
                _difference(arm.change, factor, digits),
                _difference(against.get(arm.name), factor, digits),
            ]
        )
    return rows


def _kept(one: Forgetting, mean: float, interval: tuple[float, float] | None) -> Entry:
    if one.measure == "accuracy":
        return Entry(numbers.percent(mean), numbers.interval(interval) if interval else "")
    if one.measure == "nll_per_token":
        per_byte = f"; {numbers.nats(mean / one.bytes_per_token)} per byte" if one.bytes_per_token else ""
        return Entry(numbers.nats(mean), f"perplexity {numbers.perplexity(mean)}{per_byte}")
    return Entry(numbers.nats(mean), "–".join(map(numbers.nats, interval)) if interval else "")


def forgetting_labels(found: Sequence[Forgetting]) -> list[str]:
    """Each entry's task or text and measure, with what distinguishes its training from the others."""
    names = {"accuracy": "accuracy", "nll": "NLL", "nll_per_token": "NLL per token"}
    trained_on = {one.trained_on for one in found}
    facts = [
        [one.model for one in found],
        [f"trained on {tasks_of(one.trained_on, trained_on)}" for one in found],
        [one.format or "" for one in found],
        [f"rank {one.rank}" for one in found],
        [f"batch {one.batch_size}" for one in found],
        [f"{one.epochs:g} epochs" if one.epochs else "" for one in found],
        [
            f"{one.training_rows} {'rows of each' if '+' in one.trained_on else 'rows'}"
            if one.training_rows
            else "all rows"
            for one in found
        ],
    ]
    varying = [values for values in facts if len(set(values)) > 1]
    return [
        ", ".join(
            [f"{one.about}, {names[one.measure]}", *(values[place] for values in varying if values[place])]
        )
        for place, one in enumerate(found)
    ]
