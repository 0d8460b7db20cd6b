"""Tasks as data: each is a YAML file in ``tasks/``, checked strictly."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from doratune.data.layouts import Layout, layouts
from doratune.errors import InputError, did_you_mean
from doratune.named_yaml import read_definitions
from doratune.settings import Settings

Split = Literal["train", "test"]

MIX = "commonsense-mix"
"""What the mix of all benchmark tasks is called where a task may be named."""


class HubSource(Settings):
    """Where the original rows are on the Hugging Face hub."""

    path: str
    """Hub id, or a local folder."""
    config: str | None = None
    """Configuration of the data set, None for the default one."""
    revision: str | None = None
    """Branch, tag or commit, None for the newest."""
    splits: dict[Split, str]
    """The data set's split that the original study used to train, and the one it used to test."""


class RowSchema(Settings):
    """How a row of the data set's own schema is read. Columns inside a column are written ``outer.inner``."""

    stem: str
    """The stem, with columns in braces."""
    options: str | list[str] | None = None
    """The columns of the options, or one column that lists them; None where the labels are the options."""
    answer: str
    """The column of the right answer."""
    answers: str | list[str]
    """The values of that column that stand for the options, in order, or the column that lists them."""


def _named_layout(value: Any) -> Any:
    if isinstance(value, str) and value not in layouts():
        raise ValueError(f"unknown layout {value!r}")
    return layouts()[value] if isinstance(value, str) else value


class Task(Settings):
    """A multiple-choice task."""

    name: str
    """Name of the file and of the task on the command line."""
    title: str
    """Name for people."""
    version: int
    """Goes up when the rows or their wording change."""
    licence: str
    """Licence of the rows."""
    sample: bool = False
    """Whether it is a built-in sample, which is no benchmark."""
    layout: Annotated[Layout, BeforeValidator(_named_layout)]
    """The wording of its instructions; the name of a layout in the file."""
    hub: HubSource | None = None
    """Where its rows are; None for a sample."""
    row: RowSchema | None = None
    """How they become instructions; None for a sample."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What the answers are called, in order; a row with fewer options uses the first ones."""
        return tuple(self.layout.labels)

    @property
    def pattern(self) -> str:
        """Regular expression for an answer in a generated text, case-sensitive as in the original study."""
        return self.layout.pattern

    @model_validator(mode="after")
    def _has_rows_from_one_place(self) -> Task:
        if self.sample is not (self.hub is None) or self.sample is not (self.row is None):
            raise ValueError("a sample has neither hub nor row, another task has both")
        return self


@cache
def _tasks() -> dict[str, Task]:
    return read_definitions("doratune.data", "tasks", Task)


def task_names() -> list[str]:
    """Names of all tasks, in alphabetical order."""
    return list(_tasks())


def get_task(name: str) -> Task:
    """The task of this name, in any case, so that folder names such as ``ARC-Easy`` work too.

    Raises:
        InputError: There is no such task.
    """
    found = _tasks().get(name.lower())
    if found is None:
        raise InputError(
            "unknown task",
            where="--task",
            got=name,
            expected=f"one of {', '.join(task_names())}",
            fix=did_you_mean(name.lower(), [*task_names(), MIX]),
        )
    return found
