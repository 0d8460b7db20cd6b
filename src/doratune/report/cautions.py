"""Warnings about doubtful results: runs without a result, identical answers, weights that did not move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from doratune.records.study import DivergedRun, StudyArm, StudyDifference, arm_name, no_better_than_majority
from doratune.report import numbers
from doratune.report.view import NamedCell, View, arm_title
from doratune.stats.outliers import FEWEST_RUNS, outliers
from doratune.stats.telling import ONE_ANSWER

FEWEST_ROWS = 20
"""With fewer rows than this, the same answer to all of them means little."""
COLLAPSES = (
    "Where single runs fall that far, 95 % intervals over few seeds hold the truth less often than they say, "
    "and a difference depends mainly on how many runs fell."
)


def cautions(view: View) -> list[str]:
    """Everything that a reader must know before trusting a result, as sentences."""
    found: list[str] = []
    for named in view.cells:
        found += _diverged(named)
    for named in view.cells:
        found += [line for arm in named.cell.arms for line in _weak_choices(named, arm)]
        found += _same_answers(named)
        found += [line for arm in named.cell.arms if (line := _one_answer(named, arm))]
    fallen = [line for named in view.cells for line in _fallen(named)]
    found += [*fallen, *([COLLAPSES] if fallen else []), *_few_seeds(view)]
    trained = {line: None for one in view.trainings for arm in one.arms for line in _unmoved(arm, one.label)}
    return [*found, *trained, *_lost_time(view)]


def lost_arms(named: NamedCell) -> dict[str, list[DivergedRun]]:
    """The arms of a cell of which every run diverged, with those runs."""
    lost: dict[str, list[DivergedRun]] = {}
    for run in named.cell.diverged:
        if named.arm(run.arm) is None:
            lost.setdefault(run.arm, []).append(run)
    return lost


def why_lost(runs: Sequence[DivergedRun]) -> str:
    """Why an arm has no result: the learning rates and seeds that were tried."""
    rates = sorted({run.learning_rate for run in runs})
    tried = ", ".join(map(numbers.learning_rate, rates))
    if any(run.trial for run in runs) and len(rates) > 1:
        return f"training diverged with every learning rate that was tried ({tried})"
    return (
        f"training diverged at the learning rate {tried} with {_listed(sorted({run.seed for run in runs}))}"
    )


def _diverged(named: NamedCell) -> Iterator[str]:
    """Sentences about arms that lost some of their runs; an arm without any has a card instead."""
    for arm in named.cell.arms:
        runs = [run for run in named.cell.diverged if run.arm == arm.name]
        present = {run.seed for run in arm.runs}
        rates = sorted({run.learning_rate for run in runs if run.trial and run.seed in present})
        seeds = sorted({run.seed for run in runs} - present)
        shared = sorted({run.seed for run in runs if not run.trial and run.seed in present})
        if rates:
            listed = ", ".join(map(numbers.learning_rate, rates))
            yield (
                f"{named.label}: training of {arm_name(arm.name)} diverged at the learning rate {listed}, "
                "which counts as a lost try, worse than any other."
            )
        if shared:
            yield (
                f"{named.label}: training of {arm_name(arm.name)} diverged with {_listed(shared)} at the "
                "rate that two methods share, so their difference at one rate is over the other seeds."
            )
        if seeds:
            yield (
                f"{named.label}: training of {arm_name(arm.name)} diverged with {_listed(seeds)}. "
                "Its mean and its differences are over the other seeds only, so they flatter it."
            )


def _weak_choices(named: NamedCell, arm: StudyArm) -> Iterator[str]:
    """A sentence if a chosen rate is no better than the most frequent answer on the validation rows."""
    weak = no_better_than_majority(named.cell, arm)
    if weak and named.cell.validation_majority is not None:
        seeds = [one.seed for one in weak if one.seed is not None]
        reached = ", ".join(dict.fromkeys(numbers.percent(one.accuracy or 0.0) for one in weak))
        yield (
            f"{named.label}: on the validation rows, {arm_name(arm.name)} with its chosen learning rate "
            f"({reached}{f', {_listed(seeds)}' if seeds else ''}) is no better than always giving the most "
            f"frequent answer ({numbers.percent(named.cell.validation_majority)})."
        )


def _lost_time(view: View) -> Iterator[str]:
    """The time of the runs that diverged, each counted once even if cells share it."""
    runs = {run.run: run for named in view.cells for run in named.cell.diverged}
    if runs:
        seconds = numbers.duration(sum(run.seconds for run in runs.values()))
        yield (
            f"{numbers.counted(len(runs), 'run')} that diverged took {seconds} in all, which no other figure "
            "includes."
        )


def _same_answers(named: NamedCell) -> Iterator[str]:
    """Sentences about runs with the same answer to every row: compared runs, then larger or other groups."""
    told: set[frozenset[str]] = set()
    groups = [frozenset(places) for places in named.cell.alike]
    for one in named.cell.differences:
        same = [
            seed.seed
            for seed in one.seeds
            if seed.same_answers == named.cell.rows
            and not any(_compared_runs(named, one, seed.seed) < group for group in groups)
        ]
        if not same:
            continue
        told |= {_compared_runs(named, one, seed) for seed in same}
        seeds = "" if len(one.seeds) == 1 else f" with {_listed(same)}"
        yield (
            f"{named.label}: {arm_title(one.to_arm)} and {arm_name(one.from_arm)} gave the same answer to "
            f"every row{seeds}, so nothing tells them apart there."
        )
    for places in named.cell.alike:
        if frozenset(places) not in told:
            *first, last = _runs_named(named, places)
            who = " and ".join([", ".join(first), last] if first else [last])
            yield (
                f"{named.label}: {who} gave the same answer to every row, so nothing tells them apart there."
            )


def _compared_runs(named: NamedCell, one: StudyDifference, seed: int | None) -> frozenset[str]:
    arms = [arm for arm in named.cell.arms if arm.name in (one.from_arm, one.to_arm)]
    return frozenset(run.run for arm in arms for run in arm.runs if seed in (run.seed, None))


def _runs_named(named: NamedCell, places: Sequence[str]) -> list[str]:
    """The names of runs, those of one arm together."""
    names, left = [], set(places)
    for arm in named.cell.arms:
        seeds = [run.seed for run in arm.runs if run.run in left]
        left -= {run.run for run in arm.runs}
        if seeds:
            title = arm_name(arm.name) if names else arm_title(arm.name)
            names.append(title + (f" with {_listed(seeds)}" if len(arm.runs) > 1 else ""))
    return [*names, "the base model"] if left else names


def _one_answer(named: NamedCell, arm: StudyArm) -> str | None:
    """A sentence if an arm's answers hardly depend on the row, although the right ones do."""
    if named.cell.rows < FEWEST_ROWS or named.cell.majority >= ONE_ANSWER:
        return None
    uniform: dict[str | None, list[tuple[int, float]]] = {}
    for run in arm.runs:
        if run.most_given is not None and run.most_given.share >= ONE_ANSWER:
            uniform.setdefault(run.most_given.answer, []).append((run.seed, run.most_given.share))
    told = []
    for answer, found in uniform.items():
        words = "no readable answer" if answer is None else f"the answer {answer}"
        shares = list(
            dict.fromkeys(numbers.percent(share) for _, share in sorted(found, key=lambda one: one[1]))
        )
        seeds = "" if len(arm.runs) == 1 else f" with {_listed([seed for seed, _ in found])}"
        told.append(f"{words} to {shares[0]} of the rows{' or more' if len(shares) > 1 else ''}{seeds}")
    if not told:
        return None
    return f"{named.label}: {arm_title(arm.name)} gave {' and '.join(told)}, so it hardly tells rows apart."


def _fallen(named: NamedCell) -> Iterator[str]:
    """Sentences about runs far below the others of their arm, and about runs that learned nothing."""
    cell = named.cell
    if cell.tells_nothing:
        return
    far = outliers({arm.name: [run.result.accuracy for run in arm.runs] for arm in cell.arms}, cell.rows)
    for arm in cell.arms:
        shares = [run.result.accuracy for run in arm.runs]
        for place in far.get(arm.name, []):
            yield (
                f"{named.label}: {arm_name(arm.name)} with {_listed([arm.runs[place].seed])} ended far below "
                f"its other runs, at {numbers.percent(shares[place])} against a median of "
                f"{numbers.percent(median(shares))}."
            )
        low = [run.seed for run in arm.runs if run.result.accuracy <= cell.floor]
        if 0 < len(low) < len(arm.runs):
            yield (
                f"{named.label}: {len(low)} of {numbers.counted(len(arm.runs), 'run')} of "
                f"{arm_name(arm.name)} collapsed: with {_listed(low)} it ended at or below "
                f"{numbers.percent(cell.floor)}, which a guess or a constant answer reaches."
            )


def _few_seeds(view: View) -> Iterator[str]:
    """A warning about differences over several seeds that are too few."""
    counts = {len(one.difference.seeds) for pair in view.pairs for one in pair.single}
    if any(1 < count < FEWEST_RUNS for count in counts):
        yield (
            "Some differences are over two seeds, whose spread is hardly known. A verdict about methods "
            "takes three seeds or more, and five are recommended."
        )


def _listed(seeds: Sequence[int | None]) -> str:
    ascending = sorted(seeds, key=lambda seed: (seed is None, seed))
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, ascending))}"


def _unmoved(arm: StudyArm, label: str) -> Iterator[str]:
    """Sentences about weights that training left unchanged."""
    place = f"{label}: " if label else ""
    for run in arm.runs:
        changes = (run.training.changes if run.training else None) or {}
        still = [kind for kind, change in changes.items() if change.elements and change.largest == 0]
        if still:
            which = "no weight" if len(still) == len(changes) else f"no element of {' and '.join(still)}"
            yield f"{place}{which} of {arm_name(arm.name)} moved in training (seed {run.seed})."
