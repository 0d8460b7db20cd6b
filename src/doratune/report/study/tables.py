"""The tables of a study besides its differences: accuracies, learning rates, cost, data, runs."""

from __future__ import annotations

from statistics import median

from doratune.records.comparison import ArmResult
from doratune.records.run import DataRecord
from doratune.records.study import StudyArm, StudyCell, StudyRecord
from doratune.report import numbers
from doratune.report.study import cells
from doratune.report.tables import NONE, Cell, Table

NOT_RUN = "not in this study"
SEARCH_RULE = (
    "Every learning rate was tried by the same rule for every method and judged on validation rows that "
    "were taken out of the training rows. The test rows were read once, with the chosen one."
)


def accuracy_note(record: StudyRecord) -> str:
    """How the accuracies are to be read."""
    base = "base is the model before training, with its Wilson interval; " if _has_base(record) else ""
    if cells.seed_words(record) == cells.ONE_SEED:
        how = "Accuracy of one seed with its Wilson 95 % interval"
    else:
        how = f"Mean accuracy over {cells.seed_words(record)} with its 95 % interval over seeds and rows"
    return f"{how}; {base}majority is always giving the most frequent answer."


def ways(record: StudyRecord) -> str:
    """The models, ranks and ways of asking: "Model: tiny; rank: 32; format: instruct; …"."""
    facts = {
        "model": dict.fromkeys(cell.model for cell in record.cells),
        "rank": dict.fromkeys(str(cell.rank) for cell in record.cells),
        "format": dict.fromkeys(cell.format for cell in record.cells),
        "protocol": dict.fromkeys(cell.protocol for cell in record.cells),
        "metric": dict.fromkeys(cell.metric for cell in record.cells),
    }
    return cells.sentence(
        "; ".join(f"{fact}: {' and '.join(values)}" for fact, values in facts.items()) + "."
    )


def accuracy_table(record: StudyRecord) -> Table:
    """One row per cell, one column per method."""
    methods = cells.methods(record)
    columns = [Cell(cells.sentence(cells.noun(record)[:-1])), Cell("Chance", "majority")]
    columns += [Cell("Base")] if _has_base(record) else []
    columns += [Cell(cells.method_name(method)) for method in methods]
    rows = [
        [
            *_cell_names(cell, record),
            *([_base(cell.base)] if _has_base(record) else []),
            *(_mean(cells.arm_of(cell, method)) for method in methods),
        ]
        for cell in record.cells
    ]
    return Table(columns, rows)


def accuracy_list(record: StudyRecord) -> Table:
    """The same with one row per cell and method, and its learning rate, for many methods and little room."""
    columns = [Cell(cells.sentence(cells.noun(record)[:-1])), Cell("Chance", "majority"), Cell("Method")]
    rows = []
    for cell in record.cells:
        lines = [[Cell("Base"), _base(cell.base), Cell(NONE)]] if _has_base(record) else []
        lines += [
            [Cell(cells.method_name(method)), _mean(arm), _search(arm)]
            for method in cells.methods(record)
            for arm in [cells.arm_of(cell, method)]
        ]
        for index, line in enumerate(lines):
            rows.append([*(_cell_names(cell, record) if index == 0 else [Cell(""), Cell("")]), *line])
    columns += [Cell("Accuracy", "interval"), Cell("Learning rate", "tried; validation")]
    return Table(columns, rows)


def search_table(record: StudyRecord) -> Table:
    """The learning rate that each arm came to, one row per cell."""
    methods = cells.methods(record)
    columns = [
        Cell("Learning rate", "tried; validation accuracy"),
        *(Cell(cells.method_name(method)) for method in methods),
    ]
    rows = [
        [
            Cell(cells.cell_label(cell, record)),
            *(_search(cells.arm_of(cell, method)) for method in methods),
        ]
        for cell in record.cells
    ]
    return Table(columns, rows)


def search_note(record: StudyRecord) -> str:
    """The rule of the choice, and which choices are at an end of what was tried."""
    ends = []
    for method in cells.methods(record):
        found = [
            f"{cells.cell_label(cell, record)} ({end})"
            for cell in record.cells
            for end in [_end(cells.arm_of(cell, method))]
            if end
        ]
        ends += [f"{cells.method_name(method)} on {'; '.join(found)}"] if found else []
    if not ends:
        return SEARCH_RULE
    return (
        f"{SEARCH_RULE} At the end of what was tried, so that a rate beyond it might have done better: "
        f"{'. '.join(ends)}."
    )


def cost_table(record: StudyRecord) -> Table:
    """What was trained and what it took, medians over the seeds, one row per cell and method."""
    names = [("Method", ""), ("Trainable", "share"), ("Time", "steps"), ("Time and memory", "of LoRA's")]
    names += [("Tokens/s", ""), ("Peak memory", ""), ("Final loss", "")]
    rows = [_cost(cell, arm, record) for cell in record.cells for arm in cell.arms]
    return Table([Cell(*name) for name in names], rows)


def cost_sentence(record: StudyRecord) -> str | None:
    """What DoRA's training took of LoRA's over all cells, or None without the two."""
    ratios = []
    for cell in record.cells:
        lora, dora = cells.arm_of(cell, "lora"), cells.arm_of(cell, "dora")
        found = _ratios(dora, lora) if lora and dora else None
        if found:
            ratios.append(found)
    if not ratios:
        return None
    time, memory = (sorted(values) for values in zip(*ratios, strict=True))
    span = (
        f" ({time[0]:.2f} to {time[-1]:.2f} from one to the next)"
        if f"{time[0]:.2f}" != f"{time[-1]:.2f}"
        else ""
    )
    what = f"{len(ratios)} {cells.noun(record)}" if len(ratios) > 1 else f"one {cells.noun(record)[:-1]}"
    return (
        f"Over {what}, training with DoRA took {median(time):.2f} of LoRA's time{span} and "
        f"{median(memory):.2f} of its peak memory, {cost_note(record)}."
    )


def cost_note(record: StudyRecord) -> str:
    """What the times and the memory are of."""
    once = cells.seed_words(record) == cells.ONE_SEED
    return "measured once each" if once else f"medians over {cells.seed_words(record)}"


def data_table(record: StudyRecord) -> Table:
    """The rows behind every cell and their hashes."""
    columns = [Cell("Rows"), Cell("Training"), Cell("Validation"), Cell("Test")]
    rows = [
        [
            Cell(cells.cell_label(cell, record), cell.note or ""),
            *map(_data, (cell.train, cell.validation, cell.test)),
        ]
        for cell in record.cells
    ]
    return Table(columns, rows)


def run_table(record: StudyRecord) -> Table:
    """Every run that the test rows were read with."""
    columns = [Cell("Run"), Cell("Method"), Cell("Seed"), Cell("Learning rate"), Cell("Accuracy", "right")]
    rows = [
        [
            Cell(run.run, cells.cell_label(cell, record)),
            Cell(cells.method_name(arm.method)),
            Cell(str(run.seed)),
            Cell(numbers.learning_rate(arm.learning_rate)),
            Cell(
                numbers.percent(run.result.accuracy),
                f"{run.result.correct:,} of {cell.rows:,}{_unmatched(run.result)}",
            ),
        ]
        for cell in record.cells
        for arm in cell.arms
        for run in arm.runs
    ]
    return Table(columns, rows)


def _has_base(record: StudyRecord) -> bool:
    return any(cell.base for cell in record.cells)


def _cell_names(cell: StudyCell, record: StudyRecord) -> list[Cell]:
    mixed = len({other.metric for other in record.cells}) > 1
    return [
        Cell(cells.cell_label(cell, record), f"{cell.rows:,} rows" + (f", {cell.metric}" if mixed else "")),
        Cell(numbers.percent(cell.chance), numbers.percent(cell.majority)),
    ]


def _base(result: ArmResult | None) -> Cell:
    if result is None:
        return Cell(NONE, NOT_RUN)
    return Cell(numbers.percent(result.accuracy), numbers.interval(result.interval) + _unmatched(result))


def _mean(arm: StudyArm | None) -> Cell:
    if arm is None:
        return Cell(NONE, NOT_RUN)
    unmatched = sum(run.result.unmatched for run in arm.runs)
    more = f", {unmatched:,} without an answer" if unmatched else ""
    return Cell(numbers.percent(arm.mean), numbers.interval(arm.interval) + more)


def _unmatched(result: ArmResult) -> str:
    return f", {result.unmatched:,} without an answer" if result.unmatched else ""


def _search(arm: StudyArm | None) -> Cell:
    if arm is None:
        return Cell(NONE, NOT_RUN)
    chosen = next((trial for trial in arm.trials if trial.chosen), None)
    detail = f"of {len(arm.trials)}; {numbers.percent(chosen.accuracy)}" if chosen else "not searched"
    return Cell(numbers.learning_rate(arm.learning_rate), detail)


def _end(arm: StudyArm | None) -> str | None:
    """At which end of its tries the chosen learning rate is, or None."""
    tried = [trial.learning_rate for trial in arm.trials] if arm else []
    if arm is None or len(tried) < 2 or min(tried) < arm.learning_rate < max(tried):
        return None
    return "the smallest" if arm.learning_rate == min(tried) else "the largest"


def _ratios(arm: StudyArm, lora: StudyArm) -> tuple[float, float] | None:
    """Time and peak memory of ``arm`` over LoRA's, or None where nothing was measured."""
    seconds, memory = _seconds(lora), _memory(lora)
    return (_seconds(arm) / seconds, _memory(arm) / memory) if seconds and memory else None


def _seconds(arm: StudyArm) -> float:
    return median(run.training.seconds for run in arm.runs)


def _memory(arm: StudyArm) -> float:
    return median(run.training.peak_memory_bytes for run in arm.runs)


def _cost(cell: StudyCell, arm: StudyArm, record: StudyRecord) -> list[Cell]:
    lora = cells.arm_of(cell, "lora")
    ratios = _ratios(arm, lora) if lora and lora is not arm else None
    first = arm.runs[0]
    losses = [run.training.final_loss for run in arm.runs if run.training.final_loss is not None]
    return [
        Cell(cells.method_name(arm.method), cells.cell_label(cell, record)),
        Cell(numbers.large(first.parameters.trainable), numbers.percent(first.parameters.share, 2)),
        Cell(numbers.duration(_seconds(arm)), f"{first.training.steps:,}"),
        Cell(f"{ratios[0]:.2f}", f"{ratios[1]:.2f}") if ratios else Cell(NONE),
        Cell(numbers.rate(median(run.training.tokens_per_second for run in arm.runs))),
        Cell(numbers.gigabytes(round(_memory(arm)))),
        Cell(f"{median(losses):.3f}" if len(losses) == len(arm.runs) else "not finite"),
    ]


def _data(data: DataRecord) -> Cell:
    return Cell(f"{data.rows:,} rows", f"{data.source}, {data.split}, SHA-256 {data.sha256[:12]}")
