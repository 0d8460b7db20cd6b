"""All undocumented names of other libraries that an evaluation uses.

lm-eval is optional, so its names are imported where they are used. ``tests/unit/test_internals.py`` fails by
name when an upgrade moves one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

# The name of a model's attention implementation.
from doratune.speedups._internals import attention_implementation

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task

__all__ = [
    "attention_implementation",
    "forward_name",
    "is_multimodal",
    "name_of",
    "runs_programs",
    "serialised",
    "set_compute_dtype",
    "table",
]


def table(results: Mapping[str, Any], part: str) -> str:
    """lm-eval's table of the part ``results`` or ``groups``, in Markdown."""
    from lm_eval.utils import make_table

    return make_table(results, part)


def serialised(value: Any) -> Any:
    """lm-eval's JSON form of a value that JSON cannot hold."""
    from lm_eval.utils import handle_non_serializable

    return handle_non_serializable(value)


def runs_programs(task: Task) -> bool:
    """Whether lm-eval would run code that the model writes."""
    return getattr(task, "UNSAFE_CODE", False)


def is_multimodal(task: Task) -> bool:
    """Whether a task has images or sound."""
    return getattr(task, "MULTIMODAL", False)


def name_of(item: Task | Group) -> str:
    """The name of a task or a group."""
    return str(getattr(item, "task_name", None) or item.name)  # pyright: ignore[reportAttributeAccessIssue]


def forward_name(module: nn.Module) -> str:
    """The attribute with a module's original forward pass; accelerate wraps it to move weights."""
    return "_old_forward" if hasattr(module, "_hf_hook") else "forward"


def set_compute_dtype(module: Any, dtype: torch.dtype) -> None:
    """Set the type that a 4-bit layer of bitsandbytes computes in; leave other modules alone."""
    if getattr(module, "compute_dtype", None) is not None:
        module.compute_dtype = dtype
        module.compute_type_is_set = True
