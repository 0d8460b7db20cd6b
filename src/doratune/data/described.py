"""Tasks and examples as lines of text, for people."""

from __future__ import annotations

from collections.abc import Sequence

from doratune.data.choices import EXAMPLE
from doratune.data.examples import Example
from doratune.data.tasks import Task

ROW = f"{EXAMPLE}\none row a line (JSONL), or a JSON list of rows"
"""How rows look that people write themselves; the example names the three ways to give the answer."""


def task_table(tasks: Sequence[Task]) -> list[str]:
    """A heading and one line for each task."""
    rows = [("task", "choices", "licence", "rows from", "asks")]
    rows += [(one.name, _count(one), one.licence, _source(one), one.asks) for one in tasks]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def task_lines(task: Task) -> list[str]:
    """What a task is, a fact a line."""
    facts = {
        "task": task.name if task.title == task.name else f"{task.name} ({task.title})",
        "asks": task.asks,
        "choices": _count(task),
        "answers": ", ".join(task.labels[: task.counts[1]]),
        "licence": task.licence,
        "rows from": _source(task),
        "a row": ROW if task.row is None and not task.hub and not task.sample else "",
        "instruct": task.layout.template,
        "continuation": task.layout.continuation,
    }
    lines = [(name, value.splitlines()) for name, value in facts.items() if value]
    return [
        f"{name if number == 0 else '':<14}{line}".rstrip()
        for name, parts in lines
        for number, line in enumerate(parts)
    ]


def example_lines(example: Example) -> list[str]:
    """A row as it is trained on, with what carries the loss marked, and as it is scored."""
    target = example.candidates[example.gold]
    scored = [
        f"    {'*' if index == example.gold else ' '} {label}: {text!r}"
        for index, (label, text) in enumerate(zip(example.labels, example.candidates, strict=True))
    ]
    return [
        f"row {example.row + 1}",
        "  trained on (the loss is on what is between >>> and <<<, and on the end of the text):",
        *(f"    {line}".rstrip() for line in f"{example.prompt}>>>{target}<<<".split("\n")),
        "  scored by the likelihood of each after that prompt (* is right):",
        *scored,
    ]


def _count(task: Task) -> str:
    return " to ".join(map(str, dict.fromkeys(task.counts)))


def _source(task: Task) -> str:
    if task.sample:
        return "built in"
    if task.hub is None:
        return "your file"
    return task.hub.path + (f", {task.hub.config}" if task.hub.config else "")
