"""The layers of an adapter on a base that stays on the disk, compared with PEFT's own merge."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from serving_support import save_adapter, unmerged
from transformers import AutoModelForCausalLM

from doratune.errors import InputError
from doratune.models.fingerprint import model_record
from doratune.models.load import load_model
from doratune.models.weights import WeightFiles
from doratune.records.storage import write_base_model
from doratune.serving.adapted import open_adapted
from doratune.serving.check import check_rows, compare_logits, filled, logits_of

CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "lora": ((), {}),
    "dora": ((), {"use_dora": True}),
    "rslora": ((), {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}}),
    "pissa": ((), {"use_dora": True, "init_lora_weights": "pissa"}),
    "olora": ((), {"init_lora_weights": "olora"}),
    "embeddings": (("embed_tokens", "lm_head"), {"use_dora": True, "modules_to_save": ["norm"]}),
    "tokens": ((), {"trainable_token_indices": [3, 4]}),
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("case", CASES)
def test_each_layer_merges_as_in_peft(case: str, tiny_model: Path, tmp_path: Path) -> None:
    targets, settings = CASES[case]
    adapter = save_adapter(tiny_model, tmp_path / "adapter", *targets, **settings)
    opened, whole = open_adapted(str(adapter)), unmerged(tiny_model, adapter)
    rows = check_rows(opened.base.tokenizer)
    with filled(opened.model, opened.trained_weight):
        found = compare_logits(logits_of(whole), logits_of(opened.model), rows)
    assert found.largest < 1e-5 and found.top1 == 1
    merged = whole.merge_and_unload().state_dict()
    assert opened.layers()
    for layer in opened.layers():
        W = layer.weight()
        result = layer.merged(W)
        assert torch.equal(W, layer.weight()) and not torch.equal(result, W)
        assert (result - merged[layer.parameter]).abs().max() <= 1e-6
        if layer.is_plain:
            start, (A, B, s) = layer.initialised(W), layer.factors()
            dense = start.double() + s * B.double() @ A.double()
            g = layer.gain(start)
            assert (g is None) != layer.is_dora
            assert ((dense if g is None else g[:, None] * dense) - result).abs().max() <= 1e-6
    for name, values in opened.replaced().items():
        assert torch.equal(values, merged[name])
    assert bool(opened.replaced()) == ("modules_to_save" in settings)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_a_base_that_was_changed_in_bfloat16_is_rounded_as_in_training(
    kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter", init_lora_weights=kind)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    trained = PeftModel.from_pretrained(base, str(adapter))  # PEFT repeats the change, in bfloat16
    record = model_record(load_model(str(tiny_model), dtype="bfloat16"))
    write_base_model(adapter, record)
    for layer in open_adapted(str(adapter)).layers():
        W = trained.get_submodule(f"base_model.model.{layer.name}.base_layer").weight
        assert W.dtype == torch.bfloat16
        assert torch.equal(layer.initialised(layer.weight()), W.float())


def test_the_base_is_read_only_where_it_is_used(tiny_model: Path, tmp_path: Path) -> None:
    """No parameter of the base has content, before and after it computed."""
    adapter = save_adapter(tiny_model, tmp_path / "adapter", use_dora=True)
    opened = open_adapted(str(adapter))

    def held() -> int:
        storages = {one.untyped_storage().data_ptr(): one for one in opened.model.parameters()}
        return sum(one.untyped_storage().nbytes() for one in storages.values())

    before = held()
    with filled(opened.model, opened.trained_weight):
        logits_of(opened.model)(torch.tensor([[1, 2, 3]]))
    lora = sum(one.numel() for name, one in opened.model.named_parameters() if "lora_" in name)
    assert before == held() == 4 * (lora + 1)


def test_another_base_is_refused(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    for folder, said in ((tmp_path / "no", "no such model folder"), (tmp_path.parent, "no config.json")):
        with pytest.raises(InputError, match=said) as caught:
            open_adapted(str(adapter), base=str(folder))
        assert caught.value.where == "--base"
    write_base_model(adapter, model_record(load_model(str(tiny_model))))
    open_adapted(str(adapter), base=str(tiny_model))
    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    save_file(
        tensors | {"model.norm.weight": tensors["model.norm.weight"] + 1},
        other / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(InputError, match="another base model") as caught:
        open_adapted(str(adapter), base=str(other))
    assert "--allow-other-base" in caught.value.message and "--base" in caught.value.message
    with caplog.at_level(logging.WARNING):
        assert open_adapted(str(adapter), base=str(other), allow_other_base=True).other_base is not None
    assert "used nevertheless" in caplog.text


@pytest.mark.parametrize("name", ["nothing", "."])
def test_a_folder_without_an_adapter_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run and no adapter"):
        open_adapted(str(tmp_path / name))


def test_every_parameter_of_a_file_has_its_name(tiny_model: Path, tmp_path: Path) -> None:
    opened = open_adapted(str(save_adapter(tiny_model, tmp_path / "adapter")))
    assert {opened.files.key(name) for name in opened.files.tensors} == set(WeightFiles(tiny_model).tensors)
