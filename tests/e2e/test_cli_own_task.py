"""Rows and tasks of the user's own: from a file to an accuracy, and what is refused on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_support import Cli, losses
from here_runner import carry_out_here

COLOURS = ("red", "green", "black", "white")
TRAINING = [
    *("--batch-size", 8, "--epochs", 12, "--warmup-steps", 1, "--cutoff", 512, "--dtype", "float32"),
]
FULL = ["--method", "full", "--learning-rate", 1e-2]
"""What a random model needs to write an answer word by word: adapters leave its head as it is."""
LAYOUT = {
    "template": "Which one? {stem}\n{options}\nAnswer format: {labels}",
    "labels": ["one", "two", "three", "four"],
    "fewest": 2,
    "option": "{label}) {text}",
    "between": "\n",
    "continuation": "{stem}",
    "metric": "accuracy_norm",
}


def rows(count: int) -> list[dict[str, Any]]:
    """Two to four choices, of which the second is right, and blue."""
    made = []
    for number in range(count):
        others = [COLOURS[(number + place) % 4] for place in range(1 + number % 3)]
        choices = [others[0], "blue", *others[1:]]
        answer = (1, "B", "blue")[number % 3]
        made.append({"question": f"Picture {number}: which colour?", "choices": choices, "answer": answer})
    return made


def written(name: str, count: int) -> str:
    Path(name).write_text("\n".join(map(json.dumps, rows(count))), encoding="utf-8")
    return name


def task_file(name: str, **changes: Any) -> str:
    Path(name).write_text(
        yaml.safe_dump({"name": "colours", "layout": {**LAYOUT, **changes}}), encoding="utf-8"
    )
    return name


def test_from_a_file_of_rows_to_an_accuracy(cli: Cli, tiny_model: Path) -> None:
    data, test = written("train.jsonl", 40), written("test.jsonl", 12)
    task = ["--task", "multiple-choice"]
    trained = cli("train", "--model", tiny_model, *task, "--data", data, *TRAINING, *FULL, "--output", "run")
    assert trained.code == 0, trained.err
    curve = losses(Path("run"))
    assert curve[-1] < 0.1 * curve[0]
    for flags in ([], ["--protocol", "generate"]):
        outcome = cli("eval", "run", *task, "--data", test, *flags)
        assert outcome.code == 0, outcome.err
    for one in json.loads(Path("run/record.json").read_text())["evaluations"]:
        assert (one["task"], one["rows"], one["accuracy"]) == ("multiple-choice", 12, 1.0)
        assert one["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
        assert one["data"]["definition"] is None

    without = cli("eval", "run", *task)
    assert without.code == 2 and "--data FILE" in without.err


def test_a_task_file_from_training_to_an_accuracy(cli: Cli, tiny_model: Path) -> None:
    data, test, mine = written("train.jsonl", 40), written("test.jsonl", 12), task_file("mine.yaml")
    flags = ["--model", tiny_model, "--data", data, "--format", "continuation", *TRAINING, *FULL]
    trained = cli("train", *flags, "--task", mine, "--output", "run")
    assert trained.code == 0, trained.err
    assert losses(Path("run"))[-1] < 0.1 * losses(Path("run"))[0]

    outcome = cli("eval", "run", "--task", mine, "--data", test)
    assert outcome.code == 0, outcome.err
    record = json.loads(Path("run/record.json").read_text())
    (held,) = record["evaluations"]
    assert (held["task"], held["accuracy"], held["metric"]) == ("colours", 1.0, "accuracy_norm")
    assert held["predictions"] == "predictions/colours.continuation.jsonl"
    assert record["data"][0]["definition"] == held["data"]["definition"]
    assert held["data"]["definition"]["layout"]["labels"] == LAYOUT["labels"]

    # The run knows its task where the file is gone, and notices where it says something else.
    Path(mine).unlink()
    for target in ("run", "run/model"):
        again = cli(
            *("eval", target, "--task", "colours", "--data", test, "--format", "instruct", "--overwrite")
        )
        assert again.code == 0, again.err
    changed = task_file("mine.yaml", template="Tell me: {stem}\n{options}\nAnswer format: {labels}")
    refused = cli("eval", "run", "--task", changed, "--data", test, "--overwrite")
    assert refused.code == 2 and "was changed since the run was trained" in refused.err
    unknown = cli("eval", tiny_model, "--task", "colours", "--data", test)
    assert unknown.code == 2 and "or a .yaml file" in unknown.err

    # Another task of that name is another task.
    assert (
        cli("eval", tiny_model, "--task", changed, "--data", test, *flags[4:6], "--output", "base").code == 0
    )
    compared = cli("report", "base", "run", "--output", "report")
    assert compared.code == 2 and "different tasks of the name colours" in compared.err


@pytest.mark.slow
def test_the_template_works_as_it_is_printed(
    cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out_here(monkeypatch)
    Path("my-task.yaml").write_text(cli("tasks", "--template").out, encoding="utf-8")
    data, test = written("train.jsonl", 40), written("test.jsonl", 12)
    flags = ["--task", "my-task.yaml", "--data", data, "--test-data", test, "--model", tiny_model, *TRAINING]
    flags += ["--epochs", 1]
    outcome = cli("compare", *flags, "--output", "both")
    assert outcome.code == 0, outcome.err
    record = json.loads(Path("both/study.json").read_text())
    (cell,) = record["cells"]
    assert (cell["task"], cell["rows"], len(cell["arms"])) == ("my-task", 12, 2)
    assert cell["test"]["definition"] == cell["train"]["definition"] != None  # noqa: E711
    assert record["settings"]["task"] == ["my-task"]
    assert "my-task" in record["title"] and "yaml" not in Path("both/report.md").read_text().split("```")[0]

    Path("my-task.yaml").write_text(
        Path("my-task.yaml").read_text().replace("Please choose", "Choose"), encoding="utf-8"
    )
    resumed = cli("compare", *flags, "--output", "both", "--resume")
    assert resumed.code == 2 and "task my-task" in resumed.err


def test_tasks_are_listed_and_shown(cli: Cli) -> None:
    from doratune.data.tasks import task_names

    listed = cli("tasks").out.splitlines()
    assert [line.split()[0] for line in listed[1:]] == task_names()
    shown = cli(
        "tasks", "multiple-choice", "--data", written("rows.jsonl", 3), "--format", "continuation"
    ).out
    assert "2 of 3 rows of rows.jsonl" in shown and ">>>blue<<<" in shown and "* B: 'blue'" in shown
    own = cli("tasks", task_file("mine.yaml"), "--show", 1, "--data", "rows.jsonl").out
    assert "one) red" in own and ">>>the correct answer is two<<<" in own and "* two: " in own
    builtin = cli("tasks", "sample-boolq", "--show", 1).out
    assert builtin.count("row 1\n") == 1 and "the correct answer is" in builtin


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--show", 2], "no task was named"),
        (["boolq", "--template"], "printed alone"),
        (["multiple-choice", "--show", 1], "--data FILE"),
        (["bolq"], "did you mean boolq?"),
        (["none.yaml"], "no such task file"),
    ],
)
def test_tasks_refuses(cli: Cli, flags: list[Any], told: str) -> None:
    outcome = cli("tasks", *flags)
    assert outcome.code == 2 and told in outcome.err and "Traceback" not in outcome.err
