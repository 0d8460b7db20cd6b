"""How long a study will take, in the terminal or as JSON."""

from __future__ import annotations

from typing import Any

from doratune.cli.output import new_console, print_json
from doratune.report.numbers import duration, large
from doratune.study.cost import Speeds, Work, known_speeds, work_if_extended, work_left
from doratune.study.study import Study, with_archived_runs


def estimate(study: Study, *, jobs: int) -> dict[str, Any]:
    """What is left of a study, by training set and in all.

    Args:
        study: The study.
        jobs: Runs at a time.

    Returns:
        Plain values; ``seconds`` is None if the speed is unknown.
    """
    speeds = known_speeds(study.plan, study.groups)
    left = work_left(study.groups)
    more = [(job.method, work) for _, job, work in work_if_extended(study.groups)]
    parts = []
    for entry in study.plan.tasks:
        own = [(job.method, work) for group, job, work in left if group.material.entry is entry]
        parts.append({"train": entry.name, **_sums(own, speeds, jobs)})
    return {
        "title": study.plan.title,
        "parts": parts,
        "total": _sums([(job.method, work) for _, job, work in left], speeds, jobs),
        "if_extended": _sums(more, speeds, jobs),
        "basis": speeds.basis,
        "assumed": study.assumed,
    }


def show_estimate(study: Study, *, jobs: int, as_json: bool) -> None:
    """Print what is left of a study."""
    with with_archived_runs(study) as restored:
        found = estimate(restored, jobs=jobs)
    if as_json:
        print_json(found)
        return
    from rich.table import Table

    console = new_console()
    table = Table(title=found["title"])
    table.add_column("Training set")
    for name in ("Runs", "Steps", "Tokens", "Rows to answer", "Time"):
        table.add_column(name, justify="right")
    for part in (*found["parts"], {"train": "all", **found["total"]}):
        table.add_row(part["train"], *_cells(part))
    console.print(table)
    for line in _remarks(found):
        console.print(line, highlight=False)


def _sums(left: list[tuple[str, Work]], speeds: Speeds, jobs: int) -> dict[str, Any]:
    work = sum((one for _, one in left), Work())
    times = [speeds.seconds(method, one) for method, one in left]
    known = [time for time in times if time is not None]
    return {
        "runs": work.runs,
        "steps": work.steps,
        "tokens": round(work.tokens),
        "rows": work.rows,
        "seconds": round(sum(known) / jobs) if len(known) == len(times) else None,
    }


def _cells(part: dict[str, Any]) -> list[str]:
    seconds = part["seconds"]
    time = "not known" if seconds is None else duration(seconds)
    return [f"{part['runs']:,}", f"{part['steps']:,}", large(part["tokens"]), f"{part['rows']:,}", time]


def _remarks(found: dict[str, Any]) -> list[str]:
    lines = [
        f"The rows of {train} {why}; the plan's sizes are used." for train, why in found["assumed"].items()
    ]
    lines.append(
        "Runs that are finished are not counted. Tokens are estimated from the number of characters."
    )
    more = found["if_extended"]
    if more["runs"]:
        time = "" if more["seconds"] is None else f", {duration(more['seconds'])}"
        lines.append(
            "Where the best learning rate is at an end of the list, rates beyond it are tried: at most "
            f"{more['runs']:,} more runs{time}."
        )
    if found["basis"] is None:
        lines.append("Time: not known, as no run of this study has finished and the plan assumes no speed.")
    else:
        lines.append(f"Time: estimated from {found['basis']}.")
    return lines
