"""Runs in separate processes, and the estimate of what a study takes."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from study_support import MadeUpRunner, Silent, opened

from doratune.cli.estimate import estimate
from doratune.evaluation.config import EvalConfig
from doratune.study.cost import START_SECONDS
from doratune.study.execute import carry_out
from doratune.study.local import LocalRunner, run_alone
from doratune.study.study import run_study


def test_a_process_has_the_threads_it_was_given() -> None:
    assert run_alone(os.getenv, "OMP_NUM_THREADS", threads=1) == "1"
    assert run_alone(os.getpid) != os.getpid()


def test_a_killed_process_is_a_failed_run(tmp_path: Path) -> None:
    study = opened(tmp_path)
    with LocalRunner(1, None, partial(os._exit, 1)) as runner:
        outcome = runner.submit(study.groups[0].trial("dora", 1e-3, 0)).result()
    assert outcome.error is not None and "was killed" in outcome.error
    assert not outcome.interrupted


ASSUMED = {"tokens_per_second": 100.0, "rows_per_second": 10.0, "basis": "made up"}


def test_the_estimate_counts_everything_once(tmp_path: Path) -> None:
    study = opened(tmp_path, assume=ASSUMED)
    total = estimate(study, jobs=1)["total"]
    # 2 methods x 2 rates x 2 seeds, 32 rows in batches of 16
    assert (total["runs"], total["steps"]) == (8, 16)
    # validation rows by eight trials; test rows by the base model and, at the chosen and the shared rate,
    # by two seeds of two methods
    assert total["rows"] == 8 * 20 + 9 * 40
    jobs = 8 + 1 + 8
    seconds = total["tokens"] / 100 + total["rows"] / 10 + START_SECONDS * jobs
    assert total["seconds"] == pytest.approx(seconds, abs=1)
    assert estimate(study, jobs=2)["total"]["seconds"] == pytest.approx(seconds / 2, abs=1)
    assert estimate(study, jobs=1)["basis"] == "made up"


def test_full_fine_tuning_is_counted_once_for_all_ranks(tmp_path: Path) -> None:
    one = estimate(opened(tmp_path, methods=["lora", "full"], ranks=[4]), jobs=1)["total"]
    two = estimate(opened(tmp_path, methods=["lora", "full"], ranks=[4, 8]), jobs=1)["total"]
    lora = 2 * 2  # two rates with two seeds
    assert (one["runs"], two["runs"]) == (2 * lora, 3 * lora)


def test_the_estimate_uses_finished_runs(tmp_path: Path) -> None:
    run_study(opened(tmp_path, assume=ASSUMED), MadeUpRunner(), Silent(), reproduce="")
    left = estimate(opened(tmp_path, assume=ASSUMED, seeds=[0, 1, 2]), jobs=1)
    # another seed trains two rates of two methods, and answers test rows at the chosen and the shared rate
    assert (left["total"]["runs"], left["total"]["rows"]) == (4, 4 * 20 + 8 * 40)
    assert left["basis"] == "the runs of this study that are finished"
    # What the made-up runs took: 138,666 tokens in 112.3 or 105.9 s; their answers 12.5 s for 20 or 40 rows.
    # Their chosen rate was the shared one.
    rows, seconds = 8 * 20 + 5 * 40, (8 + 5) * 12.5
    expected = left["total"]["tokens"] / 2 * (112.3 + 105.9) / 138_666 + 400 * seconds / rows
    starts = 4 + 8
    assert left["total"]["seconds"] == pytest.approx(expected + starts * START_SECONDS, abs=1)


def test_without_any_speed_the_time_is_not_known(tmp_path: Path) -> None:
    found = estimate(opened(tmp_path), jobs=1)
    assert found["total"]["seconds"] is None and found["basis"] is None


def test_on_a_cpu_the_base_is_evaluated_as_its_runs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan's type is that of training."""
    seen: list[EvalConfig] = []
    monkeypatch.setattr("doratune.evaluation.evaluate.evaluate", seen.append)
    (group,) = opened(tmp_path, settings={"dtype": "bfloat16"}).groups
    assert group.base().wanted[0].config.dtype == "bfloat16"
    assert carry_out(group.base()).error is None
    assert [one.dtype for one in seen] == ["auto"]
