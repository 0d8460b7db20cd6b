"""The split of a training set, and the address of a run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from study_support import opened

from doratune.data.rows import Row
from doratune.data.samples import generate
from doratune.data.source import load_file
from doratune.errors import InputError
from doratune.study.address import FORMER_DEFAULTS, run_address
from doratune.study.material import Material
from doratune.training.config import TrainConfig


def questions(rows: list[Row]) -> set[str]:
    return {row["instruction"] for row in rows}


def split_of(folder: Path, rows: list[Row], **changes: Any) -> Material:
    folder.mkdir(exist_ok=True)
    path = folder / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    entry = {"train": "sample-boolq", "train_data": str(path), "validation_rows": 20}
    return opened(folder, tasks=[entry], **changes).groups[0].material


def test_no_question_is_both_trained_on_and_chosen_on(tmp_path: Path) -> None:
    rows = generate("sample-boolq", "train")[:100]
    repeated = rows + rows[:50]
    found = split_of(tmp_path, repeated)
    validation = found.validation[0].rows
    assert len(validation) == 20 == len(questions(validation))
    assert not questions(validation) & questions(found.train[0].rows)
    assert questions(validation) | questions(found.train[0].rows) == questions(rows)


def test_the_split_is_that_of_the_rows_and_the_seed(tmp_path: Path) -> None:
    rows = generate("sample-boolq", "train")[:100]
    shuffled = random.Random(1).sample(rows, len(rows))
    first, second = split_of(tmp_path / "a", rows), split_of(tmp_path / "b", shuffled)
    assert questions(first.validation[0].rows) == questions(second.validation[0].rows)
    other = split_of(tmp_path / "c", rows, split_seed=1)
    assert questions(first.validation[0].rows) != questions(other.validation[0].rows)


def test_the_files_are_what_the_records_say(tmp_path: Path) -> None:
    found = split_of(tmp_path, generate("sample-boolq", "train")[:100])
    assert not (tmp_path / "study").exists(), "opening a study writes nothing"
    found.write()
    for part in (*found.train, *found.validation):
        loaded = load_file(part.path)
        assert (loaded.rows, loaded.sha256, len(loaded.rows)) == (
            part.rows,
            part.record.sha256,
            part.record.rows,
        )
    assert found.train[0].record.source == f"{tmp_path.name}/rows.json", "no folder of the machine"


def test_nothing_left_to_train_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row is left to train on"):
        split_of(tmp_path, generate("sample-boolq", "train")[:20])


def test_a_single_test_row_is_refused_before_anything_runs(tmp_path: Path) -> None:
    task = {"train": "sample-boolq", "rows": 32, "validation_rows": 20, "eval_rows": 1}
    with pytest.raises(InputError, match="one test row"):
        opened(tmp_path, tasks=[task])


def test_a_row_that_cannot_be_asked_is_refused_before_anything_runs(tmp_path: Path) -> None:
    rows = generate("sample-boolq", "train")[:30]
    with pytest.raises(InputError, match="not one of its candidates"):
        split_of(tmp_path, [*rows, {**rows[0], "answer": "perhaps"}])


def folders(folder: Path, **changes: Any) -> list[str]:
    return [job.folder.name for group in opened(folder, **changes).groups for job in _trials(group)]


def _trials(group: Any) -> list[Any]:
    seed = group.plan.seeds[0]
    return [group.trial(m, rate, seed) for m in group.plan.methods for rate in group.plan.rates(m)]


def test_the_address_of_a_run_is_its_content(tmp_path: Path) -> None:
    rows = generate("sample-boolq", "train")[:100]

    def entry(name: str, rows: list[Row]) -> list[dict[str, Any]]:
        path = tmp_path / name
        path.write_text(json.dumps(rows), encoding="utf-8")
        return [{"train": "sample-boolq", "train_data": str(path), "validation_rows": 20}]

    first = folders(tmp_path, tasks=entry("a.json", rows))
    assert len(set(first)) == len(first) == 4
    assert folders(tmp_path, tasks=entry("b.json", rows)) == first, "a path is no content"
    assert folders(tmp_path, tasks=entry("a.json", rows), seeds=[0, 1, 2], title="t") == first
    assert folders(tmp_path, tasks=entry("a.json", rows), learning_rates=[1e-3, 1e-4]) == first
    saved = {"epochs": 1.0, "warmup_steps": 1, "save_steps": 7}
    assert folders(tmp_path, tasks=entry("a.json", rows), settings=saved) == first
    for changes in (
        {"ranks": [8]},
        {"alpha_over_rank": 1.0},
        {"seeds": [1, 0]},
        {"split_seed": 1},
        {"settings": {"epochs": 2.0, "warmup_steps": 1}},
    ):
        assert not set(folders(tmp_path, tasks=entry("a.json", rows), **changes)) & set(first), changes
    assert not set(folders(tmp_path, tasks=entry("c.json", rows[:99]))) & set(first)


def test_full_fine_tuning_has_no_rank(tmp_path: Path) -> None:
    study = opened(tmp_path, methods=["lora", "full"], ranks=[4, 8])
    first, second = (group.trial("full", 1e-4, 0).folder for group in study.groups)
    assert first == second
    assert study.groups[0].trial("lora", 1e-4, 0).folder != study.groups[1].trial("lora", 1e-4, 0).folder


def test_the_address_of_a_local_model_is_its_files(tmp_path: Path, tiny_model: Path) -> None:
    import shutil

    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    other = shutil.copytree(tiny_model, tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    named = [folders(tmp_path, models=[str(model)]) for model in (tiny_model, copy, other)]
    assert named[0] == named[1]
    assert not set(named[0]) & set(named[2])


# A setting at its default is not part of an address. So when one of these changes, RUN_SCHEMA must go up and
# the new value come here; a new setting needs neither, if its default is what was done before.
DEFAULTS_OF_SCHEMA_1 = {
    "format": "instruct",
    "rows": None,
    "rank": 32,
    "alpha": 64.0,
    "dropout": 0.05,
    "targets": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
    "engine": "doratune",
    "learning_rate": 2e-4,
    "schedule": "linear",
    "warmup_steps": 100,
    "weight_decay": 0.0,
    "epochs": 3.0,
    "steps": None,
    "batch_size": 16,
    "micro_batch_size": None,
    "cutoff": 256,
    "drop_long_rows": False,
    "loss_on": "answer",
    "validation_share": 0.0,
    "seed": 0,
    "dtype": "auto",
    "load_in_4bit": False,
    "gradient_checkpointing": False,
    "trust_remote_code": False,
    "method": "dora",
}


def test_defaults_are_those_that_addresses_leave_out() -> None:
    defaults = {**TrainConfig(output=Path("out")).model_dump(mode="json"), **FORMER_DEFAULTS}
    assert {key: defaults[key] for key in DEFAULTS_OF_SCHEMA_1} == DEFAULTS_OF_SCHEMA_1


def test_a_former_default_has_the_address_it_had() -> None:
    """Computed by the version whose default warm-up was 100 steps: once with it, once with 10."""
    assert run_address(TrainConfig(output=Path("a"), warmup_steps=100), model="m", data="d") == "d2c283b770"
    assert run_address(TrainConfig(output=Path("a"), warmup_steps=10), model="m", data="d") == "caf7e4bd05"
    assert run_address(TrainConfig(output=Path("a")), model="m", data="d") not in ("d2c283b770", "caf7e4bd05")


@pytest.mark.parametrize(
    ("method", "address"),
    [("dora-attached-norm", "343e1da634"), ("dora-rslora", "7509ff96c9"), ("rslora", "345b4ea61c")],
)
def test_a_method_that_was_a_switch_has_the_address_it_had(method: str, address: str) -> None:
    """Computed by the version that had ``--norm-gradient`` and ``--rslora``."""
    assert run_address(TrainConfig(output=Path("a"), method=method), model="m", data="d") == address


def test_every_setting_is_part_of_the_address() -> None:
    plain = run_address(TrainConfig(output=Path("a")), model="m", data="d")
    assert plain == run_address(TrainConfig(output=Path("b"), data=Path("x")), model="m", data="d")
    changed = [
        run_address(TrainConfig(output=Path("a")), model="n", data="d"),
        run_address(TrainConfig(output=Path("a")), model="m", data="e"),
        *(
            run_address(TrainConfig(output=Path("a"), **change), model="m", data="d")  # pyright: ignore
            for change in ({"seed": 1}, {"epochs": 1.0}, {"method": "lora"}, {"dtype": "float32"})
        ),
    ]
    assert len({plain, *changed}) == len(changed) + 1
