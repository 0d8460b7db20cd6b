"""Presets and configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from doratune.errors import InputError
from doratune.named_yaml import shipped_names
from doratune.settings import validate
from doratune.study.compare import CompareConfig
from doratune.training.config import TrainConfig
from doratune.training.presets import load_preset


@pytest.mark.parametrize("name", shipped_names("doratune.training", "presets"))
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_shipped_presets_are_valid(name: str, method: str) -> None:
    preset = load_preset(name)
    validate(TrainConfig, {**preset.for_method(method), "output": "run"}, where=name)
    validate(CompareConfig, {**preset.settings, **preset.compare, "output": "run"}, where=name)


# The DoRA paper's commonsense settings (arXiv 2402.09353, and the authors' scripts).
@pytest.mark.parametrize(
    ("name", "lora", "dora"), [("llama-7b", 3e-4, 2e-4), ("llama2-7b", 3e-4, 2e-4), ("llama3-8b", 3e-4, 1e-4)]
)
def test_paper_presets(name: str, lora: float, dora: float) -> None:
    preset = load_preset(name)
    assert preset.for_method("lora")["learning_rate"] == lora
    assert preset.for_method("dora")["learning_rate"] == dora
    config = validate(TrainConfig, {**preset.for_method("dora"), "output": "run"}, where=name)
    assert (config.rank, config.alpha, config.dropout, config.batch_size) == (32, 64.0, 0.05, 16)
    assert (config.epochs, config.cutoff, config.warmup_steps, config.schedule) == (3.0, 256, 100, "linear")
    assert config.targets == ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


def test_preset_of_ones_own_includes_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("include: llama-7b\nrank: 8\nmethods:\n  dora: {rank: 4}\n")
    preset = load_preset(str(path))
    assert preset.for_method("lora")["rank"] == 8 and preset.for_method("dora")["rank"] == 4
    assert preset.for_method("dora")["learning_rate"] == 2e-4


@pytest.mark.parametrize(("more", "dora"), [("", 1e-3), ("methods: {dora: {learning_rate: 1e-4}}\n", 1e-4)])
def test_a_setting_overrides_what_an_included_preset_says_of_one_method(
    tmp_path: Path, more: str, dora: float
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("include: llama-7b\nlearning_rate: 1e-3\n" + more)
    preset = load_preset(str(path))
    assert preset.for_method("lora")["learning_rate"] == 1e-3
    assert preset.for_method("dora")["learning_rate"] == dora


def test_every_fault_is_listed() -> None:
    with pytest.raises(InputError) as caught:
        validate(TrainConfig, {"output": "x", "rank": 0, "epoch": 3.0}, where="here")
    assert "rank" in caught.value.message and "did you mean 'epochs'" in caught.value.message


def test_a_preset_has_settings_of_a_method_in_a_file(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("{name: mine, title: T, description: d, peft: LoraConfig, merges: base}")
    path = tmp_path / "preset.yaml"
    path.write_text(f"learning_rate: 1e-4\nmethods:\n  {own}: {{learning_rate: 5e-3}}\n")
    preset = load_preset(str(path))
    assert preset.for_method(str(own))["learning_rate"] == 5e-3
    assert preset.for_method("dora")["learning_rate"] == 1e-4


def test_an_included_file_is_beside_the_file_that_includes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "base.yaml").write_text("rank: 1\n")
    (tmp_path / "presets/base.yaml").write_text("rank: 2\n")
    (tmp_path / "presets/mine.yaml").write_text("include: base.yaml\n")
    monkeypatch.chdir(tmp_path)
    assert load_preset("presets/mine.yaml").settings["rank"] == 2
