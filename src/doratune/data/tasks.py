"""Tasks as data: each is a YAML file, checked strictly; the shipped ones are in ``tasks/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from doratune.data.fields import Unfit, columns
from doratune.data.layouts import MOST, Layout, layouts
from doratune.data.task_file import is_task_file, read_task_file
from doratune.errors import InputError, did_you_mean
from doratune.named_yaml import read_definitions
from doratune.settings import Settings

Split = Literal["train", "test"]

MIX = "commonsense-mix"
"""The name of the mix of all benchmark tasks."""
GENERIC = "multiple-choice"
"""The task of rows with a question, its choices and the answer."""


class HubSource(Settings):
    """Where the original rows are on the Hugging Face hub."""

    path: str
    """Hub id, or a local folder."""
    config: str | None = None
    """Configuration of the data set, None for the default one."""
    revision: str | None = None
    """Branch, tag or commit, None for the newest."""
    splits: dict[Split, str]
    """The data set's splits that the original study trained and tested on."""


class RowSchema(Settings):
    """How a row of the data set's own schema is read. Columns inside a column are written ``outer.inner``."""

    stem: str
    """The stem, with columns in braces."""
    options: str | list[str] | None = None
    """The columns of the options, or one column that lists them; None if the labels are the options."""
    answer: str
    """The column of the right answer."""
    answers: str | list[str]
    """The values of that column, one per option in order, or the column that lists them."""

    @model_validator(mode="after")
    def _reads_a_row(self) -> RowSchema:
        if not all(columns(self.stem)) or not columns(self.stem):
            raise Unfit("stem", "a text with a column in braces, such as {question}")
        if isinstance(self.answers, list) and len(set(self.answers)) < len(self.answers):
            raise Unfit("answers", "each value once, or one column that lists them")
        if isinstance(self.options, list) and len(set(self.options)) < len(self.options):
            raise Unfit("options", "each column once")
        if isinstance(self.options, list) and not 2 <= len(self.options) <= MOST:
            raise Unfit("options", f"2 to {MOST} columns, or one column that lists the options")
        return self

    def is_in(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has the columns that are read."""
        listed = [one for one in (self.options, self.answers) if isinstance(one, str)]
        several = self.options if isinstance(self.options, list) else []
        paths = [*columns(self.stem), *listed, *several, self.answer]
        return all(path.partition(".")[0] in row for path in paths)


def _named_layout(value: Any) -> Any:
    if isinstance(value, str) and value not in layouts():
        raise Unfit(
            "", f"{', '.join(layouts())}, or a mapping with template, labels and so on", got=repr(value)
        )
    return layouts()[value] if isinstance(value, str) else value


class Task(Settings):
    """A multiple-choice task."""

    name: str
    """Name of the task and of the files with its results; also of the YAML file of a shipped task."""
    title: str = ""
    """Name to display; if empty, the name."""
    asks: str = ""
    """What it asks, in a few words."""
    version: int = 1
    """Goes up when the rows or their wording change."""
    licence: str = "not stated"
    """Licence of the rows."""
    sample: bool = False
    """Whether it is a built-in sample, not a benchmark."""
    layout: Annotated[Layout, BeforeValidator(_named_layout)]
    """The wording of its instructions; in the file the name of a layout, or a layout itself."""
    choices: list[int] | None = None
    """Fewest and most options of a row; None: as many as the layout allows."""
    hub: HubSource | None = None
    """Where its rows are; None for a sample, and for a task with rows in files."""
    row: RowSchema | None = None
    """How rows become instructions; None for a sample, and for rows with question, choices and answer."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What the answers are called, in order; a row with fewer options uses the first ones."""
        return tuple(self.layout.labels)

    @property
    def pattern(self) -> str:
        """Regular expression for an answer in a generated text, case-sensitive as in the original study."""
        return self.layout.pattern

    @property
    def counts(self) -> tuple[int, int]:
        """Fewest and most options of a row."""
        if self.layout.option is None:
            return len(self.labels), len(self.labels)
        if self.row is not None and isinstance(self.row.options, list):
            return len(self.row.options), len(self.row.options)
        fewest, most = self.choices or (self.layout.fewest, len(self.labels))
        return fewest, most

    @property
    def definition(self) -> dict[str, Any] | None:
        """The whole definition, for records; None for a shipped task, which its name identifies."""
        return None if self.name in _tasks() else self.model_dump(mode="json", exclude_none=True)

    def fits(self, count: int) -> bool:
        """Whether a row may have this many options."""
        fewest, most = self.counts
        return fewest <= count <= most

    @model_validator(mode="before")
    @classmethod
    def _titled(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and not values.get("title") and isinstance(values.get("name"), str):
            return {**values, "title": values["name"]}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Task:
        if self.sample and (self.hub is not None or self.row is not None):
            raise Unfit("sample", "neither hub nor row in a built-in sample", got="true")
        if self.hub is not None and self.row is None:
            raise Unfit("row", "how a row of the hub's data set is read: stem, options, answer, answers")
        if self.row is not None:
            _check_schema(self.row, self.layout)
        if self.choices is not None and not _is_range(self.choices, self.layout):
            raise Unfit("choices", f"two numbers from {self.layout.fewest} to {len(self.labels)}, ascending")
        return self


def _check_schema(row: RowSchema, layout: Layout) -> None:
    if layout.option is None and row.options is not None:
        raise Unfit("row.options", "nothing, as the layout lists no options: its labels are the answers")
    if layout.option is not None and row.options is None:
        raise Unfit("row.options", "the columns of the options, or one column that lists them", got="nothing")
    count = len(row.options) if isinstance(row.options, list) else None
    if count is not None and not layout.fits(count):
        raise Unfit(
            "row.options", f"{layout.fewest} to {len(layout.labels)} columns, as the layout has labels"
        )
    count = len(layout.labels) if layout.option is None else count
    if count is not None and isinstance(row.answers, list) and len(row.answers) != count:
        raise Unfit("row.answers", f"{count} values, one for each option")


def _is_range(choices: list[int], layout: Layout) -> bool:
    return len(choices) == 2 and layout.fewest <= choices[0] <= choices[1] <= len(layout.labels)


@cache
def _tasks() -> dict[str, Task]:
    return read_definitions("doratune.data", "tasks", Task)


def task_names() -> list[str]:
    """Names of all shipped tasks, in alphabetical order."""
    return list(_tasks())


def get_task(name: str, *, recorded: Mapping[str, Mapping[str, Any]] | None = None) -> Task:
    """The task of this name, or in this file.

    Args:
        name: A name, in any case, so that folder names such as ``ARC-Easy`` work too; or a path ending in
            .yaml or .yml.
        recorded: Definitions of further tasks, from a record, by name.

    Raises:
        InputError: There is no such task, or the file cannot be used.
    """
    if is_task_file(name):
        return read_task_file(name, Task, taken=(*task_names(), MIX))
    definition = (recorded or {}).get(name.lower())
    if definition is not None:
        return Task.model_validate(definition)
    found = _tasks().get(name.lower())
    if found is None:
        known = [*task_names(), *(recorded or {})]
        raise InputError(
            "unknown task",
            where="--task",
            got=name,
            expected=f"one of {', '.join(known)}, or a .yaml file",
            fix=did_you_mean(name.lower(), [*known, MIX]),
        )
    return found


def get_tasks(names: Sequence[str], *, recorded: Mapping[str, Mapping[str, Any]] | None = None) -> list[Task]:
    """The tasks of these names or in these files, each once.

    Args:
        names: Names or paths.
        recorded: Definitions of further tasks, from a record, by name.

    Raises:
        InputError: As in ``get_task``, or two files define tasks of the same name.
    """
    found: dict[str, Task] = {}
    for task in (get_task(name, recorded=recorded) for name in names):
        if found.setdefault(task.name, task) != task:
            raise InputError(
                "two tasks have the same name",
                where="--task",
                got=" ".join(names),
                fix=f"give one of them another name than {task.name}",
            )
    return list(found.values())


def plain_name(name: str) -> str:
    """The name of a task that was given by name or file.

    Raises:
        InputError: The file cannot be used.
    """
    return get_task(name).name if is_task_file(name) else name
