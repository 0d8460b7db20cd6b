"""Comparisons: the plan made from the flags, the runs that follow, and how they resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from study_support import MadeUpRunner, Silent

from doratune.data.mix import MIXED
from doratune.data.samples import generate
from doratune.errors import InputError
from doratune.records.storage import read_study
from doratune.records.study import StudyRecord
from doratune.study import compare
from doratune.study.compare import CompareConfig
from doratune.study.execute import merged
from doratune.study.plan import Plan
from doratune.study.study import open_study, run_study
from doratune.training.config import TrainConfig
from doratune.training.data import load_training_examples

FLAGS: dict[str, Any] = {
    "model": "smollm2-135m",
    "task": ["sample-boolq"],
    "format": "continuation",
    "rank": 4,
    "alpha": 8.0,
    "learning_rate": 1e-3,
    "rows": 32,
    "eval_rows": 20,
    "epochs": 1.0,
    "warmup_steps": 1,
    "validation_rows": 10,
}


def config(folder: Path, **changes: Any) -> CompareConfig:
    return CompareConfig(**{**FLAGS, "output": folder / "out", **changes})


def planned(folder: Path, **changes: Any) -> Plan:
    return compare.comparison_plan(config(folder, **changes), {})


def run(
    folder: Path, runner: MadeUpRunner | None = None, *, resume: bool = False, **changes: Any
) -> StudyRecord:
    """What ``doratune compare`` does between its flags and its report."""
    plan, output = planned(folder, **changes), folder / "out"
    compare.check_output(output, resume=resume, overwrite=False)
    earlier = compare.read_earlier(output) if resume else None
    study = open_study(plan, output)
    if earlier is not None:
        compare.check_same(study, earlier)
    return run_study(study, runner or MadeUpRunner(), Silent(), reproduce="doratune compare")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_one_rate_needs_no_trial_and_no_held_out_rows(tmp_path: Path) -> None:
    runner = MadeUpRunner()
    record = run(tmp_path, runner)
    assert runner.done == [
        "base base",
        "test lora, rate 0.001, seed 0",
        "test dora, rate 0.001, seed 0",
    ]
    (cell,) = record.cells
    assert cell.validation is None and [arm.trials for arm in cell.arms] == [[], []]
    assert cell.train is not None and cell.train.rows == len(generate("sample-boolq", "train"))
    assert [arm.learning_rate for arm in cell.arms] == [1e-3, 1e-3]
    assert len(cell.differences) == 1 and cell.base is not None


def test_among_several_rates_the_choice_is_a_study_s(tmp_path: Path) -> None:
    runner = MadeUpRunner()
    record = run(tmp_path, runner, learning_rates=[1e-4, 1e-3], seeds=[0, 1])
    assert [one for one in runner.done if one.startswith("trial")] == [
        f"trial {method}, rate {rate:g}, seed {seed}"
        for rates in ([1e-4, 1e-3], [1e-2])  # the best is at an end, so another is tried beyond it
        for seed in (0, 1)
        for method in ("lora", "dora")
        for rate in rates
    ]
    (cell,) = record.cells
    assert cell.validation is not None and cell.validation.rows == 10
    assert [arm.learning_rate for arm in cell.arms] == [1e-3, 1e-3]
    assert [len(arm.runs) for arm in cell.arms] == [2, 2]


def test_several_tasks_are_one_training_set_and_a_cell_each(tmp_path: Path) -> None:
    runner = MadeUpRunner()
    record = run(tmp_path, runner, task=["sample-boolq", "sample-winogrande"])
    assert [job.stage for job in runner.jobs] == ["base", "test", "test"]
    assert [cell.task for cell in record.cells] == ["sample-boolq", "sample-winogrande"]
    train = record.cells[0].train
    assert train is not None and train == record.cells[1].train
    assert train.parts == {
        task: len(generate(task, "train")) for task in ("sample-boolq", "sample-winogrande")
    }
    assert [one.cells for one in record.pooled] == [
        ["sample-boolq (continuation)", "sample-winogrande (continuation)"]
    ]


def test_tasks_are_evaluated_with_one_loading_of_the_model(tmp_path: Path) -> None:
    tasks = ["sample-boolq", "sample-winogrande"]
    group = open_study(planned(tmp_path, task=tasks), tmp_path / "out").groups[0]
    for job in (group.base(), group.test("dora", 1e-3, 0)):
        assert [config.task for config in merged(job.left())] == [tasks]


@pytest.mark.parametrize("rates", [None, [1e-4, 1e-3]])
def test_a_mixture_is_trained_on_as_train_mixes_it(tmp_path: Path, rates: list[float] | None) -> None:
    tasks = ["sample-boolq", "sample-winogrande"]
    study = open_study(planned(tmp_path, task=tasks, learning_rates=rates, rows=20), tmp_path / "out")
    study.groups[0].material.write()
    ours = study.groups[0].test("dora", 1e-3, 3).config
    assert ours is not None
    examples, data = load_training_examples(ours)
    assert [(one.task, one.rows) for one in data] == [
        (part.task, len(part.rows)) for part in study.groups[0].material.train
    ]
    assert len(examples) == 40, "so many rows of each task"
    if rates is None:
        plain = TrainConfig(task=tasks, format="continuation", rows=20, seed=3, output=tmp_path / "x")
        assert examples == load_training_examples(plain)[0]
    else:
        held = {row["instruction"] for part in study.groups[0].material.validation for row in part.rows}
        assert len(held) == 10
        trained = {row["instruction"] for part in study.groups[0].material.train for row in part.rows}
        assert not held & trained


def test_seeds_rates_and_tasks_may_be_added_and_only_what_is_new_is_run(tmp_path: Path) -> None:
    rates = [1e-4, 1e-3, 1e-2]
    run(tmp_path, learning_rates=rates, seeds=[2])
    runner = MadeUpRunner()
    run(tmp_path, runner, resume=True, learning_rates=rates, seeds=[0, 2])
    assert len(runner.done) == 8 and all(one.endswith("seed 0") for one in runner.done)
    runner = MadeUpRunner()
    run(tmp_path, runner, resume=True, learning_rates=[1e-5, *rates], seeds=[2, 0])
    assert len(runner.done) == 4 and all("rate 1e-05" in one for one in runner.done)
    runner = MadeUpRunner()
    more = ["sample-boolq", "sample-winogrande"]
    record = run(tmp_path, runner, resume=True, task=more, learning_rates=[1e-5, *rates], seeds=[2, 0])
    assert [cell.task for cell in record.cells] == more


def test_a_second_rate_may_be_added_to_one(tmp_path: Path) -> None:
    run(tmp_path)
    record = run(tmp_path, resume=True, learning_rates=[1e-3, 1e-4])
    assert record.cells[0].validation is not None


def test_another_comparison_is_not_resumed_and_every_difference_is_named(tmp_path: Path) -> None:
    run(tmp_path)
    before = content(tmp_path)
    runner = MadeUpRunner()
    with pytest.raises(InputError) as raised:
        run(tmp_path, runner, resume=True, rank=16, learning_rate=5e-2, eval_rows=40)
    assert raised.value.exit_code == 2
    for difference in ("rank: 4 -> 16", "learning_rate of dora: 0.001 -> 0.05", "eval_rows: 20 -> 40"):
        assert difference in raised.value.message
    assert runner.jobs == [] and content(tmp_path) == before


def test_another_way_of_choosing_is_told_when_an_older_comparison_is_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rates, path = [1e-4, 1e-3], tmp_path / "out" / "study.json"
    run(tmp_path, learning_rates=rates)
    run(tmp_path, resume=True, learning_rates=rates)
    assert "chose one learning rate for all seeds" not in caplog.text
    old = json.loads(path.read_text())
    path.write_text(json.dumps(old | {"plan": old["plan"] | {"choose": {"per": "arm", "extend": 0}}}))
    run(tmp_path, resume=True, learning_rates=rates)
    assert "chose one learning rate for all seeds" in caplog.text


def test_removed_learning_rates_are_named_and_nothing_else(tmp_path: Path) -> None:
    run(tmp_path, learning_rates=[1e-4, 1e-3])
    with pytest.raises(InputError) as raised:
        run(tmp_path, resume=True, learning_rates=[1e-3])
    assert "learning_rate of dora: 0.0001, 0.001 -> 0.001" in raised.value.message
    assert "validation_rows" not in raised.value.message, "rows are held out for several rates only"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "instruct"}, "format: continuation -> instruct"),
        ({"rows": 33}, "rows: 32 -> 33"),
        ({"alpha": 16.0}, "alpha: 8.0 -> 16.0"),
        ({"batch_size": 4}, "batch_size: 16 -> 4"),
        ({"dropout": 0.5}, "dropout: 0.05 -> 0.5"),
        ({"dtype": "float32"}, "dtype: auto -> float32"),
        ({"format": "instruct", "protocol": "generate"}, "protocol: likelihood -> generate"),
        ({"engine": "peft"}, "engine: doratune -> peft"),
        ({"seeds": [1]}, "seed: 0 -> 1"),
        ({"task": ["sample-winogrande"]}, "task: sample-boolq -> sample-winogrande"),
        ({"eval_batch_size": 8}, "eval_batch_size: 32 -> 8"),
    ],
)
def test_every_difference_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    run(tmp_path)
    with pytest.raises(InputError) as raised:
        run(tmp_path, resume=True, **changes)
    assert message in raised.value.message


def test_settings_without_effect_may_change(tmp_path: Path) -> None:
    run(tmp_path)
    runner = MadeUpRunner()
    run(tmp_path, runner, resume=True, save_steps=7, keep_checkpoints=1, device_map="auto")
    assert runner.jobs == []


def test_other_rows_in_the_same_file_are_another_comparison(tmp_path: Path) -> None:
    rows = {split: generate("sample-boolq", split)[:60] for split in ("train", "test")}
    for split, of_split in rows.items():
        (tmp_path / f"{split}.json").write_text(json.dumps(of_split))
    files = {"data": tmp_path / "train.json", "test_data": tmp_path / "test.json"}
    run(tmp_path, **files)
    shutil.copy(tmp_path / "train.json", tmp_path / "copy.json")
    runner = MadeUpRunner()
    run(tmp_path, runner, resume=True, **{**files, "data": tmp_path / "copy.json"})
    assert runner.jobs == [], "another name of the same rows"
    for split in ("train", "test"):
        path = tmp_path / f"{split}.json"
        path.write_text(json.dumps(rows[split][:-1]))
        what = "training rows" if split == "train" else "test rows"
        with pytest.raises(InputError, match=f"{what} of sample-boolq: \\w+ -> \\w+"):
            run(tmp_path, resume=True, **files)
        path.write_text(json.dumps(rows[split]))


def test_other_weights_at_the_same_path_are_another_comparison(tmp_path: Path, tiny_model: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    run(tmp_path, model=str(model))
    runner = MadeUpRunner()
    run(tmp_path, runner, resume=True, model=str(tmp_path / "out/../model"))
    assert runner.jobs == [], "another spelling of the same folder"
    weights = next(model.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(InputError, match=r"model: .*/model, \w+ -> .*/model, \w+"):
        run(tmp_path, resume=True, model=str(model))


def test_a_folder_that_holds_a_comparison_is_not_written_to(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(InputError, match="already holds a comparison"):
        run(tmp_path)
    compare.check_output(tmp_path / "out", resume=False, overwrite=True)
    compare.remove_comparison(tmp_path / "out")
    runner = MadeUpRunner()
    run(tmp_path, runner)
    assert len(runner.jobs) == 3


def test_only_the_comparison_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(tmp_path)
    others = [out / "data/mine.json", out / "runs/by-hand/record.json", out / "runs/notes.txt"]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_text("mine")
    compare.remove_comparison(out)
    assert [other.read_text() for other in others] == ["mine"] * 3
    assert not (out / "study.json").exists()
    assert {path.name for path in (out / "runs").iterdir()} == {"by-hand", "notes.txt"}


def test_a_comparison_is_not_both_resumed_and_replaced(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not both"):
        compare.check_output(tmp_path, resume=True, overwrite=True)


@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True)])
def test_a_run_directory_is_not_made_a_comparison(tmp_path: Path, flags: tuple[bool, bool]) -> None:
    (tmp_path / "config.yaml").write_text("method: lora\n", encoding="utf-8")
    with pytest.raises(InputError, match="run directory"):
        compare.check_output(tmp_path, resume=flags[0], overwrite=flags[1])


def test_a_model_folder_that_is_missing_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model folder"):
        run(tmp_path, model=str(tmp_path / "gone"))
    assert not (tmp_path / "out").exists()


def test_a_comparison_that_is_not_there_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no comparison to resume"):
        run(tmp_path, resume=True)
    assert not (tmp_path / "out").exists()


def test_a_comparison_of_an_older_version_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/comparison.json").write_text("{}")
    with pytest.raises(InputError, match=r"older version(.|\n)*doratune report RUN"):
        run(tmp_path, resume=True)
    with pytest.raises(InputError, match="already holds a comparison"):
        run(tmp_path)


def own(folder: Path, **changes: Any) -> Plan:
    return compare.comparison_plan(config(folder), {"dora": config(folder, **changes)})


def test_a_method_may_have_its_own_settings(tmp_path: Path) -> None:
    plan = own(tmp_path, rank=8, targets=["q_proj"], learning_rate=5e-4)
    study = open_study(plan, tmp_path / "out")
    lora, dora = (
        study.groups[0].test(method, plan.rates(method)[0], 0).config for method in compare.COMPARED
    )
    assert lora is not None and dora is not None
    assert (lora.rank, lora.alpha, lora.learning_rate) == (4, 8.0, 1e-3)
    assert (dora.rank, dora.alpha, dora.learning_rate, dora.targets) == (8, 8.0, 5e-4, ["q_proj"])
    record = run_study(study, MadeUpRunner(), Silent(), reproduce="")
    assert record.cells[0].rank is None
    assert "The methods differ in rank: LoRA 4, DoRA 8." in record.notes
    assert record.differing["rank"] == {"lora": 4, "dora": 8}


@pytest.mark.parametrize("changes", [{"seed": 1}, {"rows": 5}, {"format": "instruct"}, {"eval_rows": 3}])
def test_a_method_cannot_have_its_own_rows_or_seed(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"share this setting(.|\n)*{next(iter(changes))}"):
        own(tmp_path, **changes)


@pytest.mark.parametrize(("rank", "alpha"), [(49, 1.0), (3, 10.0), (7, 64.0)])
def test_alpha_is_exactly_as_given(tmp_path: Path, rank: int, alpha: float) -> None:
    study = open_study(planned(tmp_path, rank=rank, alpha=alpha), tmp_path / "out")
    job = study.groups[0].test("lora", 1e-3, 0)
    assert job.config is not None and job.config.alpha == alpha


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs a task"):
        planned(tmp_path, task=[])
    with pytest.raises(InputError, match="one data file can only be for one task"):
        planned(tmp_path, task=["sample-boolq", "sample-winogrande"], data=tmp_path / "x.json")
    with pytest.raises(InputError, match="answer labels"):
        planned(tmp_path, protocol="generate")
    with pytest.raises(InputError, match="did you mean sample-boolq"):
        planned(tmp_path, task=["sample-bolq"])
    with pytest.raises(InputError, match="repeated"):
        planned(tmp_path, seeds=[1, 1])


def test_the_mix_is_tested_task_by_task(tmp_path: Path) -> None:
    assert planned(tmp_path, task=["commonsense-mix"]).tasks[0].tests == list(MIXED)


def test_a_comparison_recorded_under_an_older_name_of_a_setting_is_resumed(tmp_path: Path) -> None:
    """``eval_rows`` of a plan was called ``limit``."""
    run(tmp_path)
    path = tmp_path / "out" / "study.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    (task,) = record["plan"]["tasks"]
    task["limit"] = task.pop("eval_rows")
    path.write_text(json.dumps(record), encoding="utf-8")
    runner = MadeUpRunner()
    run(tmp_path, runner, resume=True)
    assert runner.jobs == []
    with pytest.raises(InputError, match="eval_rows: 20 -> 40"):
        run(tmp_path, resume=True, eval_rows=40)


@pytest.mark.parametrize(
    ("given", "missing"), [({}, "--data"), ({"data": Path("rows.jsonl")}, "--test-data")]
)
def test_the_file_that_is_missing_is_named(tmp_path: Path, given: dict[str, Path], missing: str) -> None:
    wanted = CompareConfig(output=tmp_path / "out", task=["multiple-choice"], **given)
    with pytest.raises(InputError, match="are in a file, and none was given") as raised:
        compare.comparison_plan(wanted, {})
    assert raised.value.where == missing and f"{missing} FILE" in (raised.value.fix or "")


def test_a_comparison_of_other_methods_has_them_as_its_arms(tmp_path: Path) -> None:
    runner = MadeUpRunner()
    record = run(tmp_path, runner, methods=["lora", "rslora"])
    (cell,) = record.cells
    assert [arm.name for arm in cell.arms] == ["lora", "rslora"]
    assert [(one.from_arm, one.to_arm) for one in cell.differences] == [("lora", "rslora")]
    assert [job.config.method for job in runner.jobs if job.config] == ["lora", "rslora"]
    again = MadeUpRunner()
    assert run(tmp_path, again, resume=True, methods=["lora", "rslora"]).cells == record.cells
    assert again.jobs == []
    with pytest.raises(InputError) as raised:
        run(tmp_path, resume=True)
    assert raised.value.got == "methods: lora, rslora -> lora, dora"


def test_a_changed_method_file_is_another_comparison(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    text = (
        "name: mine\ntitle: M\ndescription: d\npeft: LoraConfig\nmerges: base\narguments: {use_rslora: %s}\n"
    )
    file.write_text(text % "true", encoding="utf-8")
    run(tmp_path, methods=["lora", str(file)])
    file.write_text(text % "false", encoding="utf-8")
    with pytest.raises(InputError, match=r"the content of the file of method mine: \w+ -> \w+"):
        run(tmp_path, resume=True, methods=["lora", str(file)])


def test_a_comparison_with_a_methods_own_rank_is_resumed_from_an_older_version(tmp_path: Path) -> None:
    """Its plan has the rank alone; the alpha was the shared one, as now."""
    study = open_study(own(tmp_path, rank=8), tmp_path / "out")
    run_study(study, MadeUpRunner(), Silent(), reproduce="")
    path = tmp_path / "out/study.json"
    record = json.loads(path.read_text())
    assert record["plan"]["own_settings"]["dora"].pop("alpha") == 8.0
    path.write_text(json.dumps(record))
    compare.check_same(study, read_study(path))
