"""How the learning rates of a study were chosen, and what its methods do at one rate."""

from __future__ import annotations

from collections import Counter
from statistics import mean

from doratune.records.study import NO_VERDICT, StudyArm, arm_name, ends_chosen
from doratune.report import numbers
from doratune.report.blocks import NONE, Entry, Table
from doratune.report.view import NamedCell, View, arm_title, rates_of

NOT_EVALUATED = "not evaluated"
NO_SEARCH = "The learning rates were given, not searched for."
EQUAL_TRIES = (
    "Every method tried equally many learning rates, judged on validation rows held out of training. "
    "Of the rates within one standard error of the best accuracy, the one that gives the right answers the "
    "highest likelihood was chosen; without likelihoods, the most accurate."
)
PER_SEED = "Every seed chose its own rate, and its run with that rate answered the test rows."
PER_ARM = (
    "The first seed chose for all. The intervals and p are those of the chosen rates: how the choice might "
    "have fallen with another seed is not in them."
)
NO_SAME_RATE = "No learning rate was tried with both methods and all seeds: there is no row at one rate."


def same_rate_note(view: View) -> str:
    """What the row "Both at the same rate" is."""
    once = any(named.cell.chosen_per == "arm" for named in view.cells)
    seeds = "the first seed's validation rows" if once else "their mean over all seeds on the validation rows"
    return (
        "Both methods with one learning rate, the best for the two together: chosen by the same rule on "
        f"{seeds}. p is not corrected."
    )


def rates_in_words(view: View) -> str:
    """The learning rate of every arm, as a range where it differs between cells or seeds."""
    told = []
    for name in view.arms:
        found = [rate for one in view.cells if (arm := one.arm(name)) for rate in rates_of(arm)]
        rates = sorted({rate for rate in found if rate is not None})
        if rates:
            ends = dict.fromkeys(numbers.learning_rate(rate) for rate in (rates[0], rates[-1]))
            told.append(f"{arm_name(name)} {' to '.join(ends)}")
    return ", ".join(told)


def rate_table(view: View) -> Table:
    """The learning rate of each arm, one row per cell."""
    heading = Entry("Learning rate", "tried; validation accuracy" if view.searched else "")
    columns = [heading, *(Entry(arm_title(arm)) for arm in view.arms)]
    rows = [
        [Entry(named.label, sample=named.cell.sample), *(rate_entry(named.arm(arm)) for arm in view.arms)]
        for named in view.cells
    ]
    return Table("The learning rate of every method", columns, rows)


def rate_entry(arm: StudyArm | None) -> Entry:
    """The rates of an arm's runs, and how many were tried."""
    if arm is None:
        return Entry(NONE, NOT_EVALUATED)
    counts = Counter(run.learning_rate or arm.learning_rate for run in arm.runs)
    rates = rates_of(arm)
    told = ", ".join(
        f"{numbers.learning_rate(rate)}{f' ×{counts[rate]}' if len(rates) > 1 else ''}" for rate in rates
    )
    chosen = [one.accuracy for one in arm.trials if one.chosen and one.accuracy is not None]
    if not chosen:
        return Entry(told, "not searched")
    several = len({one.seed for one in arm.trials}) > 1
    tried = f"of {len({one.learning_rate for one in arm.trials})}{' per seed' if several else ''}"
    lost = sum(one.accuracy is None for one in arm.trials)
    runs = f"{numbers.counted(lost, 'run')} " if several else f"{lost} "
    return Entry(told, f"{tried}{f', {runs}diverged' if lost else ''}; {numbers.percent(mean(chosen))}")


def rate_note(view: View) -> str:
    """How the rates were chosen, which were added, and which are at an end of those tried."""
    if not view.searched:
        return NO_SEARCH
    per = {cell.chosen_per for cell in view.record.cells}
    told = [EQUAL_TRIES, *([PER_SEED] if "seed" in per else []), *([PER_ARM] if "arm" in per else [])]
    added = [f"{words} on {one.label}" for one in view.cells if (words := _added(one.cell.extended))]
    if added:
        told.append(
            "Where the best rate was at an end of the plan's list, rates beyond it were tried with every "
            f"method: {'; '.join(added)}."
        )
    return " ".join([*told, *filter(None, [ends_note(view)])])


def ends_note(view: View, *, without_verdict: bool = False) -> str | None:
    """A sentence about chosen rates at an end of those tried, or None.

    Args:
        view: The study.
        without_verdict: Leave out those that the verdict on a difference already names.
    """
    ends = []
    for name in view.arms:
        found = [
            f"{named.label} (the {' and the '.join(at)})"
            for named in view.cells
            if (arm := named.arm(name))
            and (at := ends_chosen(arm))
            and not (without_verdict and _has_verdict(named, name))
        ]
        ends += [f"{arm_title(name)} on {'; '.join(found)}"] if found else []
    if not ends:
        return None
    return (
        "Some chosen rates are at the end of what was tried, and a rate beyond it might have done "
        f"better: {'. '.join(ends)}."
    )


def _has_verdict(named: NamedCell, arm: str) -> bool:
    return any(
        arm in (one.from_arm, one.to_arm) and one.outcome != NO_VERDICT for one in named.cell.differences
    )


def same_rate_table(view: View) -> Table | None:
    """The differences of methods at one rate, a row per cell and pair; None without any."""
    columns = [
        Entry("Both at the same rate"),
        Entry("Learning rate"),
        Entry("Accuracy"),
        Entry("Difference", "interval; p"),
    ]
    rows = []
    for named in view.cells:
        for one in named.cell.same_rate:
            found = one.difference
            pair = f"{arm_title(found.to_arm)} {numbers.MINUS} {arm_name(found.from_arm)}"
            accuracies = f"{numbers.percent(one.to_mean)}, {numbers.percent(one.from_mean)}"
            seeds = numbers.counted(len(found.seeds), "seed")
            figures = f"{numbers.signed_interval(found.interval)}; {numbers.p_value(found.p_value)}"
            rows.append(
                [
                    Entry(named.label, f"{pair}; {seeds}", named.cell.sample),
                    Entry(numbers.learning_rate(one.learning_rate)),
                    Entry(accuracies),
                    Entry(numbers.points(found.points), figures),
                ]
            )
    return Table("Differences at one learning rate", columns, rows) if rows else None


def _added(extended: tuple[int, int] | None) -> str:
    below, above = extended or (0, 0)
    told = [(below, "smaller"), (above, "larger")]
    return " and ".join(f"{count} {which}" for count, which in told if count)
