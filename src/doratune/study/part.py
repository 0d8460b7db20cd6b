"""A part of a plan, for ``--only``."""

from __future__ import annotations

from collections.abc import Sequence

from doratune.data.mix import without_mix
from doratune.data.tasks import plain_name
from doratune.errors import InputError, did_you_mean
from doratune.study.plan import Plan, PlanTask, Sizes


def part_of(plan: Plan, only: Sequence[str]) -> Plan:
    """The plan with the cells of some of its test tasks only, and with what is trained for them.

    Args:
        plan: The plan.
        only: The tasks, by name or file; commonsense-mix is its eight.

    Raises:
        InputError: A task is not among those that the plan tests.
    """
    known = tested(plan)
    wanted = [plain_name(name).lower() for name in without_mix(only)]
    for name in wanted:
        if name not in known:
            raise InputError(
                "the plan does not test this task",
                where="--only",
                got=name,
                expected=f"one of {', '.join(known)}",
                fix=did_you_mean(name, known),
            )
    tasks = []
    for entry in plan.tasks:
        # The whole plan decides what shows forgetting: a task left out here is not among it.
        entry = entry.model_copy(update={"also_test": plan.also_tested(entry)})
        kept = [name for name in entry.tests if plain_name(name).lower() in wanted]
        if kept == entry.tests:
            tasks.append(entry)
        elif kept:
            tasks.append(entry.model_copy(update={"test": kept, "sizes": _share(entry, len(kept))}))
    return plan.model_copy(update={"tasks": tasks, "also_test": []})


def _share(entry: PlanTask, kept: int) -> Sizes | None:
    """The sizes of an entry of which only some tasks are tested."""
    if entry.sizes is None:
        return None
    rows = entry.sizes.test_rows * kept // len(entry.tests)
    return entry.sizes.model_copy(update={"test_rows": max(rows, 1)})


def tested(plan: Plan) -> list[str]:
    """Names of the tasks that a plan tests, in its order, each once."""
    return list(dict.fromkeys(plain_name(name).lower() for entry in plan.tasks for name in entry.tests))
