"""What came out of a study, in words and figures."""

from __future__ import annotations

from collections.abc import Iterable

from doratune.records.study import Needed, StudyDifference, StudyRecord, arm_name
from doratune.report import numbers
from doratune.report.study import cells
from doratune.report.study.cells import Pair
from doratune.report.tables import NONE, Cell, Table, Verdict

NO_PAIR = "No two methods have been compared yet."
TEST_NOTE = (
    "Paired by seed and row. The interval (95 %) takes the rows by bootstrap and the seeds by Student's t, "
    "as a bootstrap over a few seeds would be far too narrow; with one seed it is about the rows only. p is "
    "two-sided (McNemar's exact test for one seed) and corrected over the tasks of a family (Holm); the "
    "verdict follows the corrected p at 5 %."
)
NEEDED_NOTE = (
    "How many test rows, with the seeds there are, or how many seeds, with the rows there are, would tell a "
    "true difference of that size: p below 5 % before correction, in four studies of five. It is reckoned "
    "from how much seeds and rows varied here, so it is rough."
)


def headlines(record: StudyRecord) -> list[str]:
    """For each pair of methods on how many cells which of the two is better, and the mean over the cells."""
    lines = []
    for pair in cells.pairs(record):
        found = list(cells.differences(record, pair))
        if not found:
            continue
        against = f"{cells.sentence(arm_name(pair[1]))} against {arm_name(pair[0])}, on"
        if len(found) == 1:
            cell, one = found[0]
            lines.append(f"{against} {cells.cell_label(cell, record)}: {one.verdict}.")
            continue
        outcomes = [one.outcome for _, one in found]
        better, worse, undecided = (_count(outcomes.count(one)) for one in ("better", "worse", "undecided"))
        means = [
            f" {cells.pooled_label(one, record)}: {_figures(how)}." for one, how in cells.pooled(record, pair)
        ]
        lines.append(
            f"{against} {len(found)} {cells.noun(record)}: better on {better}, worse on {worse}; "
            f"on {undecided} no difference can be told.{''.join(means)}"
        )
    return lines


def verdicts(record: StudyRecord) -> list[Verdict]:
    """The differences of the first pair, DoRA and LoRA: the pooled ones, then each cell's."""
    found = []
    for pair in cells.pairs(record)[:1]:
        found += [(cells.pooled_label(one, record), False, how) for one, how in cells.pooled(record, pair)]
        found += [
            (cells.cell_label(cell, record), cell.sample, one)
            for cell, one in cells.differences(record, pair)
        ]
    return [
        Verdict(
            name,
            sample,
            cells.sentence(one.verdict),
            f"{cells.pair_name((one.from_arm, one.to_arm))}: {_figures(one)}",
        )
        for name, sample, one in found
    ]


def difference_table(record: StudyRecord) -> Table:
    """One row per cell and pooled difference, one column per pair."""
    pairs = cells.pairs(record)
    columns = [Cell(cells.sentence(cells.noun(record)[:-1]))]
    columns += [Cell(cells.sentence(cells.pair_name(pair)), "interval; p") for pair in pairs]
    rows = []
    for cell in record.cells:
        by_pair = {(one.from_arm, one.to_arm): one for one in cell.differences}
        rows.append(
            [Cell(cells.cell_label(cell, record)), *(_difference(by_pair.get(pair)) for pair in pairs)]
        )
    groups = dict.fromkeys((one.model, one.rank, tuple(one.cells)) for one in record.pooled)
    for group in groups:
        of_group = [one for one in record.pooled if (one.model, one.rank, tuple(one.cells)) == group]
        by_pair = {(one.difference.from_arm, one.difference.to_arm): one.difference for one in of_group}
        name = cells.pooled_label(of_group[0], record)
        rows.append([Cell(name), *(_difference(by_pair.get(pair)) for pair in pairs)])
    return Table(columns, rows)


def seed_table(record: StudyRecord) -> Table:
    """One row per cell and pair, one column per seed: points, rows won and lost, McNemar's p."""
    of_cells = list(_by_cell(record, cells.pairs(record)))
    seeds = sorted({entry.seed for _, one in of_cells for entry in one.seeds})
    rows = []
    for name, one in of_cells:
        by_seed = {entry.seed: entry for entry in one.seeds}
        row = [name]
        for seed in seeds:
            entry = by_seed.get(seed)
            row.append(
                Cell(
                    numbers.signed(entry.points),
                    f"{entry.only_to} : {entry.only_from}, {numbers.p_value(entry.p_value)}",
                )
                if entry
                else Cell(NONE)
            )
        rows.append(row)
    return Table(
        [Cell("Difference in points"), *(Cell(f"seed {seed}", "rows won : lost, p") for seed in seeds)], rows
    )


def needed_table(record: StudyRecord) -> Table | None:
    """One row per cell, one column per size of difference, of the first pair; None without a reckoning."""
    of_cells = [(name, one) for name, one in _by_cell(record, cells.pairs(record)[:1]) if one.needed]
    sizes = sorted({entry.points for _, one in of_cells for entry in one.needed})
    rows = []
    for name, one in of_cells:
        by_size = {entry.points: entry for entry in one.needed}
        rows.append([name, *(_needed(by_size.get(size), len(one.seeds)) for size in sizes)])
    columns = [Cell("To tell")]
    columns += [Cell(f"{size:g} point{'' if size == 1 else 's'}") for size in sizes]
    return Table(columns, rows) if rows else None


def _by_cell(record: StudyRecord, pairs: Iterable[Pair]) -> Iterable[tuple[Cell, StudyDifference]]:
    """The differences of every cell with the name of their row."""
    for pair in pairs:
        for cell, one in cells.differences(record, pair):
            yield Cell(cells.cell_label(cell, record), _size(pair, cell.rows, len(one.seeds))), one


def _size(pair: Pair, rows: int, seeds: int) -> str:
    return f"{cells.pair_name(pair)}; {rows:,} rows, {seeds} seed{'' if seeds == 1 else 's'}"


def _needed(entry: Needed | None, seeds: int) -> Cell:
    if entry is None:
        return Cell(NONE)
    if entry.rows is None and entry.seeds is None and seeds > 1:
        return Cell("out of reach", "more of both needed")
    rows = "no number of rows" if entry.rows is None else f"{entry.rows:,} rows"
    if seeds == 1:
        return Cell(rows, "for this seed only")
    return Cell(rows, "or no number of seeds" if entry.seeds is None else f"or {entry.seeds:,} seeds")


def _difference(one: StudyDifference | None) -> Cell:
    if one is None:
        return Cell(NONE, "not compared")
    return Cell(numbers.points(one.points), f"{numbers.signed_interval(one.interval)}; {_p(one)}")


def _figures(one: StudyDifference) -> str:
    return f"{numbers.points(one.points)} ({numbers.signed_interval(one.interval)}), {_p(one)}"


def _p(one: StudyDifference) -> str:
    """The p of a difference, and the corrected one where it is another."""
    plain, corrected = numbers.p_value(one.p_value), numbers.p_value(one.p_adjusted)
    return (
        plain
        if plain == corrected
        else f"{plain}, corrected {corrected.removeprefix('p ').removeprefix('= ')}"
    )


def _count(number: int) -> str:
    return str(number) if number else "none"
