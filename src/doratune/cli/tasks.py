"""``doratune tasks``."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import Positional

from doratune.cli.parse import parse
from doratune.data.described import example_lines, task_lines, task_table
from doratune.data.examples import build_examples
from doratune.data.source import load_split
from doratune.data.task_file import task_template
from doratune.data.tasks import get_task, task_names
from doratune.errors import InputError
from doratune.records.run import Format
from doratune.settings import LaxPath, Positive, Settings

ABOUT = """List the tasks, describe one, or write a file for a task of your own.

Examples:
  doratune tasks
  doratune tasks sample-boolq --show 2 --format continuation
  doratune tasks multiple-choice --show 2 --data rows.jsonl
  doratune tasks --template > my-task.yaml
"""
SHOWN = 2
"""Rows that --data shows without --show."""


class TasksCommand(Settings):
    """The flags of ``doratune tasks``."""

    name: Annotated[str | None, Positional] = None
    """Name of a task, or its YAML file; None: all that ship."""
    show: Positive | None = None
    """Print this many training rows, as they are trained on and scored."""
    data: LaxPath | None = None
    """JSON or JSONL file with the rows to show, instead of the task's own."""
    format: Format = "instruct"
    """The format in which rows are shown."""
    template: bool = False
    """Print a commented YAML file that defines a task."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    command = parse(TasksCommand, argv, verb="tasks", about=ABOUT)
    if command.template:
        if command != TasksCommand(template=True):
            raise InputError("the template is printed alone", where="--template", fix="leave the rest out")
        print(task_template(), end="")
        return 0
    if command.name is None:
        if command != TasksCommand():
            raise InputError("no task was named", where="doratune tasks", fix="name one: doratune tasks NAME")
        print("\n".join(task_table([get_task(name) for name in task_names()])))
        return 0
    task = get_task(command.name)
    lines = task_lines(task)
    if command.show is not None or command.data is not None:
        loaded = load_split(task, "train", data=command.data)
        rows = loaded.rows[: command.show or SHOWN]
        lines += ["", f"{len(rows)} of {len(loaded.rows):,} rows of {loaded.source}, format {command.format}"]
        for example in build_examples(rows, source=loaded.source, fmt=command.format, task=task):
            lines += ["", *example_lines(example)]
    print("\n".join(lines))
    return 0
