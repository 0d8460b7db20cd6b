"""A study as one HTML file that needs nothing else: no script, no request, style and plots inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from doratune.records.analysis import AnalysisRecord
from doratune.records.study import StudyCell, StudyRecord
from doratune.report import decomposition, details
from doratune.report.html import template
from doratune.report.study import analysis, cells, paper, plots, tables, verdicts
from doratune.report.study.details import environment_note, plan_text, setting_lines, unfinished

Figure = dict[str, Any]


def study_html(record: StudyRecord, analyses: Sequence[AnalysisRecord] = ()) -> str:
    """The whole page. Everything that comes from the records is escaped."""
    pairs = cells.pairs(record)
    return template("study.html.j2").render(
        title=record.title,
        version=record.environment.doratune,
        record=record,
        unfinished=unfinished(record),
        samples=cells.samples(record),
        headlines=verdicts.headlines(record),
        verdicts=verdicts.verdicts(record),
        accuracy_table=tables.accuracy_table(record),
        paper_table=paper.paper_table(record),
        accuracy_plots=_per_cell(record, "dots", plots.accuracy_plot),
        forests=[
            {
                "label": cells.sentence(cells.pair_name(pair)),
                "sample": False,
                "svg": Markup(plots.forest_plot(record, pair, f"forest{index}")),
            }
            for index, pair in enumerate(pairs)
        ],
        difference_table=verdicts.difference_table(record),
        seed_table=verdicts.seed_table(record),
        needed_table=verdicts.needed_table(record),
        search_table=tables.search_table(record),
        search_plots=_per_cell(record, "search", plots.search_plot),
        loss_plots=_per_cell(record, "loss", plots.loss_plot),
        cost_table=tables.cost_table(record),
        cost_note=f"Times and memory: {tables.cost_note(record)}.",
        cost_sentence=tables.cost_sentence(record),
        analyses=[_analysis(one, index) for index, one in enumerate(analyses)],
        settings=setting_lines(record),
        plan=plan_text(record),
        data_rows=tables.data_table(record),
        run_table=tables.run_table(record),
        environment_note=environment_note(record),
        environment=details.environment_facts(record.environment),
        accuracy_note=tables.accuracy_note(record),
        ways=tables.ways(record),
        text={
            "no_pair": verdicts.NO_PAIR,
            "test": verdicts.TEST_NOTE,
            "needed": verdicts.NEEDED_NOTE,
            "paper": paper.ACCURACY_NOTE,
            "search": tables.search_note(record),
            "analysis": analysis.NOTE,
            "gain": analysis.GAIN_NOTE,
        },
    )


def _per_cell(record: StudyRecord, name: str, draw: Callable[[StudyCell, str], str | None]) -> list[Figure]:
    """One figure for each cell that has something to draw."""
    drawn = [(cell, draw(cell, f"{name}{index}")) for index, cell in enumerate(record.cells)]
    return [
        {"label": cells.cell_label(cell, record), "sample": cell.sample, "svg": Markup(svg)}
        for cell, svg in drawn
        if svg
    ]


def _analysis(one: AnalysisRecord, index: int) -> dict[str, Any]:
    return {
        "record": one,
        "sources": decomposition.sources(one),
        "correlations": decomposition.correlation_table(one),
        "changes": _figures(one, lambda run, place: analysis.change_plot(run, f"change{index}-{place}")),
        "gains": _figures(one, lambda run, place: analysis.gain_plot(run, f"gain{index}-{place}")),
    }


def _figures(one: AnalysisRecord, draw: Callable[[Any, int], str | None]) -> list[Figure]:
    drawn = [(run, draw(run, place)) for place, run in enumerate(one.runs)]
    return [
        {"label": f"{cells.method_name(run.method)} ({run.name})", "sample": False, "svg": Markup(svg)}
        for run, svg in drawn
        if svg
    ]
