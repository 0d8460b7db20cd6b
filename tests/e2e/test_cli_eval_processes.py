"""``doratune eval`` in several processes gives what one process gives; only the first writes and prints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import Cli, lines
from evaluation_cases import Command, End, Taken, Turns, call_all, call_and_take
from process_group import in_processes

from doratune.data.samples import generate
from doratune.data.text import builtin_text
from doratune.records.run import Evaluation
from doratune.records.storage import read_record

pytestmark = pytest.mark.slow

PROCESSES = 3
OF_THE_START = {"environment", "started", "finished"}
OF_THE_EVALUATION = {"seconds", "processes"}
SAME: dict[str, list[object]] = {
    "run": ["run", "--task", "sample-boolq", "--eval-rows", 7, "--eval-batch-size", 2],
    "run-generate": [
        *("run", "--task", "sample-boolq", "--protocol", "generate"),
        *("--eval-rows", 5, "--eval-batch-size", 2),
    ],
    "adapter": [
        *("adapter", "--task", "sample-boolq", "sample-winogrande", "--dtype", "float32"),
        *("--eval-rows", 4, "--eval-batch-size", 3),
    ],
    "base": ["base", "--task", "sample-hellaswag", "--eval-rows", 11, "--format", "continuation", "--json"],
    "few": ["base", "--task", "sample-boolq", "--text", "--eval-rows", 2, "--eval-batch-size", 1],
    "ties": ["even", "--task", "sample-winogrande", "--eval-rows", 6, "--eval-batch-size", 1],
}
"""Arguments of ``eval``: 4 batches, 3, 2 and 2, 1, 2 (fewer than processes), 6."""
TURNS = {
    "seven": Turns([[3, 0], [1, 6], [2, 5], [4]]),
    "fails": Turns([[0], [1], [2], [3], [4], [5], [6], [7]], fails=4),
    "none": Turns([]),
}
"""The fifth batch is the second process's."""


@pytest.fixture(scope="module")
def folder(dora_run: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its adapter alone, its base, and a base that finds everything equally likely."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(dora_run, folder / "run")
    shutil.copytree(dora_run / "adapter", folder / "adapter")
    shutil.copytree(tiny_model, folder / "base")
    shutil.copytree(tiny_model, folder / "even")
    even = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        even.get_output_embeddings().weight.zero_()
    even.save_pretrained(folder / "even")
    rows = generate("sample-boolq", "train")[:4]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    rows[1] = {**rows[1], "instruction": 1000 * rows[1]["instruction"]}
    (folder / "long.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def commands(folder: Path, where: str) -> dict[str, Command]:
    found = {
        name: Command(["eval", folder / str(argv[0]), *argv[1:], "--output", folder / where / name])
        for name, argv in SAME.items()
    }
    again = found["few"].argv
    return {
        **found,
        "exists": Command(again),
        "overwritten": Command([*again, "--overwrite"]),
        "flag": Command(["eval", folder / "base", "--task", "sample-boolq", "--bogus"]),
        "value": Command(["eval", folder / "base", "--task", "sample-boolq", "--eval-rows", "x"]),
    }


def refusals(folder: Path) -> dict[str, Command]:
    """Only several processes refuse these."""
    ask = ["eval", folder / "base", "--task", "boolq", "--output", folder / "refused"]
    data = {index: ["--data", folder / "rows.json"] for index in range(PROCESSES)}
    return {
        "one refuses": Command(ask, {**data, 1: ["--data", folder / "nothing.json"]}),
        "device map": Command([*ask, "--data", folder / "rows.json", "--device-map", "auto"]),
        "fsdp": Command([*ask, "--data", folder / "rows.json"], environment={"ACCELERATE_USE_FSDP": "true"}),
        "long": Command([*ask, "--data", folder / "long.json"]),
        "long-generate": Command([*ask, "--data", folder / "long.json", "--protocol", "generate"]),
        "dry run": Command(["train", "--task", "sample-boolq", "--output", folder / "refused", "--dry-run"]),
        "harness": Command(["eval", folder / "base", "--harness", "lm-eval", "--task", "x"]),
        "compare": Command(["compare", "--task", "sample-boolq", "--output", folder / "refused"]),
        "study": Command(["study", "smollm2-four-tasks", "--output", folder / "refused"]),
        "report": Command(["report", folder / "run"]),
        "analyze": Command(["analyze", folder / "run"]),
        "tasks": Command(["tasks"]),
    }


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, End]:
    """How everything ends in one process, with as many threads as each of the several has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return call_all(commands(folder, "one"))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def several(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict, dict]]:
    """How it ends in each of several processes."""
    everything = {**commands(folder, "several"), **refusals(folder)}
    group = tmp_path_factory.mktemp("group")
    return in_processes(PROCESSES, call_and_take, everything, TURNS, folder=group)


def ends(several: list[tuple[dict, dict]], name: str) -> list[End]:
    return [commands[name] for commands, _ in several]


def record(folder: Path) -> dict[str, Any]:
    """A record without what one start of a command has for itself."""
    found = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    found = {key: value for key, value in found.items() if key not in OF_THE_START}
    del found["config"]["output"]
    for one in found["evaluations"]:
        for key in OF_THE_EVALUATION:
            del one[key]
    if found["text"]:
        del found["text"]["tokens_per_second"]
    return found


@pytest.mark.parametrize("name", SAME)
def test_several_processes_give_what_one_gives(
    folder: Path, one: dict[str, End], several: list[tuple[dict, dict]], name: str
) -> None:
    assert one[name].code == 0, one[name].err
    assert [end.code for end in ends(several, name)] == [0] * PROCESSES, ends(several, name)
    assert record(folder / "several" / name) == record(folder / "one" / name)
    files = sorted(path.name for path in (folder / "one" / name / "predictions").iterdir())
    assert files and files == sorted(
        path.name for path in (folder / "several" / name / "predictions").iterdir()
    )
    for file in files:
        # Batches are the same, so scores are too, to the last bit.
        found = lines(folder / "several" / name / "predictions" / file)
        assert found == lines(folder / "one" / name / "predictions" / file)
        assert [line["row"] for line in found] == list(range(len(found)))


def test_the_record_says_how_many_processes_there_were(
    folder: Path, one: dict[str, End], several: list[tuple[dict, dict]]
) -> None:
    for where, count in (("one", 1), ("several", PROCESSES)):
        found = read_record(folder / where / "adapter")
        assert [evaluation.processes for evaluation in found.evaluations] == [count, count]
    old = json.loads((folder / "one/few/record.json").read_text())["evaluations"][0]
    del old["processes"]
    assert Evaluation.model_validate(old).processes == 1


def test_the_text_is_scored_whole(folder: Path, several: list[tuple[dict, dict]]) -> None:
    """Each process reads all of it, so the loss is that of one process, which ``SAME`` compares."""
    text = record(folder / "several" / "few")["text"]
    assert len(text["pieces"]) == len(builtin_text().paragraphs)
    assert record(folder / "several" / "ties")["text"] is None


def test_ties_stay_ties(folder: Path, several: list[tuple[dict, dict]]) -> None:
    (evaluation,) = record(folder / "several" / "ties")["evaluations"]
    assert evaluation["tied"] == 6 and evaluation["correct"] == 0


@pytest.mark.parametrize("name", [*SAME, "exists", "overwritten", "flag", "value"])
def test_the_first_process_says_what_one_would_say_and_the_others_nothing(
    one: dict[str, End], several: list[tuple[dict, dict]], name: str
) -> None:
    first, *others = ends(several, name)
    assert {end.code for end in (first, *others)} == {one[name].code}
    assert bool(first.out) == bool(one[name].out) and bool(first.err) == bool(one[name].err)
    assert not any(end.out or end.err for end in others), others
    assert "Traceback" not in first.err
    if one[name].code:
        assert first.err == one[name].err.replace("/one/", "/several/")


def test_what_one_process_refuses_all_refuse_and_it_says_so(several: list[tuple[dict, dict]]) -> None:
    found = ends(several, "one refuses")
    assert [end.code for end in found] == [2] * PROCESSES
    assert ["nothing.json" in end.err for end in found] == [index == 1 for index in range(PROCESSES)], found


@pytest.mark.parametrize("name", ["long", "long-generate"])
def test_a_row_that_is_too_long_is_said_once(several: list[tuple[dict, dict]], name: str) -> None:
    first, *others = ends(several, name)
    assert {end.code for end in (first, *others)} == {2}
    assert "row 2" in first.err and "longer than the model's positions" in first.err
    assert not any(end.out or end.err for end in others), others


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dry run", "a dry run works in one process"),
        ("device map", "--device-map auto"),
        ("fsdp", "--use_fsdp"),
        ("harness", "lm-eval evaluates in one process"),
        *((verb, f"doratune {verb} works in one process") for verb in ("compare", "study", "report")),
        *((verb, f"doratune {verb} works in one process") for verb in ("analyze", "tasks")),
    ],
)
def test_what_works_in_one_process_is_refused_once(
    folder: Path, several: list[tuple[dict, dict]], name: str, message: str
) -> None:
    first, *others = ends(several, name)
    assert {end.code for end in (first, *others)} == {2}
    assert message in first.err and f"{PROCESSES} processes" in first.err
    assert not any(end.out or end.err for end in others)
    assert not (folder / "refused").exists()


def test_turns(several: list[tuple[dict, dict]]) -> None:
    taken: list[dict[str, Taken]] = [turns for _, turns in several]
    for index, found in enumerate(taken):
        assert found["seven"].answers == [f"row {row}" for row in range(7)], "not in order, or not everywhere"
        assert found["seven"].own == TURNS["seven"].batches[index::PROCESSES]
        assert found["seven"].progress == [6, 1]
        assert found["none"].answers == []
        # Nobody begins another turn after the one in which a batch failed.
        assert found["fails"].own == TURNS["fails"].batches[index:6:PROCESSES]
    assert [found["fails"].error for found in taken] == [
        ("OtherProcessError", "process 1: batch [4]"),
        ("DoratuneError", "batch [4]"),
        ("OtherProcessError", "process 1: batch [4]"),
    ]


def test_torchrun(folder: Path, cli: Cli) -> None:
    """The launcher itself: one record on stdout; one message, after which every process has ended."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "doratune"]
    ask = ["eval", folder / "base", "--task", "sample-boolq", "--eval-rows", "6", "--eval-batch-size", "2"]
    done = subprocess.run(
        [*launch, *ask, "--json", "--output", "out"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    (evaluation,) = json.loads(done.stdout)["evaluations"]
    assert evaluation["processes"] == 2
    assert len(lines(Path("out") / evaluation["predictions"])) == 6
    done = subprocess.run([*launch, *ask, "--output", "out"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and done.stderr.count("doratune: ") == 1
    assert "this evaluation already exists" in done.stderr
