"""``doratune export``: a file that transformers reads as PEFT's own merged model, or nothing."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf_file import write_gguf
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen2Config

from doratune.errors import DoratuneError, InputError
from doratune.models.gguf import read_gguf
from doratune.records.serving import ExportedGguf
from doratune.serving import files
from doratune.serving.exporting import export as exporting
from doratune.serving.exporting.config import ExportConfig
from doratune.serving.exporting.export import export
from doratune.serving.exporting.gguf_file import GgufFile
from doratune.serving.exporting.gguf_layout import Layout
from doratune.serving.exporting.gguf_plan import plan_gguf
from doratune.serving.exporting.gguf_types import largest_rounding
from doratune.serving.exporting.gguf_writer import GgufPlan

SIZES: dict[str, Any] = {
    "vocab_size": 608,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    **dict(bos_token_id=1, eos_token_id=2, pad_token_id=2),
}
BASES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "tied llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, head_dim=16, query_pre_attn_scalar=256),
    "gpt2": lambda: GPT2Config(
        vocab_size=600, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    ),
}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DoRA": ("llama", dict(target_modules=ALL, use_dora=True)),
    "rsLoRA of several ranks": (
        "llama",
        dict(target_modules=ALL, use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"up_proj": 3}),
    ),
    "DoRA with another head": (
        "llama",
        dict(target_modules=["k_proj"], use_dora=True, modules_to_save=["lm_head"]),
    ),
    "DoRA of the embedding": ("llama", dict(target_modules=["embed_tokens", "q_proj"], use_dora=True)),
    "LoRA of a tied embedding": ("tied llama", dict(target_modules=["embed_tokens", "q_proj"])),
    "LoRA of both": (
        "tied llama",
        dict(target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True),
    ),
    "DoRA of a tied head": ("tied llama", dict(target_modules=["lm_head", "v_proj"], use_dora=True)),
    "trained biases": ("qwen2", dict(target_modules=["q_proj", "k_proj"], bias="lora_only", use_dora=True)),
    "biases of B": ("qwen2", dict(target_modules=["q_proj", "k_proj"], lora_bias=True)),
    "Gemma's norms": (
        "gemma3",
        dict(target_modules=ALL, use_dora=True, modules_to_save=["q_norm", "input_layernorm"]),
    ),
    "Conv1D": ("gpt2", dict(target_modules=["c_attn", "c_proj", "c_fc"], use_dora=True, fan_in_fan_out=True)),
    "PiSSA": ("llama", dict(target_modules=ALL, init_lora_weights="pissa")),
}


class Tiny:
    """Random models, their GGUF files and their adapters, each made once."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self._folder, self._tokenizer = folder, tokenizer

    def model(self, name: str) -> Path:
        place = self._folder / name.replace(" ", "-")
        if not place.is_dir():
            torch.manual_seed(len(name))
            model: Any = AutoModelForCausalLM.from_config(BASES[name]())
            for one in model.parameters():
                one.requires_grad_(False).add_(torch.randn_like(one), alpha=0.05)
            model.save_pretrained(place)
            for file in self._tokenizer.glob("*token*"):
                shutil.copy(file, place)
        return place

    def gguf(self, name: str, kind: str = "F32") -> Path:
        path = self._folder / f"{name}-{kind}.gguf"
        return path if path.is_file() else write_gguf(self.model(name), path, kind)

    def adapter(self, name: str, base: Path | None = None) -> Path:
        model, settings = ADAPTERS[name]
        base = base or self.model(model)
        place = self._folder / f"adapter-{name}-{base.name}".replace(" ", "-")
        if not place.is_dir():
            torch.manual_seed(0)
            config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)
            peft: Any = get_peft_model(self.load(base), config)
            peft.peft_config["default"].base_model_name_or_path = str(base)
            for key, one in peft.named_parameters():
                if one.requires_grad:
                    size = one.data.abs().mean() if "magnitude" in key else 1
                    one.data += 0.05 * size * torch.randn_like(one)
            peft.save_pretrained(place, save_embedding_layers=False)
        return place

    def load(self, base: Path) -> Any:
        if base.suffix == ".gguf":
            return read_gguf(base, dtype=torch.float32)[0]
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    def adapted(self, adapter: Path, base: Path) -> Any:
        """The base and the adapter in PEFT's own code."""
        return PeftModel.from_pretrained(self.load(base), str(adapter)).eval()

    def merged(self, adapter: Path, base: Path) -> dict[str, Tensor]:
        """The parameters of PEFT's own merged model."""
        return dict(self.adapted(adapter, base).merge_and_unload().named_parameters())


@pytest.fixture(scope="module")
def tiny(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"), tiny_model)


def exported(adapter: Path, output: Path, **settings: Any) -> ExportedGguf:
    return export(ExportConfig(target=str(adapter), to="gguf", output=output, **settings))


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:.*have invalid shape")
def test_the_file_is_the_base_with_the_adapter_in_peft(name: str, tiny: Tiny, tmp_path: Path) -> None:
    base, adapter = ADAPTERS[name][0], tiny.adapter(name)
    record = exported(adapter, tmp_path / "new.gguf", base_gguf=tiny.gguf(base))
    read, _ = read_gguf(tmp_path / "new.gguf", dtype=torch.float32)
    ids = torch.arange(3, 63).reshape(2, 30)
    with torch.inference_mode():
        before, after = (model(ids).logits for model in (tiny.load(tiny.model(base)), read.eval()))
        expected = tiny.adapted(adapter, tiny.model(base))(ids).logits
    assert torch.allclose(after, expected, rtol=1e-4, atol=1e-5)
    assert (before - expected).abs().max() > 0.01
    if not tiny.load(tiny.model(base)).config.tie_word_embeddings:  # PEFT merges into both of tied weights
        parameters, merged = dict(read.named_parameters()), tiny.merged(adapter, tiny.model(base))
        assert parameters.keys() == merged.keys()
        for key, weight in merged.items():
            assert torch.allclose(parameters[key], weight, rtol=1e-5, atol=1e-6), key
    assert record.base_difference < 1e-6 and record.check.usable and record.check.logits.top1 == 1
    assert record.bytes == (tmp_path / "new.gguf").stat().st_size
    assert list(tmp_path.iterdir()) == [tmp_path / "new.gguf"]


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_changed_matrices_are_rounded_once(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    adapter = tiny.adapter("DoRA")
    record = exported(adapter, tmp_path / "new.gguf", base_gguf=tiny.gguf("llama"), dtype=kind)
    read = dict(read_gguf(tmp_path / "new.gguf", dtype=torch.float32)[0].named_parameters())
    for key, weight in tiny.merged(adapter, tiny.model("llama")).items():
        limit = largest_rounding(GGMLQuantizationType[kind]) if "proj" in key else 0
        assert (read[key] - weight).norm() <= limit * weight.norm(), key
    assert record.computed == {kind: 14} and record.check.usable


def test_the_base_is_the_file_that_was_trained_on(tiny: Tiny, tmp_path: Path) -> None:
    """A GGUF base is trained on as transformers dequantises it, and its own file is the one rewritten."""
    base = tiny.gguf("llama", "Q4_1")
    adapter = tiny.adapter("DoRA with another head", base)
    record = exported(adapter, tmp_path / "new.gguf", requantize="Q8_0")
    assert record.base_gguf == base.name and record.base_difference == 0
    assert record.computed == {"Q8_0": 3} and record.copied == {"Q4_1": 13, "F32": 5}
    old, new = GgufFile(base), GgufFile(tmp_path / "new.gguf")
    for name in set(old.names) - {"output.weight", "blk.0.attn_k.weight", "blk.1.attn_k.weight"}:
        assert (old.stored(name) == new.stored(name)).all()
    read = dict(read_gguf(new.path, dtype=torch.float32)[0].named_parameters())
    for key, weight in tiny.merged(adapter, base).items():
        assert (read[key] - weight).norm() <= largest_rounding(GGMLQuantizationType.Q8_0) * weight.norm(), key


def test_a_base_of_another_precision_is_said(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        record = exported(tiny.adapter("DoRA"), tmp_path / "new.gguf", base_gguf=tiny.gguf("llama", "Q8_0"))
    assert 0.001 < record.base_difference < 0.02 and "differs from the base" in caplog.text
    assert record.computed == {"Q8_0": 14} and record.check.usable


def test_a_wrong_file_is_kept_as_unusable(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one whose queries and keys are not in llama.cpp's order."""

    class Unpermuted(Layout):
        def arrange(self, parameter: str) -> Any:
            return lambda values: values

    def wrong(file: GgufFile, layout: Layout, *more: Any, **flags: bool) -> GgufPlan:
        return plan_gguf(file, Unpermuted(layout.config), *more, **flags)

    monkeypatch.setattr(exporting, "plan_gguf", wrong)
    with pytest.raises(DoratuneError, match=r"not the base with the adapter[\s\S]*[qk]_proj") as error:
        exported(tiny.adapter("DoRA"), tmp_path / "new.gguf", base_gguf=tiny.gguf("llama"))
    assert error.value.exit_code == 1
    assert [one.name for one in tmp_path.iterdir()] == ["new.gguf.unusable"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_is_stopped_leaves_nothing(
    stop: BaseException, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_: GgufPlan, path: Path) -> None:
        path.write_bytes(b"GGUF")
        raise stop

    monkeypatch.setattr(GgufPlan, "write", write)
    with pytest.raises(type(stop) if isinstance(stop, OSError) else KeyboardInterrupt):
        exported(tiny.adapter("DoRA"), tmp_path / "new.gguf", base_gguf=tiny.gguf("llama"))
    assert not list(tmp_path.iterdir())


def test_a_small_disk_is_refused_first(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match="disk is too small"):
        exported(tiny.adapter("DoRA"), tmp_path / "new.gguf", base_gguf=tiny.gguf("llama"))
    assert not list(tmp_path.iterdir())


def test_bad_input_is_one_error_and_writes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    adapter, good = tiny.adapter("DoRA"), tiny.gguf("llama")
    taken, cut, other = tmp_path / "taken.gguf", tmp_path / "cut.gguf", tmp_path / "text.gguf"
    taken.write_text("mine")
    cut.write_bytes(good.read_bytes()[:-4000])
    other.write_text("no model")
    new = tmp_path / "new.gguf"
    cases: list[tuple[str, Path, Path, dict[str, Any]]] = [
        ("no run and no adapter", tmp_path / "none", new, {}),
        ("is not a GGUF file", adapter, new, {"base_gguf": None}),
        ("no such GGUF file", adapter, new, {"base_gguf": tmp_path / "none.gguf"}),
        ("cannot be read", adapter, new, {"base_gguf": cut}),
        ("cannot be read", adapter, new, {"base_gguf": other}),
        ("not the base model's", adapter, new, {"base_gguf": tiny.gguf("qwen2")}),
        ("another model", adapter, new, {"base_gguf": tiny.gguf("tied llama")}),
        ("type that is not written", adapter, new, {"base_gguf": tiny.gguf("llama", "Q4_0")}),
        ("already there", adapter, taken, {}),
        ("folder does not exist", adapter, tmp_path / "no" / "new.gguf", {}),
        ("already there", adapter, tmp_path, {}),
    ]
    for what, target, output, settings in cases:
        with pytest.raises(InputError, match=what):
            exported(target, output, **{"base_gguf": good, **settings})
    assert sorted(tmp_path.iterdir()) == [cut, taken, other] and taken.read_text() == "mine"


def test_a_file_that_transformers_cannot_read_is_refused(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(*_: object, **__: object) -> None:
        raise InputError("the model cannot be read", got="some reason")

    monkeypatch.setattr(exporting, "read_gguf", unread)
    with pytest.raises(InputError, match=r"transformers cannot read[\s\S]*some reason"):
        exported(tiny.adapter("DoRA"), tmp_path / "new.gguf", base_gguf=tiny.gguf("llama"))


def test_two_types_are_one_too_many() -> None:
    with pytest.raises(InputError, match="--dtype already says"):
        ExportConfig(target="run", to="gguf", output=Path("x.gguf"), dtype="F16", requantize="Q8_0")
