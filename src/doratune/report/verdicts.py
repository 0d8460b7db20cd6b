"""A study's results in words and figures."""

from __future__ import annotations

from collections.abc import Sequence

from doratune.records.study import (
    IN_WORDS,
    NO_VERDICT,
    Needed,
    StudyArm,
    StudyCell,
    StudyDifference,
    StudyRecord,
    arm_name,
)
from doratune.report import numbers
from doratune.report.blocks import NONE, Entry, Table, Verdict
from doratune.report.cautions import lost_arms, why_lost
from doratune.report.view import NamedDifference, Pair, View, arm_title, capitalised
from doratune.wording import listed

NEEDED_NOTE = (
    "How many test rows (with this study's seeds) or seeds (with its rows) it takes to detect a true "
    "difference of this size, with p below 5 % before correction, in four studies out of five. The ranges "
    "come from the 80 % bounds of how much the rows and seeds vary, which a few seeds tell only roughly. "
    "Where a range has no end, perhaps no number is enough."
)


def no_pair(record: StudyRecord) -> str:
    """What stands in the place of verdicts where no two methods were compared."""
    return f"No two methods {'have been compared yet' if record.pending else 'are compared'}."


def test_note(view: View) -> str:
    """How to read intervals and p-values."""
    pooled = any(pair.pooled for pair in view.pairs)
    singles = [one.difference for pair in view.pairs for one in pair.single]
    corrected = (
        "It is corrected for the number of tasks (Holm); the verdict follows the corrected p at 5 %."
        if any(pair.corrected for pair in view.pairs)
        else "The verdict follows p at 5 %."
    )
    if any(len(one.seeds) > 1 for one in singles) or (not view.one_seed and not singles):
        return (
            "Runs are paired by seed and row. The interval (95 %) uses a bootstrap for the rows and "
            "Student's t for the seeds, because a bootstrap over a few seeds would be far too narrow. p is "
            f"two-sided. {corrected}{_one_seed(singles)}{_nothing(view)}{_ties(view)}"
        )
    mean = "; for a mean over several it comes from a bootstrap over the rows" if pooled else ""
    return (
        f"p is McNemar's exact test, two-sided, on the rows where the two disagree{mean}. {corrected} The "
        "interval (95 %) is over the rows. One seed says something about these trained adapters, not about "
        "other seeds: that takes three seeds or more, and five are recommended."
        f"{_nothing(view)}{_ties(view)}"
    )


def _one_seed(singles: Sequence[StudyDifference]) -> str:
    """How to read differences of one seed among those of several."""
    if all(len(one.seeds) > 1 for one in singles):
        return ""
    return (
        " Where there is one seed, the interval is over the rows, p is McNemar's, and both are about these "
        "trained adapters only."
    )


def _nothing(view: View) -> str:
    """What became of the differences without a verdict."""
    if not any(one.tells_nothing for pair in view.pairs for one in pair.single):
        return ""
    kept = any(
        any(one.with_nothing for one in pair.pooled) and any(not one.with_nothing for one in pair.pooled)
        for pair in view.pairs
    )
    several = any(pair.corrected or pair.together for pair in view.pairs)
    left_out = ", and the correction leaves the cell out" if several else ""
    headline = " The mean without such cells is the headline." if kept else ""
    return f" Where neither method is shown to have learned anything there is no verdict{left_out}.{headline}"


def _ties(view: View) -> str:
    """The explanation of a single seed's test if rows count in part."""
    results = [run.result for named in view.cells for arm in named.cell.arms for run in arm.runs]
    if not any(one.tied for one in results):
        return ""
    return (
        " A row on which candidates tie counts as a fraction. For a single seed, p is then the exact "
        "sign-flip test on those fractions, which is McNemar's test when no row is tied."
    )


def headlines(view: View) -> list[str]:
    """For each pair, on how many cells which of the two is more accurate, and how many of them mean little.

    A study's only difference has no headline, because its card says it all. The means of the first pair have
    cards too.
    """
    if sum(len(pair.all) for pair in view.pairs) == 1:
        return []
    return [
        _headline(pair, view)
        + "".join(f" {one.label}: {_figures(one.difference)}." for one in pair.pooled if place > 0)
        for place, pair in enumerate(view.pairs)
    ]


def _headline(pair: Pair, view: View) -> str:
    against = f"{arm_title(pair.to_arm)} compared with {arm_name(pair.from_arm)} on"
    if len(pair.single) == 1:
        only = pair.single[0]
        return f"{against} {only.label}: {only.difference.verdict}."
    outcomes = [one.difference.outcome for one in pair.single]
    better, worse, undecided = (outcomes.count(one) or "none" for one in ("better", "worse", "undecided"))
    nothing = outcomes.count(NO_VERDICT)
    floored = f" No verdict on {nothing}: neither is shown to have learned anything there." if nothing else ""
    return (
        f"{against} {numbers.counted(len(pair.single), view.noun)}: {IN_WORDS['better']} on {better}, "
        f"{IN_WORDS['worse']} on {worse}, undecided on {undecided}.{floored}"
    )


def cards(view: View) -> list[Verdict]:
    """The differences of the first pair, DoRA and LoRA: the pooled ones, then each cell's, then lost arms.

    A mean that includes cells without a verdict is no headline and comes after the cells.
    """
    differences = [
        Verdict(
            one.label,
            one.sample,
            capitalised(one.difference.verdict),
            _card_figures(pair, one),
            " ".join(below_base(one.cell, one.arms)) if one.cell else "",
        )
        for pair in view.pairs[:1]
        for one in sorted(pair.all, key=lambda one: (one.with_nothing > 0, one.cell is not None))
    ]
    lost = [
        Verdict(named.label, named.cell.sample, f"No result of {arm_name(arm)}", why_lost(runs))
        for named in view.cells
        for arm, runs in lost_arms(named).items()
    ]
    return differences + lost


def below_base(cell: StudyCell, arms: Sequence[StudyArm]) -> list[str]:
    """A sentence about arms that end below the base model, and by how much; empty if none does."""
    if cell.base is None:
        return []
    base = cell.base.accuracy
    lost = {
        arm.name: numbers.lost_points(base - arm.mean)
        for arm in arms
        if round(100 * (base - arm.mean), 1) > 0  # to the page's precision
    }
    if not lost:
        return []
    who = "Both" if len(lost) == len(arms) == 2 else capitalised(listed([arm_name(name) for name in lost]))
    ends = f"{who} {'ends' if len(lost) == 1 else 'end'} below the base model ({numbers.percent(base)})"
    if len(set(lost.values())) == 1:
        return [f"{ends}, by {next(iter(lost.values()))}."]
    return [f"{ends}: {listed([f'{arm_name(name)} by {points}' for name, points in lost.items()])}."]


def below_base_elsewhere(view: View) -> list[str]:
    """The same for the arms without a card."""
    told = {(id(one.cell), arm.name) for pair in view.pairs[:1] for one in pair.single for arm in one.arms}
    return [
        f"{named.label}: {line}"
        for named in view.cells
        for line in below_base(
            named.cell, [arm for arm in named.cell.arms if (id(named.cell), arm.name) not in told]
        )
    ]


def _card_figures(pair: Pair, one: NamedDifference) -> str:
    """The accuracies, the difference with its interval, and the number of rows and seeds."""
    difference = f"{pair.name}: {_figures(one.difference)}"
    if one.cell is None:
        return difference
    base = [f"Base {numbers.percent(one.cell.base.accuracy)}"] if one.cell.base else []
    arms = [f"{arm_title(arm.name)} {numbers.percent(arm.mean)}" for arm in reversed(one.arms)]
    seeds = numbers.counted(len(one.difference.seeds), "seed")
    return f"{', '.join([*base, *arms])}; {difference}; {one.cell.rows:,} rows, {seeds}"


def difference_table(view: View) -> Table:
    """One row per cell and pooled difference, one column per pair."""
    columns = [Entry(capitalised(view.noun)), *(Entry(pair.name, "interval; p") for pair in view.pairs)]
    by_pair = [{one.key: one for one in pair.all} for pair in view.pairs]
    named = [one for pair in view.pairs for one in pair.single]
    named += [one for pair in view.pairs for one in pair.pooled]
    rows = {one.key: Entry(one.label, sample=one.sample) for one in named}
    return Table(
        "Differences between methods",
        columns,
        [[name, *(_difference(found.get(key)) for found in by_pair)] for key, name in rows.items()],
    )


def seed_table(view: View) -> Table:
    """One row per cell and pair, one column per seed: points, rows won and lost, McNemar's p."""
    differences = [(pair, one) for pair in view.pairs for one in pair.single]
    known = {entry.seed for _, one in differences for entry in one.difference.seeds}
    seeds = sorted(known, key=lambda seed: (seed is None, seed))
    names = ["Different seeds" if seed is None else f"Seed {seed}" for seed in seeds]
    columns = [Entry(name, "rows won : lost, p") for name in names]
    rows = []
    for pair, one in differences:
        by_seed = {entry.seed: entry for entry in one.difference.seeds}
        row = [_row_name(pair, one)]
        for seed in seeds:
            entry = by_seed.get(seed)
            row.append(
                Entry(
                    numbers.signed(entry.points),
                    f"{entry.only_to} : {entry.only_from}, {numbers.p_value(entry.p_value)}",
                )
                if entry
                else Entry(NONE)
            )
        rows.append(row)
    return Table(
        "Differences of single seeds, with McNemar's exact test",
        [Entry("Difference in points"), *columns],
        rows,
    )


def needed_table(view: View) -> Table | None:
    """One row per cell, one column per size of difference, of the first pair; None without an estimate."""
    found = [
        (pair, one)
        for pair in view.pairs[:1]
        for one in pair.single
        if one.difference.needed and not one.tells_nothing
    ]
    sizes = sorted({entry.points for _, one in found for entry in one.difference.needed})
    rows = []
    for pair, one in found:
        by_size = {entry.points: entry for entry in one.difference.needed}
        seeds = len(one.difference.seeds)
        rows.append([_row_name(pair, one), *(_needed(by_size.get(size), seeds) for size in sizes)])
    columns = [Entry("To detect")]
    columns += [Entry(f"{size:g} point{'' if size == 1 else 's'}") for size in sizes]
    return Table("Test rows or seeds needed", columns, rows) if rows else None


def _row_name(pair: Pair, one: NamedDifference) -> Entry:
    rows = f"{one.cell.rows:,} rows, " if one.cell else ""
    seeds = numbers.counted(len(one.difference.seeds), "seed")
    return Entry(one.label, f"{pair.name}; {rows}{seeds}", one.sample)


def _needed(entry: Needed | None, seeds: int) -> Entry:
    if entry is None:
        return Entry(NONE)
    if entry.rows is None and entry.seeds is None and seeds > 1:
        return Entry("out of reach", "more of both needed")
    rows = _range("rows", entry.rows, entry.rows_range)
    if seeds == 1:
        return Entry(rows, "for this seed only")
    return Entry(rows, f"or {_range('seeds', entry.seeds, entry.seeds_range)}")


def _range(noun: str, number: int | None, bounds: tuple[int | None, int | None] | None) -> str:
    """As "1,200 to 3,000 rows"; records of older versions have a single number."""
    low, high = bounds or (number, number)
    if low is None:
        return f"no number of {noun}"
    if high is None:
        return f"{low:,} {noun} or more"
    return f"{low:,} {noun}" if low == high else f"{low:,} to {high:,} {noun}"


def _difference(one: NamedDifference | None) -> Entry:
    if one is None:
        return Entry(NONE, "not compared")
    found = one.difference
    return Entry(numbers.points(found.points), f"{numbers.signed_interval(found.interval)}; {_p(found)}")


def _figures(one: StudyDifference) -> str:
    return f"{numbers.points(one.points)} (95 % interval {numbers.signed_interval(one.interval)}), {_p(one)}"


def _p(one: StudyDifference) -> str:
    """A difference's p, and the corrected one if it is different."""
    plain, corrected = numbers.p_value(one.p_value), numbers.p_value(one.p_adjusted)
    if plain == corrected:
        return plain
    return f"{plain}, corrected {corrected.removeprefix('p ').removeprefix('= ')}"
