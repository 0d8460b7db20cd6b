"""The time left of a study, with made-up runs and a made-up clock."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_support import MadeUpRunner, opened

from doratune.cli import progress
from doratune.report.numbers import duration
from doratune.study.cost import known_speeds, work_left
from doratune.study.execute import Outcome
from doratune.study.study import run_study


@pytest.mark.parametrize(
    ("jobs", "ended", "at_a_time"),
    [(2, 1, 2), (2, 2, 2), (1, 4, 4)],
    ids=["one of two has ended", "both have", "a cluster with room for four"],
)
def test_time_left_follows_how_many_run_at_a_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    jobs: int,
    ended: int,
    at_a_time: int,
) -> None:
    study, engine, clock = opened(tmp_path, seeds=[0]), MadeUpRunner(), [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    group = study.groups[0]
    trials = [group.trial(method, rate, 0) for method in ("lora", "dora") for rate in (1e-4, 1e-3)]
    with progress.StudyProgress(study, jobs=jobs) as shown:
        for job in trials:
            shown.started(job)
        clock[0] += 100.0
        for job in trials[:ended]:
            engine.submit(job)
            shown.ended(job, Outcome(100.0))
    speeds = known_speeds(study.plan, study.groups)
    seconds = [speeds.seconds(job.method, work) for _, job, work in work_left(study.groups)]
    assert seconds
    one_after_the_other = sum(one for one in seconds if one is not None)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"about {duration(one_after_the_other / at_a_time)} left"), last


def test_a_run_that_a_signal_broke_has_not_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = opened(tmp_path)
    first, second = study.groups[0].trials()[:2]
    with progress.StudyProgress(study, jobs=2) as shown:
        shown.started(first)
        shown.started(second)
        shown.ended(first, Outcome(2.0, "out of memory"))
        shown.stopping()
        shown.ended(second, Outcome(0.0, "the run's process was killed"))
    first_line, _, last_line = capsys.readouterr().err.splitlines()
    assert "failed in" in first_line and "interrupted in" in last_line


def test_after_the_last_job_no_time_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = opened(tmp_path)
    with progress.StudyProgress(study, jobs=1) as shown:
        run_study(study, MadeUpRunner(), shown, reproduce="doratune study")
    lines = [line for line in capsys.readouterr().err.splitlines() if ": done in" in line]
    assert " left" in lines[-2] and " left" not in lines[-1]
