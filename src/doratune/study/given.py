"""The answers that runs gave, right or wrong: they show how arms with equal accuracy differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from doratune.records.study import MostGiven, SeedDifference, StudyCell

Given = Mapping[int, str | None]
"""The label that a run gave to each row; None if its text had none."""


def with_given_answers(cell: StudyCell, given: Mapping[str, Given | None]) -> StudyCell:
    """Add to a cell each run's most frequent answer, and how many answers runs have in common.

    Args:
        cell: The cell without them.
        given: The answers by the run's place, also the base's if it has any. All runs of the cell answered
            the same rows.
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
    """The most frequent answer; None if the answers are unknown."""
    if not given:
        return None
    ((answer, count),) = Counter(given.values()).most_common(1)
    return MostGiven(answer=answer, share=count / len(given))
