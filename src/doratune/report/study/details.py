"""The settings of a study as text."""

from __future__ import annotations

from doratune.records.study import StudyRecord
from doratune.report.details import setting_facts


def setting_lines(record: StudyRecord) -> list[tuple[str, str]]:
    """What all runs share, names in words."""
    return setting_facts({name: value for name, value in record.settings.items() if value is not None})


def plan_text(record: StudyRecord) -> str:
    """The whole plan as YAML."""
    import yaml

    return yaml.safe_dump(record.plan, sort_keys=False, allow_unicode=True, width=100).rstrip()


def unfinished(record: StudyRecord) -> str | None:
    """That cells are missing, or None when all are there."""
    if not record.pending:
        return None
    done, left = len(record.cells), len(record.pending)
    verb = "is" if left == 1 else "are"
    return (
        f"This study is not finished: {left} of {done + left} cells {verb} still to be run; what follows is "
        "about the others only."
    )


def environment_note(record: StudyRecord) -> str | None:
    """That the runs saw more than one environment, or None."""
    if record.environments == 1:
        return None
    return (
        f"The runs took place in {record.environments} different environments, of which this is the last: "
        "their times and memory cannot be compared."
    )
