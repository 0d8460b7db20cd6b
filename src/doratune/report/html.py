"""A report as one HTML file that needs nothing else: no script, no request, style and plots inside."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from doratune.report.blocks import SAMPLE, Page


def to_html(page: Page) -> str:
    """The whole file. All text is escaped; only plots are taken as they are."""
    return _template().render(page=page)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("doratune.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["SAMPLE"] = SAMPLE
    return environment.get_template("report.html.j2")
