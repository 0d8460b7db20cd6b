from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import synthetic_study
from synthetic_runs import evaluation, record

from doratune.errors import InputError
from doratune.records.files import write_json_atomic
from doratune.records.run import RunRecord
from doratune.records.storage import read_record, read_study
from doratune.records.study import StudyRecord

OLDER = Path(__file__).parents[1] / "older_study.json"


def test_record_round_trip_keeps_the_keys_of_the_file(tmp_path: Path) -> None:
    whole = record("dora", [evaluation("sample-boolq", [True, False])])
    parsed = RunRecord.model_validate(whole)
    write_json_atomic(tmp_path / "record.json", parsed.to_dict())
    written = json.loads((tmp_path / "record.json").read_text())
    assert written["schema"] == "doratune.run"
    assert written.keys() == whole.keys() | {"adapter", "definition"}, "newer than the file"
    assert written["adapter"] is None and written["definition"] is None
    assert written["evaluations"] == whole["evaluations"]
    assert read_record(tmp_path) == parsed


def test_records_from_before_speedups_were_recorded_are_read() -> None:
    whole = record("dora", [evaluation("sample-boolq", [True, False])])
    del whole["training"]["speedups"], whole["evaluations"][0]["speedups"]
    old = RunRecord.model_validate(whole)
    assert old.training is not None
    assert old.training.speedups is None and old.evaluations[0].speedups is None


def test_study_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    made = synthetic_study.study()
    write_json_atomic(path, made.to_dict())
    assert read_study(path) == made
    assert json.loads(path.read_text())["cells"][0]["differences"][0]["from"] == "lora"
    write_json_atomic(path, made.to_dict() | {"schema_version": 4})
    with pytest.raises(InputError, match=r"version 4(.|\n)*version 3"):
        read_study(path)


def chosen_once(made: StudyRecord) -> StudyRecord:
    """What a study without the fields of version 3 is read as."""
    new = made.to_dict()
    new["plan"]["choose"] = {"per": "arm", "extend": 0}
    for cell in new["cells"]:
        cell |= {"chosen_per": "arm", "extended": (0, 0)}
        for arm in cell["arms"]:
            for run in arm["runs"]:
                run["learning_rate"] = arm["learning_rate"]
    return StudyRecord.model_validate(new)


def test_a_study_of_version_2_says_that_its_rates_were_chosen_once(tmp_path: Path) -> None:
    made = synthetic_study.study()
    old = made.to_dict() | {"schema_version": 2}
    for cell in old["cells"]:
        for name in ("batch_size", "epochs", "training_rows", "chosen_per", "extended", "same_rate"):
            del cell[name]
        for arm in cell["arms"]:
            for trial in arm["trials"]:
                del trial["seed"], trial["nll"]
    write_json_atomic(tmp_path / "study.json", old)
    assert read_study(tmp_path / "study.json") == chosen_once(made)


@pytest.mark.parametrize("broken", [{}, {"cells": [{}]}, {"cells": [], "plan": [1]}])
@pytest.mark.parametrize("version", [1, 2])
def test_a_broken_study_of_an_older_version_is_one_message(
    tmp_path: Path, version: int, broken: dict[str, object]
) -> None:
    path = tmp_path / "study.json"
    write_json_atomic(path, {"schema": "doratune.study", "schema_version": version, **broken})
    with pytest.raises(InputError, match="does not follow its schema"):
        read_study(path)


def test_a_study_of_version_1_is_read_with_all_its_figures(tmp_path: Path) -> None:
    made = synthetic_study.study()
    old = made.to_dict() | {"schema_version": 1}
    del old["inputs"]
    for cell in old["cells"]:
        for arm in cell["arms"]:
            del arm["name"], arm["engine"]
    write_json_atomic(tmp_path / "study.json", old)
    assert read_study(tmp_path / "study.json") == chosen_once(made)
    old["plan"]["settings"] = {"engine": "peft"}
    write_json_atomic(tmp_path / "study.json", old)
    arms = read_study(tmp_path / "study.json").cells[0].arms
    assert {arm.method: arm.engine for arm in arms if arm.method in ("dora", "full")} == {
        "dora": "peft",
        "full": None,
    }


def test_the_study_of_an_older_version_is_read() -> None:
    """Everything that it says is kept; what was not recorded then is added."""
    written = json.loads(OLDER.read_text())
    found = read_study(OLDER).to_dict()
    assert found["schema_version"] == 3
    for name in ("cells", "pooled", "inputs", "settings", "notes"):
        keeps(written[name], found[name])
    assert {cell["chosen_per"] for cell in found["cells"]} == {"arm"}
    assert all(run["learning_rate"] for cell in found["cells"] for arm in cell["arms"] for run in arm["runs"])


def keeps(written: Any, found: Any) -> None:
    """Assert that ``found`` has all of ``written``, and perhaps other keys."""
    if isinstance(written, dict):
        for key, value in written.items():
            keeps(value, found[key])
    elif isinstance(written, list):
        assert len(written) == len(found)
        for one, other in zip(written, found, strict=True):
            keeps(one, other)
    else:
        assert written == found


def test_a_loss_that_is_not_finite_becomes_null() -> None:
    whole = record("dora", [])
    whole["training"]["final_loss"] = math.nan
    training = RunRecord.model_validate(whole).training
    assert training is not None
    assert training.final_loss is None
    whole["training"]["seconds"] = math.inf
    with pytest.raises(ValueError, match="finite"):
        RunRecord.model_validate(whole)
