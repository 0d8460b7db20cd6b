"""A comparison as one HTML file that needs nothing else: no script, no request, style and plots inside."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from doratune.records.comparison import Comparison
from doratune.report import details, plots, tables


def to_html(comparison: Comparison) -> str:
    """The whole page. Everything that comes from the comparison is escaped."""
    accuracy = [
        {
            "label": tables.task_label(task, comparison),
            "sample": task.sample,
            "svg": Markup(plots.accuracy_plot(task, comparison, f"task{index}")),
        }
        for index, task in enumerate(comparison.tasks)
    ]
    loss = plots.loss_plot(comparison, "loss")
    return template("report.html.j2").render(
        comparison=comparison,
        verdicts=tables.verdicts(comparison),
        samples=[tables.task_label(task, comparison) for task in comparison.tasks if task.sample],
        accuracy_plots=accuracy,
        accuracy_table=tables.accuracy_table(comparison),
        ways=tables.ways(comparison),
        loss_plot=Markup(loss) if loss else None,
        smoothed=any(plots.window(arm) > 1 for arm in comparison.arms),
        cost_table=tables.cost_table(comparison),
        cost_sentence=tables.cost_sentence(comparison),
        settings=details.setting_facts(comparison.settings),
        environment=details.environment_facts(comparison.environment),
        text=tables,
        title=comparison.title,
        version=comparison.environment.doratune,
    )


@cache
def template(name: str) -> Template:
    """A template beside the style sheet; everything that goes into it is escaped unless it is ``Markup``."""
    environment = Environment(
        loader=PackageLoader("doratune.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["SAMPLE"] = tables.SAMPLE
    return environment.get_template(name)
