"""``speed_up``: a model is the same with the speed-ups, without them, and after they were undone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from speedups_support import batch, step
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama import modeling_llama
from trl.trainer.utils import add_fused_lm_head

from doratune.errors import DoratuneError, InputError
from doratune.peft import enable
from doratune.speedups import SpeedupReport, SpeedupSettings, install, speed_up

SIZES = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
PACKED = {"supervised_forward": 1, "packing": 1, "attention": 3}
LIKE_LLAMA = {**PACKED, "last_mlp": 1, "rms_norm": 7, "rotary": 3}
MODELS: dict[str, tuple[Any, Any, dict[str, Any], dict[str, int]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}, LIKE_LLAMA),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}, LIKE_LLAMA),
    # Norms of queries and keys in each layer.
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}, {**LIKE_LLAMA, "rms_norm": 13}),
    # Capped logits, windows, and norms with 1 + w.
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"head_dim": 8}, {"rotary": 3, "kept_outputs": 1}),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {"head_dim": 8},
        {"supervised_forward": 1, "last_mlp": 1, "rotary": 3},
    ),
    # A window in every layer.
    "mistral": (
        MistralConfig,
        MistralForCausalLM,
        {},
        {"supervised_forward": 1, "last_mlp": 1, "rms_norm": 7, "rotary": 3},
    ),
    "phi3": (Phi3Config, Phi3ForCausalLM, {}, LIKE_LLAMA),
    "gpt2": (
        GPT2Config,
        GPT2LMHeadModel,
        dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
        PACKED,
    ),
    "gpt-neox": (GPTNeoXConfig, GPTNeoXForCausalLM, {}, PACKED),
}
EVERYTHING = SpeedupSettings(spared_tokens=1)


def make(name: str, *, adapted: bool = True) -> Any:
    """A tiny random model, adapted by DoRA on the engine and given TRL's head, or as it is."""
    config, kind, settings, _ = MODELS[name]
    torch.manual_seed(0)
    model = kind(config(**SIZES, **settings))
    if not adapted:
        return model
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    lora = LoraConfig(
        r=2,
        use_dora=True,
        target_modules="all-linear",
        init_lora_weights=False,
        fan_in_fan_out=name == "gpt2",
    )
    model = get_peft_model(model, lora)
    enable(model)
    return model.train()


def taken(report: SpeedupReport) -> dict[str, int]:
    """Without frozen layers, which depend on the processor."""
    return {name: count for name, count in report.taken.items() if count and name != "frozen_linear"}


def assert_same(model: Any, wanted: tuple[dict[str, float], dict[str, Tensor]]) -> None:
    read, gradients = step(model, batch())
    assert read == pytest.approx(wanted[0], rel=1e-5, abs=1e-4)
    assert gradients.keys() == wanted[1].keys()
    for name, gradient in gradients.items():
        atol = 2e-4 * wanted[1][name].abs().max().item()
        torch.testing.assert_close(gradient, wanted[1][name], rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_training_is_the_same_with_and_without(name: str) -> None:
    """Losses to 1e-5, gradients to 2e-4 of the largest, in float32."""
    model = make(name)
    wanted = step(model, batch())
    report = speed_up(model, training=True, settings=EVERYTHING)
    assert taken(report) == MODELS[name][3], str(report)
    assert_same(model, wanted)


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_the_same_with_and_without(name: str, processor: Callable[[str], None]) -> None:
    """Log-probabilities to 1e-5, in float32, on a processor where frozen layers are computed differently."""
    processor("AMD Zen 5")
    model = make(name, adapted=False).requires_grad_(False).eval()
    ids = torch.randint(1, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = model(ids).logits.log_softmax(-1)
        report = speed_up(model, training=False)
        linear = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
        assert report.taken == {"frozen_linear": linear}
        torch.testing.assert_close(model(ids).logits.log_softmax(-1), wanted, rtol=0, atol=1e-5)


def state(model: Any) -> dict[str, Any]:
    """Everything a module holds that a speed-up could have changed, down to the identity of each thing."""
    return {
        name: (type(module), {key: id(value) for key, value in vars(module).items()})
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("name", MODELS)
def test_undo_restores_exactly_what_was_there(name: str) -> None:
    model = make(name)
    wanted, wanted_gradients = step(model, batch())
    held, config = [vars(module).copy() for module in model.modules()], copy.deepcopy(model.config.to_dict())
    before, attention = state(model), model.get_base_model().config._attn_implementation
    report = speed_up(model, training=True, settings=EVERYTHING)
    step(model, batch())
    assert state(model) != before
    report.undo()
    assert state(model) == before and len(held) == len(before)
    assert model.config.to_dict() == config
    assert model.get_base_model().config._attn_implementation == attention
    read, gradients = step(model, batch())
    assert read == wanted
    assert all(torch.equal(gradients[key], wanted_gradients[key]) for key in wanted_gradients)


def test_installing_changes_neither_random_numbers_nor_gradients_nor_modes_nor_threads() -> None:
    model = make("llama")
    model.get_base_model().lm_head.eval()
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()
    threads = torch.get_num_threads()
    speed_up(model, training=True)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_is_sped_up_once_and_again_after_undo() -> None:
    model = make("llama")
    report = speed_up(model, training=True)
    with pytest.raises(InputError, match="sped up already"):
        speed_up(model, training=False)
    report.undo()
    assert taken(speed_up(model, training=True)) == LIKE_LLAMA


def test_an_interrupt_leaves_the_model_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    before = [vars(module).get("forward") for module in model.modules()]

    def interrupt(*_: Any, sharded: bool) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(install, "spare_forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            speed_up(model, training=True)
    assert [vars(module).get("forward") for module in model.modules()] == before
    assert taken(speed_up(model, training=True)) == LIKE_LLAMA


def test_undo_refuses_if_other_code_has_wrapped_a_forward_pass() -> None:
    model = make("llama")
    report = speed_up(model, training=True)
    base = model.get_base_model()
    ours, base.forward = base.forward, lambda *args, **kwargs: None
    norm = base.model.norm
    with pytest.raises(DoratuneError, match="cannot be undone"):
        report.undo()
    assert "forward" in vars(norm)
    base.forward = ours
    report.undo()
    assert "forward" not in vars(norm)


def test_the_report_is_one_line_and_a_record() -> None:
    report = speed_up(make("gemma2"), training=True)
    line = str(report)
    assert "\n" not in line
    assert "rotary 3" in line and "supervised_forward 0, 1 left (its logits are scaled or capped)" in line
    record = {one.name: one for one in report.record()}
    assert record["rotary"].taken == 3 and record["rotary"].left == {}
    assert record["rms_norm"].taken == 0 and sum(record["rms_norm"].left.values()) == 13


def _capped(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **kwargs: Any):
    scores = query @ modeling_llama.repeat_kv(key, module.num_key_value_groups).mT * scaling
    scores = 50 * torch.tanh(scores / 50)
    if mask is not None:
        scores = scores + mask
    out = scores.softmax(-1) @ modeling_llama.repeat_kv(value, module.num_key_value_groups)
    return out.transpose(1, 2).contiguous(), None


def _with_sink(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **kwargs: Any
):
    scores = query @ modeling_llama.repeat_kv(key, module.num_key_value_groups).mT * scaling
    if mask is not None:
        scores = scores + mask
    p = torch.cat([scores, torch.zeros_like(scores[..., :1])], dim=-1).softmax(-1)[..., :-1]
    out = p @ modeling_llama.repeat_kv(value, module.num_key_value_groups)
    return out.transpose(1, 2).contiguous(), None


@pytest.mark.parametrize("formula", [_capped, _with_sink])
def test_another_attention_in_transformers_is_left_to_it(
    formula: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", formula)
    model = make("llama")
    model.get_base_model().set_attn_implementation("eager")
    wanted = step(model, batch())
    report = speed_up(model, training=True, settings=EVERYTHING)
    assert taken(report) == {name: count for name, count in LIKE_LLAMA.items() if name != "attention"}
    ((reason, layers),) = report.left["attention"].items()
    assert layers == 3 and "something else" in reason
    assert_same(model, wanted)


def test_arguments_that_a_model_hands_to_its_attention_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cap that is an argument, as Gemma 2 has it, shows at large scores only."""
    plain = modeling_llama.eager_attention_forward

    def capped(*args: Any, cap: float | None = None, **kwargs: Any) -> Any:
        return (plain if cap is None else _capped)(*args, **kwargs)

    attention = modeling_llama.LlamaAttention.forward
    monkeypatch.setattr(
        modeling_llama.LlamaAttention,
        "forward",
        lambda *args, **kwargs: attention(*args, cap=50.0, **kwargs),
    )
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", capped)
    model = make("llama")
    model.get_base_model().set_attn_implementation("eager")
    report = speed_up(model, training=True, settings=EVERYTHING)
    assert report.taken["attention"] == 0 and report.taken["packing"] == 1


def _mlp_that_mixes_tokens(self: Any, x: Tensor) -> Tensor:
    return _mlp(self, x) - 0.1 * x.cumsum(dim=1)


def _layer_that_counts_tokens(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    count = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    return _layer(self, hidden_states, **kwargs) + 0.1 * count[:, None]


def _model_that_reads_the_mask(self: Any, *args: Any, **kwargs: Any) -> Any:
    out, mask = _model(self, *args, **kwargs), kwargs.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        out.last_hidden_state = out.last_hidden_state + mask.sum(dim=1)[:, None, None]
    return out


_mlp, _layer = modeling_llama.LlamaMLP.forward, modeling_llama.LlamaDecoderLayer.forward
_model = modeling_llama.LlamaModel.forward


@pytest.mark.parametrize(
    ("kind", "formula", "left"),
    [
        ("LlamaMLP", _mlp_that_mixes_tokens, {"packing", "last_mlp"}),
        ("LlamaDecoderLayer", _layer_that_counts_tokens, {"packing"}),
        ("LlamaModel", _model_that_reads_the_mask, {"supervised_forward"}),
    ],
)
def test_a_model_that_is_not_what_the_pass_assumes_is_left_alone(
    kind: str, formula: Callable[..., Any], left: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getattr(modeling_llama, kind), "forward", formula)
    model = make("llama")
    wanted = step(model, batch())
    report = speed_up(model, training=True, settings=EVERYTHING)
    assert {name for name, reasons in report.left.items() if reasons} - {"frozen_linear"} == left
    assert_same(model, wanted)
