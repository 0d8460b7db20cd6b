"""Training that diverges is a result of a study: a lost try, said everywhere, and not repeated."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from study_support import MadeUpRunner, Silent, opened, share

from doratune.errors import DivergedError
from doratune.records.archive import restore_runs, write_archive
from doratune.records.layout import DIVERGED_NAME, RECORD_NAME
from doratune.records.storage import read_study
from doratune.records.study import StudyRecord
from doratune.report.markup import to_html, to_markdown
from doratune.report.page import page_of
from doratune.report.search import same_rate_note
from doratune.report.terminal import print_summary
from doratune.report.view import view_of
from doratune.study.cost import known_speeds, work_left
from doratune.study.execute import carry_out
from doratune.study.job import Job
from doratune.study.study import run_study
from doratune.training.config import TrainConfig
from doratune.training.run_directory import opened as opened_run

RATES = [1e-4, 1e-3, 1e-1]


def at(rate: float, method: str = "", seed: int | None = None) -> Any:
    """Whether a job has this rate, method and seed."""

    def told(job: Job) -> bool:
        config = job.config
        return (
            config is not None
            and config.learning_rate == rate
            and method in ("", config.method)
            and seed in (None, config.seed)
        )

    return told


def run(folder: Path, runner: MadeUpRunner, **changes: Any) -> StudyRecord:
    return run_study(opened(folder, **changes), runner, Silent(), reproduce="doratune study plan.yaml")


def renderings(record: StudyRecord) -> list[str]:
    file = io.StringIO()
    print_summary(record, Console(file=file, width=300))
    page = page_of(record)
    return [" ".join(text.split()) for text in (file.getvalue(), to_markdown(page), to_html(page))]


def said(record: StudyRecord, *sentences: str) -> None:
    for rendering in renderings(record):
        for sentence in sentences:
            assert sentence in rendering


def test_a_diverged_rate_is_not_chosen(tmp_path: Path) -> None:
    runner = MadeUpRunner(diverges=at(1e-1))
    record = run(tmp_path, runner, learning_rates=RATES)
    (cell,) = record.cells
    assert [arm.learning_rate for arm in cell.arms] == [1e-3, 1e-3]
    tried = [0.7, 0.7, 0.8, 0.8, None, None]
    assert [[one.accuracy for one in arm.trials] for arm in cell.arms] == [tried] * 2
    assert [(one.arm, one.learning_rate, one.seed, one.trial, one.seconds) for one in cell.diverged] == [
        (method, 0.1, seed, True, 3.0) for seed in (0, 1) for method in ("lora", "dora")
    ]
    assert len(cell.differences) == 1
    assert read_study(tmp_path / "study/study.json") == record
    lost = (
        "training of {} diverged at the learning rate 1e-1, which counts as a lost try, worse than any other"
    )
    said(record, lost.format("LoRA"), lost.format("DoRA"), "4 runs that diverged took 12 s in all")
    said(record, "of 3 per seed, 2 runs diverged; 80.0 %")


def test_a_rate_that_gets_nothing_right_is_better_than_one_that_diverged(tmp_path: Path) -> None:
    def accuracy(job: Job, split: str) -> float:
        return 0.0 if split == "validation" else share(job, split)

    record = run(tmp_path, MadeUpRunner(accuracy, diverges=at(1e-4)))
    assert [arm.learning_rate for arm in record.cells[0].arms] == [1e-3, 1e-3]


def test_a_diverged_run_is_not_run_again(tmp_path: Path) -> None:
    first = run(tmp_path, MadeUpRunner(diverges=at(1e-1)), learning_rates=RATES)
    again = MadeUpRunner()
    assert run(tmp_path, again, learning_rates=RATES) == first
    assert again.jobs == []
    study = opened(tmp_path, learning_rates=RATES)
    assert work_left(study.groups) == []
    assert known_speeds(study.plan, study.groups).basis is not None


def test_an_arm_that_diverges_with_every_rate_has_no_result(tmp_path: Path) -> None:
    runner = MadeUpRunner(diverges=lambda job: job.method == "dora")
    record = run(tmp_path, runner)
    (cell,) = record.cells
    assert [arm.name for arm in cell.arms] == ["lora"] and cell.differences == []
    assert len(cell.diverged) == 4 and record.pending == []
    why = "training diverged with every learning rate that was tried (1e-4, 1e-3)"
    said(record, why, "No result of DoRA")
    assert all(rendering.count(why) == 1 for rendering in renderings(record)), "told once"
    assert not any("No two methods" in rendering for rendering in renderings(record))


@pytest.mark.parametrize("rates", [[1e-4, 1e-3], [1e-3]])
def test_a_cell_with_no_result_left(tmp_path: Path, rates: list[float]) -> None:
    tasks = [{"train": "sample-boolq", "eval_rows": 40, "validation_rows": 20 if len(rates) > 1 else None}]
    runner = MadeUpRunner(diverges=lambda job: job.config is not None)
    record = run(tmp_path, runner, learning_rates=rates, tasks=tasks)
    (cell,) = record.cells
    assert cell.arms == [] and cell.base is not None and record.pending == []
    every = "with every learning rate that was tried (1e-4, 1e-3)"
    what = every if len(rates) > 1 else "at the learning rate 1e-3 with seeds 0, 1"
    for arm in ("LoRA", "DoRA"):
        said(record, f"No result of {arm}", f"training diverged {what}")


@pytest.mark.parametrize("per", ["seed", "arm"])
def test_a_seed_that_diverges_is_left_out_and_said(tmp_path: Path, per: str) -> None:
    """With every rate that it tried, or with the one that the first seed chose for it."""
    rates = (1e-4, 1e-3) if per == "seed" else (1e-3,)

    def diverges(job: Job) -> bool:
        return any(at(rate, "dora", 1)(job) for rate in rates)

    record = run(tmp_path, MadeUpRunner(diverges=diverges), choose={"per": per, "extend": 0})
    (cell,) = record.cells
    assert [[one.seed for one in arm.runs] for arm in cell.arms] == [[0, 1], [0]]
    assert [one.seed for one in cell.differences[0].seeds] == [0]
    said(
        record, "training of DoRA diverged with seed 1. Its mean and its differences are over the other seeds"
    )


def test_the_archive_keeps_what_diverged(tmp_path: Path) -> None:
    first = run(tmp_path, MadeUpRunner(diverges=at(1e-1)), learning_rates=RATES)
    write_archive(tmp_path / "study", tmp_path / "archive")
    shutil.rmtree(tmp_path / "study/runs")
    restore_runs(tmp_path / "archive", tmp_path / "study")
    again = MadeUpRunner()
    run(tmp_path, again, learning_rates=RATES)
    assert [job for job in again.jobs if at(1e-1)(job)] == []
    assert first.cells[0].diverged == read_study(tmp_path / "study/study.json").cells[0].diverged


def test_a_job_that_diverges_records_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(config: TrainConfig, **_: object) -> None:
        with opened_run(config, again=False, afresh=True):
            raise DivergedError("the loss is not finite", where="step 3")

    monkeypatch.setattr("doratune.training.train.train", diverge)
    job = opened(tmp_path).groups[0].trials()[0]
    outcome = carry_out(job)
    assert outcome.diverged and outcome.error is None and not outcome.interrupted
    assert job.done() and job.left() == [] and not (job.folder / RECORD_NAME).exists()
    assert "the loss is not finite" in (job.folder / DIVERGED_NAME).read_text()

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("doratune.training.train.train", fail)
    assert carry_out(job).error is None
    (job.folder / DIVERGED_NAME).unlink()
    assert not job.done()


def test_a_run_that_diverges_at_the_shared_rate_only_is_said(tmp_path: Path) -> None:
    """With one seed's choice for all, the other seeds try no rate before the tests."""

    def accuracy(job: Job, split: str) -> float:
        best = {"lora": 1e-4, "dora": 1e-3}[job.method] if job.config else 0.0
        return 0.8 if job.config and job.config.learning_rate == best else 0.7

    choose = {"per": "arm", "extend": 0}
    first = run(tmp_path, MadeUpRunner(accuracy), choose=choose)
    (shared,) = {one.learning_rate for one in first.cells[0].same_rate}
    (tmp_path / "again").mkdir()
    lost = "dora" if shared == 1e-4 else "lora"
    record = run(tmp_path / "again", MadeUpRunner(accuracy, diverges=at(shared, lost, 1)), choose=choose)
    assert [len(arm.runs) for arm in record.cells[0].arms] == [2, 2]
    said(record, "diverged with seed 1 at the rate that two methods share")
    assert "the first seed's validation rows" in same_rate_note(view_of(record))
