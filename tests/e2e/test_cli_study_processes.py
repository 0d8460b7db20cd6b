"""A study's run in two processes, here and on Ray: as in one; stopped, resumed, failed and killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import lines, losses
from quick_start import quick_starts
from safetensors.torch import load_file
from test_cli_study import write_plan

from doratune.cli.output import configure_logging
from doratune.errors import DoratuneError
from doratune.records.storage import read_record
from doratune.study.execute import LOG_NAME, carry_out
from doratune.study.grid import Group
from doratune.study.local import LocalRunner
from doratune.study.plan import Resources
from doratune.study.plan_file import load_plan
from doratune.study.ray_cluster import RayRunner
from doratune.study.study import open_study

pytestmark = pytest.mark.slow

ROUNDING = {"rtol": 1e-3, "atol": 1e-5}
"""Float32: the halves of a batch are added up separately, and Adam divides by gradients near zero."""
SETTINGS: dict[str, Any] = {
    **{"epochs": 1.0, "warmup_steps": 1, "batch_size": 8, "cutoff": 512, "dtype": "float32"},
    **{"save_steps": 2, "dropout": 0.0},
}
"""Without dropout, which each process draws for itself."""
ROWS = {"formats": ["continuation"], "rows": 160, "validation_rows": 24, "eval_rows": 12}


def group(folder: Path, model: Path) -> Group:
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [{"train": "sample-boolq", **ROWS}]
    plan = write_plan(folder / "plan.yaml", model, tasks=tasks, settings=SETTINGS)
    (found,) = open_study(load_plan(str(plan)), folder / "study").groups
    found.material.write()
    return found


def test_a_run_that_is_stopped_and_resumed_in_two_processes_is_a_run_in_one(
    tiny_model: Path, tmp_path: Path
) -> None:
    alone = group(tmp_path / "one", tiny_model).trial("dora", 1e-3, 0)
    assert carry_out(alone).ending == "done"
    job = group(tmp_path / "two", tiny_model).trial("dora", 1e-3, 0)
    with quick_starts(), LocalRunner(1, 2, configure_logging, processes=2) as runner:
        first = runner.submit(job)
        while not first.done() and len(losses_so_far(job.folder)) < 3:
            time.sleep(0.05)
        runner.stop(signal.SIGTERM)
        assert first.result().interrupted, first.result()
        assert 3 <= len(losses_so_far(job.folder)) < 20 and not job.trained()
        outcome = runner.submit(job).result()
    assert outcome.ending == "done", outcome.error
    log = (job.folder / LOG_NAME).read_text()
    assert log.count("scored: ") == 1 and "Traceback" not in log, log
    torch.testing.assert_close(losses(job.folder), losses(alone.folder), **ROUNDING)
    weights, expected = (load_file(one.folder / "adapter/adapter_model.safetensors") for one in (job, alone))
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-4)
    record = read_record(job.folder)
    assert record.training and record.training.processes and record.training.processes.processes == 2
    (wanted,) = job.wanted
    (single,) = alone.wanted
    found, asked = wanted.found(), single.found()
    assert found is not None and asked is not None and found.processes == 2
    assert (found.correct, found.rows) == (asked.correct, asked.rows)
    folders = [(one.config.output, two) for one, two in ((wanted, found), (single, asked))]
    scores = [[line["scores"] for line in lines(Path(str(at)) / one.predictions)] for at, one in folders]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-3)


def losses_so_far(run: Path) -> list[float]:
    return losses(run) if (run / "metrics.jsonl").is_file() else []


def second_fails() -> None:
    """Have the second process fail where each loads its model."""
    from doratune.training import train

    def load_base(config: object) -> None:
        raise DoratuneError("no room for the model", where="process 1", fix="make some")

    if os.environ["RANK"] == "1":
        train.load_base = load_base  # pyright: ignore[reportAttributeAccessIssue]


def second_is_killed() -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_message_of_a_process_that_fails_is_the_runs(tiny_model: Path, tmp_path: Path) -> None:
    job = group(tmp_path, tiny_model).trial("dora", 1e-3, 0)
    with quick_starts(), LocalRunner(1, None, second_fails, processes=2) as runner:
        outcome = runner.submit(job).result()
    assert outcome.error == "no room for the model\n  where: process 1\n  to do: make some"
    with quick_starts(), LocalRunner(1, None, second_is_killed, processes=2) as runner:
        outcome = runner.submit(job).result()
    assert outcome.error is not None and "process 1 of the run was killed" in outcome.error
    assert "SIGKILL" in outcome.error and str(job.folder / LOG_NAME) in outcome.error
    assert not outcome.interrupted


def test_on_ray(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    job = group(tmp_path, tiny_model).base()
    with RayRunner(Resources(cpus=1, processes=2)) as runner:
        outcome = runner.submit(job).result()
    assert outcome.ending == "done", outcome.error
    (evaluation,) = read_record(job.folder).evaluations
    assert (evaluation.processes, evaluation.rows) == (2, 12)
