"""The exact conversion, loaded by transformers and PEFT alone and compared with the adapter on PEFT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from serving_models import FAMILIES, converted, distance, dora, save_model
from serving_support import float32_model, save_adapter, unmerged
from transformers import AutoTokenizer

from doratune.errors import InputError
from doratune.serving.check import check_rows, compare_logits, logits_of


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_adapter(family: str, families: Callable[[str], Path], tmp_path: Path) -> None:
    base = families(family)
    adapter = dora(base, tmp_path / "adapter", *FAMILIES[family][3], fan_in_fan_out=family == "gpt2")
    record = converted(adapter, tmp_path / "out", exact=True)
    assert record.rank is None and record.check.largest < 1e-4
    assert distance(base, adapter, tmp_path / "out" / "base", tmp_path / "out" / "adapter") < 1e-4
    settings = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert settings["use_dora"] is False and settings["r"] == 4


def test_only_adapted_weights_of_the_base_change(families: Callable[[str], Path], tmp_path: Path) -> None:
    base = families("llama-tied")
    adapter = dora(base, tmp_path / "adapter", "q_proj")
    converted(adapter, tmp_path / "out", exact=True)
    before = float32_model(base).state_dict()
    after = float32_model(tmp_path / "out" / "base").state_dict()
    changed = {name for name, values in before.items() if not torch.equal(values, after[name])}
    assert changed == {name for name in before if "q_proj" in name}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize(
    ("family", "targets", "settings"),
    [
        ("llama", ("q_proj",), {"use_rslora": True, "rank_pattern": {"layers.1.self_attn.q_proj": 2}}),
        ("llama", ("q_proj",), {"init_lora_weights": "pissa"}),
        ("llama", ("q_proj",), {"modules_to_save": ["lm_head"]}),
        ("llama", ("q_proj", "lm_head"), {}),
        ("llama-tied", ("q_proj", "lm_head"), {}),
    ],
)
def test_other_settings(
    family: str,
    targets: tuple[str, ...],
    settings: dict[str, Any],
    families: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    base = families(family)
    adapter = dora(base, tmp_path / "adapter", *targets, **settings)
    record = converted(adapter, tmp_path / "out", exact=True)
    assert distance(base, adapter, tmp_path / "out" / "base", tmp_path / "out" / "adapter") < 1e-4
    said = "no longer shared" if family == "llama-tied" else "whole modules"
    expected = family == "llama-tied" or "modules_to_save" in settings
    assert any(said in note for note in record.notes) == expected


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_base_in_bfloat16_rounds_once(dtype: str, tiny_model: Path, tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base", tiny_model, torch.bfloat16)
    adapter = dora(base, tmp_path / "adapter", "q_proj", moved=0.02)
    record = converted(adapter, tmp_path / "out", exact=True, dtype=dtype)
    new = float32_model(tmp_path / "out" / "base").state_dict()
    merged = unmerged(base, adapter)
    for layer in range(2):
        module = merged.base_model.model.model.layers[layer].self_attn.q_proj
        W, A, B = (
            one.weight.detach() for one in (module.base_layer, module.lora_A.default, module.lora_B.default)
        )
        m = module.lora_magnitude_vector.default.weight.detach()
        g = m / torch.linalg.vector_norm(W + module.scaling["default"] * B @ A, dim=1)
        exact = g[:, None] * W
        found = new[f"model.layers.{layer}.self_attn.q_proj.weight"]
        if dtype == "auto":
            assert (
                torch.equal(found, exact.to(torch.bfloat16).float())
                or ((found - exact).abs() <= 2**-8 * exact.abs()).all()
            )
        else:
            torch.testing.assert_close(found, exact)
    rows = check_rows(AutoTokenizer.from_pretrained(base))
    after = unmerged(tmp_path / "out" / "base", tmp_path / "out" / "adapter")
    assert (compare_logits(logits_of(merged), logits_of(after), rows).largest < 1e-4) == (dtype == "float32")
    assert (record.check.largest < 1e-4) == (dtype == "float32")


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_what_has_no_gain_to_fold(families: Callable[[str], Path], tmp_path: Path) -> None:
    base = families("llama")
    lora = save_adapter(base, tmp_path / "lora")
    embedding = dora(base, tmp_path / "embedding", "q_proj", "embed_tokens")
    for adapter, said in ((lora, "the adapter is LoRA"), (embedding, "gain of some layers cannot")):
        with pytest.raises(InputError, match=said):
            converted(adapter, tmp_path / "out", exact=True)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["embedding", "lora"]
