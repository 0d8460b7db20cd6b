"""A wrong configuration is a few short lines."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from doratune.errors import InputError
from doratune.named_yaml import read_shipped
from doratune.settings import NAMED_FAULTS, validate
from doratune.study.plan import Plan


def faults(changes: dict[str, Any], *, tasks: dict[str, Any] | None = None) -> list[str]:
    """The lines about the shipped plan of four tasks with changes, and with changes in each of its tasks."""
    plan = read_shipped("doratune.study", "plans/smollm2-four-tasks.yaml")
    for task in plan["tasks"]:
        for name, value in (tasks or {}).items():
            task.pop(name, None)
            task |= value if isinstance(value, dict) else {name: value}
    with pytest.raises(InputError) as raised:
        validate(Plan, plan | changes, where="plan.yaml")
    assert len(raised.value.message) < 600
    return [line.strip() for line in str(raised.value.got).splitlines()]


def test_a_fault_in_every_task_is_one_line() -> None:
    assert faults({}, tasks={"rows": {"row": 1600}}) == [
        "unknown key 'row' (did you mean 'rows'?) in tasks 1, tasks 2, tasks 3 and 1 more"
    ]


def test_the_branches_of_a_union_are_one_line() -> None:
    assert faults({"tasks": [{"train": 3}]}) == [
        "tasks 1, train: should be a valid string or a valid list, got 3"
    ]


def test_an_older_name_is_answered_with_today_s() -> None:
    assert faults({"tasks": [{"train": "boolq", "limit": 5}]}) == [
        "unknown key 'limit' (did you mean 'eval_rows'?) in tasks 1"
    ]


def test_missing_keys_are_one_line() -> None:
    with pytest.raises(InputError) as raised:
        validate(Plan, yaml.safe_load("{title: x, question: why}"), where="plan.yaml")
    assert raised.value.got == "missing: models, methods, tasks, ranks, learning_rates, seeds"


def test_many_faults_are_cut_off() -> None:
    lines = faults({f"key{number}": 1 for number in range(9)})
    assert len(lines) == NAMED_FAULTS + 1 and lines[-1] == "and 4 more"


def test_values_are_named_with_their_place() -> None:
    assert faults({"ranks": 32, "learning_rates": ["fast", 1e-3]}) == [
        "ranks: should be a valid list, got 32",
        "learning_rates 1: should be a valid number, got 'fast'",
    ]
