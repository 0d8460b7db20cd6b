"""Plans from their files, and from the records of studies that older versions wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from doratune.errors import InputError
from doratune.methods.former import SWITCHES, former_method
from doratune.models.names import refuse_unknown_model
from doratune.named_yaml import read_named
from doratune.settings import validate
from doratune.study.plan import Plan
from doratune.study.plan_checks import check_choice, check_plan, check_settings


def load_plan(name: str, *, data: Path | None = None) -> Plan:
    """Read a shipped plan by name, or any YAML file by path.

    Args:
        name: The name or path.
        data: Replaces the plan's data folder.

    Raises:
        InputError: There is no such plan, or it cannot be run.
    """
    values, source = read_named(name, kind="plan", where="PLAN", package="doratune.study", folder="plans")
    check_choice(values, source)
    plan = validate(Plan, values, where=source)
    check_settings(plan, source)
    check_plan(plan, source)
    for model in plan.models:
        refuse_unknown_model(model, where=f"{source}, models")
    if data is not None:
        plan = plan.model_copy(update={"data": data})
    if plan.data is not None and not plan.data.is_dir():
        raise InputError(
            "there is no such data folder",
            where="--data" if data is not None else f"{source}, data",
            got=plan.data,
            fix="check the path",
        )
    return plan


def recorded_plan(values: dict[str, Any], *, where: str) -> Plan:
    """The plan in a study's record, also as older versions wrote it.

    Args:
        values: What the record holds.
        where: The record, for messages.

    Raises:
        InputError: It is not a plan.
    """
    settings, tasks = values.get("settings"), values.get("tasks")
    if isinstance(settings, dict) and settings.keys() & set(SWITCHES):
        values = values | {
            "methods": [former_method(one, settings) for one in values.get("methods", [])],
            "settings": {key: value for key, value in settings.items() if key not in SWITCHES},
        }
    if isinstance(tasks, list) and any("limit" in task for task in tasks if isinstance(task, dict)):
        values = values | {
            "tasks": [_renamed(task, "limit", "eval_rows") for task in tasks],
            "settings": {"warmup_steps": 100} | values.get("settings", {}),  # the default at that time
        }
    return validate(Plan, values, where=where)


def _renamed(values: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if key == old else key: value for key, value in values.items()}
