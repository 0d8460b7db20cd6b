"""``doratune study`` on a tiny model: killed, resumed, on Ray, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import Process
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from cli_support import Cli, lines
from here_runner import HereRunner
from quick_start import python, quick_starts, start
from scipy.special import log_softmax

from doratune.records.storage import read_study
from doratune.records.study import StudyRecord
from doratune.study.execute import Outcome
from doratune.study.job import Job
from doratune.study.plan_file import load_plan
from doratune.study.study import open_study, run_study


def write_plan(path: Path, model: Path, **changes: Any) -> Path:
    plan = {
        "title": "Tiny",
        "question": "Does it come out the same?",
        "models": [str(model)],
        "methods": ["dora"],
        "tasks": [
            {
                "train": "sample-boolq",
                "formats": ["continuation"],
                "rows": 160,
                "validation_rows": 24,
                "eval_rows": 40,
            }
        ],
        "ranks": [4],
        "learning_rates": [1e-3, 3e-2],
        "seeds": [0],
        "choose": {"extend": 0},
        "settings": {
            **{"epochs": 1.0, "warmup_steps": 1, "batch_size": 8, "cutoff": 512, "dtype": "float32"},
            "save_steps": 2,
        },
    }
    path.write_text(yaml.safe_dump({**plan, **changes}), encoding="utf-8")
    return path


EXTENDED: dict[str, Any] = {"choose": {"extend": 1}}


class Silent:
    def started(self, job: Job) -> None:
        pass

    def ended(self, job: Job, outcome: Outcome) -> None:
        assert outcome.error is None, outcome.error

    def tick(self) -> None:
        pass

    def stopping(self) -> None:
        pass


def run_here(plan: Path, folder: Path, runner: HereRunner) -> StudyRecord:
    study = open_study(load_plan(str(plan)), folder)
    return run_study(study, runner, Silent(), reproduce="doratune study")


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    run_here(write_plan(folder / "plan.yaml", tiny_model, **EXTENDED), folder / "study", HereRunner())
    return folder / "study"


def results(study: Path) -> dict[str, Any]:
    """What must not depend on how the study was carried out: choices, accuracies and answers."""
    record = read_study(study / "study.json")
    assert record.pending == []
    runs = sorted(path.parent for path in (study / "runs").glob("*/record.json"))
    return {
        "trials": [[arm.trials for arm in cell.arms] for cell in record.cells],
        "means": [[(arm.learning_rate, arm.mean) for arm in cell.arms] for cell in record.cells],
        "differences": [cell.differences for cell in record.cells],
        "base": [cell.base for cell in record.cells],
        "answers": {
            f"{run.name}/{path.relative_to(run)}": [(row["row"], row["prediction"]) for row in lines(path)]
            for run in runs
            for path in sorted(run.rglob("*.jsonl"))
            if path.parent.name == "predictions"
        },
        "steps": {run.name: len(lines(run / "metrics.jsonl")) for run in runs if "base" not in run.name},
    }


def started(plan: Path, folder: Path, *flags: str) -> Process:
    """``doratune study``, in a process group with its runs."""
    command = ["-m", "doratune", "study", str(plan), "--output", str(folder), *flags]
    log = folder.parent / "log.txt"
    return start(python, command, Path.cwd(), out=log, err=log, alone=True)


def wait_for(process: Process, happened: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.exitcode is None, log.read_text()
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def send(process: Process, number: int) -> None:
    """Send a signal to a study and its runs, and wait for its end."""
    assert process.pid is not None
    os.killpg(process.pid, number)
    process.join(60)


@pytest.mark.slow
def test_interrupted_and_killed_three_times_gives_the_same(
    whole: Path, tiny_model: Path, tmp_path: Path
) -> None:
    plan, study, log = (
        write_plan(tmp_path / "plan.yaml", tiny_model, **EXTENDED),
        tmp_path / "study",
        tmp_path / "log.txt",
    )
    runs = study / "runs"
    process = started(plan, study, "--jobs", "2")
    wait_for(process, lambda: any(runs.glob("*/checkpoints/checkpoint-2")), log)
    send(process, signal.SIGINT)  # Ctrl-C
    assert process.exitcode == 130
    assert "run the same command to continue" in log.read_text() and "Traceback" not in log.read_text()
    moments: list[Callable[[], bool]] = [
        lambda: any(runs.glob("*/checkpoints/checkpoint-6")),  # in the middle of training
        lambda: any(runs.glob("*/validation/record.json")),  # a trial is finished
        lambda: any(runs.glob("*/predictions/*.jsonl")),  # tests have begun
    ]
    for moment in moments:
        process = started(plan, study, "--jobs", "2")
        wait_for(process, moment, log)
        send(process, signal.SIGKILL)
        assert process.exitcode == -signal.SIGKILL
    kept = {path: path.read_bytes() for path in runs.glob("*/validation/record.json")}
    assert len(kept) == len(list((whole / "runs").glob("*/validation/record.json"))) > 2
    run_here(plan, study, HereRunner())
    assert {path: path.read_bytes() for path in kept} == kept, "a finished run was repeated"
    assert results(study) == results(whole)


@pytest.mark.slow
def test_ray_gives_the_same_as_one_machine_despite_a_lost_worker(tiny_model: Path, tmp_path: Path) -> None:
    """With one rate, as each run's worker takes ten seconds to start."""
    pytest.importorskip("ray")
    plan, study, log = (
        write_plan(tmp_path / "plan.yaml", tiny_model, learning_rates=[1e-3]),
        tmp_path / "study",
        tmp_path / "log.txt",
    )
    run_here(plan, tmp_path / "here", HereRunner())
    process = started(plan, study, "--runner", "ray")

    def kill_one_in_training() -> bool:
        for checkpoint in (study / "runs").glob("*/checkpoints/checkpoint-2"):
            for held in _holders(checkpoint.parents[1] / ".lock"):
                os.kill(held, signal.SIGKILL)
                return True
        return False

    wait_for(process, kill_one_in_training, log)
    process.join(240)
    assert process.exitcode == 0, log.read_text()
    assert results(study) == results(tmp_path / "here")


def _holders(path: Path) -> list[int]:
    """The processes that have a file open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == path:
                found.append(int(link.parts[2]))
        except OSError:  # it has just been closed
            continue
    return found


@pytest.mark.slow
def test_seeds_choose_their_own_rate_and_methods_are_compared_at_one(
    tiny_model: Path, tmp_path: Path
) -> None:
    """What the record says of the search is what the answers on disk give, computed here again."""
    rows = {"train": "sample-boolq", "rows": 24, "validation_rows": 24, "eval_rows": 30}
    axes: dict[str, Any] = {"methods": ["lora", "dora"], "seeds": [0, 1], "tasks": [rows], **EXTENDED}
    plan = write_plan(tmp_path / "plan.yaml", tiny_model, learning_rates=[1e-3, 1e-2], **axes)
    runner = HereRunner()
    record = run_here(plan, tmp_path / "study", runner)
    (cell,) = record.cells
    assert cell.extended is not None
    tested = set()
    for arm in cell.arms:
        assert len({one.learning_rate for one in arm.trials}) == 2 + sum(cell.extended)
        for one in arm.trials:
            answers = lines(tmp_path / "study" / one.run / "validation/predictions/sample-boolq.jsonl")
            right = [{"true": 0, "false": 1}[row["answer"]] for row in answers]
            scores = np.array([row["scores"] for row in answers])
            likelihoods = log_softmax(scores, axis=1)[np.arange(len(right)), right]
            assert one.nll == pytest.approx(-likelihoods.mean(), abs=1e-9)
            assert one.accuracy == pytest.approx(np.mean([row["credit"] for row in answers]))
        for run in arm.runs:
            own = [one for one in arm.trials if one.seed == run.seed]
            best = max(one.accuracy or 0.0 for one in own)
            error = (best * (1 - best) / 24) ** 0.5
            close = [one for one in own if (one.accuracy or 0.0) >= best - error]
            chosen = min(close, key=lambda one: (one.nll, one.learning_rate))
            assert run.learning_rate == chosen.learning_rate and run.run == chosen.run
            tested.add((arm.name, run.seed, run.learning_rate))
    (same,) = cell.same_rate
    tested |= {(arm.name, seed, same.learning_rate) for arm in cell.arms for seed in (0, 1)}
    answered = {
        (found["method"], found["seed"], found["config"]["learning_rate"])
        for path in (tmp_path / "study/runs").glob("[ld]ora-*/record.json")
        if (found := json.loads(path.read_text()))["evaluations"]
    }
    assert answered == tested, "no other run has seen the test rows"
    again = HereRunner()
    assert run_here(plan, tmp_path / "study", again) == record and again.done == []


def test_a_run_without_its_weights_is_trained_again_to_be_tested(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    plan = write_plan(tmp_path / "plan.yaml", tiny_model, learning_rates=[1e-3])
    first = run_here(plan, tmp_path / "study", HereRunner())
    (run,) = (tmp_path / "study/runs").glob("dora-*")
    record = json.loads((run / "record.json").read_text())
    (run / "record.json").write_text(json.dumps({**record, "evaluations": []}))
    shutil.rmtree(run / "adapter")
    runner = HereRunner()
    second = run_here(plan, tmp_path / "study", runner)
    assert runner.done == ["test dora, rate 0.001, seed 0"]
    assert f"the weights of {run.name} are gone, so it is trained again" in caplog.text
    assert [one.result for one in second.cells[0].arms[0].runs] == [
        one.result for one in first.cells[0].arms[0].runs
    ]


def test_dry_run_writes_nothing(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan.yaml", tiny_model, seeds=[0, 1, 2])
    longer = write_plan(tmp_path / "longer.yaml", tiny_model, seeds=[0, 1, 2], choose={"extend": 2})
    before = sorted(tmp_path.rglob("*"))
    outcome = cli("study", plan, "--output", "study", "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    total = json.loads(outcome.out)["total"]
    # two rates with three seeds; 160 rows in batches of 8
    assert (total["runs"], total["steps"]) == (6, 120)
    # the validation rows by each; the test rows by the base model and, at two rates, by three seeds
    assert total["rows"] == 6 * 24 + 40 + 6 * 40
    more = json.loads(cli("study", longer, "--output", "study", "--dry-run", "--json").out)["if_extended"]
    assert more["runs"] == 12, "two more rates at each end, with three seeds"
    assert total["seconds"] is None, "nothing is known of the speed"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_finished_study_has_nothing_left_and_knows_its_speed(whole: Path, cli: Cli) -> None:
    plan = whole.parent / "plan.yaml"
    outcome = cli("study", plan, "--output", whole, "--dry-run", "--json")
    assert json.loads(outcome.out)["total"]["runs"] == 0
    assert json.loads(outcome.out)["basis"] == "the runs of this study that are finished"
    again = cli("study", plan, "--output", whole, "--json")
    assert again.code == 0 and json.loads(again.out)["pending"] == []
    assert (whole / "report.html").stat().st_size > 5000 and (whole / "report.md").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choose": {"on": "test"}}, "chosen on the test rows"),
        ({"methods": ["lora", "doar"]}, "did you mean dora?"),
        ({"tasks": [{"train": "boolk", "validation_rows": 9}]}, "did you mean boolq?"),
        ({"learning_rates": []}, "learning_rates"),
    ],
)
def test_a_bad_plan_ends_with_2(
    cli: Cli, tiny_model: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    outcome = cli("study", write_plan(tmp_path / "plan.yaml", tiny_model, **changes), "--output", "study")
    assert outcome.code == 2 and message in outcome.err and "Traceback" not in outcome.err
    assert not Path("study").exists()


def test_ray_takes_resources_instead_of_jobs(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan.yaml", tiny_model)
    outcome = cli("study", plan, "--output", "study", "--runner", "ray", "--jobs", "2")
    assert outcome.code == 2 and "resources in the plan" in outcome.err
    assert not Path("study").exists()


@pytest.mark.slow
def test_a_failed_run_is_named_and_ends_with_1(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    settings = {"epochs": 1.0, "warmup_steps": 1, "batch_size": 8, "cutoff": 8}
    plan = write_plan(tmp_path / "plan.yaml", tiny_model, learning_rates=[1e-3], settings=settings)
    with quick_starts():
        outcome = cli("study", plan, "--output", "study")
    assert outcome.code == 1 and "dora-sample-boolq-" in outcome.err
    assert "raise --cutoff" in outcome.err and "Traceback" not in outcome.err
    assert read_study(Path("study/study.json")).pending == ["sample-boolq (continuation)"]


@pytest.mark.slow
def test_a_rate_that_diverges_is_lost_and_not_tried_again(tmp_path: Path, tiny_model: Path) -> None:
    rows = {"train": "sample-boolq", "rows": 32, "validation_rows": 12, "eval_rows": 20}
    changes: dict[str, Any] = {"learning_rates": [1e-3, 1e30], "tasks": [rows]}
    plan = load_plan(str(write_plan(tmp_path / "plan.yaml", tiny_model, **changes)))

    def run(runner: HereRunner) -> StudyRecord:
        return run_study(open_study(plan, tmp_path / "study"), runner, Silent(), reproduce="x")

    runner = HereRunner()
    record = run(runner)
    (cell,) = record.cells
    assert [arm.learning_rate for arm in cell.arms] == [1e-3]
    assert [trial.accuracy is None for trial in cell.arms[0].trials] == [False, True]
    (lost,) = cell.diverged
    assert lost.learning_rate == 1e30 and lost.trial and "not finite" in lost.message
    assert len(runner.done) == 4
    again = HereRunner()
    assert run(again) == record and again.done == []
