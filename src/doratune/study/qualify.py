"""What a verdict must say about the search for learning rates behind it."""

from __future__ import annotations

from collections.abc import Sequence

from doratune.records.study import NO_VERDICT, StudyCell, StudyDifference, arm_name, ends_chosen


def qualified(one: StudyDifference, cells: Sequence[StudyCell]) -> StudyDifference:
    """The difference with what its verdict depends on: rates chosen once, or a best rate at an end.

    Args:
        one: The difference, on a cell or pooled.
        cells: The cell or cells.
    """
    if one.outcome == NO_VERDICT:
        return one
    words = one.verdict
    if any(cell.chosen_per == "arm" for cell in cells):
        words += ", at the chosen rates"
    at_ends: dict[str, list[str]] = {}
    for cell in cells:
        for arm in cell.arms:
            if arm.name in (one.from_arm, one.to_arm):
                at_ends.setdefault(arm_name(arm.name), []).extend(ends_chosen(arm))
    told = [f"{arm}'s {' and '.join(dict.fromkeys(ends))}" for arm, ends in at_ends.items() if ends]
    if told:
        words += f" (a best rate is still at an end of those tried: {', '.join(told)})"
    return one.model_copy(update={"verdict": words})
