"""What a group's trials found on the validation rows, from their records on disk."""

from __future__ import annotations

import math
from collections.abc import Iterable

from doratune.records.study import StudyMethod
from doratune.stats.measures import right_answer_nll
from doratune.study.choice import Tried, Tries
from doratune.study.grid import Group
from doratune.study.job import Job
from doratune.study.rates import Added


def tries_of(group: Group, added: Added) -> dict[StudyMethod, Tries]:
    """The result of each learning rate of each arm and seed; empty if the group has no trials.

    Args:
        group: The group; all its trials must be done.
        added: How many rates are added to the plan's.

    Raises:
        InputError: A record or its predictions cannot be read.
    """
    if not group.material.validation:
        return {}
    return {
        method: {
            seed: [_tried(rate, group.trial(method, rate, seed)) for rate in group.rates(method, added)]
            for seed in group.choosing
        }
        for method in group.plan.methods
    }


def validation_majority(trials: Iterable[Job]) -> float | None:
    """The accuracy of always giving the most frequent answer to the validation rows; None without trials.

    In a mixture, each task's most frequent answer.
    """
    for trial in trials:
        found = [one.found() for one in trial.wanted]
        known = [one for one in found if one is not None]
        if known and len(known) == len(found):
            return math.fsum(one.rows * one.majority for one in known) / sum(one.rows for one in known)
    return None


def _tried(rate: float, trial: Job) -> Tried:
    rows = sum(one.rows for one in trial.wanted)
    if trial.diverged():
        return Tried(rate, 0.0, rows, diverged=True)
    answers = [found for one in trial.wanted if (found := one.answers()) is not None]
    scored = [list(one.scored.values()) for one in answers if one.scored]
    likelihoods = [value for rows_of_task in scored for value in right_answer_nll(rows_of_task).tolist()]
    return Tried(
        rate,
        math.fsum(one.total for one in answers),
        rows,
        nll=math.fsum(likelihoods) / rows if len(scored) == len(trial.wanted) else None,
    )
