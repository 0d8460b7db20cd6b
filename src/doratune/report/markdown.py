"""A comparison as a Markdown page (GitHub's tables)."""

from __future__ import annotations

import re

from doratune.records.comparison import Comparison
from doratune.report import tables
from doratune.report.details import environment_facts, setting_facts
from doratune.report.tables import Cell, Table


def to_markdown(comparison: Comparison) -> str:
    """The whole page, ending in a newline."""
    parts = [f"# {_escape(comparison.title)}", "## What came out", _verdicts(comparison)]
    samples = [tables.task_label(task, comparison) for task in comparison.tasks if task.sample]
    if comparison.tasks:
        parts += ["## Accuracy", _table(tables.accuracy_table(comparison), samples)]
        if samples:
            parts.append(f"\\* {tables.SAMPLE}")
        parts.append(f"{tables.ACCURACY_NOTE} {tables.ways(comparison)}")
    cost = tables.cost_table(comparison)
    if cost:
        parts += ["## Training", _table(cost, [])]
    sentence = tables.cost_sentence(comparison)
    if sentence:
        parts.append(_escape(sentence))
    parts += ["## Settings", _facts(setting_facts(comparison))]
    parts += ["## Environment", _facts(environment_facts(comparison.environment))]
    parts += ["## How to repeat it", _fenced(comparison.reproduce)]
    return "\n\n".join(parts) + "\n"


def _verdicts(comparison: Comparison) -> str:
    lines = [
        f"- {_escape(one.task)}{f' ({tables.SAMPLE})' if one.sample else ''}: "
        f"**{_escape(one.words)}** ({_escape(one.figures)})"
        for one in tables.verdicts(comparison)
    ]
    text = "\n".join(lines) + f"\n\n{tables.TEST_NOTE}" if lines else tables.NO_PAIR
    notes = "\n".join(f"- Note: {_escape(note)}" for note in comparison.notes)
    return f"{text}\n\n{notes}" if notes else text


def _table(table: Table, starred: list[str]) -> str:
    lines = [
        _row([_cell(column) for column in table.columns]),
        _row([":--"] + ["--:"] * (len(table.columns) - 1)),
    ]
    for first, *others in table.rows:
        name = _cell(first) + (" \\*" if first.text in starred else "")
        lines.append(_row([name, *(_cell(cell) for cell in others)]))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    return _escape(cell.text) + (f" ({_escape(cell.detail)})" if cell.detail else "")


def _facts(facts: list[tuple[str, str]]) -> str:
    return "\n".join(f"- {_escape(name)}: {_escape(value)}" for name, value in facts)


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is; a line break would end a table row, so it becomes a blank."""
    return re.sub(r"([\\`*\[\]<>|#&])", r"\\\1", " ".join(text.split()))
