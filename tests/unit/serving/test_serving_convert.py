"""Adapters converted into LoRA, loaded by PEFT itself and compared with the adapter on PEFT itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from serving_models import FAMILIES, converted, distance, dora, save_model
from serving_support import save_adapter, unmerged

from doratune.errors import DoratuneError, InputError
from doratune.records.serving import ConvertRecord
from doratune.serving import check
from doratune.serving.converting.config import ConvertConfig

FULL = 32
"""The size of the largest layers."""


@pytest.mark.parametrize("family", FAMILIES)
def test_at_full_rank_it_is_the_adapter(family: str, families: Callable[[str], Path], tmp_path: Path) -> None:
    base = families(family)
    adapter = dora(base, tmp_path / "adapter", *FAMILIES[family][3], fan_in_fan_out=family == "gpt2")
    record = converted(adapter, tmp_path / "lora", rank=FULL)
    assert record.left_out < 1e-6 and record.least <= record.left_out
    assert record.check.largest < 1e-4 and record.check.top1 == 1
    assert distance(base, adapter, base, tmp_path / "lora") < 1e-4
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert settings["use_dora"] is False and settings["rank_pattern"] == {}
    assert settings["r"] == settings["lora_alpha"] == FULL
    assert sorted(settings["target_modules"]) == sorted(FAMILIES[family][3])
    assert ConvertRecord.model_validate_json((tmp_path / "lora" / "convert.json").read_bytes()) == record


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_layer_is_numpys_best_approximation(
    family: str, families: Callable[[str], Path], tmp_path: Path
) -> None:
    base = families(family)
    adapter = dora(base, tmp_path / "adapter", *FAMILIES[family][3], fan_in_fan_out=family == "gpt2")
    record = converted(adapter, tmp_path / "lora", rank=3)
    plain = unmerged(base, adapter).unload().state_dict()
    merged = unmerged(base, adapter).merge_and_unload().state_dict()
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    wholes, lefts = [], []
    for one in record.layers:
        change = (merged[f"{one.layer}.weight"].double() - plain[f"{one.layer}.weight"].double()).numpy()
        change = change.T if family == "gpt2" else change
        A, B = (tensors[f"base_model.model.{one.layer}.lora_{which}.weight"].double() for which in "AB")
        U, S, Vh = np.linalg.svd(change, full_matrices=False)
        np.testing.assert_allclose((B @ A).numpy(), (U[:, :3] * S[:3]) @ Vh[:3], atol=1e-5)
        whole, left = float(np.linalg.norm(S)), float(np.linalg.norm(S[3:]))
        assert one.norm == pytest.approx(whole, rel=1e-5)
        assert one.left_out == pytest.approx(left / whole, rel=1e-4)
        wholes.append(whole)
        lefts.append(left)
    total = np.linalg.norm(lefts) / np.linalg.norm(wholes)
    assert record.left_out == pytest.approx(float(total), rel=1e-4)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}}])
@pytest.mark.parametrize(("rank", "exact"), [(2, False), (4, True), (9, True)])
def test_lora_into_another_rank(
    settings: dict[str, Any], rank: int, exact: bool, families: Callable[[str], Path], tmp_path: Path
) -> None:
    base = families("llama")
    adapter = save_adapter(base, tmp_path / "adapter", **settings)
    record = converted(adapter, tmp_path / "lora", rank=rank)
    assert (record.left_out < 1e-6) == exact
    assert (distance(base, adapter, base, tmp_path / "lora") < 1e-4) == exact
    assert any("zeros" in note for note in record.notes) == (rank == 9)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
@pytest.mark.parametrize("use_dora", [False, True])
def test_an_initialisation_that_changed_the_base(
    kind: str, use_dora: bool, families: Callable[[str], Path], tmp_path: Path
) -> None:
    base = families("llama")
    adapter = save_adapter(base, tmp_path / "adapter", init_lora_weights=kind, use_dora=use_dora)
    converted(adapter, tmp_path / "lora", rank=FULL)
    assert distance(base, adapter, base, tmp_path / "lora") < 1e-4
    settings = LoraConfig.from_pretrained(str(tmp_path / "lora"))
    assert settings.init_lora_weights is True


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize(
    ("targets", "settings", "said"),
    [
        (("q_proj", "embed_tokens"), {}, None),
        (("q_proj",), {"modules_to_save": ["lm_head"]}, "whole modules (lm_head)"),
        (("q_proj",), {"trainable_token_indices": [3, 4]}, "trained tokens"),
    ],
)
def test_what_is_trained_besides_linear_layers(
    targets: tuple[str, ...],
    settings: dict[str, Any],
    said: str | None,
    families: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    base = families("llama")
    adapter = dora(base, tmp_path / "adapter", *targets, **settings)
    record = converted(adapter, tmp_path / "lora", rank=FULL)
    assert distance(base, adapter, base, tmp_path / "lora") < 1e-4
    assert (said is None and not record.notes) or any(said and said in note for note in record.notes)


def test_trained_biases_are_carried(families: Callable[[str], Path], tmp_path: Path) -> None:
    base = families("gpt2")
    adapter = dora(base, tmp_path / "adapter", "c_attn", fan_in_fan_out=True, bias="all")
    record = converted(adapter, tmp_path / "lora", rank=FULL)
    assert distance(base, adapter, base, tmp_path / "lora") < 1e-4
    assert any("biases" in note for note in record.notes)


def test_layers_smaller_than_the_rank_are_filled_up(families: Callable[[str], Path], tmp_path: Path) -> None:
    """k_proj has 16 outputs; a smaller rank there would be scaled otherwise by llama.cpp."""
    base = families("llama")
    adapter = dora(base, tmp_path / "adapter", "q_proj", "k_proj")
    record = converted(adapter, tmp_path / "lora", rank=24)
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {len(one) for key, one in tensors.items() if "lora_A" in key} == {24}
    assert any("smaller than rank 24" in note and "k_proj" in note for note in record.notes)
    assert {one.size for one in record.layers if "k_proj" in one.layer} == {16}
    assert all(one.left_out < 1e-6 for one in record.layers if "k_proj" in one.layer)


def test_auto_takes_the_smallest_rank_that_keeps_to_the_kl(
    families: Callable[[str], Path], tmp_path: Path
) -> None:
    base = families("llama")
    adapter = dora(base, tmp_path / "adapter")
    kl = {rank: converted(adapter, tmp_path / str(rank), rank=rank).check.kl_mean for rank in (8, 16, 32)}
    assert kl[8] > kl[16] > kl[32]
    record = converted(adapter, tmp_path / "auto", rank="auto", max_kl=1.01 * kl[16])
    assert record.rank == 16 and [one.rank for one in record.tried] == [8, 16]
    assert [one.kl for one in record.tried] == pytest.approx([kl[8], kl[16]])
    assert record.check.kl_mean == pytest.approx(kl[16])
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "auto" / name).read_bytes() == (tmp_path / "16" / name).read_bytes()


def test_auto_without_a_rank_that_does(families: Callable[[str], Path], tmp_path: Path) -> None:
    base = families("llama")
    # The change of k_proj, of 16 outputs, is held whole by rank 16; so only rounding is left.
    adapter = dora(base, tmp_path / "adapter", "q_proj")
    with pytest.raises(DoratuneError, match="no rank keeps to this KL") as caught:
        converted(adapter, tmp_path / "lora", rank="auto", max_kl=1e-30)
    assert not isinstance(caught.value, InputError) and "with rank" in str(caught.value.got)
    assert [one.name for one in tmp_path.iterdir()] == ["adapter"]


def test_a_model_that_does_not_fit_in_memory_is_checked_by_block(
    families: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = families("llama-tied")
    adapter = dora(base, tmp_path / "adapter")
    monkeypatch.setattr(check, "available_memory_bytes", lambda: 1)
    for name, settings in {"lora": {"rank": FULL}, "exact": {"exact": True}}.items():
        record = converted(adapter, tmp_path / name, **settings)
        assert record.check.rows == 1 and record.check.largest < 1e-4


def test_what_is_refused(families: Callable[[str], Path], tmp_path: Path) -> None:
    base = families("llama")
    adapter = dora(base, tmp_path / "adapter")
    broken = dora(base, tmp_path / "broken")
    tensors = load_file(broken / "adapter_model.safetensors")
    key = next(key for key in tensors if "magnitude" in key)
    save_file(
        tensors | {key: tensors[key].fill_(float("nan"))},
        broken / "adapter_model.safetensors",
        {"format": "pt"},
    )
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    other = save_model("llama-tied", tmp_path / "other", base)
    named = converted(adapter, tmp_path / "known", rank=4)
    assert named.base.name == str(base)
    before = sorted(tmp_path.iterdir())
    cases: list[tuple[str, Path, Path, dict[str, Any]]] = [
        ("above the size of every adapted layer", adapter, tmp_path / "new", {"rank": 33}),
        ("not empty", adapter, taken, {"rank": 4}),
        ("not finite", broken, tmp_path / "new", {"rank": 4}),
        ("another base model", tmp_path / "known", tmp_path / "new", {"rank": 4, "base": str(other)}),
        ("no run and no adapter", base, tmp_path / "new", {"rank": 4}),
    ]
    for said, target, output, settings in cases:
        with pytest.raises(InputError, match=said):
            converted(target, output, **settings)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "rank is missing"),
        ({"rank": 8, "exact": True}, "keeps the adapter's rank"),
        ({"rank": "auto"}, "needs the KL divergence"),
        ({"rank": 8, "max_kl": 0.1}, "chooses a rank"),
        ({"rank": 8, "dtype": "bfloat16"}, "only an exact conversion writes"),
        ({"rank": 8, "eval_rows": 3}, "no task"),
    ],
)
def test_flags_that_do_not_go_together(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ConvertConfig(target="run", output=Path("out"), **settings)
