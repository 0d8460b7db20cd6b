"""Plans with tasks in files, and parts of plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets.config
import huggingface_hub
import pytest
import yaml
from hub_server import answering_hub
from study_support import MadeUpRunner, Silent, opened, write_plan

from doratune import hub
from doratune.data.tasks import get_task
from doratune.errors import DoratuneError, InputError
from doratune.records.study import StudyRecord
from doratune.study.plan_file import load_plan
from doratune.study.study import open_study, refuse_lost_results, run_study

THREE = [
    {"train": name, "validation_rows": 20, "eval_rows": 40}
    for name in ("sample-boolq", "sample-winogrande", "sample-hellaswag")
]


def run(folder: Path, only: list[str] | None = None, **changes: Any) -> StudyRecord:
    plan = load_plan(str(write_plan(folder, **changes)))
    return run_study(open_study(plan, folder / "study", only=only), MadeUpRunner(), Silent(), reproduce="x")


def own(folder: Path, layout: str = "choices") -> dict[str, Any]:
    """An entry of a plan whose task and rows are in files."""
    folder.mkdir(exist_ok=True)
    (folder / "mine.yaml").write_text(yaml.safe_dump({"name": "mine", "layout": layout}), encoding="utf-8")
    # Choices that are numbers: an answer that was turned into an index on the way would be refused.
    rows = [{"question": f"{i}?", "choices": ["1", "2", "3"], "answer": "ABC"[i % 3]} for i in range(60)]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    files = dict.fromkeys(("train_data", "test_data"), str(folder / "rows.json"))
    return {"train": str(folder / "mine.yaml"), "validation_rows": 20, **files}


def test_a_task_in_a_file_is_kept_with_the_study(tmp_path: Path) -> None:
    study = opened(tmp_path, tasks=[own(tmp_path / "a")])
    (material,) = {id(group.material): group.material for group in study.groups}.values()
    assert material.entry.name == "mine" and material.train_record.definition is not None
    (tmp_path / "a/mine.yaml").unlink()
    material.write()
    job = study.groups[0].test("dora", 1e-3, 0)
    assert job.config is not None and job.folder.name.startswith("dora-mine-")
    given = job.config.task[0]
    assert Path(given).is_relative_to(tmp_path / "study")
    assert get_task(given).definition == material.train_record.definition
    assert {one.config.task[0] for one in job.wanted} == {given} and {one.task for one in job.wanted} == {
        "mine"
    }


def test_another_definition_is_another_run_and_another_place_is_not(tmp_path: Path) -> None:
    def name(folder: str, layout: str = "choices") -> list[str]:
        group = opened(tmp_path, tasks=[own(tmp_path / folder, layout)]).groups[0]
        return [group.test("dora", 1e-3, 0).folder.name, group.base().folder.name]

    first, other = name("a"), name("c", "answers")
    assert name("b") == first and all(x != y for x, y in zip(first, other, strict=True))


def test_two_files_with_one_task_s_name_are_refused(tmp_path: Path) -> None:
    entry, other = own(tmp_path / "a"), own(tmp_path / "b", "answers")
    with pytest.raises(InputError, match="another name than mine"):
        opened(tmp_path, tasks=[{**entry, "test": [entry["train"], other["train"]]}])


def test_only_some_tasks_of_a_plan(tmp_path: Path) -> None:
    record = run(tmp_path, ["Sample-Winogrande", "sample-boolq"], tasks=THREE)
    assert [cell.task for cell in record.cells] == ["sample-boolq", "sample-winogrande"]
    assert record.left_out == ["sample-hellaswag"] and record.pending == []
    assert record.notes[0] == "A part of the plan: sample-hellaswag left out with --only."
    assert record.plan is not None and len(record.plan["tasks"]) == 2

    plan = load_plan(str(write_plan(tmp_path, tasks=THREE)))
    with pytest.raises(InputError, match=r"got: sample-boolq, LoRA, seed 0, and 3 more(.|\n)*under --only"):
        refuse_lost_results(open_study(plan, tmp_path / "study", only=["sample-winogrande"]))

    whole = run(tmp_path, tasks=THREE)
    assert whole.left_out == [] and len(whole.cells) == 3
    assert whole.cells[0].arms == record.cells[0].arms


def test_only_some_test_tasks_of_a_training_set(tmp_path: Path) -> None:
    entry = {**THREE[0], "test": ["sample-boolq", "sample-winogrande"]}
    plan = load_plan(str(write_plan(tmp_path, tasks=[entry])))
    study = open_study(plan, tmp_path / "study", only=["sample-winogrande"])
    (wanted,) = study.groups[0].base().wanted
    assert wanted.task == "sample-winogrande" and study.left_out == ("sample-boolq",)


def test_a_task_that_the_plan_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run(tmp_path, ["sample-bolq"], tasks=THREE)
    message = str(caught.value)
    assert "--only" in message and "did you mean sample-boolq?" in message
    assert "one of sample-boolq, sample-winogrande, sample-hellaswag" in message


def test_data_that_is_not_needed_is_not_asked_for(tmp_path: Path) -> None:
    missing = {**THREE[1], "train_data": str(tmp_path / "none.json")}
    with pytest.raises(InputError, match=r"none\.json"):
        run(tmp_path, tasks=[THREE[0], missing])
    assert len(run(tmp_path, ["sample-boolq"], tasks=[THREE[0], missing]).cells) == 1


@pytest.mark.parametrize("sized", [True, False])
def test_a_dry_run_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sized: bool) -> None:
    for module in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(hub, "_silent", {})
    sizes = {"sizes": {"train_rows": 1000, "test_rows": 900, "tokens_per_row": 60}} if sized else {}
    entry = {"train": "boolq", "test": ["boolq", "piqa", "winogrande"], "validation_rows": 20, **sizes}
    plan = load_plan(str(write_plan(tmp_path, tasks=[entry])))
    asked: list[str] = []
    with answering_hub("absent", asked) as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
        if sized:
            study = open_study(plan, tmp_path / "study", only=["boolq", "piqa"], only_to_estimate=True)
            rows = [test.record.rows for test in study.groups[0].material.tests]
            assert rows == [300, 300] and "does not ask the hub" in study.assumed["boolq"]
        else:
            with pytest.raises(DoratuneError, match=r"does not ask the hub(.|\n)*add sizes"):
                open_study(plan, tmp_path / "study", only_to_estimate=True)
    assert asked == [] and not huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_task_that_is_left_out_does_not_show_what_is_forgotten(tmp_path: Path) -> None:
    entry = {**THREE[0], "test": ["sample-boolq", "sample-winogrande"]}
    also = ["sample-winogrande", "sample-hellaswag"]
    plan = load_plan(str(write_plan(tmp_path, tasks=[entry, THREE[2]], also_test=also)))

    def wanted(**only: list[str]) -> list[str]:
        (group, *_) = open_study(plan, tmp_path / "study", **only).groups
        return [one.task for one in group.base().wanted]

    assert wanted() == ["sample-boolq", "sample-winogrande", "sample-hellaswag"]
    assert wanted(only=["sample-boolq"]) == ["sample-boolq", "sample-hellaswag"]
