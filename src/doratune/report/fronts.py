"""What accuracy costs: which costs tell methods apart, and which methods are on the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from doratune.records.study import StudyArm, arm_name
from doratune.report import numbers
from doratune.report.view import NamedCell, View
from doratune.wording import listed

SAME = 1.02  # costs whose largest and smallest differ by no more than this factor are no question
MARKS_NOTE = "Filled marks are on the dashed front: no other method is at least as accurate at no more cost."
NOTE = "The front goes by means; methods whose intervals overlap may well change places."


@dataclass(frozen=True)
class Cost:
    """Something that training takes.

    Attributes:
        name: In words.
        units: Those of an axis and how much of the cost each is, ascending.
        of: An arm's cost, a median over its runs; None if it was not measured.
        words: A cost in words.
    """

    name: str
    units: tuple[tuple[str, float], ...]
    of: Callable[[StudyArm], float | None]
    words: Callable[[float], str]


def _seconds(arm: StudyArm) -> float | None:
    found = [run.training.seconds for run in arm.runs if run.training]
    return median(found) if found else None


def _memory(arm: StudyArm) -> float | None:
    found = [run.training.peak_memory_bytes for run in arm.runs if run.training]
    return median(found) if found else None


def _parameters(arm: StudyArm) -> float | None:
    return median(run.parameters.trainable for run in arm.runs)


TIME = Cost("training time", (("s", 1), ("min", 60), ("h", 3600)), _seconds, numbers.duration)
MEMORY = Cost("peak memory", (("MB", 1e6), ("GB", 1e9)), _memory, lambda size: numbers.gigabytes(round(size)))
PARAMETERS = Cost(
    "trained parameters",
    (("single numbers", 1), ("thousands", 1e3), ("millions", 1e6), ("billions", 1e9)),
    _parameters,
    lambda count: numbers.large(round(count)),
)


def costs_of(view: View) -> list[Cost]:
    """The costs to show: the time, and of memory and parameters the one that differs more.

    Time and memory of different environments cannot be compared and are left out.
    """
    measured = [TIME, MEMORY] if view.record.environments == 1 else []
    ratio = {one.name: _ratio(one, view) for one in (*measured, PARAMETERS)}
    size = max((one for one in (MEMORY, PARAMETERS) if one.name in ratio), key=lambda one: ratio[one.name])
    return [one for one in (TIME, size) if ratio.get(one.name, 1.0) > SAME]


def _ratio(cost: Cost, view: View) -> float:
    """The largest of all trainings' ratios of the arms' largest and smallest cost."""
    ratios = [1.0]
    for training in view.trainings:
        found = [value for arm in training.arms if (value := cost.of(arm))]
        ratios += [max(found) / min(found)] if found else []
    return max(ratios)


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each point (cost, accuracy), whether no other one dominates it.

    A point is dominated by one that costs no more and is no less accurate, and differs from it.
    """
    return [
        not any(x <= cost and y >= accuracy and (x, y) != (cost, accuracy) for x, y in points)
        for cost, accuracy in points
    ]


def on_front(named: NamedCell, cost: Cost) -> list[tuple[StudyArm, float, bool]]:
    """The arms of a cell with their cost, cheapest first, and whether each is on the front.

    Empty for a cell that tells nothing, or with fewer than two arms whose cost is known.
    """
    found = [(arm, value) for arm in named.cell.arms if (value := cost.of(arm)) is not None]
    if len(found) < 2 or named.cell.tells_nothing:
        return []
    best = front([(value, arm.mean) for arm, value in found])
    return sorted(
        ((arm, value, on) for (arm, value), on in zip(found, best, strict=True)), key=lambda one: one[1]
    )


def front_sentences(view: View) -> list[str]:
    """For each cell and cost, the methods on the front."""
    return [
        f"{named.label}, {cost.name}: {_on_front(cost, found)}."
        for named in view.cells
        for cost in costs_of(view)
        if (found := on_front(named, cost))
    ]


def _on_front(cost: Cost, found: Sequence[tuple[StudyArm, float, bool]]) -> str:
    """Which of the methods are on the front, cheapest first."""
    told = [
        (f"{arm_name(arm.name)} ({cost.words(value)}, {numbers.percent(arm.mean)})", on)
        for arm, value, on in found
    ]
    best, others = [name for name, on in told if on], [name for name, on in told if not on]
    if len(told) > 2 or (found[0][0].mean == found[1][0].mean and not others):
        return f"no other method is at least as cheap and at least as accurate as {listed(best, 'or')}"
    if others:
        (winner, price, _), (loser, other_price, _) = sorted(found, key=lambda one: not one[2])
        both = price < other_price and winner.mean > loser.mean
        how = "cheaper and more accurate than" if both else "at least as cheap and at least as accurate as"
        return f"{best[0]} is {how} {others[0]}"
    return f"{best[0]} is cheaper, {best[1]} is more accurate"
