"""A plan with methods of one's own: named as in their files, which are read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from study_support import MadeUpRunner, Silent

from doratune.errors import InputError
from doratune.methods.find import get_method
from doratune.report.markup import to_markdown
from doratune.report.page import page_of
from doratune.study.plan_file import load_plan, recorded_plan
from doratune.study.study import open_study, run_study

OWN = {"name": "vera-deep", "title": "T", "description": "d", "peft": "VeraConfig", "merges": "base"}
OWN |= {"settings": {"rank": "r", "targets": "target_modules"}}


def plan(folder: Path, **changes: object) -> str:
    (folder / "own.yaml").write_text(yaml.safe_dump(OWN), encoding="utf-8")
    values = {
        "title": "T",
        "question": "q?",
        "models": ["smollm2-135m"],
        "methods": ["lora", str(folder / "own.yaml")],
        "tasks": [{"train": "sample-boolq"}],
        "ranks": [4],
        "learning_rates": [1e-4],
        "seeds": [0],
        **changes,
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(folder / "plan.yaml")


def test_an_own_method_goes_by_its_name(tmp_path: Path) -> None:
    own = str(tmp_path / "own.yaml")
    found = load_plan(plan(tmp_path, own_settings={own: {"rank": 64}}))
    assert found.methods == ["lora", "vera-deep"] and found.own_settings == {"vera-deep": {"rank": 64}}
    assert found.method("vera-deep") == get_method(own) and found.method("lora") == get_method("lora")
    Path(own).unlink()
    assert recorded_plan(found.model_dump(mode="json"), where="study.json") == found


@pytest.mark.parametrize("name", ["lora", "another"])
def test_a_definition_in_a_plan_has_its_own_name(tmp_path: Path, name: str) -> None:
    """Such as the plan in a study's record: it must not take the place of a shipped method."""
    definition = OWN if name == "another" else OWN | {"name": name}
    with pytest.raises(InputError, match="own_methods"):
        load_plan(plan(tmp_path, methods=["dora", name], own_methods={name: definition}))


def test_two_files_of_one_name_are_named(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("own.yaml", "other.yaml")]
    path = plan(tmp_path, methods=files)
    Path(files[1]).write_text(yaml.safe_dump(OWN | {"description": "another"}), encoding="utf-8")
    with pytest.raises(InputError, match="several files define a method of one name") as caught:
        load_plan(path)
    assert all(file in str(caught.value.got) for file in files)


def test_an_unknown_method_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean pissa") as caught:
        load_plan(plan(tmp_path, methods=["lora", "pisa"]))
    assert "methods" in str(caught.value.where)


def test_a_study_with_an_own_method_runs_to_its_end_and_goes_on_without_the_file(tmp_path: Path) -> None:
    path = plan(
        tmp_path, tasks=[{"train": "sample-boolq", "rows": 32, "eval_rows": 40}], settings={"epochs": 1.0}
    )
    runner = MadeUpRunner()
    record = run_study(open_study(load_plan(path), tmp_path / "out"), runner, Silent(), reproduce="r")
    (cell,) = record.cells
    assert [arm.name for arm in cell.arms] == ["lora", "vera-deep"]
    assert [(one.from_arm, one.to_arm) for one in cell.differences] == [("lora", "vera-deep")]
    assert "method vera-deep" in record.inputs
    given = {job.method: job.config.method for job in runner.jobs if job.config}
    assert given["lora"] == "lora"
    assert get_method(given["vera-deep"]) == get_method(str(tmp_path / "own.yaml")), "a copy that stays"
    page = to_markdown(page_of(record))
    assert "vera-deep" in page
    assert recorded_plan(record.plan or {}, where="study.json").methods == ["lora", "vera-deep"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers_to_transform": [99], "init_lora_weights": "pissa"}, "Target modules"),
        ({"modules_to_save": ["norrm"]}, "did you mean norm?"),
        ({"use_dora": True, "lora_bias": True}, "not supported for DoRA"),
    ],
)
def test_a_method_that_does_not_fit_the_model_is_refused_when_the_study_is_opened(
    changes: dict[str, object], said: str, tiny_model: Path, tmp_path: Path
) -> None:
    own = {"peft": "LoraConfig", "settings": {}, "arguments": changes}
    (tmp_path / "misfit.yaml").write_text(yaml.safe_dump(OWN | own), encoding="utf-8")
    path = plan(tmp_path, methods=["lora", str(tmp_path / "misfit.yaml")], models=[str(tiny_model)])
    with pytest.raises(InputError, match="vera-deep") as caught:
        open_study(load_plan(path), tmp_path / "out", only_to_estimate=True)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("peft", "arguments"),
    [
        ("LoraConfig", {"init_lora_weights": "pissa"}),
        ("LoraConfig", {"lora_bias": True}),  # of which PEFT warns, as the run says
        ("FrodConfig", {}),
        ("LoHaConfig", {}),
    ],
)
def test_what_needs_the_models_weights_is_not_refused_without_them(
    peft: str, arguments: dict[str, object], tiny_model: Path, tmp_path: Path
) -> None:
    own = {"peft": peft, "settings": {"targets": "target_modules"}, "arguments": arguments}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(OWN | own), encoding="utf-8")
    path = plan(tmp_path, methods=["lora", str(tmp_path / "fit.yaml")], models=[str(tiny_model)])
    open_study(load_plan(path), tmp_path / "out", only_to_estimate=True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"own_methods": {"unlisted": OWN | {"name": "unlisted"}}, "methods": ["lora", "dora"]}, "unlisted"),
        ({"own_methods": {"mine": OWN | {"name": "mine", "match": "nonsense"}}}, "match"),
    ],
)
def test_a_definition_in_a_plan_is_held_to_what_its_file_is(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        load_plan(plan(tmp_path, **{"methods": ["lora", "mine"], **changes}))


def test_a_method_is_not_named_by_its_file_and_by_its_name(tmp_path: Path) -> None:
    both = {str(tmp_path / "own.yaml"): [1e-3], "vera-deep": [1e-4]}
    with pytest.raises(InputError, match="named twice, by its file and by its name"):
        load_plan(plan(tmp_path, own_learning_rates=both))
