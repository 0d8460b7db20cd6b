"""Writes what a study leaves behind: study.json, study.md and report.html."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from doratune.records.analysis import AnalysisRecord
from doratune.records.layout import STUDY_NAME, write_json_atomic, write_text_atomic
from doratune.records.study import StudyRecord
from doratune.report.files import HTML_NAME
from doratune.report.study.html import study_html
from doratune.report.study.markdown import study_markdown

MARKDOWN_NAME = "study.md"


def write_study_report(
    folder: Path, record: StudyRecord, analyses: Sequence[AnalysisRecord] = ()
) -> list[Path]:
    """Write the three files into ``folder``, which is made if need be.

    Returns:
        Their paths: JSON, Markdown, HTML.
    """
    paths = [folder / name for name in (STUDY_NAME, MARKDOWN_NAME, HTML_NAME)]
    markdown, html = study_markdown(record, analyses), study_html(record, analyses)
    write_json_atomic(paths[0], record.to_dict())
    write_text_atomic(paths[1], markdown)
    write_text_atomic(paths[2], html)
    return paths
