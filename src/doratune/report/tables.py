"""A study's tables of accuracies, learning rates, cost, data and runs; ``verdicts`` has the differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from doratune.methods.find import title_of
from doratune.records.answers import MANY_TIES
from doratune.records.run import DataRecord, Evaluation, RunRecord, TrainingRecord
from doratune.records.study import ArmResult, StudyArm, StudyCell
from doratune.report import numbers
from doratune.report.blocks import NONE, Entry, Table
from doratune.report.search import NOT_EVALUATED, rate_entry
from doratune.report.view import NamedCell, Training, View, arm_title, capitalised, of_each_task, remarks
from doratune.wording import listed

BUSY = 0.9  # a training on a CPU whose processor time is a smaller part of its time waited for other programs
MAJORITY_NOTE = "majority is the accuracy of always giving the most frequent answer."


def accuracy_note(view: View) -> str:
    """How to read the accuracies."""
    if view.one_seed:
        return f"Accuracy with its Wilson 95 % interval; {MAJORITY_NOTE}"
    base = "base is the model before training, with its Wilson interval; " if view.has_base else ""
    how = f"Mean accuracy over {view.seeds} with its 95 % interval over seeds and rows"
    return f"{how}; {base}{MAJORITY_NOTE}"


def tie_note(view: View) -> str | None:
    """The results with many tied rows, or None."""
    told = []
    for named in view.cells:
        results = [("base", [named.cell.base])] if named.cell.base else []
        results += [(arm_title(arm.name), [run.result for run in arm.runs]) for arm in named.cell.arms]
        for name, found in results:
            tied, rows = sum(one.tied or 0 for one in found if one), len(found) * named.cell.rows
            if tied > MANY_TIES * rows:
                told.append(f"{named.label}, {name}: {tied:,} of {rows:,}")
    if not told:
        return None
    return (
        "On many rows several candidates share the best score. If the right answer is among k such "
        f"candidates, the row counts 1/k. Rows with ties: {'; '.join(told)}."
    )


def ways(view: View) -> str:
    """The models, ranks and ways of asking: "Model: tiny; rank: 32; format: instruct; …"."""
    told = [f"{fact}: {listed(values)}" for fact, values in varied(view) if values]
    return f"{capitalised('; '.join(told))}."


def varied(view: View) -> list[tuple[str, list[str]]]:
    """The properties in which cells may differ, with all their values."""
    cells = view.record.cells
    facts = {
        "model": [cell.model for cell in cells],
        "rank": [str(cell.rank) for cell in cells if cell.rank],
        "batch size": [str(cell.batch_size) for cell in cells if cell.batch_size],
        "epochs": [f"{cell.epochs:g}" for cell in cells if cell.epochs],
        "training rows": [
            f"{cell.training_rows:,}{of_each_task(cell)}" for cell in cells if cell.training_rows
        ],
        "format": [cell.format for cell in cells],
        "protocol": [cell.protocol for cell in cells],
        "metric": [cell.metric for cell in cells],
    }
    return [(fact, list(dict.fromkeys(values))) for fact, values in facts.items()]


def accuracy_table(view: View) -> Table:
    """One row per cell, one column per arm, and on a simple page the difference."""
    columns = [Entry(capitalised(view.noun)), Entry("Chance", "majority")]
    columns += [Entry("Base")] if view.has_base else []
    columns += [Entry(arm_title(arm)) for arm in view.arms]
    columns += _difference_heading(view)
    rows = [
        [
            *_cell_names(named, view),
            *([_base(named.cell.base)] if view.has_base else []),
            *(_mean(named, arm) for arm in view.arms),
            *_simple_difference(named, view),
        ]
        for named in view.cells
    ]
    return Table("Accuracy of every method", columns, rows)


def accuracy_list(view: View) -> Table:
    """The same with one row per cell and arm, for narrow displays."""
    searched = view.searched or view.rates_differ
    columns = [Entry(capitalised(view.noun)), Entry("Chance", "majority"), Entry("Method")]
    columns.append(Entry("Accuracy", "interval"))
    columns += [Entry("Learning rate", "tried; validation")] if searched else []
    columns += _difference_heading(view)
    rows = []
    for named in view.cells:
        lines = [[Entry("Base"), _base(named.cell.base), Entry(NONE)]] if view.has_base else []
        for arm in view.arms:
            lines.append([Entry(arm_title(arm)), _mean(named, arm), rate_entry(named.arm(arm))])
        names, difference = _cell_names(named, view), _simple_difference(named, view)
        for line in lines:
            rows.append([*names, *(line if searched else line[:2]), *difference])
            names, difference = [Entry("")] * len(names), [Entry("")] * len(difference)
    return Table("Accuracy of every method", columns, rows)


def cost_table(view: View) -> Table | None:
    """The trained parameters and the cost, medians over the seeds, one row per trained arm; or None."""
    about = "engine" if len(view.trainings) == 1 else f"{view.noun}, engine"
    names = [("Method", about), ("Trainable", "share"), ("Time", "CPU time")]
    names += [] if view.simple else [("Time and memory", "LoRA's = 1")]
    names += [("Tokens/s", "inference"), ("Peak memory", "file"), ("Final loss", "steps")]
    rows = [_cost(training, arm, view) for training in view.trainings for arm in training.arms]
    return (
        Table("What was trained and what it took", [Entry(*name) for name in names], rows) if rows else None
    )


def cost_sentence(view: View) -> str | None:
    """DoRA's training time and memory relative to LoRA's; None without both, or in several environments."""
    if view.record.environments > 1:
        return None
    ratios = []
    for training in view.trainings:
        lora, dora = training.of_method("lora"), training.of_method("dora")
        found = _ratios(dora, lora) if lora and dora else None
        if found:
            ratios.append(found)
    if not ratios:
        return None
    times, memories = zip(*ratios, strict=True)
    low, high = f"{min(times):.2f}", f"{max(times):.2f}"
    span = f" ({low} to {high} over {len(ratios)} comparisons)" if low != high else ""
    return (
        f"Training with DoRA took {median(times):.2f}× LoRA's time{span} and {median(memories):.2f}× its "
        f"peak memory, {cost_note(view)}.{_interrupted(view)}"
    )


def _interrupted(view: View) -> str:
    """A sentence if something else took the processor's time from trainings on a CPU, or nothing."""
    trained = [one for training in view.trainings for arm in training.arms for one in _trained(arm)]
    measured = [(one.cpu_seconds, one.seconds) for one in trained if one.cpu_seconds is not None]
    waited = sum(cpu < BUSY * wall for cpu, wall in measured)
    if not waited or view.record.environment.gpu is not None:
        return ""
    of = numbers.counted(len(trained), "training")
    return (
        f" Read the time with care: {waited} of {of} waited for the processor for more than "
        f"{numbers.percent(1 - BUSY, 0)} of the time."
    )


INFERENCE_NOTE = (
    "Inference is the speed on the built-in text, one paragraph at a time, with the adapter kept apart from "
    "its base. File is the size of the saved weights."
)


def cost_note(view: View) -> str:
    """How the times and the memory were measured."""
    return "measured once each" if view.one_seed else f"medians over {view.seeds}"


def data_table(view: View) -> Table:
    """The rows behind every cell and their hashes."""
    splits = {
        "Training": [named.cell.train for named in view.cells],
        "Validation": [named.cell.validation for named in view.cells],
        "Test": [named.cell.test for named in view.cells],
    }
    shown = {split: found for split, found in splits.items() if any(found)}
    rows = [
        [
            Entry(named.label, sample=named.cell.sample),
            *(_data(found[place]) for found in shown.values()),
        ]
        for place, named in enumerate(view.cells)
    ]
    return Table(
        f"Rows of {' and '.join(shown).lower()}", [Entry("Rows"), *(Entry(split) for split in shown)], rows
    )


def data_notes(view: View) -> list[str]:
    """How many of the training rows were trained on, and the plan's notes on its rows."""
    labels = [named.label for named in view.cells]
    taken = [_taken(named.cell) for named in view.cells]
    return [*remarks(labels, taken), *remarks(labels, [named.cell.note or "" for named in view.cells])]


def _taken(cell: StudyCell) -> str:
    """How many of the training rows were trained on, if not all."""
    most, train = cell.training_rows, cell.train
    sizes = [] if train is None else [*train.parts.values()] if train.parts else [train.rows]
    if not most or not train or most >= max(sizes):
        return ""
    fewer = "at most " if train.parts and min(train.parts.values()) < most else ""
    return f"Trained on {fewer}{most:,} of the training rows{of_each_task(cell)}."


def run_table(view: View) -> Table:
    """Every run that was evaluated on the test rows."""
    columns = [
        Entry("Run"),
        Entry("Method"),
        Entry("Seed"),
        Entry("Learning rate"),
        Entry("Accuracy", "right"),
    ]
    rows = [
        [
            Entry(run.run, named.label),
            Entry(arm_title(arm.name)),
            Entry(str(run.seed)),
            Entry(numbers.learning_rate(run.learning_rate or arm.learning_rate)),
            Entry(
                numbers.percent(run.result.accuracy),
                f"{run.result.correct:,} of {named.cell.rows:,}{_not_counted_whole(run.result)}",
            ),
        ]
        for named in view.cells
        for arm in named.cell.arms
        for run in arm.runs
    ]
    return Table("Every run that was evaluated on the test rows", columns, rows)


def evaluation_table(record: RunRecord) -> Table:
    """The evaluations of one run, one row each."""
    names = [("Task", "rows"), ("Format", "protocol"), ("Chance", "majority"), (record.name, "interval")]
    rows = [
        [
            Entry(entry.task, f"{entry.rows:,}", entry.sample),
            Entry(entry.format, entry.protocol),
            Entry(numbers.percent(entry.chance), numbers.percent(entry.majority)),
            _result(entry),
            Entry(numbers.duration(entry.seconds)),
        ]
        for entry in record.evaluations
    ]
    return Table(f"Evaluations of {record.name}", [*(Entry(*name) for name in names), Entry("Time")], rows)


def _cell_names(named: NamedCell, view: View) -> list[Entry]:
    cell = named.cell
    mixed = len({other.metric for other in view.record.cells}) > 1
    rows = f"{cell.rows:,} rows" + (f", {cell.metric}" if mixed else "")
    return [
        Entry(named.label, rows, cell.sample),
        Entry(numbers.percent(cell.chance), numbers.percent(cell.majority)),
    ]


def _base(result: ArmResult | None) -> Entry:
    return _result(result) if result else Entry(NONE, NOT_EVALUATED)


def _result(result: ArmResult | Evaluation) -> Entry:
    detail = numbers.interval(result.interval) + _not_counted_whole(result)
    return Entry(numbers.percent(result.accuracy), detail)


def _mean(named: NamedCell, name: str) -> Entry:
    arm = named.arm(name)
    if arm is None:
        return Entry(NONE, NOT_EVALUATED)
    of = f" of {len(arm.runs) * named.cell.rows:,}" if len(arm.runs) > 1 else ""
    detail = numbers.interval(arm.interval) + _not_counted_whole(*(run.result for run in arm.runs), of=of)
    return Entry(numbers.percent(arm.mean), detail)


def _not_counted_whole(*results: ArmResult | Evaluation, of: str = "") -> str:
    """The numbers of rows without an answer and with a tie, ``of`` how many over several runs."""
    unmatched, tied = sum(one.unmatched for one in results), sum(one.tied or 0 for one in results)
    told = [(unmatched, "without an answer"), (tied, "tied")]
    return "".join(f", {count:,}{of} {what}" for count, what in told if count)


def _difference_heading(view: View) -> list[Entry]:
    """The heading of a simple page's difference, if it has one."""
    if not view.simple or not view.pairs:
        return []
    return [Entry(view.pairs[0].name, "corrected p" if view.pairs[0].corrected else "p")]


def _simple_difference(named: NamedCell, view: View) -> list[Entry]:
    if not _difference_heading(view):
        return []
    for one in view.pairs[0].single:
        if one.cell is named.cell:
            return [Entry(numbers.points(one.difference.points), numbers.p_value(one.difference.p_adjusted))]
    return [Entry(NONE)]


def _ratios(arm: StudyArm, lora: StudyArm) -> tuple[float, float] | None:
    """Time and peak memory of ``arm`` relative to LoRA's, or None if they were not measured."""
    ours, theirs = _trained(arm), _trained(lora)
    if not ours or not theirs:
        return None
    seconds, memory = median(one.seconds for one in theirs), median(one.peak_memory_bytes for one in theirs)
    if not seconds or not memory:
        return None
    return median(one.seconds for one in ours) / seconds, median(
        one.peak_memory_bytes for one in ours
    ) / memory


def _trained(arm: StudyArm) -> list[TrainingRecord]:
    return [run.training for run in arm.runs if run.training]


def _cost(training: Training, arm: StudyArm, view: View) -> list[Entry]:
    lora = training.of_method("lora")
    ratios = _ratios(arm, lora) if lora and lora is not arm else None
    method = [] if arm.name == arm.method else [title_of(arm.method)]
    about = [*method, *filter(None, [training.label, arm.engine])]
    parameters, trained = arm.runs[0].parameters, _trained(arm)
    row = [
        Entry(arm_title(arm.name), ", ".join(about)),
        Entry(numbers.large(parameters.trainable), numbers.percent(parameters.share, 2)),
    ]
    if not trained:
        return [*row, *[Entry(NONE)] * (4 if view.simple else 5)]
    losses = [one.final_loss for one in trained]
    ratio = Entry(f"{ratios[0]:.2f}", f"{ratios[1]:.2f}") if ratios else Entry(NONE)
    return [
        *row,
        Entry(
            numbers.duration(median(one.seconds for one in trained)),
            _median([one.cpu_seconds for one in trained], numbers.duration),
        ),
        *([] if view.simple else [ratio]),
        Entry(
            numbers.rate(median(one.tokens_per_second for one in trained)),
            _median([run.inference_tokens_per_second for run in arm.runs], numbers.rate),
        ),
        Entry(
            numbers.gigabytes(round(median(one.peak_memory_bytes for one in trained))),
            _median([one.weights_bytes for one in trained], lambda size: numbers.byte_size(round(size))),
        ),
        Entry(_median_loss(losses), f"{trained[0].steps:,}"),
    ]


def _median(values: Sequence[float | None], told: Callable[[float], str]) -> str:
    """The median of the known values in words; a dash without any."""
    known = [value for value in values if value is not None]
    return told(median(known)) if known else NONE


def _median_loss(losses: Sequence[float | None]) -> str:
    finite = [loss for loss in losses if loss is not None]
    return f"{median(finite):.3f}" if len(finite) == len(losses) else "not finite"


def _data(data: DataRecord | None) -> Entry:
    if data is None:
        return Entry(NONE)
    parts = ", ".join(f"{task} {rows:,}" for task, rows in (data.parts or {}).items())
    source = f"{data.source}, {data.split}, SHA-256 {data.sha256[:12]}"
    return Entry(f"{data.rows:,} rows", f"{source}; {parts}" if parts else source)
