"""What the cells, methods and differences of a study are called, in every rendering alike."""

from __future__ import annotations

from collections.abc import Iterator

from doratune.records.study import (
    METHOD_NAMES,
    PooledDifference,
    StudyArm,
    StudyCell,
    StudyDifference,
    StudyMethod,
    StudyRecord,
    arm_name,
)
from doratune.report import numbers

Pair = tuple[str, str]
"""The arms a difference is from and to."""

ONE_SEED = "1 seed"


def cell_label(cell: StudyCell, record: StudyRecord) -> str:
    """The task's name, with whatever else the cells of the study differ in."""
    others = record.cells
    parts = [cell.task]
    if len({other.format for other in others}) > 1:
        parts.append(cell.format)
    if len({other.protocol for other in others}) > 1:
        parts.append(cell.protocol)
    if len({other.model for other in others}) > 1:
        parts.append(cell.model)
    if len({other.rank for other in others}) > 1:
        parts.append(f"rank {cell.rank}")
    return ", ".join(parts)


def noun(record: StudyRecord) -> str:
    """What a reader may call the cells: tasks, as long as each is there once."""
    return "tasks" if len({cell.task for cell in record.cells}) == len(record.cells) else "cells"


def samples(record: StudyRecord) -> list[str]:
    """Labels of the cells that are no benchmarks."""
    return [cell_label(cell, record) for cell in record.cells if cell.sample]


def method_name(method: StudyMethod) -> str:
    """The method at the beginning of a line."""
    return sentence(METHOD_NAMES[method])


def sentence(words: str) -> str:
    """``words`` with a large first letter."""
    return words[:1].upper() + words[1:]


def methods(record: StudyRecord) -> list[StudyMethod]:
    """Every method of the study, in the plan's order."""
    return list(dict.fromkeys(arm.method for cell in record.cells for arm in cell.arms))


def arm_of(cell: StudyCell, method: StudyMethod) -> StudyArm | None:
    """The cell's arm of that method, or None."""
    return next((arm for arm in cell.arms if arm.method == method), None)


def pairs(record: StudyRecord) -> list[Pair]:
    """The differences that the study asked for, the first cell's first one first."""
    found = [_pair(one) for cell in record.cells for one in cell.differences]
    return list(dict.fromkeys([*found, *(_pair(one.difference) for one in record.pooled)]))


def pair_name(pair: Pair) -> str:
    """As a difference: "DoRA − LoRA"."""
    return f"{arm_name(pair[1])} {numbers.MINUS} {arm_name(pair[0])}"


def differences(record: StudyRecord, pair: Pair) -> Iterator[tuple[StudyCell, StudyDifference]]:
    """The cells that have that difference, with it."""
    for cell in record.cells:
        for one in cell.differences:
            if _pair(one) == pair:
                yield cell, one


def pooled(record: StudyRecord, pair: Pair) -> Iterator[tuple[PooledDifference, StudyDifference]]:
    """The pooled differences of that pair."""
    for one in record.pooled:
        if _pair(one.difference) == pair:
            yield one, one.difference


def pooled_label(one: PooledDifference, record: StudyRecord) -> str:
    """The mean over so many cells, with the model and rank where the study has several."""
    parts = [f"mean of {len(one.cells)} {noun(record)}"]
    if len({other.model for other in record.pooled}) > 1:
        parts.append(one.model)
    if len({other.rank for other in record.pooled}) > 1:
        parts.append(f"rank {one.rank}")
    return sentence(", ".join(parts))


def seed_words(record: StudyRecord) -> str:
    """How many seeds the arms ran with: "3 seeds"; "1 to 3 seeds" where they differ."""
    counts = sorted({len(arm.runs) for cell in record.cells for arm in cell.arms})
    if not counts:
        return "no seeds"
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{span} seed{'' if counts == [1] else 's'}"


def _pair(one: StudyDifference) -> Pair:
    return one.from_arm, one.to_arm
