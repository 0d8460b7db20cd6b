"""A comparison as a Markdown page (GitHub's tables)."""

from __future__ import annotations

import re
from collections.abc import Collection

from doratune.records.comparison import Comparison
from doratune.report import tables
from doratune.report.details import environment_facts, setting_facts
from doratune.report.tables import Cell, Table


def to_markdown(comparison: Comparison) -> str:
    """The whole page, ending in a newline."""
    parts = [f"# {escaped(comparison.title)}", "## What came out", _verdicts(comparison)]
    samples = [tables.task_label(task, comparison) for task in comparison.tasks if task.sample]
    if comparison.tasks:
        parts += ["## Accuracy", markdown_table(tables.accuracy_table(comparison), samples)]
        if samples:
            parts.append(f"\\* {tables.SAMPLE}")
        parts.append(f"{tables.ACCURACY_NOTE} {tables.ways(comparison)}")
    cost = tables.cost_table(comparison)
    if cost:
        parts += ["## Training", markdown_table(cost)]
    sentence = tables.cost_sentence(comparison)
    if sentence:
        parts.append(escaped(sentence))
    parts += ["## Settings", markdown_facts(setting_facts(comparison.settings))]
    parts += ["## Environment", markdown_facts(environment_facts(comparison.environment))]
    parts += ["## How to repeat it", fenced(comparison.reproduce)]
    return "\n\n".join(parts) + "\n"


def _verdicts(comparison: Comparison) -> str:
    lines = [
        f"- {escaped(one.task)}{f' ({tables.SAMPLE})' if one.sample else ''}: "
        f"**{escaped(one.words)}** ({escaped(one.figures)})"
        for one in tables.verdicts(comparison)
    ]
    text = "\n".join(lines) + f"\n\n{tables.TEST_NOTE}" if lines else tables.NO_PAIR
    notes = "\n".join(f"- Note: {escaped(note)}" for note in comparison.notes)
    return f"{text}\n\n{notes}" if notes else text


def markdown_table(table: Table, starred: Collection[str] = ()) -> str:
    """The table in GitHub's form; rows named in ``starred`` get a star after their name."""
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
    return escaped(cell.text) + (f" ({escaped(cell.detail)})" if cell.detail else "")


def markdown_facts(facts: list[tuple[str, str]]) -> str:
    """Names and values as a list."""
    return "\n".join(f"- {escaped(name)}: {escaped(value)}" for name, value in facts)


def fenced(text: str) -> str:
    """Text as a code block, whatever it holds."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is; a line break would end a table row, so it becomes a blank."""
    return re.sub(r"([\\`*\[\]<>|#&])", r"\\\1", " ".join(text.split()))
