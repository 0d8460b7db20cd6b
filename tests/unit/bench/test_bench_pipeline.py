from __future__ import annotations

import io
import json
import math
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from doratune.bench.machine import describe_machine
from doratune.cli.eval import EvalCommand
from doratune.cli.parse import parse
from doratune.cli.train import TrainCommand
from doratune.errors import DoratuneError, InputError
from doratune.records.run import DataRecord, ModelRecord
from pipeline import bench
from pipeline.bench import bench_pipeline
from pipeline.commands import PipelineBenchConfig, phase_commands, rehearsal, settings_of
from pipeline.process import run_command
from pipeline.record import (
    Agreement,
    Phase,
    PhaseCost,
    PipelineBenchRecord,
    PipelineRound,
    PipelineSettings,
)
from pipeline.results import compare_answers, judge, speed_ratios
from pipeline.table import pipeline_renderable

SECONDS: dict[Phase, float] = {
    "doratune-train": 10.0,
    "doratune-generate": 5.0,
    "doratune-likelihood": 2.0,
    "reference-train": 15.0,
    "reference-generate": 45.0,
}


def costs(**changes: float) -> dict[Phase, PhaseCost]:
    seconds = {**SECONDS, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return {
        phase: PhaseCost(seconds=value, peak_bytes=10**9)  # type: ignore[misc]
        for phase, value in seconds.items()
    }


def one_round(differing: list[int], **changes: float) -> PipelineRound:
    phases = costs(**changes)
    return PipelineRound(
        first="doratune",
        phases=phases,
        steps={"doratune": 1, "reference": 1},
        final_loss={"doratune": math.nan, "reference": 1.0},
        accuracy={"doratune-generate": 0.5},
        same_answers=Agreement(rows=200, same=200 - len(differing), differing=differing),
        ratios=speed_ratios(phases),
    )


def config(**changes: Any) -> PipelineBenchConfig:
    return PipelineBenchConfig(train_data=Path("train.json"), test_data=Path("test.json"), **changes)


def record(rounds: list[PipelineRound]) -> PipelineBenchRecord:
    now = datetime.now(UTC)
    data = DataRecord(task="boolq", source="train.json", split="train", sha256="0" * 64, rows=100)
    return PipelineBenchRecord(
        task="boolq",
        model=ModelRecord(name="m", source="s", dtype="float32", parameters=1),
        settings=settings_of(config()),
        train_data=data,
        train_rows=64,
        test_data=data,
        test_rows=24,
        rounds=rounds,
        verdicts=judge(rounds),
        machine=describe_machine(torch.device("cpu")),
        started=now,
        finished=now,
    )


def test_ratios_are_of_training_and_evaluation_together() -> None:
    assert speed_ratios(costs()) == {"generate": pytest.approx(4.0), "likelihood": pytest.approx(5.0)}
    slower = speed_ratios(costs(doratune_train=28.0))
    assert slower == {"generate": pytest.approx(60 / 33), "likelihood": pytest.approx(2.0)}


def test_answers_are_compared_row_by_row() -> None:
    ours = {7: "true", 3: None, 5: "false", 9: None}
    theirs = {3: None, 5: "true", 7: "true", 9: "true"}
    assert compare_answers(ours, theirs) == Agreement(rows=4, same=2, differing=[5, 9])
    with pytest.raises(ValueError, match=r"only one side has: \[3, 4\]"):
        compare_answers({3: "true"}, {4: "true"})


def test_verdicts_take_the_median_of_ratios_and_the_lowest_agreement() -> None:
    rounds = [
        one_round([]),
        one_round([1, 2, 3], doratune_generate=90.0),
        one_round([], doratune_train=8.0, doratune_generate=12.0),
    ]
    found = {one.figure: (one.measured, one.met) for one in judge(rounds)}
    assert found["generate"] == (pytest.approx(3.0), True)  # of 4.0, 0.6 and 3.0
    assert found["likelihood"] == (pytest.approx(5.0), False)
    assert found["same_answers"] == (pytest.approx(0.985), False)
    at_the_target = {one.figure: one for one in judge([one_round([0, 1], doratune_train=8.0)])}
    assert at_the_target["same_answers"].measured == 0.99 and at_the_target["same_answers"].met
    assert at_the_target["likelihood"].measured == 6.0 and at_the_target["likelihood"].met


def test_record_round_trip_and_table() -> None:
    whole = record([one_round([0, 4])])
    text = json.dumps(whole.to_dict(), allow_nan=False)
    assert PipelineBenchRecord.model_validate_json(text, strict=True) == whole
    written = json.loads(text)
    assert (written["schema"], written["schema_version"], written["what"]) == (
        "doratune.bench",
        1,
        "pipeline",
    )
    assert written["rounds"][0]["final_loss"] == {"doratune": None, "reference": 1.0}
    console = Console(file=io.StringIO(), width=80)
    console.print(pipeline_renderable(whole))
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert max(len(line) for line in shown.splitlines()) <= 80
    for part in ("64 + 24 rows", "4.00", "≥ 3.00 ✓", "≥ 6.00 ✗", "99.0%", "row 1, 5", "45.0"):
        assert part in shown


def test_doratune_understands_its_commands_and_both_sides_get_the_same_settings(tmp_path: Path) -> None:
    settings = settings_of(config(dtype="float32"))
    commands = phase_commands(config(dtype="float32"), settings, tmp_path)
    ours = parse(TrainCommand, commands["doratune-train"][4:], verb="train", about="")
    assert ours.model_dump(include=set(PipelineSettings.model_fields)) == settings.model_dump()
    assert (ours.method, ours.engine, ours.rows, ours.steps) == ("dora", "doratune", 1000, None)
    for phase, protocol in (("doratune-generate", "generate"), ("doratune-likelihood", "likelihood")):
        told = parse(EvalCommand, commands[phase][4:], verb="eval", about="")
        assert (told.target, told.protocol, told.eval_rows) == (str(ours.output), protocol, 300)
    theirs = commands["reference-train"]
    words = commands["doratune-train"]
    for name in set(PipelineSettings.model_fields) - {"targets", "format"}:
        flag = f"--{name.replace('_', '-')}"
        assert theirs[theirs.index(flag) + 1] == words[words.index(flag) + 1]
    assert theirs[theirs.index("--targets") :] == ["--targets", *settings.targets]
    generation = commands["reference-generate"]
    assert generation[generation.index("--adapter") + 1] == str(ours.output / "adapter")
    tried = parse(EvalCommand, rehearsal(config(), tmp_path)[4:], verb="eval", about="")
    assert (tried.target, tried.eval_rows, tried.task) == ("smollm2-135m", 1, ["boolq"])


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_time_and_memory_of_a_command(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "import time, os; x = bytearray(700 << 20); time.sleep(0.3); print(os.environ['OMP_NUM_THREADS'])"
    cost = run_command(python(code), log=log, threads=3)
    assert 0.3 <= cost.seconds < 30
    assert 700 << 20 <= cost.peak_bytes < 16 << 30
    assert log.read_text().strip() == "3"
    run_command(python("import os; print(os.environ.get('OMP_NUM_THREADS'))"), log=log, threads=None)
    assert log.read_text().strip() == str(os.environ.get("OMP_NUM_THREADS"))


@pytest.mark.parametrize(("code", "kind"), [(2, InputError), (1, DoratuneError), (-9, DoratuneError)])
def test_a_failed_command_says_what_it_printed(tmp_path: Path, code: int, kind: type) -> None:
    end = f"sys.exit({code})" if code > 0 else f"os.kill(os.getpid(), {-code})"
    script = f"import sys, os; print('no such thing', flush=True); {end}"
    with pytest.raises(DoratuneError, match="no such thing") as caught:
        run_command(python(script), log=tmp_path / "log", threads=None)
    assert type(caught.value) is kind and f"exit code {code}" in caught.value.message


def test_sides_go_first_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[str] = []

    def run(command: list[str], *, log: Path, threads: int | None) -> PhaseCost:
        ran.append(log.stem)
        return PhaseCost(seconds=1.0, peak_bytes=1)

    monkeypatch.setattr(bench, "run_command", run)
    for place, first in bench._rounds(tmp_path, 2):
        assert set(bench._run_phases(config(), settings_of(config()), place, first)) == set(SECONDS)
    ours_first = ["doratune-train", "reference-train", "doratune-generate", "reference-generate"]
    theirs_first = ["reference-train", "doratune-train", "reference-generate", "doratune-generate"]
    assert ran == [*ours_first, "doratune-likelihood", *theirs_first, "doratune-likelihood"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train_data": Path("absent.json")}, "absent.json"),
        ({"test_data": Path("absent.json")}, "absent.json"),
        ({"task": "bolq"}, "did you mean"),
        ({"task": "winogrande"}, "not worded as a row"),
        ({"output": Path("taken.json")}, "--overwrite"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    changes: dict[str, Any],
    expected: str,
    boolq_rows: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(boolq_rows.parent)
    monkeypatch.setattr(bench, "run_command", lambda *_, **__: pytest.fail("started"))
    Path("taken.json").write_text("precious")
    values = {"train_data": boolq_rows, "test_data": boolq_rows, **changes}
    with pytest.raises(InputError, match=expected):
        bench_pipeline(PipelineBenchConfig(**values))
    assert Path("taken.json").read_text() == "precious"
