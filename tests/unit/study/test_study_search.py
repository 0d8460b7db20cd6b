"""The search of a study, with made-up runs: rates per seed, rates added, both methods at one rate."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from concurrent.futures import Future
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from study_support import MadeUpRunner, Silent, opened, share

from doratune.records.study import StudyRecord
from doratune.report.markup import to_html, to_markdown
from doratune.report.page import page_of
from doratune.report.terminal import print_summary
from doratune.study.cost import work_if_extended, work_left
from doratune.study.execute import Outcome
from doratune.study.job import Job
from doratune.study.study import run_study

ROWS = {"train": "sample-boolq", "rows": 32, "validation_rows": 20, "eval_rows": 40}


def run(folder: Path, runner: MadeUpRunner, **changes: Any) -> StudyRecord:
    return run_study(opened(folder, **changes), runner, Silent(), reproduce="doratune study plan.yaml")


def peak(best: Callable[[Job], float]) -> Callable[[Job, str], float]:
    """Accuracies of runs that are best on the validation rows at a rate of their own."""

    def accuracy(job: Job, split: str) -> float:
        if job.config is None or split == "test":
            return share(job, split)
        return 0.8 - 0.1 * abs(math.log10(job.config.learning_rate / best(job)))

    return accuracy


def by_seed(job: Job) -> float:
    """The first seed is best at 1e-4, the others at 1e-3."""
    assert job.config is not None
    return 1e-4 if job.config.seed == 0 else 1e-3


def renderings(record: StudyRecord) -> list[str]:
    file = io.StringIO()
    print_summary(record, Console(file=file, width=300))
    page = page_of(record)
    return [" ".join(text.split()) for text in (file.getvalue(), to_markdown(page), to_html(page))]


def test_every_seed_is_tested_at_its_own_rate(tmp_path: Path) -> None:
    record = run(tmp_path, MadeUpRunner(peak(by_seed)))
    (cell,) = record.cells
    assert cell.chosen_per == "seed"
    for arm in cell.arms:
        assert arm.learning_rate is None
        assert [(one.seed, one.learning_rate) for one in arm.runs] == [(0, 1e-4), (1, 1e-3)]
        assert [one.learning_rate for one in arm.trials if one.chosen] == [1e-4, 1e-3]
    for text in renderings(record):
        assert "1e-4 ×1, 1e-3 ×1" in text and "at the chosen rates" not in text


def test_a_training_set_may_have_its_own_seeds(tmp_path: Path) -> None:
    other = {**ROWS, "train": "sample-winogrande", "seeds": [0, 3, 4]}
    runner = MadeUpRunner()
    record = run(tmp_path, runner, tasks=[ROWS, other])
    assert [[one.seed for one in cell.arms[0].runs] for cell in record.cells] == [[0, 1], [0, 3, 4]]
    assert {one.seed for one in record.cells[1].arms[0].trials} == {0, 3, 4}
    (pooled,) = record.pooled
    assert len(pooled.cells) == 2
    points = [cell.differences[0].points for cell in record.cells]
    assert pooled.difference.points == pytest.approx(sum(points) / 2)
    assert sum(one.startswith("trial") for one in runner.done) == 2 * 2 * (2 + 3)
    assert all("2 to 3 seeds" in text for text in renderings(record))


def test_training_sets_that_test_parts_of_one_file_are_pooled(tmp_path: Path) -> None:
    mixed = {
        **ROWS,
        "train": ["sample-boolq", "sample-winogrande"],
        "test": ["sample-boolq"],
        "eval_rows": 20,
    }
    (pooled,) = run(tmp_path, MadeUpRunner(), tasks=[ROWS, mixed]).pooled
    assert len(pooled.cells) == 2


def test_once_by_name_and_its_verdict_says_so(tmp_path: Path) -> None:
    runner = MadeUpRunner(peak(by_seed))
    record = run(tmp_path, runner, choose={"per": "arm", "extend": 0})
    (cell,) = record.cells
    assert [arm.learning_rate for arm in cell.arms] == [1e-4, 1e-4]
    assert {one.seed for arm in cell.arms for one in arm.trials} == {0}
    assert sum(one.startswith("trial") for one in runner.done) == 4
    assert "at the chosen rates" in cell.differences[0].verdict and cell.chosen_per == "arm"


def test_rates_are_added_for_every_arm_until_the_best_is_inside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """DoRA's second seed is best beyond the list; LoRA tries as many."""

    def best(job: Job) -> float:
        assert job.config is not None
        return 1e-2 if job.config.method == "dora" and job.config.seed == 1 else 1e-3

    runner = MadeUpRunner(peak(best))
    changes: dict[str, Any] = {"choose": {"extend": 2}, "learning_rates": [1e-5, 1e-4, 1e-3]}
    record = run(tmp_path, runner, **changes)
    (cell,) = record.cells
    assert cell.extended == (0, 2)
    for arm in cell.arms:
        assert sorted({one.learning_rate for one in arm.trials}) == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    assert [one.learning_rate for one in cell.arms[1].runs] == [1e-3, 1e-2]
    assert "all arms try another beyond it" in caplog.text
    assert "still at an end" not in cell.differences[0].verdict
    assert all("2 larger on sample-boolq" in text for text in renderings(record)[1:])
    again = MadeUpRunner()
    assert run(tmp_path, again, **changes) == record and again.jobs == []


def test_a_best_that_is_still_at_an_end_is_in_the_verdict(tmp_path: Path) -> None:
    record = run(tmp_path, MadeUpRunner(peak(lambda job: 1.0)), choose={"extend": 1})
    (cell,) = record.cells
    assert cell.extended == (0, 1)
    words = "a best rate is still at an end of those tried: LoRA's largest, DoRA's largest"
    assert words in cell.differences[0].verdict
    assert all(words in unescape(text) for text in renderings(record))


def test_each_method_s_own_list_is_extended_alike(tmp_path: Path) -> None:
    own = {"dora": [5e-4, 5e-3]}
    runner = MadeUpRunner(peak(lambda job: 1e-4 if job.method == "lora" else 5e-3))
    record = run(tmp_path, runner, own_learning_rates=own, choose={"extend": 1})
    (cell,) = record.cells
    tried = [sorted({one.learning_rate for one in arm.trials}) for arm in cell.arms]
    assert tried == [[1e-5, 1e-4, 1e-3, 1e-2], [5e-5, 5e-4, 5e-3, 5e-2]]
    assert cell.same_rate == [] and all("no row at one rate" in text for text in renderings(record)[1:])


def test_both_methods_are_also_compared_at_one_rate(tmp_path: Path) -> None:
    """LoRA is a little better at 1e-4, DoRA much better at 1e-3."""

    def accuracy(job: Job, split: str) -> float:
        if job.config is None:
            return 0.5
        at_low, dora = job.config.learning_rate == 1e-4, job.config.method == "dora"
        if split == "validation":
            return (0.5 if at_low else 0.9) if dora else (0.8 if at_low else 0.7)
        return (0.5 if at_low else 0.8) + 0.05 * dora

    runner = MadeUpRunner(accuracy)
    record = run(tmp_path, runner)
    (cell,) = record.cells
    assert [arm.learning_rate for arm in cell.arms] == [1e-4, 1e-3]
    assert cell.differences[0].points == pytest.approx(35)
    (same,) = cell.same_rate
    assert (same.learning_rate, same.from_mean, same.to_mean) == (1e-3, 0.8, 0.85)
    assert same.difference.points == pytest.approx(5)
    assert [one.seed for one in same.difference.seeds] == [0, 1]
    assert len({job.folder for job in runner.jobs}) == 9, "its trainings exist as trials"
    for text in renderings(record):
        assert "Both at the same rate" in text and "+5.0" in text


def test_without_a_choice_there_is_no_second_row(tmp_path: Path) -> None:
    record = run(tmp_path, MadeUpRunner(), learning_rates=[1e-3], tasks=[{**ROWS, "validation_rows": None}])
    assert record.cells[0].same_rate == [] and record.cells[0].chosen_per is None
    assert not any("one rate" in text for text in renderings(record))


def test_a_chosen_rate_no_better_than_the_most_frequent_answer_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def accuracy(job: Job, split: str) -> float:
        if split == "validation" and job.method == "dora":
            return 0.5  # the made-up evaluations have 52.5 % as the most frequent answer
        return share(job, split)

    record = run(tmp_path, MadeUpRunner(accuracy))
    assert record.cells[0].validation_majority == 0.525
    said = "DoRA with its chosen learning rate (50.0 %, seeds 0, 1) is no better than always giving the most"
    for text in renderings(record):
        assert said in text and "LoRA with its chosen" not in text
    assert "the chosen learning rate of DoRA is no better than the most frequent answer" in caplog.text


def test_axes_make_cells_and_records_name_them(tmp_path: Path) -> None:
    rows = {**ROWS, "rows": [16, 32]}
    axes: dict[str, Any] = {"batch_sizes": [8, 16], "epochs": [2.0], "settings": {"warmup_steps": 1}}
    record = run(tmp_path, MadeUpRunner(), tasks=[rows], seeds=[0], learning_rates=[1e-3], **axes)
    found = [(cell.rank, cell.batch_size, cell.epochs, cell.training_rows) for cell in record.cells]
    assert found == [(4, batch, 2.0, rows) for batch in (8, 16) for rows in (16, 32)]
    assert len({one.run for cell in record.cells for arm in cell.arms for one in arm.runs}) == 8
    assert record.pooled == [] and record.pending == []
    assert all(one.p_adjusted == one.p_value for cell in record.cells for one in cell.differences)
    assert "sample-boolq, batch size 8, 16 training rows" in to_markdown(page_of(record))


def test_tasks_of_different_sizes_still_belong_together(tmp_path: Path) -> None:
    tasks = [ROWS, {**ROWS, "train": "sample-winogrande", "rows": 64}]
    record = run(tmp_path, MadeUpRunner(), tasks=tasks, seeds=[0])
    assert len(record.pooled) == 1 and record.pooled[0].training_rows is None


def test_the_estimate_counts_rates_times_seeds_and_what_may_be_added(tmp_path: Path) -> None:
    groups = opened(tmp_path, choose={"extend": 2}).groups
    assert sum(work.runs for _, _, work in work_left(groups)) == 2 * 2 * 2, "methods, rates, seeds"
    assert sum(work.runs for _, _, work in work_if_extended(groups)) == 2 * 4 * 2
    run(tmp_path, MadeUpRunner(), choose={"extend": 2})
    assert work_left(groups) == work_if_extended(groups) == []
    (tmp_path / "once").mkdir()
    once = opened(tmp_path / "once", choose={"per": "arm", "extend": 0}, seeds=[0, 1, 2])
    assert sum(work.runs for _, _, work in work_left(once.groups)) <= 2 * 2 * 3


class KilledError(Exception):
    """As if the process were killed before this job."""


class KilledRunner(MadeUpRunner):
    """Is killed after some jobs."""

    def __init__(self, jobs: int, **changes: Any) -> None:
        super().__init__(**changes)
        self._left = jobs

    def submit(self, job: Job) -> Future[Outcome]:
        if not self._left:
            raise KilledError
        self._left -= 1
        return super().submit(job)


def test_killed_in_any_stage_a_study_takes_the_same_course(tmp_path: Path) -> None:
    """Three times in the trials, three in those that are added, three in the tests."""
    changes: dict[str, Any] = {"choose": {"extend": 2}, "seeds": [0, 1]}
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    accuracy = peak(lambda job: 1e-2)
    whole = run(tmp_path / "whole", MadeUpRunner(accuracy), **changes)
    assert whole.cells[0].extended == (0, 2)
    done: list[str] = []
    for jobs in (1, 3, 2, 3, 3, 2, 4, 1, 1):
        runner = KilledRunner(jobs, accuracy=accuracy)
        with pytest.raises(KilledError):
            run(tmp_path / "killed", runner, **changes)
        done += [job.key for job in runner.jobs[:jobs]]
    last = MadeUpRunner(accuracy)
    assert run(tmp_path / "killed", last, **changes) == whole
    done += [job.key for job in last.jobs]
    assert len(set(done)) == len(done), "nothing is done twice"
    written = [(tmp_path / one / "study/study.json").read_bytes() for one in ("whole", "killed")]
    assert written[0] == written[1]
