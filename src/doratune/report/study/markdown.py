"""A study as a Markdown page (GitHub's tables)."""

from __future__ import annotations

from collections.abc import Sequence

from doratune.records.analysis import AnalysisRecord
from doratune.records.study import StudyRecord
from doratune.report import decomposition
from doratune.report.details import environment_facts
from doratune.report.markdown import escaped, fenced, markdown_facts, markdown_table
from doratune.report.study import analysis, cells, paper, tables, verdicts
from doratune.report.study.details import environment_note, plan_text, setting_lines, unfinished
from doratune.report.tables import SAMPLE


def study_markdown(record: StudyRecord, analyses: Sequence[AnalysisRecord] = ()) -> str:
    """The whole page, ending in a newline."""
    parts = [f"# {escaped(record.title)}", escaped(record.question), "## What came out", *_verdicts(record)]
    if record.cells:
        parts += _results(record)
    parts += _analyses(analyses)
    parts += ["## Settings", markdown_facts(setting_lines(record)), "The plan:", fenced(plan_text(record))]
    if record.cells:
        parts += [markdown_table(tables.data_table(record)), markdown_table(tables.run_table(record))]
    parts += ["## Environment", markdown_facts(environment_facts(record.environment))]
    note = environment_note(record)
    parts += [note] if note else []
    if record.pending:
        parts += ["## Still to be run", _list(record.pending)]
    parts += ["## How to repeat it", fenced(record.reproduce)]
    return "\n\n".join(parts) + "\n"


def _verdicts(record: StudyRecord) -> list[str]:
    missing = unfinished(record)
    parts = [f"**{missing}**"] if missing else []
    parts += [escaped(line) for line in verdicts.headlines(record)] or [verdicts.NO_PAIR]
    lines = [
        f"- {escaped(one.task)}{f' ({SAMPLE})' if one.sample else ''}: **{escaped(one.words)}** "
        f"({escaped(one.figures)})"
        for one in verdicts.verdicts(record)
    ]
    parts += ["\n".join(lines), verdicts.TEST_NOTE] if lines else []
    return parts + ([_list([f"Note: {note}" for note in record.notes])] if record.notes else [])


def _results(record: StudyRecord) -> list[str]:
    starred = cells.samples(record)
    parts = ["## Accuracy", markdown_table(tables.accuracy_table(record), starred)]
    parts += [f"\\* {SAMPLE}"] if starred else []
    parts.append(escaped(f"{tables.accuracy_note(record)} {tables.ways(record)}"))
    beside = paper.paper_table(record)
    if beside:
        parts += ["### Beside the paper", markdown_table(beside), paper.ACCURACY_NOTE]
    if cells.pairs(record):
        parts += ["## Differences", markdown_table(verdicts.difference_table(record), starred)]
        parts += ["### Seed by seed", markdown_table(verdicts.seed_table(record), starred)]
    needed = verdicts.needed_table(record)
    if needed:
        parts += ["### What it would take to tell", markdown_table(needed, starred), verdicts.NEEDED_NOTE]
    parts += ["## Learning rates", markdown_table(tables.search_table(record), starred)]
    parts.append(escaped(tables.search_note(record)))
    parts += ["## Cost", markdown_table(tables.cost_table(record))]
    sentence = tables.cost_sentence(record)
    return parts + ([sentence] if sentence else [])


def _analyses(analyses: Sequence[AnalysisRecord]) -> list[str]:
    if not analyses:
        return []
    parts = ["## How the weights moved", _list(analysis.sentences(analyses))]
    for one in analyses:
        parts += [f"### {escaped(one.model)}", markdown_table(decomposition.correlation_table(one))]
        parts.append(escaped(decomposition.sources(one)))
    repeat = fenced("\n".join(dict.fromkeys(one.reproduce for one in analyses)))
    return [*parts, analysis.NOTE, repeat]


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escaped(line)}" for line in lines)
