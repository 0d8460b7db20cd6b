"""Which answers runs gave, right or wrong: what tells arms apart whose accuracies agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from doratune.records.study import MostGiven, SeedDifference, StudyCell

Given = Mapping[int, str | None]
"""The label that a run gave to each row, None where its text held none."""


def with_given_answers(cell: StudyCell, given: Mapping[str, Given | None]) -> StudyCell:
    """The cell with each run's commonest answer, and how many answers runs have in common.

    Args:
        cell: Without them.
        given: The answers by the run's place, the base's among them if it has any; all runs of the cell have
            answered the same rows.
    """
    arms = [
        arm.model_copy(
            update={
                "runs": [
                    one.model_copy(update={"most_given": most_given(given[one.run])}) for one in arm.runs
                ]
            }
        )
        for arm in cell.arms
    ]
    runs = {(arm.name, one.seed): given[one.run] for arm in arms for one in arm.runs}
    only = {arm.name: given[arm.runs[0].run] for arm in arms}

    def counted(one: SeedDifference, first: str, second: str) -> SeedDifference:
        if one.seed is None:  # two single runs of different seeds
            pair = only[first], only[second]
        else:
            pair = runs[first, one.seed], runs[second, one.seed]
        return one.model_copy(update={"same_answers": _same(*pair)})

    differences = [
        one.model_copy(update={"seeds": [counted(seed, one.from_arm, one.to_arm) for seed in one.seeds]})
        for one in cell.differences
    ]
    return cell.model_copy(update={"arms": arms, "differences": differences, "alike": _alike(given)})


def _alike(given: Mapping[str, Given | None]) -> list[list[str]]:
    """The runs that gave the same answer to every row, where there are several."""
    groups: dict[frozenset[tuple[int, str | None]], list[str]] = {}
    for place, answers in given.items():
        if answers:
            groups.setdefault(frozenset(answers.items()), []).append(place)
    return [places for places in groups.values() if len(places) > 1]


def _same(first: Given | None, second: Given | None) -> int | None:
    if first is None or second is None:
        return None
    return sum(second[row] == answer for row, answer in first.items())


def most_given(given: Given | None) -> MostGiven | None:
    """The answer to most rows, None where it is not known."""
    if not given:
        return None
    ((answer, count),) = Counter(given.values()).most_common(1)
    return MostGiven(answer=answer, share=count / len(given))
