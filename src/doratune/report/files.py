"""Writes what a comparison leaves behind: comparison.json, comparison.md and report.html; and an analysis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from doratune.records.analysis import AnalysisRecord
from doratune.records.comparison import Comparison
from doratune.records.layout import (
    ANALYSIS_NAME,
    COMPARISON_NAME,
    STUDY_NAME,
    write_json_atomic,
    write_text_atomic,
)
from doratune.records.study import StudyRecord
from doratune.report.decomposition_plots import whole_plot
from doratune.report.html import to_html
from doratune.report.markdown import to_markdown

MARKDOWN_NAME = "comparison.md"
HTML_NAME = "report.html"
PLOT_NAME = "analysis.svg"


def write_comparison(comparison: Comparison, directory: Path) -> list[Path]:
    """Write a comparison's three files into ``directory``.

    Returns:
        Their paths: JSON, Markdown, HTML.
    """
    paths = [directory / name for name in (COMPARISON_NAME, MARKDOWN_NAME, HTML_NAME)]
    markdown, html = to_markdown(comparison), to_html(comparison)
    write_json_atomic(paths[0], comparison.to_dict())
    write_text_atomic(paths[1], markdown)
    write_text_atomic(paths[2], html)
    return paths


def write_report(record: StudyRecord, folder: Path, analyses: Sequence[AnalysisRecord] = ()) -> list[Path]:
    """Write study.json, report.md and report.html into ``folder``, which is created if it is missing.

    Args:
        record: What to report.
        folder: Where the files go.
        analyses: What ``doratune analyze`` measured of the study's runs.

    Returns:
        The paths of the files: JSON, Markdown, HTML.
    """
    from doratune.report.study.html import study_html
    from doratune.report.study.markdown import study_markdown

    paths = [folder / name for name in (STUDY_NAME, "report.md", HTML_NAME)]
    markdown, html = study_markdown(record, analyses), study_html(record, analyses)
    write_json_atomic(paths[0], record.to_dict())
    write_text_atomic(paths[1], markdown)
    write_text_atomic(paths[2], html)
    return paths


def write_analysis(analysis: AnalysisRecord, directory: Path) -> list[Path]:
    """Write analysis.json and analysis.svg into ``directory``, which is made if need be.

    Returns:
        Their paths.
    """
    paths = [directory / name for name in (ANALYSIS_NAME, PLOT_NAME)]
    plot = whole_plot(analysis)
    write_json_atomic(paths[0], analysis.to_dict())
    write_text_atomic(paths[1], plot)
    return paths
