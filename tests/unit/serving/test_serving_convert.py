"""Adapters converted into LoRA, loaded by PEFT itself and compared with the adapter on PEFT itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from serving_models import FAMILIES, converted, distance, dora, save_model
from serving_support import save_adapter, unmerged
from torch import nn

from doratune.errors import DoratuneError, InputError
from doratune.records.serving import ConvertRecord
from doratune.serving import check, files
from doratune.serving.converting.config import ConvertConfig
from doratune.serving.converting.zeros import of_zeros, unadapted
from doratune.serving.servers.contents import read_contents
from doratune.serving.servers.served import check_serving

FULL = 32
"""The size of the largest layers."""


def zeros_in(folder: Path) -> set[str]:
    """The layers of an adapter whose A and B are zeros."""
    tensors = load_file(folder / "adapter_model.safetensors")
    layers = {key.rpartition(".lora_")[0] for key in tensors if ".lora_" in key}
    return {
        one.removeprefix("base_model.model.")
        for one in layers
        if not any(tensor.any() for key, tensor in tensors.items() if key.startswith(f"{one}.lora_"))
    }


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
    filled = {one.rpartition(".")[2] for one in zeros_in(tmp_path / "lora")}
    assert set(settings["target_modules"]) - filled == set(FAMILIES[family][3])
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
    assert any("ranks above it are zeros" in note for note in record.notes) == (rank == 9)


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
    notes = [note for note in record.notes if "LoRA of zeros" not in note]
    assert (said is None and not notes) or any(said and said in note for note in notes)


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


DEFAULT = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
"""doratune's own targets."""


@pytest.mark.parametrize(
    ("targets", "settings", "rank", "filled"),
    [
        (DEFAULT, {}, FULL, {"mlp.gate_proj"}),
        (("k_proj",), {}, FULL // 2, {"self_attn.q_proj", "self_attn.v_proj"}),
        (("up_proj",), {"layers_to_transform": [1]}, FULL, {"mlp.gate_proj"}),
        (("q_proj", "v_proj", "gate_proj"), {}, FULL, set()),
    ],
)
def test_layers_that_sglang_wants_with_the_adapted_ones_are_zeros(
    targets: tuple[str, ...],
    settings: dict[str, Any],
    rank: int,
    filled: set[str],
    families: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    base = families("llama")
    adapter = dora(base, tmp_path / "adapter", *targets, **settings)
    assert ("apart" in read_contents(str(adapter)).parts) == bool(filled)
    indices = settings.get("layers_to_transform", [0, 1])
    names = {f"model.layers.{index}.{module}" for index in indices for module in filled}
    for folder, other_base, how in (
        (tmp_path / "lora", base, {"rank": rank}),
        (tmp_path / "exact" / "adapter", tmp_path / "exact" / "base", {"exact": True}),
    ):
        record = converted(adapter, folder if "rank" in how else folder.parent, **how)
        assert zeros_in(folder) == names
        loaded = unmerged(other_base, folder)
        adapted = {name for name, one in loaded.named_modules() if hasattr(one, "lora_A")}
        assert {f"base_model.model.{name}" for name in names} <= adapted
        assert distance(base, adapter, other_base, folder) < 1e-4
        said = [note for note in record.notes if "LoRA of zeros" in note]
        assert bool(said) == bool(names) and all(f"{len(names)} layers" in note for note in said)
        check = check_serving(str(folder))
        assert "apart" not in check.contents.parts
        assert next(one.loads for one in check.servers if one.server == "sglang") == "yes"
        # The zeros are all that was added: without them the model is the same, to the last bit.
        stripped = shutil.copytree(folder, tmp_path / "stripped", dirs_exist_ok=True)
        tensors = load_file(folder / "adapter_model.safetensors")
        kept = {key: one for key, one in tensors.items() if not any(f".{name}." in key for name in names)}
        config = json.loads((folder / "adapter_config.json").read_text())
        config["target_modules"] = sorted({key.partition(".lora_")[0].split("model.", 2)[2] for key in kept})
        (stripped / "adapter_config.json").write_text(json.dumps(config))
        save_file(kept, stripped / "adapter_model.safetensors", {"format": "pt"})
        ids = torch.arange(5, 25)[None]
        assert torch.equal(loaded(ids).logits, unmerged(other_base, stripped)(ids).logits)


def test_a_base_without_gate_gets_no_zeros() -> None:
    model = nn.ModuleDict({"mlp": nn.ModuleDict({"up_proj": nn.Linear(2, 3), "down_proj": nn.Linear(3, 2)})})
    assert unadapted(model, ["mlp.up_proj", "mlp.down_proj"]) == {}
    model["mlp"]["gate_proj"] = nn.Linear(2, 3)  # type: ignore[index]
    assert unadapted(model, ["mlp.up_proj"]) == {"mlp.gate_proj": (3, 2)}
    assert set(of_zeros({"mlp.gate_proj": (3, 2)}, 4)) == {
        f"base_model.model.mlp.gate_proj.lora_{which}.weight" for which in "AB"
    }


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


def test_the_disk_must_hold_whole_modules_too(
    families: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = families("llama")
    adapter = dora(base, tmp_path / "adapter", "q_proj", modules_to_save=["lm_head"])
    asked: list[int] = []
    monkeypatch.setattr(files, "refuse_small_disk", lambda place, size, where: asked.append(size))
    converted(adapter, tmp_path / "lora", rank=4)
    written = (tmp_path / "lora" / "adapter_model.safetensors").stat().st_size
    assert 4 * 600 * 32 < asked[0] <= written < asked[0] + 4096


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


def test_rows_that_cannot_be_had_are_told_before_anything_is_converted(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = dora(tiny_model, tmp_path / "adapter")
    monkeypatch.setattr(
        "doratune.serving.converting.convert.open_adapted", lambda *_, **__: pytest.fail("opened")
    )
    with pytest.raises(DoratuneError, match="boolq"):
        converted(adapter, tmp_path / "lora", rank=4, task=["boolq"])
    assert not (tmp_path / "lora").exists()
