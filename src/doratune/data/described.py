"""Tasks and examples as lines of text to read."""

from __future__ import annotations

import json
from collections.abc import Sequence

from doratune.data.choices import EXAMPLE
from doratune.data.examples import Example
from doratune.data.tasks import Task


def task_table(tasks: Sequence[Task]) -> list[str]:
    """A heading and one line for each task."""
    rows = [("task", "choices", "rows", "asks")]
    rows += [(one.name, _count(one), "hub" if one.hub else _source(one), one.asks) for one in tasks]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def task_lines(task: Task) -> list[str]:
    """A task's description, one fact per line."""
    facts = {
        "task": task.name if task.title == task.name else f"{task.name} ({task.title})",
        "asks": task.asks,
        "choices": _count(task),
        "answers": ", ".join(task.labels[: task.counts[1]]),
        "licence": task.licence,
        "rows from": _source(task),
        "a row": _row(task) if task.row is None and not task.hub and not task.sample else "",
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
    """A row as it is trained on, with the supervised part marked, and as it is scored."""
    target = example.candidates[example.gold]
    scored = [
        f"    {'*' if index == example.gold else ' '} {label}: {text!r}"
        for index, (label, text) in enumerate(zip(example.labels, example.candidates, strict=True))
    ]
    return [
        f"row {example.row + 1}",
        "  trained on (the loss covers the text between >>> and <<< and the end of the text):",
        *(f"    {line}".rstrip() for line in f"{example.prompt}>>>{target}<<<".split("\n")),
        "  scored by the likelihood of each after that prompt (* is right):",
        *scored,
    ]


def _row(task: Task) -> str:
    """How rows look that people write themselves."""
    ways = "the answer may also be the index from 0 or the letter from A"
    example = EXAMPLE
    if task.layout.option is None:  # its labels are the choices
        example = json.dumps({"question": "...", "answer": task.labels[0]}, ensure_ascii=False)
        ways = f"the answer is one of {', '.join(task.labels)}, or its index from 0"
    return f"{example}\n{ways}\none row a line (JSONL), or a JSON list of rows"


def _count(task: Task) -> str:
    return " to ".join(map(str, dict.fromkeys(task.counts)))


def _source(task: Task) -> str:
    if task.sample:
        return "built in"
    if task.hub is None:
        return "your file"
    return task.hub.path + (f", {task.hub.config}" if task.hub.config else "")
