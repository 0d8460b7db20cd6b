"""Writes reports into a folder: a study's record, Markdown file and page, or an analysis and its plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from doratune.records.analysis import AnalysisRecord
from doratune.records.files import write_json_atomic, write_text_atomic
from doratune.records.layout import ANALYSIS_NAME, STUDY_NAME
from doratune.records.storage import write_study
from doratune.records.study import StudyRecord
from doratune.report.decomposition_plots import whole_plot
from doratune.report.markup import to_html, to_markdown
from doratune.report.page import page_of

MARKDOWN_NAME = "report.md"
HTML_NAME = "report.html"
PLOT_NAME = "analysis.svg"


def write_report(record: StudyRecord, folder: Path, analyses: Sequence[AnalysisRecord] = ()) -> list[Path]:
    """Write study.json, report.md and report.html into ``folder``, which is created if it is missing.

    Args:
        record: The study.
        folder: Where the files go.
        analyses: How the weights moved in the study's runs, as ``doratune analyze`` measured it.

    Returns:
        The paths of the files: JSON, Markdown, HTML.
    """
    paths = [folder / name for name in (STUDY_NAME, MARKDOWN_NAME, HTML_NAME)]
    page = page_of(record, analyses)
    markdown, html = to_markdown(page), to_html(page)
    write_study(folder, record)
    write_text_atomic(paths[1], markdown)
    write_text_atomic(paths[2], html)
    return paths


def write_analysis(analysis: AnalysisRecord, folder: Path) -> list[Path]:
    """Write analysis.json and analysis.svg into ``folder``, which is created if it is missing.

    Returns:
        Their paths.
    """
    paths = [folder / name for name in (ANALYSIS_NAME, PLOT_NAME)]
    plot = whole_plot(analysis)
    write_json_atomic(paths[0], analysis.to_dict(), indent=None)  # thousands of points
    write_text_atomic(paths[1], plot)
    return paths
