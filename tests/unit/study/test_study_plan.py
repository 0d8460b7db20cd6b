"""Plans: those that ship, and those that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from study_support import PLAN, write_plan

from doratune.errors import InputError
from doratune.named_yaml import shipped_names
from doratune.study.cost import work_if_extended, work_left
from doratune.study.grid import groups_of
from doratune.study.material import assumed_material
from doratune.study.plan_file import load_plan

OUR_STUDIES = Path(__file__).parents[3] / "docs/results/studies"
TRAININGS = {  # at the plan's rates, and at those that may be added
    "main": (2 * 3 * (8 + 5 + 6), 2 * 2 * (8 + 5 + 6)),
    "main-full": (3 * 3, 2 * 3),
    "methods": (11 * 3 * 3, 11 * 2 * 3),
    "paper-rates": (2 * 2 * 3, 0),
    "ranks": (5 * 2 * 3 * 3, 5 * 2 * 2 * 3),
    "same-rate": (2 * 2 * 3, 0),
}


@pytest.mark.parametrize("name", shipped_names("doratune.study", "plans"))
def test_shipped_plans_are_valid_and_say_what_they_will_take(name: str) -> None:
    plan = load_plan(name)
    assert plan.choose.on == "validation" and plan.assume is not None
    assert all(entry.sizes is not None for entry in plan.tasks)


def test_every_study_of_ours_has_its_trainings_counted() -> None:
    assert {one.parent.name for one in OUR_STUDIES.glob("*/plan.yaml")} == TRAININGS.keys()


@pytest.mark.parametrize("name", TRAININGS)
def test_our_studies_take_as_many_trainings_as_their_plans_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(OUR_STUDIES.parents[2])  # a plan's files are found from there
    path = OUR_STUDIES / name / "plan.yaml"
    plan = load_plan(str(path))
    rows = [assumed_material(plan, entry, tmp_path) for entry in plan.tasks]
    groups = groups_of(plan, dict.fromkeys(plan.models, "a model"), rows, tmp_path)
    found = [sum(work.runs for _, _, work in left(groups)) for left in (work_left, work_if_extended)]
    assert found == [*TRAININGS[name]]
    said = " ".join(line.removeprefix("#") for line in path.read_text().splitlines() if line.startswith("#"))
    assert f" {found[0]} trainings" in said


def test_a_learning_rate_may_be_written_as_1e_4(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    text = yaml.safe_dump({**PLAN, "learning_rates": ["@"]})
    path.write_text(text.replace("'@'", "1e-4"), encoding="utf-8")
    assert load_plan(str(path)).learning_rates == [0.0001]


def test_the_papers_plan_is_the_papers() -> None:
    plan = load_plan("paper-table-1")
    assert plan.protocol == "generate" and plan.ranks == [32] and plan.alpha_over_rank == 2.0
    assert len(plan.tasks[0].tests) == 8 and plan.settings["epochs"] == 3.0
    assert load_plan("rank-sweep").ranks == [4, 8, 16, 32, 64]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resources": {"gpus": 4, "processes": 2}}, "2 processes and 4 GPUs"),
        ({"methods": ["lora", "vera"], "own_settings": {"vera": {"alpha": 3.0}}}, "no use for this setting"),
        ({"resources": {"gpus": 2}, "settings": {"device_map": "auto"}}, "processes: 1"),
        ({"choose": {"on": "test"}}, r"chosen on the test rows"),
        ({"choose": {"per": "task"}}, r"choose, per: should be 'seed' or 'arm'"),
        ({"choose": {"extend": -1}}, r"choose, extend"),
        ({"choose": {"extend": 1000}}, r"choose, extend: should be less than or equal to 20, got 1000"),
        ({"learning_rates": [1e300, 1e308], "choose": {}}, r"would be zero or infinite"),
        ({"learning_rates": [1e-300, 1e-200], "choose": {}}, r"would be zero or infinite"),
        ({"learning_rates": [1e-200, 1e-100], "choose": {"extend": 20}}, r"would be zero or infinite"),
        ({"learning_rates": [1e-3], "choose": {"extend": 2}}, r"no factor by which to add others"),
        ({"learning_rates": [1e-3, 1.0001e-3], "choose": {"extend": 2}}, r"too close together"),
        ({"batch_sizes": [8, 16], "settings": {"batch_size": 8}}, r"exclude each other(.|\n)*batch_size"),
        ({"epochs": [1.0, 2.0], "settings": {"steps": 9}}, r"exclude each other(.|\n)*steps"),
        ({"batch_sizes": [8, 8]}, r"repeated"),
        ({"tasks": [{**PLAN["tasks"][0], "rows": [16, 16]}]}, r"repeated"),
        ({"methods": ["lora", "doar"]}, r"unknown method(.|\n)*did you mean dora\?"),
        ({"methods": []}, r"methods: should not be empty, got \[\]"),
        ({"tasks": []}, r"tasks: should not be empty"),
        ({"seeds": []}, r"seeds: should not be empty"),
        ({"models": ["no/such/model"]}, r"no such model folder(.|\n)*where: .*plan.yaml, models"),
        ({"data": "no-folder"}, r"no such data folder(.|\n)*where: .*plan.yaml, data"),
        ({"seeds": [1, 1]}, r"repeated"),
        ({"seeds": [0, 2**70]}, r"seeds 2: should be less than 4294967296"),
        ({"split_seed": 2**32}, r"split_seed: should be less than 4294967296"),
        ({"tasks": [{**PLAN["tasks"][0], "seeds": []}]}, r"tasks(.|\n)*seeds"),
        ({"ranks": [0]}, r"ranks"),
        ({"methods": ["ia3", "full"], "ranks": [4, 8]}, r"no method of the plan has a rank"),
        ({"learning_rates": []}, r"learning_rates"),
        ({"learning_rates": ["fast"]}, r"learning_rates"),
        (
            {"own_learning_rates": {"dora": [1e-3]}},
            r"different numbers of learning rates(.|\n)*lora 2, dora 1",
        ),
        ({"own_learning_rates": {"full": [1e-5, 1e-4]}}, r"not in the plan"),
        ({"own_settings": {"full": {"epochs": 2.0}}}, r"not in the plan"),
        ({"own_settings": {"dora": {"seed": 1}}}, r"share this setting(.|\n)*seed"),
        ({"own_settings": {"dora": {"rank": 8}}, "ranks": [4, 8]}, r"crosses several"),
        ({"tasks": [{"train": "sample-boolq"}]}, r"no rows to choose one on"),
        ({"tasks": [{**PLAN["tasks"][0], "train": []}]}, r"train"),
        (
            {
                "tasks": [
                    {**PLAN["tasks"][0], "train": ["sample-boolq", "sample-winogrande"], "train_data": "x"}
                ]
            },
            r"one data file can only be for one task",
        ),
        ({"tasks": [{"train": "sample-bolq", "validation_rows": 9}]}, r"did you mean sample-boolq\?"),
        ({"tasks": [PLAN["tasks"][0], PLAN["tasks"][0]]}, r"listed twice"),
        ({"settings": {"learning_rate": 1e-3}}, r"has its own keys for these settings"),
        ({"settings": {"epochz": 1.0}}, r"did you mean 'epochs'\?"),
        ({"seds": [0]}, r"unknown key 'seds' \(did you mean 'seeds'\?\)"),
        (
            {"protocol": "generate", "tasks": [{**PLAN["tasks"][0], "formats": ["continuation"]}]},
            r"answer labels",
        ),
    ],
)
def test_bad_plans_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_plan(str(write_plan(tmp_path, **changes)))


def test_an_unknown_plan_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"did you mean rank-sweep\?"):
        load_plan("rank-swep")


def test_a_run_has_a_process_for_each_gpu_or_as_many_as_the_plan_says(tmp_path: Path) -> None:
    for resources, processes in (
        ({}, 1),
        ({"gpus": 0.5}, 1),
        ({"gpus": 4}, 4),
        ({"processes": 3}, 3),
        ({"gpus": 4, "processes": 1}, 1),
    ):
        assert load_plan(str(write_plan(tmp_path, resources=resources))).resources.of_a_run == processes


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"tasks": [{**PLAN["tasks"][0], "test": ["sample-boolq", "Sample-BoolQ"]}]}, "sample-boolq, test"),
        ({"tasks": [{**PLAN["tasks"][0], "train": ["sample-boolq", "Sample-BoolQ"]}]}, "train"),
        (
            {"tasks": [{**PLAN["tasks"][0], "also_test": ["piqa", "PIQA"]}]},
            "also_test",
        ),
        ({"also_test": ["sample-winogrande", "sample-Winogrande"]}, "also_test"),
    ],
)
def test_a_task_in_two_spellings_is_named_twice(changes: dict[str, Any], where: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="named twice") as caught:
        load_plan(str(write_plan(tmp_path, **changes)))
    assert where in (caught.value.where or "")


def test_sizes_that_leave_no_row_to_train_on_are_refused(tmp_path: Path) -> None:
    sizes = {"train_rows": 100, "test_rows": 100, "tokens_per_row": 10}
    plan = load_plan(
        str(write_plan(tmp_path, tasks=[{"train": "boolq", "validation_rows": 500, "sizes": sizes}]))
    )
    with pytest.raises(InputError, match=r"no row of each task(.|\n)*501 or more"):
        assumed_material(plan, plan.tasks[0], tmp_path)
