"""The cells that belong together: their p-values are corrected together, and their differences are pooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from doratune.records.study import NO_VERDICT, PooledDifference, StudyCell, StudyDifference
from doratune.stats.seeds import adjusted, pooled, without_verdict
from doratune.study.cell import Answered, Pair
from doratune.study.qualify import qualified

Axes = tuple[int | None, int | None, float | None, int | None]
"""A cell's rank, batch size, epochs and most training rows."""


def axes_of(cell: StudyCell) -> Axes:
    """The settings of a cell that a plan may cross."""
    return cell.rank, cell.batch_size, cell.epochs, cell.training_rows


def corrected(cells: Sequence[StudyCell]) -> list[StudyCell]:
    """The cells with p corrected over the tasks, and verdicts that say how the rates were chosen.

    A family is one pair of arms for one model and one value of each axis.
    """
    found: dict[tuple[int, int], StudyDifference] = {}
    families: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for index, cell in enumerate(cells):
        for number, one in enumerate(cell.differences):
            key = (cell.model, _shared_axes(cell, cells), one.from_arm, one.to_arm)
            families.setdefault(key, []).append((index, number))
    for places in families.values():
        family = adjusted([cells[index].differences[number] for index, number in places])
        found.update(zip(places, family, strict=True))
    return [
        cell.model_copy(
            update={
                "differences": [
                    qualified(found[index, number], [cell]) for number in range(len(cell.differences))
                ]
            }
        )
        for index, cell in enumerate(cells)
    ]


def pooled_differences(answered: Sequence[Answered]) -> list[PooledDifference]:
    """Differences pooled over cells of one model, value of each axis and pair; those of one seed apart."""
    cells = [one.cell for one in answered]
    families: dict[tuple[str, Axes, Pair, bool], list[Answered]] = {}
    for one in answered:
        for pair, answers in one.pairs.items():
            key = (one.cell.model, _shared_axes(one.cell, cells), pair, len(answers.from_values) == 1)
            families.setdefault(key, []).append(one)
    return [
        _pooled_over(model, axes, pair, together, one_seed=one_seed)
        for (model, axes, pair, one_seed), family in families.items()
        for together in _with_and_without(pair, family)
        if len(together) > 1
    ]


def _with_and_without(pair: Pair, family: list[Answered]) -> list[list[Answered]]:
    """The cells with a verdict on the pair, which make the headline, and all of them if that is different."""
    telling = [one for one in family if not _tells_nothing(pair, one)]
    return [telling, family] if 0 < len(telling) < len(family) else [family]


def _tells_nothing(pair: Pair, one: Answered) -> bool:
    return any(
        (found.from_arm, found.to_arm) == pair and found.outcome == NO_VERDICT
        for found in one.cell.differences
    )


def _pooled_over(
    model: str, axes: Axes, pair: Pair, cells: Sequence[Answered], *, one_seed: bool
) -> PooledDifference:
    rank, batch_size, epochs, training_rows = axes
    names = [f"{one.cell.task} ({one.cell.format})" for one in cells]
    nothing = [name for name, one in zip(names, cells, strict=True) if _tells_nothing(pair, one)]
    found = pooled(*pair, [one.pairs[pair] for one in cells])
    if len(nothing) == len(names):
        found = without_verdict(found, "neither is shown to have learned anything in any of these cells")
    return PooledDifference(
        model=model,
        rank=rank,
        batch_size=batch_size,
        epochs=epochs,
        training_rows=training_rows,
        cells=names,
        tells_nothing=nothing,
        one_seed=one_seed,
        difference=qualified(found, [one.cell for one in cells]),
    )


def _shared_axes(cell: StudyCell, cells: Sequence[StudyCell]) -> Axes:
    """A cell's place on the axes; the number of training rows only if the study crosses it.

    Tasks may have different numbers of training rows and still belong together.
    """
    rank, batch_size, epochs, rows = axes_of(cell)
    same = [one for one in cells if _besides_rows(one) == _besides_rows(cell)]
    return rank, batch_size, epochs, rows if len({one.training_rows for one in same}) > 1 else None


def _besides_rows(cell: StudyCell) -> tuple[Any, ...]:
    trained_on = cell.train.asked if cell.train else None
    return cell.model, cell.task, cell.format, cell.protocol, trained_on, *axes_of(cell)[:-1]
