"""The model card of a converted adapter."""

from __future__ import annotations

from pathlib import Path

from doratune.records.files import write_text_atomic
from doratune.records.run import RunRecord
from doratune.records.serving import ConvertRecord


def write_card(folder: Path, record: ConvertRecord, run: RunRecord | None) -> None:
    """Write README.md."""
    write_text_atomic(folder / "README.md", f"# {record.source}\n")
