"""Results in the terminal: the tables and sentences of a report, for 80 columns and more."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from textwrap import fill

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text as RichText

from doratune.records.analysis import AnalysisRecord
from doratune.records.run import RunRecord
from doratune.records.serving import ConvertRecord, ExportedGguf, MergeRecord
from doratune.records.study import StudyRecord
from doratune.report import decomposition, fronts, measured, search, tables
from doratune.report.blocks import SAMPLE, Block, Entry, Table, Text, Verdicts
from doratune.report.conversion import conversion_blocks
from doratune.report.export import export_blocks, export_line
from doratune.report.merge import merge_blocks, merge_line
from doratune.report.page import environment_note, outcome_blocks
from doratune.report.peft_comparison import TITLE, PeftView, terminal_blocks
from doratune.report.view import view_of

LONG = 40  #: rows of a table that is left to the report's files
STYLES = {"plain": "", "headline": "bold", "note": "yellow", "aside": "dim"}


def print_summary(record: StudyRecord, console: Console) -> None:
    """Print a study's results: accuracies, learning rates, cost, verdicts and notes."""
    view = view_of(record)
    console.print(RichText(record.title, style="bold"))
    if record.question:
        console.print(RichText(record.question))
    if view.cells:
        accuracy = tables.accuracy_table(view)
        side_by_side = _fits(accuracy, console)
        _print_table(accuracy if side_by_side else tables.accuracy_list(view), console, whole=side_by_side)
        _print([Text(f"{tables.accuracy_note(view)} {tables.ways(view)}", "aside")], console)
        if side_by_side and (view.searched or view.rates_differ):
            _print([search.rate_table(view)], console)
        ends = search.ends_note(view, without_verdict=True)
        _print([Text(ends, "aside")] if ends else [], console)
        same = search.same_rate_table(view)
        if same is not None:
            _print([same, Text(search.same_rate_note(view), "aside")], console)
        if measured.has_measures(view):
            _print(_unless_long(measured.measure_table(view), measured.MEASURE_NOTE), console)
        forgotten = measured.forgetting_table(record)
        if forgotten:
            _print(_unless_long(forgotten, measured.forgetting_note(record)), console)
        cost = tables.cost_table(view)
        if cost and len(view.trainings) == 1:
            _print([cost], console)
        if not view.simple:
            _print([Text(line) for line in fronts.front_sentences(view)], console)
        console.print()
    _print(outcome_blocks(view), console)
    environment = environment_note(record)
    _print([Text(environment, "note")] if environment else [], console)
    _print([Text(f"Still to be run: {name}", "note") for name in record.pending], console)


def _unless_long(table: Table, note: str) -> list[Block]:
    """The table and its note, or where to find it."""
    if len(table.rows) > LONG:
        return [Text(f"{table.caption}: {len(table.rows)} rows, in the report's page and Markdown.", "aside")]
    return [table, Text(note, "aside")]


def print_evaluations(record: RunRecord, console: Console) -> None:
    """Print the accuracies of one run."""
    note = f"Accuracy with its Wilson 95 % interval; {tables.MAJORITY_NOTE}"
    more = measured.evaluation_measures(record)
    blocks: list[Block] = [tables.evaluation_table(record), Text(note, "aside")] if record.evaluations else []
    if more:
        blocks += [more, Text(measured.RUN_NOTE, "aside")]
    if record.text is not None:
        blocks.append(Text(measured.text_sentence(record.text)))
    others = [
        Text(f"{entry.task}: on the base {entry.other_base.name}, not {record.model.name}", "note")
        for entry in record.evaluations
        if entry.other_base is not None
    ]
    _print([*blocks, *others], console)


def print_analysis(analysis: AnalysisRecord, console: Console) -> None:
    """Print the correlations next to the paper's, their sources, and DoRA's gains."""
    blocks: list[Block] = [
        decomposition.correlation_table(analysis),
        Text(decomposition.CORRELATION_NOTE, "aside"),
        Text(decomposition.sources(analysis), "aside"),
        *(Text(sentence) for sentence in decomposition.gain_sentences(analysis)),
        *(Text(sentence) for sentence in decomposition.rounding_sentences(analysis)),
    ]
    _print(blocks, console)


def print_conversion(record: ConvertRecord, output: Path, console: Console) -> None:
    """Print what a conversion into LoRA leaves out and costs, and where it is."""
    _print(conversion_blocks(record), console)
    console.print(f"written: {output}", highlight=False, soft_wrap=True)


def print_merge(record: MergeRecord, console: Console) -> None:
    """Print what a merge did and how far the result is from base and adapter, and where it is."""
    _print(merge_blocks(record), console)
    console.print(merge_line(record), highlight=False, soft_wrap=True)


def print_export(written: ExportedGguf, console: Console) -> None:
    """Print what a GGUF file holds and how far it is from base and adapter, and where it is."""
    _print(export_blocks(written), console)
    console.print(export_line(written), highlight=False, soft_wrap=True)


def print_peft_comparison(view: PeftView, console: Console) -> None:
    """Print the results of PEFT's own comparison, with fewer columns where not all fit."""
    console.print(RichText(TITLE, style="bold"))
    blocks = terminal_blocks(view, wide=True)
    fits = all(_fits(block, console) for block in blocks if isinstance(block, Table))
    _print(blocks if fits else terminal_blocks(view, wide=False), console)


def _print(blocks: Iterable[Block], console: Console) -> None:
    for block in blocks:
        match block:
            case Table():
                _print_table(block, console)
            case Verdicts():
                for one in block.cards:
                    name = f"{one.label}{' *' if one.sample else ''}: "
                    words = RichText.assemble(name, (one.words, "bold"), f" ({one.figures})")
                    if one.caution:
                        words.append(f". {one.caution}", style=STYLES["note"])
                    console.print(_indented(words))
            case Text():
                words = f"Note: {block.words}" if block.tone == "note" else block.words
                console.print(_indented(RichText(words, style=STYLES[block.tone])))
            case _:
                raise TypeError(f"the terminal does not show a {block.kind}")


def _print_table(table: Table, console: Console, *, whole: bool = False) -> None:
    if not _fits(table, console):
        table = _broken(table)
        whole = whole or _fits(
            replace(table, rows=[[_shortest(row[0]), *row[1:]] for row in table.rows]), console
        )
    for name, part in _groups(table):
        console.print()
        if name:
            console.print(_indented(RichText(name, style="italic")))
        console.print(_rich_table(part, whole=whole))
    if table.has_samples:
        console.print(_indented(RichText(f"* {SAMPLE}", style="dim")))


def _fits(table: Table, console: Console) -> bool:
    """Whether every entry fits on one line. Only the details of the names may wrap, between words."""
    names = [
        [replace(name, detail=max(name.detail.split(), key=len, default="")), *others]
        for name, *others in table.rows
    ]
    rich = _rich_table(replace(table, rows=names), whole=True)
    unlimited = console.options.update(max_width=10 * console.width)
    return Measurement.get(console, unlimited, rich).maximum <= console.width


def _rich_table(table: Table, *, whole: bool = False) -> RichTable:
    """The table without rules; samples get a star after their name.

    Args:
        table: The table.
        whole: Whether only the first column may wrap.
    """
    rich = table_without_rules()
    for index, column in enumerate(table.columns):
        first = index == 0
        rich.add_column(
            _rich_entry(column),
            justify="left" if first else "right",
            overflow="fold",
            no_wrap=whole and not first,
        )
    for row in table.rows:
        rich.add_row(*(_rich_entry(entry) for entry in row))
    return rich


def _broken(table: Table) -> Table:
    """The table with the parts of its details below each other, and headings no wider than their entries."""
    name, *others = table.columns
    rows = [[replace(one, detail=one.detail.replace("; ", "\n")) for one in row] for row in table.rows]
    columns = [
        _wrapped(column, max(len(line) for row in rows for line in _lines(row[place])))
        for place, column in enumerate(others, start=1)
    ]
    return replace(table, columns=[name, *columns], rows=rows)


def _shortest(name: Entry) -> Entry:
    """A name as narrow as it can be without breaking a word."""
    return replace(name, text=max(name.text.split(), key=len, default=""))


def _lines(entry: Entry) -> list[str]:
    return [entry.text, *entry.detail.split("\n")]


def _wrapped(heading: Entry, width: int) -> Entry:
    """The heading in lines as wide as its longest word or wider."""
    width = max(width, *map(len, f"{heading.text} {heading.detail}".split()))
    return replace(heading, text=fill(heading.text, width), detail=fill(heading.detail, width))


def _groups(table: Table) -> list[tuple[str, Table]]:
    """A table for each group of rows, with its name; one without a name if the rows are not grouped."""
    if not table.grouped:
        return [("", table)]
    heading, *columns = table.columns
    return [
        (
            name,
            replace(
                table,
                columns=[replace(heading, detail=""), *columns],
                rows=[[replace(first, detail=""), *others] for first, *others in rows],
            ),
        )
        for name, rows in groupby(table.rows, key=lambda row: row[0].detail)
    ]


def table_without_rules() -> RichTable:
    """An empty table with a rule below its heading and no others."""
    return RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)


def _rich_entry(entry: Entry) -> RichText:
    text = RichText(entry.text + (" *" if entry.sample else ""))
    if entry.detail:
        text.append(f"\n{entry.detail}", style="dim")
    return text


def _indented(text: RenderableType) -> Padding:
    """A paragraph between the tables."""
    return Padding(text, (0, 0, 0, 1))
