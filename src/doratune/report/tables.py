"""The tables and the sentences of a comparison, as plain text that each rendering lays out in its own way."""

from __future__ import annotations

from dataclasses import dataclass

from doratune.records.comparison import Arm, ArmResult, Comparison, TaskResult
from doratune.records.run import Evaluation, RunRecord
from doratune.report import numbers

SAMPLE = "sample, not a benchmark"
NOT_EVALUATED = "not evaluated"
NONE = "–"

ACCURACY_NOTE = "Accuracy with its Wilson 95 % interval; majority is always giving the most frequent answer."
TEST_NOTE = (
    "p is McNemar's exact test, two-sided, on the rows where the two disagree. It is not corrected for the "
    "number of tasks, and it speaks about these rows and these trained adapters, not about other seeds."
)
NO_PAIR = "LoRA and DoRA were not both evaluated on one of these tasks, so there is no difference to test."


@dataclass(frozen=True)
class Cell:
    """What stands in a table: the main text and a second, quieter line."""

    text: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows."""

    columns: list[Cell]
    rows: list[list[Cell]]


def task_label(task: TaskResult, comparison: Comparison) -> str:
    """The task's name, with its format and protocol where the comparison has more than one of them."""
    parts = [task.task]
    if len({other.format for other in comparison.tasks}) > 1:
        parts.append(task.format)
    if len({other.protocol for other in comparison.tasks}) > 1:
        parts.append(task.protocol)
    return ", ".join(parts)


def ways(comparison: Comparison) -> str:
    """How the tasks were posed and scored: "Format: instruct; protocol: generate; metric: accuracy."."""
    facts = {
        "format": {task.format for task in comparison.tasks},
        "protocol": {task.protocol for task in comparison.tasks},
        "metric": {task.metric for task in comparison.tasks},
    }
    text = "; ".join(f"{fact}: {' and '.join(sorted(values))}" for fact, values in facts.items())
    return f"{text.capitalize()}."


def accuracy_table(comparison: Comparison) -> Table:
    """One row per task, one column per arm, and the difference if there is one."""
    columns = [Cell("Task"), Cell("Chance", "majority")]
    columns += [Cell(arm.name) for arm in comparison.arms]
    pair = _pair(comparison)
    rows = [
        [
            *_task_cells(task, comparison),
            *(_accuracy(task.arms.get(arm.name)) for arm in comparison.arms),
            *([_difference(task)] if pair else []),
        ]
        for task in comparison.tasks
    ]
    return Table([*columns, pair] if pair else columns, rows)


def accuracy_list(comparison: Comparison) -> Table:
    """The same with one row per task and arm, for more arms than a page is wide."""
    pair = _pair(comparison)
    columns = [Cell("Task"), Cell("Chance", "majority"), Cell("Run"), Cell("Accuracy", "interval")]
    rows = []
    for task in comparison.tasks:
        for index, arm in enumerate(comparison.arms):
            names = _task_cells(task, comparison) if index == 0 else [Cell(""), Cell("")]
            difference = _difference(task) if index == 0 else Cell("")
            row = [*names, Cell(arm.name), _accuracy(task.arms.get(arm.name))]
            rows.append([*row, difference] if pair else row)
    return Table([*columns, pair] if pair else columns, rows)


def _pair(comparison: Comparison) -> Cell | None:
    """The heading of the difference, or None when no task has one."""
    found = next((task.difference for task in comparison.tasks if task.difference), None)
    return Cell(f"{found.to_arm} {numbers.MINUS} {found.from_arm}") if found else None


def _task_cells(task: TaskResult, comparison: Comparison) -> list[Cell]:
    mixed = len({other.metric for other in comparison.tasks}) > 1
    return [
        Cell(task_label(task, comparison), f"{task.rows:,} rows" + (f", {task.metric}" if mixed else "")),
        Cell(numbers.percent(task.chance), numbers.percent(task.majority)),
    ]


def _accuracy(result: ArmResult | Evaluation | None) -> Cell:
    if result is None:
        return Cell(NONE, NOT_EVALUATED)
    unmatched = f", {result.unmatched} without an answer" if result.unmatched else ""
    return Cell(numbers.percent(result.accuracy), numbers.interval(result.interval) + unmatched)


def _difference(task: TaskResult) -> Cell:
    if task.difference is None:
        return Cell(NONE)
    return Cell(numbers.points(task.difference.points), numbers.p_value(task.difference.p_value))


def cost_table(comparison: Comparison) -> Table | None:
    """One row per trained arm: what was trained and what it took; None when nothing was trained."""
    names = [("Run", "method"), ("Trainable", "share"), ("Time", "steps"), ("Tokens/s", "")]
    names += [("Peak memory", ""), ("Final loss", "")]
    columns = [Cell(*name) for name in names]
    rows = [_cost(arm) for arm in comparison.arms if arm.training or arm.parameters]
    return Table(columns, rows) if rows else None


def _cost(arm: Arm) -> list[Cell]:
    parameters, training = arm.parameters, arm.training
    row = [
        Cell(arm.name, f"{arm.method}, {arm.engine}" if arm.engine else arm.method),
        Cell(numbers.large(parameters.trainable), numbers.percent(parameters.share, 2))
        if parameters
        else Cell(NONE),
    ]
    if training is None:
        return [*row, *[Cell(NONE)] * 4]
    loss = "not finite" if training.final_loss is None else f"{training.final_loss:.3f}"
    return [
        *row,
        Cell(numbers.duration(training.seconds), f"{training.steps:,}"),
        Cell(numbers.rate(training.tokens_per_second)),
        Cell(numbers.gigabytes(training.peak_memory_bytes)),
        Cell(loss),
    ]


def evaluation_table(record: RunRecord) -> Table:
    """The evaluations of one run, one row each."""
    names = [("Task", "rows"), ("Format", "protocol"), ("Chance", "majority"), (record.name, "interval")]
    rows = [
        [
            Cell(entry.task, f"{entry.rows:,}"),
            Cell(entry.format, entry.protocol),
            Cell(numbers.percent(entry.chance), numbers.percent(entry.majority)),
            _accuracy(entry),
            Cell(numbers.duration(entry.seconds)),
        ]
        for entry in record.evaluations
    ]
    return Table([*(Cell(*name) for name in names), Cell("Time")], rows)


@dataclass(frozen=True)
class Verdict:
    """What can be told about one task."""

    task: str
    sample: bool
    words: str
    figures: str


def verdicts(comparison: Comparison) -> list[Verdict]:
    """For each task with a difference, its outcome in words and figures."""
    return [
        Verdict(
            task_label(task, comparison),
            task.sample,
            task.difference.verdict,
            f"{task.difference.to_arm} {numbers.MINUS} {task.difference.from_arm}: "
            f"{numbers.points(task.difference.points)}, {numbers.p_value(task.difference.p_value)}",
        )
        for task in comparison.tasks
        if task.difference
    ]


def cost_sentence(comparison: Comparison) -> str | None:
    """What DoRA's training took against LoRA's, or None without the two."""
    lora = next((arm for arm in comparison.arms if arm.method == "lora" and arm.training), None)
    dora = next((arm for arm in comparison.arms if arm.method == "dora" and arm.training), None)
    if not lora or not dora or not lora.training or not dora.training:
        return None
    if not lora.training.seconds or not lora.training.peak_memory_bytes:
        return None
    time = dora.training.seconds / lora.training.seconds
    memory = dora.training.peak_memory_bytes / lora.training.peak_memory_bytes
    return (
        f"Training {dora.name} took {time:.2f} times as long as {lora.name} "
        f"and {memory:.2f} times its peak memory, measured once each."
    )
