"""Writes what a comparison leaves behind: comparison.json, comparison.md and report.html."""

from __future__ import annotations

from pathlib import Path

from doratune.records.comparison import Comparison
from doratune.records.files import COMPARISON_NAME, write_json_atomic, write_text_atomic
from doratune.report.html import to_html
from doratune.report.markdown import to_markdown

MARKDOWN_NAME = "comparison.md"
HTML_NAME = "report.html"


def write_report(comparison: Comparison, directory: Path) -> list[Path]:
    """Write the three files into ``directory``, which is made if need be.

    Returns:
        Their paths: JSON, Markdown, HTML.
    """
    paths = [directory / name for name in (COMPARISON_NAME, MARKDOWN_NAME, HTML_NAME)]
    markdown, html = to_markdown(comparison), to_html(comparison)
    write_json_atomic(paths[0], comparison.to_dict())
    write_text_atomic(paths[1], markdown)
    write_text_atomic(paths[2], html)
    return paths
