"""Settings, plan and environment of a study as text."""

from __future__ import annotations

from doratune.records.base import Setting
from doratune.records.study import StudyRecord
from doratune.report import numbers


def setting_facts(record: StudyRecord) -> list[tuple[str, str]]:
    """What all runs share, with names in words; settings without a value are left out."""
    return [
        (name.replace("_", " "), _value(value))
        for name, value in record.settings.items()
        if value is not None
    ]


def _value(value: Setting) -> str:
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value) if value else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def environment_facts(record: StudyRecord) -> list[tuple[str, str]]:
    """The machine and the software, unknowns left out."""
    one = record.environment
    facts = [
        ("doratune", one.doratune),
        ("commit", one.git_commit),
        ("processor", f"{one.cpu}, {numbers.counted(one.cores, 'core')}"),
        ("GPU", one.gpu or "none"),
        ("system", one.platform),
        ("Python", one.python),
        ("packages", ", ".join(f"{name} {version}" for name, version in one.packages.items())),
    ]
    return [(name, value) for name, value in facts if value]


def plan_text(record: StudyRecord) -> str | None:
    """The whole plan as YAML, or None where no plan led to the runs."""
    import yaml

    if record.plan is None:
        return None
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
