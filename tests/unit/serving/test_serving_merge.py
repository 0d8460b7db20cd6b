"""A merged model is base and adapter: on several architectures, tied and untied, in each type."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel
from safetensors.torch import load_file
from serving_support import float32_model, save_adapter, unmerged

from doratune.errors import InputError
from doratune.records.files import read_text
from doratune.records.serving import MergeRecord
from doratune.serving import check
from doratune.serving.check import check_rows, compare_logits, logits_of
from doratune.serving.merging import merge as merging
from doratune.serving.merging.config import MergeConfig
from doratune.serving.merging.merge import merge

SIZES = dict(
    vocab_size=600,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
)
GPT2 = dict(vocab_size=600, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2)
FAMILIES: dict[str, tuple[Callable[..., Any], tuple[str, ...], str]] = {
    "llama": (
        lambda **more: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **more)),
        ("q_proj", "down_proj"),
        "embed_tokens",
    ),
    "qwen3": (
        lambda **more: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SIZES, head_dim=8, **more)),
        ("k_proj", "up_proj"),
        "embed_tokens",
    ),
    "gemma3": (
        lambda **more: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**SIZES, head_dim=8, **more)),
        ("v_proj", "gate_proj"),
        "embed_tokens",
    ),
    "gpt2": (lambda **more: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, **more)), ("c_attn", "c_fc"), "wte"),
    "phi3": (
        lambda **more: hf.Phi3ForCausalLM(hf.Phi3Config(**SIZES, **more)),
        ("qkv_proj", "o_proj"),
        "embed_tokens",
    ),
    "mixtral": (
        lambda **more: hf.MixtralForCausalLM(hf.MixtralConfig(**SIZES, num_local_experts=4, **more)),
        ("q_proj", "v_proj"),
        "embed_tokens",
    ),
}
ROUNDED = {"float32": 2e-6, "bfloat16": 2**-8, "float16": 2**-11}
"""The largest relative error of a weight that is computed in float32 and rounded once."""


def family(name: str, tokenizer: Path, folder: Path, *, dtype: str = "bfloat16", **settings: Any) -> Path:
    torch.manual_seed(1)
    model = FAMILIES[name][0](**settings).to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size="60KB")
    hf.AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def merged(adapter: Path, output: Path, **settings: Any) -> MergeRecord:
    record = merge(MergeConfig(run=[str(adapter)], output=output, **settings))
    written = json.loads((output / "merge.json").read_text())
    assert MergeRecord.model_validate(written) == record
    return record


QUIET = pytest.mark.filterwarnings(
    "ignore:Model (has|with) `tie_word_embeddings", "ignore:Setting `save_embedding_layers`"
)


@QUIET
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_merged_model_is_base_and_adapter(name: str, tied: bool, tiny_model: Path, tmp_path: Path) -> None:
    """In float32 it is PEFT's own merge; in other types each weight is rounded once."""
    _, targets, embedding = FAMILIES[name]
    base = family(name, tiny_model, tmp_path / "base", tie_word_embeddings=tied)
    shards = len(list(base.glob("*.safetensors")))
    assert shards > 1
    adapter = save_adapter(
        base, tmp_path / "adapter", *targets, embedding, use_dora=True, fan_in_fan_out=name == "gpt2"
    )
    whole = unmerged(base, adapter)
    rows = check_rows(hf.AutoTokenizer.from_pretrained(base))
    before = logits_of(whole)
    found = {}
    for dtype in ROUNDED:
        record = merged(adapter, tmp_path / dtype, dtype=dtype)
        assert record.usable and record.check.top1 > 0.95 and len(record.files) == shards
        model = float32_model(tmp_path / dtype)
        found[dtype] = model.state_dict()
        again = compare_logits(before, logits_of(model), rows)
        assert again.largest == pytest.approx(record.check.largest, rel=0.1, abs=2e-6)
        assert (dtype != "float32") or again.largest < 2e-6
        head = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        # The head stays as it was trained: without the embedding's adapter.
        assert not head and bool(record.untied) == tied
    exact = found["float32"]
    for dtype, tensors in found.items():
        for key, value in tensors.items():
            assert ((value - exact[key]).abs() <= ROUNDED[dtype] * exact[key].abs() + 1e-7).all(), key
    if not tied:  # PEFT would change the shared head too
        reference = whole.merge_and_unload().state_dict()
        assert reference.keys() == exact.keys()
        assert all((exact[key] - reference[key]).abs().max() <= 1e-6 for key in exact)


@QUIET
def test_tensors_that_no_adapter_changes_are_the_files_bytes(tiny_model: Path, tmp_path: Path) -> None:
    """Also those that transformers puts together, such as Mixtral's experts."""
    base = family("mixtral", tiny_model, tmp_path / "base", tie_word_embeddings=True)
    record = merged(save_adapter(base, tmp_path / "adapter", "q_proj"), tmp_path / "merged")
    changed = set()
    for file in base.glob("*.safetensors"):
        before, after = load_file(file), load_file(tmp_path / "merged" / file.name)
        assert before.keys() == after.keys()
        changed |= {
            key
            for key, one in before.items()
            if not one.view(torch.uint8).equal(after[key].view(torch.uint8))
        }
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}
    assert record.dtype == "bfloat16" and record.untied == [] and record.layers == {"LoRA linear": 2}
    one, other = (json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "merged"))
    assert one == other
    index = "model.safetensors.index.json"
    assert (
        json.loads((base / index).read_text())["weight_map"]
        == json.loads((tmp_path / "merged" / index).read_text())["weight_map"]
    )


CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "lora": ((), {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}}),
    "biases": ((), {"bias": "lora_only", "lora_bias": True}),
    "all biases": ((), {"bias": "all"}),
    "modules": ((), {"modules_to_save": ["lm_head", "norm"], "use_dora": True}),
    "saved embedding": ((), {"modules_to_save": ["embed_tokens"]}),
    "head": (("lm_head",), {"use_dora": True}),
    "both": (("lm_head", "embed_tokens"), {"use_dora": True}),
    "tokens": ((), {"trainable_token_indices": [3, 4]}),
    "tied adapters": (("embed_tokens",), {"ensure_weight_tying": True}),
    "pissa": ((), {"use_dora": True, "init_lora_weights": "pissa"}),
    "olora": ((), {"init_lora_weights": "olora"}),
}
STAYS_TIED = ("lora", "biases", "all biases", "tokens", "pissa", "olora", "tied adapters")


@QUIET
@pytest.mark.filterwarnings("ignore:Adapter 'default'. 4 LoRA tensor")  # of a bias, which has one dimension
@pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers with bias")
@pytest.mark.parametrize("case", CASES)
def test_all_that_an_adapter_can_hold_is_merged(case: str, tiny_model: Path, tmp_path: Path) -> None:
    """With tied embeddings, where what changes in one of the two must not change the other."""
    targets, settings = CASES[case]
    base = family(
        "llama",
        tiny_model,
        tmp_path / "base",
        dtype="float32",
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
    )
    adapter = save_adapter(base, tmp_path / "adapter", *targets, **settings)
    whole = unmerged(base, adapter)
    record = merged(adapter, tmp_path / "merged")
    assert record.usable and record.dtype == "float32"
    model = float32_model(tmp_path / "merged")
    rows = check_rows(hf.AutoTokenizer.from_pretrained(base))
    found = compare_logits(logits_of(whole), logits_of(model), rows)
    assert found.largest < 5e-6 and found.top1 == 1
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert tied == (case in STAYS_TIED) and record.untied == ([] if tied else ["lm_head.weight"])


def test_the_folder_loads_without_doratune_and_peft(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter", use_dora=True)
    merged(adapter, tmp_path / "merged")
    code = """
import sys
sys.modules["peft"] = sys.modules["doratune"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (one.from_pretrained(sys.argv[1]) for one in (AutoModelForCausalLM, AutoTokenizer))
print(model(**tokenizer("true or false?", return_tensors="pt")).logits[0, -1].argmax().item())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "merged")], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    ids = hf.AutoTokenizer.from_pretrained(tiny_model)("true or false?", return_tensors="pt").input_ids
    assert int(done.stdout) == unmerged(tiny_model, adapter)(ids).logits[0, -1].argmax().item()
    card = read_text(tmp_path / "merged" / "README.md")
    assert "library_name: transformers" in card and "DoRA linear" in card and "Load it" in card


@QUIET
def test_a_model_that_does_not_fit_in_memory_is_checked_by_block(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter", "q_proj", "embed_tokens", use_dora=True)
    whole = merged(adapter, tmp_path / "whole")
    monkeypatch.setattr(check, "available_memory_bytes", lambda: 1)
    blocks = merged(adapter, tmp_path / "blocks")
    assert blocks.check.rows == 1 and blocks.check.positions >= whole.check.positions - 1
    for record in (whole, blocks):
        assert record.usable and record.check.largest < 2e-6 and record.noise.largest < 5e-6
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "blocks" / file).read_bytes()


def test_a_wrong_weight_makes_the_folder_unusable(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight of one layer, a tenth of whose update is missing."""
    base = family("llama", tiny_model, tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", use_dora=True)
    right = merging.MergedWeights.rounded

    def wrong(self: Any, name: str, dtype: torch.dtype) -> torch.Tensor:
        value = right(self, name, dtype)
        before = self._opened.weight(name).float()
        return value.lerp(before, 0.1) if name == "model.layers.1.self_attn.q_proj.weight" else value

    monkeypatch.setattr(merging.MergedWeights, "rounded", wrong)
    record = merge(MergeConfig(run=[str(adapter)], output=tmp_path / "merged", dtype="float32"))
    assert not record.usable and not (tmp_path / "merged").exists()
    folder = tmp_path / "merged-unusable"
    assert record.output == str(folder) and "Do not use" in read_text(folder / "README.md")
    assert not json.loads(read_text(folder / "merge.json"))["usable"]


def test_rounding_is_told(tiny_model: Path, tmp_path: Path) -> None:
    base = family("llama", tiny_model, tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", use_dora=True, moved=0.003)
    record = merged(adapter, tmp_path / "merged")
    exact = unmerged(base, adapter).merge_and_unload().state_dict()
    before, after = (float32_model(folder).state_dict() for folder in (base, tmp_path / "merged"))
    names = [name for name in exact if not exact[name].equal(before[name])]
    lost = {name: (after[name] - exact[name]).double() for name in names}
    moved = {name: (exact[name] - before[name]).double() for name in names}
    shares = {name: (lost[name].norm() / moved[name].norm()).item() for name in names}
    overall = (
        torch.cat([one.flatten() for one in lost.values()]).norm()
        / torch.cat([one.flatten() for one in moved.values()]).norm()
    )
    assert record.rounding is not None and record.rounding.overall == pytest.approx(overall.item(), rel=1e-3)
    assert record.rounding.worst == pytest.approx(max(shares.values()), rel=1e-3)
    assert record.rounding.parameter == max(shares, key=shares.__getitem__)


def test_peft_still_drops_magnitudes_when_it_combines_adapters(tiny_model: Path, tmp_path: Path) -> None:
    """If this fails, merging several runs can be looked at again: doratune refuses it for this reason."""
    for part in ("one", "two"):
        save_adapter(tiny_model, tmp_path / part, use_dora=True)
    model: Any = PeftModel.from_pretrained(float32_model(tiny_model), str(tmp_path / "one"), "one")
    model.load_adapter(str(tmp_path / "two"), "two")
    model.add_weighted_adapter(["one", "two"], [0.5, 0.5], "both", combination_type="cat")
    assert all(
        not layer.lora_magnitude_vector["both"].weight.equal(layer.lora_magnitude_vector["one"].weight)
        for layer in model.modules()
        if "both" in getattr(layer, "lora_magnitude_vector", {})
    )
    ids = torch.arange(5, 25)[None]
    model.set_adapter("one")
    alone = model(ids).logits
    model.set_adapter("both")
    assert (model(ids).logits - alone).abs().max() > 1e-3  # of two equal adapters, it should be one of them


def test_the_output_is_looked_at_before_the_base_is_read(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    config = MergeConfig(run=[str(adapter)], base=str(tmp_path / "absent"), output=adapter)
    with pytest.raises(InputError, match="not empty"):
        merge(config)


def test_another_base_names_the_flag_of_this_command(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    gpt2 = hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2))
    gpt2.save_pretrained(tmp_path / "gpt2")
    for file in tiny_model.glob("tokenizer*"):
        (tmp_path / "gpt2" / file.name).symlink_to(file)
    with pytest.raises(InputError, match="does not fit this base") as caught:
        merge(MergeConfig(run=[str(adapter)], base=str(tmp_path / "gpt2"), output=tmp_path / "new"))
    assert "with --base" in caught.value.message and "--model" not in caught.value.message
