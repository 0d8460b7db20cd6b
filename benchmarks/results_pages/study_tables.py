"""The tables of the studies of SmolLM2-135M."""

from __future__ import annotations

import math
from typing import Any

from doratune.records.study import IN_WORDS, arm_name
from doratune.report import numbers
from doratune.report.fronts import TIME
from doratune.report.search import rate_entry
from doratune.wording import listed
from results_pages import words

PAPER_RANKS = {4: (39.5, 61.9), 8: (40.7, 77.9), 16: (70.9, 77.5), 32: (76.3, 78.4), 64: (65.8, 76.8)}
"""Average accuracy of LoRA and DoRA in percent by rank: LLaMA-7B on the eight tasks of arXiv 2402.09353."""


def cells(record: Any) -> str:
    """Every cell of a study of LoRA and DoRA: accuracies with intervals, and the differences."""
    rows = []
    for cell in record.cells:
        arms = {arm.name: arm for arm in cell.arms}
        seeds = numbers.counted(len(cell.differences[0].seeds), "seed")
        rows.append(
            [
                f"{_named(cell, record)} ({cell.rows:,} rows, {seeds})",
                numbers.percent(cell.base.accuracy),
                *(_accuracy(arms[name]) for name in ("lora", "dora")),
                _difference(cell, "dora"),
                _likelihood(cell, "dora"),
            ]
        )
    return words.table(["tested on", "base", "LoRA", "DoRA", "DoRA − LoRA, points", "NLL, nats"], rows)


def ranks(record: Any) -> str:
    """The same by rank, beside what the paper has for LLaMA-7B."""
    rows = []
    for cell in sorted(record.cells, key=lambda one: one.rank):
        arms = {arm.name: arm for arm in cell.arms}
        rows.append(
            [
                str(cell.rank),
                *(_accuracy(arms[name]) for name in ("lora", "dora")),
                _difference(cell, "dora"),
                _likelihood(cell, "dora"),
                numbers.signed(PAPER_RANKS[cell.rank][1] - PAPER_RANKS[cell.rank][0]),
            ]
        )
    return words.table(
        ["rank", "LoRA", "DoRA", "DoRA − LoRA, points", "NLL, nats", "the paper's DoRA − LoRA"], rows
    )


def excluded(record: Any) -> float:
    """The smallest tenth of a point above every interval of the differences."""
    highest = max(cell.differences[0].interval[1] for cell in record.cells)
    return math.floor(10 * highest + 1) / 10


def methods(record: Any) -> str:
    """Every method of a study with one cell, the most accurate first, and its difference from LoRA."""
    (cell,) = record.cells
    kept = {
        arm.name: arm.change
        for one in record.forgetting
        if one.measure == "nll_per_token"
        for arm in one.arms
    }
    lora = next(arm for arm in cell.arms if arm.name == "lora")
    timed = record.environments == 1  # times of different machines cannot be compared
    rows = []
    for arm in sorted(cell.arms, key=lambda one: -one.mean):
        change = kept.get(arm.name)
        rows.append(
            [
                arm_name(arm.name),
                numbers.large(arm.runs[0].parameters.trainable),
                rate_entry(arm).text,
                _accuracy(arm),
                "" if arm is lora else _difference(cell, arm.name),
                "" if arm is lora else _likelihood(cell, arm.name),
                "–" if change is None else numbers.signed(change.mean, 3),
                *([words.ratio(TIME.of(arm) / TIME.of(lora))] if timed else []),
            ]
        )
    heading = [
        *("method", "trained", "rates chosen", "accuracy", "− LoRA, points", "NLL − LoRA, nats"),
        *("plain text, nats", *(["time ÷ LoRA"] if timed else [])),
    ]
    return words.table(heading, rows)


def told_from_lora(record: Any) -> list[str]:
    """The methods of a study with one cell of which a difference from LoRA in accuracy can be told."""
    (cell,) = record.cells
    return [
        arm_name(one.to_arm) for one in cell.differences if one.from_arm == "lora" and one.outcome in IN_WORDS
    ]


def below_base(record: Any) -> list[str]:
    """The methods of a study with one cell that end less accurate than the base model."""
    (cell,) = record.cells
    return [arm_name(arm.name) for arm in cell.arms if arm.mean < cell.base.accuracy]


def single_seeds(named: dict[str, Any]) -> str:
    """What a study of each seed alone would have said, by the rates of the study."""
    rows = []
    for name, record in named.items():
        for cell in record.cells:
            difference = cell.differences[0]
            alone = [
                f"{numbers.signed(one.points)} ({numbers.p_value(one.p_value)})" for one in difference.seeds
            ]
            mark = ", no verdict" if cell.tells_nothing else ""
            rows.append([f"{name}, {cell.format}{mark}", *alone, _with_interval(difference)])
    seeds = [one.seed for one in next(iter(named.values())).cells[0].differences[0].seeds]
    heading = ["DoRA − LoRA, points", *(f"seed {seed}" for seed in seeds), "all seeds"]
    return words.table(heading, rows)


def told_by_one_seed(record: Any) -> tuple[int, int]:
    """How many single seeds would have reported that LoRA is better, at 5 %, and of how many.

    Cells in which nothing was learned are left out.
    """
    seeds = [one for cell in record.cells if not cell.tells_nothing for one in cell.differences[0].seeds]
    return sum(one.p_value < 0.05 and one.points < 0 for one in seeds), len(seeds)


def lowest(record: Any, task: str, name: str) -> Any:
    """The run of an arm that ended lowest, in the cell that was trained on the task."""
    cell = next(one for one in record.cells if one.task == task and one.train.task == task)
    arm = next(one for one in cell.arms if one.name == name)
    return min(arm.runs, key=lambda run: run.result.accuracy)


def validation_parts(record: Any) -> str:
    """How many of a mix's validation rows are of each task, in words."""
    parts = next(cell.validation.parts for cell in record.cells if cell.validation.parts)
    return listed([f"{count} of {task}" for task, count in parts.items()])


def full(weights: Any, adapters: Any) -> str:
    """All weights beside the adapters of another study, on the test rows that both answered."""
    (cell,) = weights.cells
    beside = next(one for one in adapters.cells if one.test.asked == cell.test.asked)
    arms = [*beside.arms, *cell.arms]
    rows = [
        [
            arm_name(arm.name),
            numbers.large(arm.runs[0].parameters.trainable),
            str(len(arm.runs)),
            rate_entry(arm).text,
            _accuracy(arm),
        ]
        for arm in arms
    ]
    return words.table(["method", "trained", "seeds", "rates chosen", f"accuracy on {cell.task}"], rows)


def at_one_rate(record: Any) -> list[float]:
    """The differences of DoRA and LoRA at one and the same rate, by cell, ascending."""
    return sorted(cell.same_rate[0].difference.points for cell in record.cells)


def not_above_base(record: Any) -> list[str]:
    """The cells in which no arm ends more accurate than the base model."""
    return [
        _named(cell, record)
        for cell in record.cells
        if all(arm.mean <= cell.base.accuracy for arm in cell.arms)
    ]


def without_verdict(record: Any) -> list[str]:
    """The cells in which no arm is shown to have learned anything."""
    return [_named(cell, record) for cell in record.cells if cell.tells_nothing]


def slower(record: Any) -> tuple[float, float] | None:
    """The smallest and largest ratio over the cells of a DoRA training's time to a LoRA training's.

    None if the runs took place on different machines.
    """
    if record.environments > 1:
        return None
    found = []
    for cell in record.cells:
        arms = {arm.name: arm for arm in cell.arms}
        found.append(TIME.of(arms["dora"]) / TIME.of(arms["lora"]))
    return min(found), max(found)


def _named(cell: Any, record: Any) -> str:
    """The tested task, and what was trained on where it is not the same."""
    trained = cell.train.task if cell.train else None
    if trained == cell.task:
        return cell.task
    entry = next(one for one in record.plan["tasks"] if not isinstance(one["train"], str))
    return f"{cell.task} {'after' if cell.task not in entry['train'] else 'in'} the mix"


def _accuracy(arm: Any) -> str:
    return f"{numbers.percent(arm.mean)} ({numbers.interval(arm.interval)})"


def _difference(cell: Any, arm: str) -> str:
    one = next(one for one in cell.differences if (one.from_arm, one.to_arm) == ("lora", arm))
    return _with_interval(one)


def _with_interval(one: Any) -> str:
    return f"**{numbers.signed(one.points)}** ({numbers.signed_interval(one.interval)})"


def _likelihood(cell: Any, arm: str) -> str:
    one = next(
        one.difference
        for one in cell.measures
        if (one.from_arm, one.to_arm, one.measure) == ("lora", arm, "nll")
    )
    mean, low, high = (numbers.signed(value, 3) for value in (one.mean, *one.interval))
    return f"{mean} ({low} to {high})"
