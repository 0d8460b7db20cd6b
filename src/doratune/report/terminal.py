"""A comparison as rich renderables, for 80 columns and more."""

from __future__ import annotations

from collections.abc import Collection

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from doratune.records.analysis import AnalysisRecord
from doratune.records.comparison import Comparison
from doratune.records.run import RunRecord
from doratune.report import decomposition, tables
from doratune.report.tables import Cell, Table

MOST_COLUMNS = 3  # arms that fit beside one another into 80 columns


def comparison_renderable(comparison: Comparison) -> Group:
    """Title, accuracies, verdicts, cost and notes, ready for ``rich.console.Console.print``."""
    parts: list[RenderableType] = [Text(comparison.title, style="bold"), Text()]
    samples = {tables.task_label(task, comparison) for task in comparison.tasks if task.sample}
    if comparison.tasks:
        wide = len(comparison.arms) > MOST_COLUMNS
        table = tables.accuracy_list(comparison) if wide else tables.accuracy_table(comparison)
        parts.append(rich_table(table, starred=samples))
        if samples:
            parts.append(aside(f"* {tables.SAMPLE}"))
        parts.append(aside(tables.ACCURACY_NOTE))
        parts.append(aside(tables.ways(comparison)))
        parts += [Text(), *_verdicts(comparison), Text()]
    cost = tables.cost_table(comparison)
    if cost:
        parts.append(rich_table(cost))
    sentence = tables.cost_sentence(comparison)
    if sentence:
        parts.append(indented(Text(sentence)))
    parts += [indented(Text(f"Note: {note}", style="yellow")) for note in comparison.notes]
    return Group(*parts)


def print_evaluations(record: RunRecord) -> None:
    """Print the accuracies of one run."""
    console = Console()
    samples = {entry.task for entry in record.evaluations if entry.sample}
    console.print(rich_table(tables.evaluation_table(record), starred=samples))
    if samples:
        console.print(aside(f"* {tables.SAMPLE}"))
    console.print(aside(tables.ACCURACY_NOTE))


def analysis_renderable(analysis: AnalysisRecord) -> Group:
    """The correlations beside the paper's, what they are of, and DoRA's gains."""
    return Group(
        rich_table(decomposition.correlation_table(analysis)),
        aside(decomposition.NOTE),
        aside(decomposition.sources(analysis)),
        *(indented(Text(sentence)) for sentence in decomposition.gain_sentences(analysis)),
    )


def rich_table(table: Table, starred: Collection[str] = ()) -> RichTable:
    """The table without rules; rows named in ``starred`` get a star after their name."""
    rich = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for index, column in enumerate(table.columns):
        rich.add_column(_cell(column), justify="left" if index == 0 else "right", overflow="fold")
    for first, *others in table.rows:
        mark = " *" if first.text in starred else ""
        rich.add_row(_cell(Cell(first.text + mark, first.detail)), *(_cell(cell) for cell in others))
    return rich


def _cell(cell: Cell) -> Text:
    text = Text(cell.text)
    if cell.detail:
        text.append(f"\n{cell.detail}", style="dim")
    return text


def _verdicts(comparison: Comparison) -> list[RenderableType]:
    found = tables.verdicts(comparison)
    if not found:
        return [indented(Text(tables.NO_PAIR))]
    lines: list[RenderableType] = [
        indented(Text.assemble(f"{one.task}: ", (one.words, "bold"), f" ({one.figures})")) for one in found
    ]
    return [*lines, aside(tables.TEST_NOTE)]


def indented(text: Text) -> Padding:
    """A paragraph beside the tables."""
    return Padding(text, (0, 0, 0, 1))


def aside(text: str) -> Padding:
    """A quiet paragraph."""
    return indented(Text(text, style="dim"))
