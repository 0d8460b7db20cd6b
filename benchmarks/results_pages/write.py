"""Templates and records to pages."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from doratune.wording import listed
from results_pages import records, study_tables, tables, words
from results_pages.charts import charts

OUTPUT = records.STUDIES
TEMPLATES = Path(__file__).parent / "pages"


def results_pages() -> dict[str, str]:
    """Every file of docs/results that the records give, by its name there."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.globals.update(
        records=records,
        tables=tables,
        study_tables=study_tables,
        words=words,
        listed=listed,
        predates=lambda names: all(
            records.pipeline(name).started < records.FLOAT32_EVALUATION for name in names
        ),
    )
    pages = {path.name: environment.get_template(path.name).render() for path in TEMPLATES.glob("*.md")}
    plots = {f"plots/{name}": text for name, text in charts().items()}
    return {**dict(sorted(pages.items())), **plots}
