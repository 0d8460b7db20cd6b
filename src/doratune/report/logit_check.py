"""The table of how far a written model's predictions are from what it was made of."""

from __future__ import annotations

from collections.abc import Mapping

from doratune.records.serving import LogitCheck
from doratune.report import numbers
from doratune.report.blocks import Entry, Table

COLUMNS = ("Log-probabilities", "Mean", "Largest", "Same top token", "Mean KL")


def logit_table(checks: Mapping[str, LogitCheck]) -> Table:
    """A row for each comparison, by what was compared; all on the same rows of text."""
    first = next(iter(checks.values()))
    read = f"{numbers.counted(first.rows, 'row')}, {numbers.counted(first.positions, 'token')}"
    name, *others = COLUMNS
    return Table(
        "Differences of log-probabilities",
        [Entry(name, read), *map(Entry, others)],
        [
            [
                Entry(what),
                *(Entry(f"{value:.2g}") for value in (one.mean, one.largest)),
                Entry(numbers.percent(one.top1, 2)),
                Entry(f"{one.kl_mean:.2g}"),
            ]
            for what, one in checks.items()
        ],
    )
