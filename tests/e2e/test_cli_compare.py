"""``doratune compare`` and ``doratune report`` on a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
from cli_support import SMALL, Cli, lines
from here_runner import carry_out_here

from doratune.study.compare import COMPARED
from doratune.study.study import Study

TASKS = ["--task", "sample-boolq", "sample-winogrande", "--format", "continuation", "--rows", 16]


def runs_of(folder: Path) -> list[Path]:
    return sorted((folder / "runs").iterdir())


def changes(folder: Path) -> dict[Path, int]:
    """When each record, adapter and file of predictions in a comparison's runs was written."""
    names = ("record.json", "adapter_model.safetensors", "*.jsonl")
    return {path: path.stat().st_mtime_ns for name in names for path in (folder / "runs").rglob(name)}


def test_a_dry_run_counts_and_writes_nothing(cli: Cli, tiny_model: Path) -> None:
    flags = ["--model", tiny_model, *TASKS, "--eval-rows", 20, *SMALL, "--output", "both", "--dry-run"]
    outcome = cli("compare", *flags, "--json")
    assert outcome.code == 0, outcome.err
    total = json.loads(outcome.out)["total"]
    # LoRA and DoRA: 4 steps of 8 of the 32 rows; the base model and both: 20 rows of two tasks
    assert (total["runs"], total["steps"], total["rows"]) == (2, 8, 3 * 40)
    assert list(Path().iterdir()) == []


@pytest.mark.slow
def test_compare_then_resume_then_report(cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carry_out_here(monkeypatch)
    flags = ["--model", tiny_model, *TASKS, "--eval-rows", 20, *SMALL, "--output", "both"]
    outcome = cli("compare", *flags)
    assert outcome.code == 0, outcome.err
    record = json.loads(Path("both/study.json").read_text())
    base, dora, lora = runs_of(Path("both"))
    assert [run.name.split("-")[0] for run in (base, dora, lora)] == ["base", "dora", "lora"]
    assert [cell["task"] for cell in record["cells"]] == ["sample-boolq", "sample-winogrande"]
    for cell in record["cells"]:
        assert [(arm["name"], arm["engine"]) for arm in cell["arms"]] == [
            ("lora", "doratune"),
            ("dora", "doratune"),
        ]
        assert cell["rows"] == 20 and cell["sample"] and cell["base"] is not None
        assert [(one["from"], one["to"]) for one in cell["differences"]] == [("lora", "dora")]
    printed = " ".join(outcome.out.split())
    assert "one seed" in printed.lower() and "sample, not a benchmark" in printed
    assert Path("both/report.html").stat().st_size > 5000 and Path("both/report.md").is_file()
    assert len(lines(dora / "metrics.jsonl")) == 4, "16 rows of each task, 8 in a batch"

    refused = cli("compare", *flags)
    assert refused.code == 2 and "already holds a comparison" in refused.err

    # A comparison that was stopped before its last run was evaluated goes on there, and comes out the same.
    finished = changes(Path("both"))
    stopped = json.loads((dora / "record.json").read_text())
    (dora / "record.json").write_text(json.dumps(stopped | {"evaluations": stopped["evaluations"][:1]}))
    assert cli("compare", *flags, "--resume").code == 0
    again = json.loads(Path("both/study.json").read_text())
    assert again["cells"] == record["cells"] and again["pooled"] == record["pooled"]
    rewritten = {path for path, when in changes(Path("both")).items() if finished[path] != when}
    assert rewritten == {dora / "record.json", dora / f"predictions/{_winogrande(dora)}"}

    reported = cli("report", base, lora, dora, "--output", "pair", "--json")
    assert reported.code == 0, reported.err
    pair = json.loads(reported.out)
    for cell, before in zip(pair["cells"], record["cells"], strict=True):
        assert (cell["base"], cell["differences"]) == (before["base"], before["differences"])
        for arm, arm_before in zip(cell["arms"], before["arms"], strict=True):
            assert arm["runs"][0]["result"] == arm_before["runs"][0]["result"]
            assert arm["runs"][0]["curve"] == arm_before["runs"][0]["curve"]
    differences = [[one["difference"] for one in found["pooled"]] for found in (pair, record)]
    assert differences[0] == differences[1]

    shown = cli("report", "both", "--output", "shown", "--json")
    assert shown.code == 0 and json.loads(shown.out) == again

    assert cli("eval", base, "--task", "sample-hellaswag", "--eval-rows", 10).code == 0
    evaluations = json.loads((base / "record.json").read_text())["evaluations"]
    assert [(one["task"], one["format"]) for one in evaluations] == [
        ("sample-boolq", "continuation"),
        ("sample-winogrande", "continuation"),
        ("sample-hellaswag", "continuation"),
    ]


def _winogrande(run: Path) -> str:
    (found,) = (path.name for path in (run / "predictions").iterdir() if "winogrande" in path.name)
    return found


@pytest.mark.slow
def test_ctrl_c_then_resume_gives_the_same(
    cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: list[Any] = ["--model", tiny_model, *TASKS[:-1], 160, *SMALL, "--eval-rows", 20, "--save-steps", 2]
    command = [sys.executable, "-m", "doratune", "compare", *map(str, flags), "--output", "stopped"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 300
        while not any(Path("stopped/runs").glob("dora-*/checkpoints/checkpoint-2")):
            assert process.poll() is None and time.monotonic() < deadline, "training never began"
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "run the same command with --resume to continue" in err and "Traceback" not in err
    carry_out_here(monkeypatch)
    assert cli("compare", *flags, "--output", "stopped", "--resume").code == 0
    assert cli("compare", *flags, "--output", "whole").code == 0
    stopped, whole = (json.loads(Path(name, "study.json").read_text()) for name in ("stopped", "whole"))
    for ours, theirs in zip(stopped["cells"], whole["cells"], strict=True):
        assert (ours["base"], ours["differences"]) == (theirs["base"], theirs["differences"])


def test_flags_override_a_method_of_a_preset(
    cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preset's settings of one method were once laid over the flags."""
    Path("mine.yaml").write_text(
        "task: [sample-boolq]\nformat: continuation\nrows: 16\n"
        "methods:\n  dora: {learning_rate: 1e-4, rank: 2}\n"
    )
    studies: list[Study] = []

    def interrupted(study: Study, *_: object, **__: object) -> NoReturn:
        studies.append(study)
        raise KeyboardInterrupt

    monkeypatch.setattr("doratune.study.study.run_study", interrupted)
    flags = ["--preset", "mine.yaml", "--model", tiny_model, *SMALL, "--eval-rows", 10]
    assert cli("compare", *flags, "--output", "out").code == 130
    (study,) = studies
    rates = {"lora": [2e-4], "dora": [1e-4]}
    assert {method: study.plan.rates(method) for method in COMPARED} == rates
    for method in COMPARED:
        config = study.groups[0].test(method, rates[method][0], 0).config
        assert config is not None and config.rank == 4, "--rank is among the flags"


def test_report_refuses_folders_without_a_run(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("report", tmp_path / "nowhere", "--output", "out")
    assert outcome.code == 2 and "no such run directory" in outcome.err
    Path("old/lora").mkdir(parents=True)
    Path("old/comparison.json").write_text("{}")
    Path("old/lora/record.json").write_text("{}")
    outcome = cli("report", "old", "--output", "out")
    assert outcome.code == 2 and "doratune report old/lora --output out" in outcome.err
    assert not Path("out").exists()
