"""``doratune bench op`` on small layers, ``doratune bench step`` on a small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import Cli
from quick_start import quick_starts

from doratune.bench.op.cases import CaseFile
from doratune.bench.step.cases import StepFile

ENTRY = {"d_in": 64, "d_out": 96, "rank": 4, "tokens": 32, "dtype": "float32", "base": "dense"}
FILE = CaseFile.model_validate(
    {
        "timed_for": ["doratune-dora"],
        "every_case": [],
        "cpu": [{**ENTRY, "name": name, "targets": {"floor": 99.0}} for name in ("first", "second")],
        "gpu": [{**ENTRY, "name": "large", "targets": {}}],
    }
)
SMALL_STEP = {"name": "small", "rows": 4, "tokens": 32, "answer_tokens": 8, "loss_on": "answer"}
STEPS = StepFile.model_validate(
    {
        "targets_for": "doratune-dora",
        "headline": [
            {
                **SMALL_STEP,
                "rank": 4,
                "alpha": 8,
                "dtype": "bfloat16",
                "targets": {"peak": {"peft-dora": 99.0}},
            }
        ],
        "growth": [],
        "gpu": [],
    }
)


@pytest.fixture
def bench(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setattr("doratune.bench.op.bench.read_cases", lambda: FILE)
    monkeypatch.setattr("doratune.bench.step.bench.read_steps", lambda: STEPS)
    return cli


def test_table_and_file(bench: Cli) -> None:
    flags = ["--set", "cpu", "--case", "first", "--rounds", 2, "--no-memory"]
    outcome = bench("bench", "op", *flags, "--output", "bench.json")
    assert outcome.code == 0, outcome.err
    assert "first" in outcome.out and "second" not in outcome.out and "written: bench.json" in outcome.out
    for provider in ("floor", "peft-lora", "peft-dora", "doratune-lora", "doratune-dora-new-norm"):
        assert provider in outcome.out
    assert " of 1 met" in outcome.out
    assert "first: " in outcome.err and "timing 2 rounds" in outcome.err
    record = json.loads(Path("bench.json").read_text())
    assert record["schema"] == "doratune.bench" and len(record["results"]) == 1
    again = bench("bench", "op", *flags, "--output", "bench.json")
    assert again.code == 2 and "--overwrite" in again.err
    assert bench("bench", "op", *flags, "--output", "bench.json", "--overwrite").code == 0


def test_json(bench: Cli) -> None:
    outcome = bench("bench", "op", "--set", "cpu", "--rounds", 1, "--threads", 1, "--no-memory", "--json")
    record = json.loads(outcome.out)
    assert [result["case"]["name"] for result in record["results"]] == ["first", "second"]
    assert record["machine"]["threads"] == 1
    assert all(one["milliseconds"]["count"] == 1 for one in record["results"][0]["providers"])


@pytest.mark.slow
def test_memory_of_every_provider(bench: Cli) -> None:
    with quick_starts():
        outcome = bench("bench", "op", "--set", "cpu", "--case", "first", "--rounds", 1, "--json")
    (result,) = json.loads(outcome.out)["results"]
    for one in result["providers"]:
        assert one["saved_bytes"] is not None and one["peak"]["before_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["op", "--set", "cpu", "--case", "frist"], "did you mean first"),
        (["op", "--set", "cpu", "--case", "large"], "add --set gpu"),
        (["op", "--rounds", "0"], "rounds"),
        (["op", "--threads", "-1"], "threads"),
        (["op", "--roundz", "1"], "--rounds"),
        (["opp"], "did you mean doratune bench op"),
        (["whatever"], "one of op, step"),
        (["stepp"], "did you mean doratune bench step"),
        (["step", "--case", "smal"], "did you mean small"),
        (["step", "--rounds", "0"], "rounds"),
    ],
)
def test_bad_input(bench: Cli, arguments: list[str], expected: str) -> None:
    outcome = bench(
        "bench", *arguments, *(["--output", "out.json"] if arguments[0] in ("op", "step") else [])
    )
    assert outcome.code == 2, outcome.err
    assert expected in outcome.err and "Traceback" not in outcome.err
    assert not Path("out.json").exists()


def test_gpu_set_without_a_gpu(bench: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = bench("bench", "op", "--set", "gpu")
    assert outcome.code == 2 and "--set cpu" in outcome.err


@pytest.mark.slow
def test_steps_of_every_provider(bench: Cli, tiny_model: Path) -> None:
    flags = ["--model", tiny_model, "--rounds", 1, "--threads", 1]
    with quick_starts():
        outcome = bench("bench", "step", *flags, "--output", "step.json")
    assert outcome.code == 0, outcome.err
    assert "targets: 1 of 1 met" in outcome.out and "written: step.json" in outcome.out
    assert "3 steps in float32" in outcome.err and "timing 1 steps of 6 providers" in outcome.err
    record = json.loads(Path("step.json").read_text())
    (result,) = record["results"]
    assert record["machine"]["threads"] == 1
    of = {one["provider"]: one for one in result["providers"]}
    assert list(of) == [
        "floor-eager",
        "floor-sdpa",
        "peft-lora",
        "peft-dora",
        "doratune-lora",
        "doratune-dora",
    ]
    for name, one in of.items():
        assert one["milliseconds"]["count"] == 1 and len(one["losses"]) == 3
        assert one["peak_bytes"] > one["before_bytes"] > 0
        trains = not name.startswith("floor")
        assert (one["losses"][-1] < one["losses"][0]) is trains and (one["trainable"] > 0) is trains
    assert of["doratune-dora"]["trainable"] == of["peft-dora"]["trainable"] > of["peft-lora"]["trainable"]


def test_a_model_that_is_not_there_is_bad_input(bench: Cli) -> None:
    outcome = bench("bench", "step", "--model", "./nowhere", "--output", "out.json")
    assert outcome.code == 2, outcome.err
    assert "there is no such model folder" in outcome.err and "Traceback" not in outcome.err
    assert not Path("out.json").exists()


def test_help(bench: Cli) -> None:
    for arguments in ([], ["--help"]):
        outcome = bench("bench", *arguments)
        assert outcome.code == 0 and "doratune bench op" in outcome.out and "step " in outcome.out
    outcome = bench("bench", "step", "--help")
    assert outcome.code == 0
    for flag in ("--set", "--case", "--rounds", "--threads", "--model", "--output", "--json"):
        assert flag in outcome.out
    outcome = bench("bench", "op", "--help")
    assert outcome.code == 0
    for flag in ("--set", "--case", "--rounds", "--threads", "--memory", "--output", "--json"):
        assert flag in outcome.out
