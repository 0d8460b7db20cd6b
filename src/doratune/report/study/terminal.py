"""A study as a rich renderable, for 80 columns and more."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from doratune.records.study import StudyRecord
from doratune.report.study import cells, tables, verdicts
from doratune.report.study.details import environment_note, unfinished
from doratune.report.tables import SAMPLE
from doratune.report.terminal import MOST_COLUMNS, aside, indented, rich_table


def study_renderable(record: StudyRecord) -> Group:
    """Question, verdicts, accuracies, differences, cost and notes, for ``rich.console.Console.print``."""
    parts: list[RenderableType] = [
        Text(record.title, style="bold"),
        Text(record.question),
        Text(),
        *_verdicts(record),
        Text(),
    ]
    if record.cells:
        starred = cells.samples(record)
        wide = len(cells.methods(record)) >= MOST_COLUMNS
        table = tables.accuracy_list(record) if wide else tables.accuracy_table(record)
        parts += [rich_table(table, starred), *([aside(f"* {SAMPLE}")] if starred else [])]
        parts += [aside(f"{tables.accuracy_note(record)} {tables.ways(record)}"), Text()]
        parts += [] if wide else [rich_table(tables.search_table(record), starred)]
        sentence = tables.cost_sentence(record)
        parts += [indented(Text(sentence))] if sentence else []
    notes = [*record.notes, *filter(None, [environment_note(record)])]
    parts += [indented(Text(f"Note: {note}", style="yellow")) for note in notes]
    parts += [indented(Text(f"Still to be run: {name}", style="yellow")) for name in record.pending]
    return Group(*parts)


def _verdicts(record: StudyRecord) -> list[RenderableType]:
    missing = unfinished(record)
    lines: list[RenderableType] = [indented(Text(missing, style="yellow"))] if missing else []
    lines += [indented(Text(line, style="bold")) for line in verdicts.headlines(record) or [verdicts.NO_PAIR]]
    lines += [
        indented(
            Text.assemble(
                f"{one.task}{' *' if one.sample else ''}: ", (one.words, "bold"), f" ({one.figures})"
            )
        )
        for one in verdicts.verdicts(record)
    ]
    return [*lines, aside(verdicts.TEST_NOTE)]
