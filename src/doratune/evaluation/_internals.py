"""The undocumented names of transformers and lm-eval that an evaluation touches, all of them.

lm-eval is optional, so its names are imported where they are used. ``tests/unit/test_internals.py`` fails by
name when an upgrade moves one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

# The name of a model's attention implementation.
from doratune.speedups._internals import attention_implementation

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task

__all__ = ["attention_implementation", "is_multimodal", "name_of", "runs_programs", "serialised", "table"]


def table(results: Mapping[str, Any], part: str) -> str:
    """lm-eval's own table of results, in Markdown: of the part ``results`` or ``groups``."""
    from lm_eval.utils import make_table

    return make_table(results, part)


def serialised(value: Any) -> Any:
    """What lm-eval writes to JSON for a value that JSON cannot hold."""
    from lm_eval.utils import handle_non_serializable

    return handle_non_serializable(value)


def runs_programs(task: Task) -> bool:
    """Whether lm-eval would run programs that the model writes."""
    return getattr(task, "UNSAFE_CODE", False)


def is_multimodal(task: Task) -> bool:
    """Whether a task has images or sound."""
    return getattr(task, "MULTIMODAL", False)


def name_of(item: Task | Group) -> str:
    """The name of a task or a group."""
    return str(getattr(item, "task_name", None) or item.name)  # pyright: ignore[reportAttributeAccessIssue]
