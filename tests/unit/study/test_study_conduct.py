"""What a study does and in which order, with made-up runs."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from locked_elsewhere import locked_elsewhere
from study_support import PLAN, MadeUpRunner, Silent, opened, share, write_plan

from doratune.errors import DoratuneError, InputError
from doratune.records.storage import read_study
from doratune.records.study import StudyRecord
from doratune.report.measured import forgetting_labels
from doratune.report.verdicts import difference_table
from doratune.report.verdicts import test_note as note_on_tests
from doratune.report.view import view_of
from doratune.study.execute import Outcome
from doratune.study.job import Job
from doratune.study.plan_file import load_plan
from doratune.study.recomputed import computed_again, refuse_differences
from doratune.study.study import open_study, refuse_lost_results, run_study

TWO = [
    {"train": "sample-boolq", "validation_rows": 20, "eval_rows": 40},
    {"train": "sample-winogrande", "validation_rows": 20, "eval_rows": 40},
]


def run(folder: Path, runner: MadeUpRunner, **changes: Any) -> StudyRecord:
    return run_study(opened(folder, **changes), runner, Silent(), reproduce="doratune study plan.yaml")


def test_trials_of_every_seed_then_the_rate_that_it_chose(tmp_path: Path) -> None:
    runner = MadeUpRunner()
    record = run(tmp_path, runner)
    assert runner.done == [
        *(
            f"trial {method}, rate {rate:g}, seed {seed}"
            for seed in (0, 1)
            for method in ("lora", "dora")
            for rate in (1e-4, 1e-3)
        ),
        "base base",
        "test lora, rate 0.001, seed 0",
        "test lora, rate 0.001, seed 1",
        "test dora, rate 0.001, seed 0",
        "test dora, rate 0.001, seed 1",
    ]
    assert len({job.folder for job in runner.jobs}) == 9, "a seed's run is its chosen trial itself"
    (cell,) = record.cells
    assert [arm.learning_rate for arm in cell.arms] == [1e-3, 1e-3]
    assert [[one.accuracy for one in arm.trials] for arm in cell.arms] == [[0.7, 0.7, 0.8, 0.8]] * 2
    assert [(one.seed, one.chosen) for one in cell.arms[0].trials] == [
        (0, False),
        (1, False),
        (0, True),
        (1, True),
    ]
    assert [arm.mean for arm in cell.arms] == pytest.approx([0.625, 0.725])
    assert [one.result.accuracy for one in cell.arms[1].runs] == pytest.approx([0.7, 0.75])
    assert cell.differences[0].points == pytest.approx(10)
    assert cell.base is not None and cell.base.accuracy == 0.5
    assert record.pending == []
    assert read_study(tmp_path / "study/study.json") == record


def test_test_rows_are_answered_only_by_runs_with_the_chosen_rate(tmp_path: Path) -> None:
    runner = MadeUpRunner()
    record = run(tmp_path, runner)
    chosen = {one.run for arm in record.cells[0].arms for one in arm.runs}
    for folder in (tmp_path / "study/runs").glob("[ld]ora-*"):
        answered = {
            (one["data"]["split"]) for one in json.loads((folder / "record.json").read_text())["evaluations"]
        }
        assert ("test" in answered) == (f"runs/{folder.name}" in chosen)


def test_no_job_is_done_twice(tmp_path: Path) -> None:
    first = run(tmp_path, MadeUpRunner())
    again = MadeUpRunner()
    assert run(tmp_path, again) == first
    assert again.jobs == []


def test_another_seed_runs_only_that_seed(tmp_path: Path) -> None:
    run(tmp_path, MadeUpRunner())
    runner = MadeUpRunner()
    record = run(tmp_path, runner, seeds=[0, 1, 5])
    assert runner.done == [
        "trial lora, rate 0.0001, seed 5",
        "trial lora, rate 0.001, seed 5",
        "trial dora, rate 0.0001, seed 5",
        "trial dora, rate 0.001, seed 5",
        "test lora, rate 0.001, seed 5",
        "test dora, rate 0.001, seed 5",
    ]
    assert [one.seed for one in record.cells[0].arms[0].runs] == [0, 1, 5]


def test_another_learning_rate_is_tried_and_may_win(tmp_path: Path) -> None:
    run(tmp_path, MadeUpRunner())

    def accuracy(job: Job, split: str) -> float:
        return 0.9 if job.config and job.config.learning_rate == 1e-2 else share(job, split)

    runner = MadeUpRunner(accuracy)
    record = run(tmp_path, runner, learning_rates=[1e-4, 1e-3, 1e-2])
    assert runner.done[:2] == ["trial lora, rate 0.01, seed 0", "trial dora, rate 0.01, seed 0"]
    assert [arm.learning_rate for arm in record.cells[0].arms] == [1e-2, 1e-2]


def test_a_failed_run_ends_its_own_cell_only(tmp_path: Path) -> None:
    def fails(job: Job) -> bool:
        return job.folder.name.startswith("dora-sample-boolq") and job.stage == "trial"

    with pytest.raises(DoratuneError, match=r"dora-sample-boolq-\w+ \(dora(.|\n)*made to fail") as raised:
        run(tmp_path, MadeUpRunner(fails=fails), tasks=TWO)
    assert raised.value.exit_code == 1
    left = read_study(tmp_path / "study/study.json")
    assert [cell.task for cell in left.cells] == ["sample-winogrande"]
    assert left.pending == ["sample-boolq (instruct)"]
    runner = MadeUpRunner()
    assert run(tmp_path, runner, tasks=TWO).pending == []
    assert not any(job.folder.name.startswith("lora-sample-boolq") for job in runner.jobs[:2])
    assert not any("winogrande" in job.folder.name for job in runner.jobs)


def test_cells_finish_one_after_the_other(tmp_path: Path) -> None:
    runner = MadeUpRunner()
    record = run(tmp_path, runner, tasks=TWO)
    names = [job.folder.name.split("-")[2] for job in runner.jobs]
    assert names == sorted(names)
    assert len(record.pooled) == 1
    assert record.pooled[0].difference.points == pytest.approx(10)
    assert record.pooled[0].cells == ["sample-boolq (instruct)", "sample-winogrande (instruct)"]


def test_weights_are_deleted_if_the_plan_says_so(tmp_path: Path) -> None:
    run(tmp_path, MadeUpRunner(), keep_weights=False)
    assert not list((tmp_path / "study/runs").glob("*/adapter"))
    runner = MadeUpRunner()
    run(tmp_path, runner, keep_weights=False)
    assert runner.jobs == []


def test_other_test_rows_are_refused(tmp_path: Path) -> None:
    run(tmp_path, MadeUpRunner())
    runner = MadeUpRunner()
    changed = [{"train": "sample-boolq", "rows": 32, "validation_rows": 20, "eval_rows": 39}]
    with pytest.raises(InputError, match=r"evaluated on other rows(.|\n)*eval_rows 40(.|\n)*eval_rows 39"):
        run(tmp_path, runner, tasks=changed)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (1, 3, "method dora"),  # LoRA's and DoRA's of one seed and rate
        (1, 5, "seed 1"),
        (0, 1, "learning_rate 0.001"),
        (8, 1, "method lora"),  # in place of the base
    ],
)
def test_a_run_in_the_place_of_another_is_refused(first: int, second: int, said: str, tmp_path: Path) -> None:
    """As when folders are copied back by hand: both are whole, and one would be shown as the other."""
    runner = MadeUpRunner()
    run(tmp_path, runner)
    one, other = (runner.jobs[number].folder for number in (first, second))
    shutil.rmtree(one)
    shutil.copytree(other, one)
    with pytest.raises(InputError, match="holds another run") as caught:
        run(tmp_path, MadeUpRunner())
    assert said in caught.value.message and str(one) in caught.value.message


def test_records_of_another_schema_version_are_refused(tmp_path: Path) -> None:
    run(tmp_path, MadeUpRunner())
    study = tmp_path / "study/study.json"
    whole = study.read_text()
    study.write_text(whole.replace('"schema_version": 3', '"schema_version": 9'))
    with pytest.raises(InputError, match=r"does not read(.|\n)*version 9"):
        run(tmp_path, MadeUpRunner())
    study.write_text(whole)
    record = next((tmp_path / "study/runs").glob("lora-*/record.json"))
    record.write_text(record.read_text().replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(InputError, match=r"does not read(.|\n)*version 9"):
        run(tmp_path, MadeUpRunner())


def test_two_processes_are_not_at_work_on_one_study(tmp_path: Path) -> None:
    with locked_elsewhere(tmp_path / "study"), pytest.raises(InputError, match="another process"):
        run(tmp_path, MadeUpRunner())


def test_a_study_may_be_moved(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    first = run(tmp_path / "here", MadeUpRunner())
    shutil.move(tmp_path / "here", tmp_path / "there")
    runner = MadeUpRunner()
    assert run(tmp_path / "there", runner).cells == first.cells
    assert runner.jobs == []


def test_rows_and_runs_are_not_for_a_repository(tmp_path: Path) -> None:
    run(tmp_path, MadeUpRunner())
    ignored = (tmp_path / "study/.gitignore").read_text().splitlines()
    assert {"/data/", "/runs/"} <= set(ignored)


@pytest.mark.parametrize(
    ("methods", "settings", "message"),
    [
        (["lora", "dora-attached-norm"], {"engine": "peft"}, "only doratune's engine"),
        (["lora", "full"], {"dtype": "float16"}, "weights in float16 cannot be trained"),
        (["lora"], {"warmup_steps": 1000}, "1000 warm-up steps of 2 in all"),
        (["lora"], {"micro_batch_size": 5}, "cannot be divided evenly"),
    ],
)
def test_settings_with_which_a_run_would_be_refused_are_refused_before_any_is_trained(
    tmp_path: Path, methods: list[str], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path, methods=methods, settings=PLAN["settings"] | settings)
    assert f"settings of {methods[-1]}" in str(caught.value.where)
    assert not (tmp_path / "study").exists()


def test_a_gitignore_of_the_users_is_kept(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study/.gitignore").write_text("mine\n", encoding="utf-8")
    run(tmp_path, MadeUpRunner())
    assert (tmp_path / "study/.gitignore").read_text(encoding="utf-8") == "mine\n"


def test_a_study_is_not_written_into_a_run(tmp_path: Path) -> None:
    run(tmp_path, MadeUpRunner())
    one = next((tmp_path / "study/runs").glob("lora-*"))
    with pytest.raises(InputError, match="is a run directory"):
        open_study(load_plan(str(write_plan(tmp_path))), one)


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"seeds": [0]}, "sample-boolq, LoRA, seed 1, and 1 more"),
        ({"methods": ["lora", "rslora"]}, "sample-boolq, DoRA, seed 0, and 1 more"),
        ({"ranks": [8]}, "sample-boolq, LoRA, seed 0, and 3 more"),
        ({"tasks": TWO[1:]}, "sample-boolq, LoRA, seed 0, and 3 more"),
    ],
)
def test_another_plan_does_not_take_a_records_place(
    changes: dict[str, Any], lost: str, tmp_path: Path
) -> None:
    run(tmp_path, MadeUpRunner())
    refuse_lost_results(opened(tmp_path, seeds=[2, 1, 0], tasks=[TWO[1], PLAN["tasks"][0]]))
    with pytest.raises(InputError, match=f"would be replaced(.|\n)*{lost}"):
        refuse_lost_results(opened(tmp_path, **changes))


def test_ranks_are_told_of_methods_that_are_given_one(tmp_path: Path) -> None:
    """IA3 has none, and lora-matched takes the one at which it is as large as DoRA."""
    methods = ["lora", "dora", "miss", "ia3", "lora-matched"]
    record = run(tmp_path, MadeUpRunner(), methods=methods, own_settings={"miss": {"rank": 9}})
    assert record.differing == {"rank": {"lora": 4, "dora": 4, "miss": 9}}
    assert "The methods differ in rank: LoRA 4, DoRA 4, MiSS 9." in record.notes


def test_a_method_without_a_rank_joins_no_ranks(tmp_path: Path) -> None:
    record = run(tmp_path, MadeUpRunner(), methods=["lora", "ia3"], ranks=[4, 8])
    assert "IA³ has no rank: its results at all ranks are of the same runs." in record.notes
    view = view_of(record)
    assert [one.label for one in view.trainings] == ["sample-boolq, rank 4", "sample-boolq, rank 8"]
    assert [[len(arm.runs) for arm in one.arms] for one in view.trainings] == [[2, 2], [2, 2]]
    assert all(one.p_adjusted == one.p_value for cell in record.cells for one in cell.differences)
    assert "Holm" not in note_on_tests(view), "each rank is a family of one cell"
    (tmp_path / "two").mkdir()
    two = view_of(run(tmp_path / "two", MadeUpRunner(), tasks=TWO))
    assert "Holm" in note_on_tests(two)


def test_a_method_of_its_own_rank_has_the_alpha_of_that_rank(tmp_path: Path) -> None:
    own = {"dora": {"rank": 2}, "pissa": {"rank": 2, "alpha": 3.0}}
    (group,) = opened(tmp_path, methods=["lora", "dora", "pissa"], own_settings=own).groups
    assert [(one.rank, one.alpha) for one in group.configs()] == [(4, 8.0), (2, 4.0), (2, 3.0)]
    record = run(tmp_path, MadeUpRunner(), own_settings={"dora": {"rank": 2}})
    assert record.differing == {"rank": {"lora": 4, "dora": 2}, "alpha": {"lora": 8.0, "dora": 4.0}}


def test_a_result_that_cannot_be_read_leaves_the_record_as_it_is(tmp_path: Path) -> None:
    run(tmp_path, MadeUpRunner(), tasks=TWO)
    path = tmp_path / "study/study.json"
    before = path.read_bytes()
    answers = next((tmp_path / "study/runs").glob("dora-sample-winogrande-*/predictions/*"))
    answers.write_text(answers.read_text()[:99])
    with pytest.raises(InputError):
        run(tmp_path, MadeUpRunner(), tasks=TWO)
    assert path.read_bytes() == before


def test_a_rate_is_chosen_again_if_a_repeated_trial_answers_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run whose weights are gone is trained again for new rows, on a machine that rounds differently."""
    run(tmp_path, MadeUpRunner(), keep_weights=False)

    class Elsewhere(MadeUpRunner):
        def submit(self, job: Job) -> Future[Outcome]:
            if job.stage == "test" and job.left():
                shutil.rmtree(job.folder)
            return super().submit(job)

    def worse(job: Job, split: str) -> float:
        high = job.config is not None and job.config.learning_rate == 1e-3
        return 0.2 if split == "validation" and high else share(job, split)

    changed = {"keep_weights": False, "also_test": ["sample-winogrande"]}
    record = run(tmp_path, Elsewhere(worse), **changed)
    assert "chosen again" in caplog.text
    for arm in record.cells[0].arms:
        assert {one.learning_rate for one in arm.runs} == {1e-4}
        assert {(one.learning_rate, one.accuracy) for one in arm.trials} == {(1e-4, 0.7), (1e-3, 0.2)}
    refuse_differences(record, computed_again(record, tmp_path / "study"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"protocol": "generate"}),
        ({"also_test": ["sample-winogrande"]}, {}),
    ],
)
def test_a_plan_that_would_drop_results_is_refused(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    run(tmp_path, MadeUpRunner(), **before)
    refuse_lost_results(opened(tmp_path, **before))
    with pytest.raises(InputError, match="would be replaced"):
        refuse_lost_results(opened(tmp_path, **after))


def test_settings_that_are_equal_after_all_do_not_differ(tmp_path: Path) -> None:
    settings = PLAN["settings"] | {"dropout": 0.1}
    same = run(tmp_path, MadeUpRunner(), settings=settings, own_settings={"dora": {"dropout": 0.1}})
    assert not same.differing and not any("differ in dropout" in note for note in same.notes)
    (tmp_path / "other").mkdir()
    other = run(
        tmp_path / "other", MadeUpRunner(), settings=settings, own_settings={"dora": {"dropout": 0.2}}
    )
    assert other.differing == {"dropout": {"lora": 0.1, "dora": 0.2}}


def test_a_mix_and_its_tasks_alone_have_a_mean_each(tmp_path: Path) -> None:
    """With one seed alone and two in the mix the means are of unlike kinds, over cells of the same names."""
    names = ["sample-boolq", "sample-winogrande"]
    alone = [{"train": name, "validation_rows": 20, "eval_rows": 40, "seeds": [0]} for name in names]
    mix = {"train": names, "validation_rows": 20, "eval_rows": 40}
    view = view_of(run(tmp_path, MadeUpRunner(), tasks=[*alone, mix]))
    (pair,) = view.pairs
    assert [one.label for one in pair.pooled] == ["Mean of 2 cells, one seed each", "Mean of 2 cells"]
    assert len(difference_table(view).rows) == 6
    assert "Where there is one seed, the interval is over the rows" in note_on_tests(view)


def test_pairs_come_in_the_plans_order_whoever_diverged(tmp_path: Path) -> None:
    def diverges(job: Job) -> bool:
        return job.method == "lora" and "boolq" in job.folder.name

    methods = ["lora", "dora", "pissa"]
    view = view_of(run(tmp_path, MadeUpRunner(diverges=diverges), tasks=TWO, methods=methods))
    assert view.arms == methods
    assert (view.pairs[0].from_arm, view.pairs[0].to_arm) == ("lora", "dora")


def test_a_training_set_whose_rows_are_not_crossed_has_all_of_them(tmp_path: Path) -> None:
    crossed = {**TWO[0], "rows": [32, 64]}
    record = run(tmp_path, MadeUpRunner(), tasks=[crossed, TWO[1]])
    labels = forgetting_labels(record.forgetting)
    assert any(label.endswith("all rows") for label in labels) and not any("None" in one for one in labels)


def test_a_run_that_groups_share_is_not_read_while_it_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full fine-tuning has no rank, so its runs are those of all ranks.

    Only rank 8 tests it at 1e-4, to compare it with LoRA at one rate. That run takes so long to train again
    that rank 16, which has it among its trials, is finished before.
    """
    monkeypatch.setattr("doratune.study.conduct.POLL_SECONDS", 0.01)
    plan = {"methods": ["lora", "full"], "ranks": [4, 8, 16], "keep_weights": False, "seeds": [0]}

    def accuracy(job: Job, split: str) -> float:
        if job.config is None or split == "test":
            return 0.7
        high = job.config.learning_rate == 1e-3
        if job.method == "full":
            return 0.8 if high else 0.75
        return (0.3 if high else 0.95) if job.config.rank == 8 else (0.9 if high else 0.5)

    class Slow(MadeUpRunner):
        """Removes a run's validation first, as training it again does, and ends after some ticks."""

        def __init__(self) -> None:
            super().__init__(accuracy)
            self.capacity, self.waiting = 2, list[tuple[Job, Future[Outcome], list[None]]]()

        def submit(self, job: Job) -> Future[Outcome]:
            if job.config is None:
                return super().submit(job)
            shutil.rmtree(job.folder / "validation")
            long = job.method == "full" and job.config.learning_rate == 1e-4
            self.waiting.append((job, Future(), [None] * (6 if long else 1)))
            return self.waiting[-1][1]

        def tick(self) -> None:
            for entry in [*self.waiting]:
                job, future, left = entry
                left.pop()
                if not left:
                    self.waiting.remove(entry)
                    shutil.rmtree(job.folder)
                    future.set_result(super().submit(job).result())

    class Ticking(Silent):
        def tick(self) -> None:
            runner.tick()

    first, runner = run(tmp_path, MadeUpRunner(accuracy), **plan), Slow()
    study = opened(tmp_path, also_test=["sample-winogrande"], **plan)
    again = run_study(study, runner, Ticking(), reproduce="")
    for one, other in zip(first.cells, again.cells, strict=True):
        assert [arm.trials for arm in one.arms] == [arm.trials for arm in other.arms]
    refuse_differences(again, computed_again(again, tmp_path / "study"))


def test_dora_minus_lora_comes_first_wherever_the_plan_has_it(tmp_path: Path) -> None:
    view = view_of(run(tmp_path, MadeUpRunner(), methods=["pissa", "lora", "dora"]))
    assert (view.pairs[0].from_arm, view.pairs[0].to_arm) == ("lora", "dora")


def test_a_training_set_that_no_longer_shows_what_it_forgets_is_refused(tmp_path: Path) -> None:
    also = {"also_test": ["sample-hellaswag"]}
    run(tmp_path, MadeUpRunner(), tasks=[TWO[0] | also, TWO[1] | also])
    with pytest.raises(InputError, match=r"sample-hellaswag, as what is kept(.|\n)*sample-boolq"):
        refuse_lost_results(opened(tmp_path, tasks=[TWO[0], TWO[1] | also]))
