"""The supervised forward pass compared with TRL's own, on the same batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from speedups_support import LENGTHS, PREFIX, ROWS, batch, step
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from doratune.data.encode import IGNORED
from doratune.engine import linear, linear_output
from doratune.engine import norm_cache as norms
from doratune.peft import enable
from doratune.peft.hold_norms import dora_layers
from doratune.speedups.changes import Changes
from doratune.speedups.packing import PACKED
from doratune.speedups.settings import SpeedupSettings
from doratune.speedups.supervised_forward import spare_forward


def base_model(**settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        **settings,
    )
    return LlamaForCausalLM(config)


def adapted_model(*, dropout: float = 0.0, **settings: Any) -> Any:
    base = base_model(**settings)
    lora = LoraConfig(
        r=2,
        use_dora=True,
        lora_dropout=dropout,
        target_modules=["q_proj", "v_proj", "down_proj"],
        init_lora_weights=False,
    )
    model = get_peft_model(base, lora)
    add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
    enable(model)
    return model.train()


def widths(model: Any, inputs: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
    """Rows and tokens of each pass through the layers."""
    seen: list[tuple[int, int]] = []
    embedding = model.get_base_model().get_input_embeddings()
    handle = embedding.register_forward_hook(lambda _module, args, _output: seen.append(tuple(args[0].shape)))
    step(model, inputs)
    handle.remove()
    return seen


def spare(model: Any, attention: str = "own", **settings: int) -> Changes:
    """Install the pass, with the attention of short rows, ours or the model's own, or that of long ones."""
    longest = {"own": (100, 100), "eager": (0, 100), "sdpa": (0, 0)}[attention]
    settings = {"own_tokens": longest[0], "eager_tokens": longest[1], **settings}
    changes = Changes()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    spare_forward(base, SpeedupSettings(**settings), changes)
    return changes


ALL = {"supervised_forward": 1, "packing": 1, "attention": 2, "last_mlp": 1}


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("supervise_all", [False, True])
@pytest.mark.parametrize("attention", ["own", "eager", "sdpa"])
@pytest.mark.parametrize("packs", ["all", "padding", "nothing"])
def test_it_computes_what_trl_computes(packs: str, attention: str, supervise_all: bool, padding: str) -> None:
    saved = {"all": 1, "padding": (ROWS - 1) * PREFIX + 1, "nothing": 10**9}[packs]
    model = adapted_model()
    inputs = batch(padding=padding, supervise_all=supervise_all, rows=ROWS * (4 if packs == "padding" else 1))
    wanted, wanted_gradients = step(model, inputs)
    assert spare(model, attention, spared_tokens=saved).taken == ALL
    read, gradients = step(model, inputs)
    assert read == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert gradients.keys() == wanted_gradients.keys() and len(gradients) == 2 * 3 * 3
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted_gradients[name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("supervise_all", [False, True])
@pytest.mark.parametrize("spared_tokens", [1, 10**9])
def test_every_gradient_of_full_fine_tuning_is_that_of_the_plain_loss(
    spared_tokens: int, supervise_all: bool, padding: str, tied: bool
) -> None:
    model = base_model(tie_word_embeddings=tied).train()
    inputs = batch(padding=padding, supervise_all=supervise_all)
    plain = base_model(tie_word_embeddings=tied).double()
    plain.load_state_dict(model.state_dict())
    wanted = plain(**inputs, use_cache=False).loss
    wanted.backward()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    assert spare(model, spared_tokens=spared_tokens).taken == ALL
    outputs = model(**inputs, use_cache=False, fused_lm_head=True)
    loss = -outputs.log_probs.sum() / outputs.label_mask.sum()
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    parameters = dict(model.named_parameters())
    assert ("lm_head.weight" in parameters) != tied and "model.embed_tokens.weight" in parameters
    for name, reference in plain.named_parameters():
        gradient = parameters[name].grad
        assert gradient is not None and reference.grad is not None, name
        torch.testing.assert_close(gradient, reference.grad.float(), rtol=1e-3, atol=1e-6, msg=name)


def test_the_common_beginning_runs_once_and_padding_never() -> None:
    model = adapted_model()
    spare(model, spared_tokens=(ROWS - 1) * PREFIX)
    assert widths(model, batch()) == [(1, PREFIX + sum(LENGTHS) - ROWS * PREFIX)]
    assert model.get_base_model().config._attn_implementation == PACKED


def test_loss_on_a_shared_beginning_counts_for_every_row() -> None:
    model, inputs = adapted_model(), batch(supervise_all=True)
    spare(model, spared_tokens=1)
    assert step(model, inputs)[0]["label_mask"] == sum(LENGTHS) - ROWS


@pytest.mark.parametrize("why", ["dropout", "attention dropout"])
def test_dropout_tells_rows_apart_but_not_from_padding(why: str) -> None:
    settings = {"attention_dropout": 0.1} if why == "attention dropout" else {}
    model = adapted_model(dropout=0.1 if why == "dropout" else 0.0, **settings)
    spare(model, spared_tokens=1)
    assert widths(model, batch()) == [(1, sum(LENGTHS))]
    assert widths(model.eval(), batch())[0] == (1, PREFIX + sum(LENGTHS) - ROWS * PREFIX)


def test_checkpointing_computes_the_same() -> None:
    model, inputs = adapted_model(), batch()
    spare(model, spared_tokens=1)
    _, wanted = step(model, inputs)
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.get_base_model().enable_input_require_grads()
    assert widths(model, inputs)[0] == (1, PREFIX + sum(LENGTHS) - ROWS * PREFIX)
    _, gradients = step(model, inputs)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)


@pytest.mark.parametrize("why", ["too little to save", "left", "sliding window"])
def test_it_runs_on_every_row_where_it_must_or_should(why: str) -> None:
    model = adapted_model()
    if why == "sliding window":
        model.get_base_model().config.sliding_window = 30
    spare(model, "sdpa", spared_tokens=1000 if why == "too little to save" else 1)
    assert widths(model, batch(padding="left" if why == "left" else "right")) == [(ROWS, 20)]


def test_an_unpacked_call_after_a_packed_one_uses_plain_attention() -> None:
    model, inputs = adapted_model().eval(), batch(padding="left")
    base = model.get_base_model()
    inputs.pop("labels")
    wanted = base(**inputs).logits
    spare(base, spared_tokens=1)
    step(model, batch())
    assert base.config._attn_implementation == PACKED
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(base(**inputs).logits[seen], wanted[seen])


@pytest.mark.parametrize("own", [True, False])
def test_attention_follows_the_length_unless_it_was_chosen(own: bool) -> None:
    """Short rows are packed even where that saves no token; long ones are not."""
    for chosen, tokens, used in (("sdpa", 20, PACKED), ("sdpa", 19, "sdpa"), ("eager", 19, PACKED)):
        model = adapted_model()
        model.get_base_model().set_attn_implementation(chosen)
        spare(model, own_tokens=tokens if own else 0, eager_tokens=0 if own else tokens)
        step(model, batch())
        assert model.get_base_model().config._attn_implementation == used


def mlp_tokens(model: Any, inputs: dict[str, torch.Tensor]) -> list[int]:
    """How many tokens the MLP of each layer runs on."""
    seen: list[int] = []
    handles = [
        layer.mlp.down_proj.register_forward_hook(
            lambda _module, args, _out: seen.append(args[0][..., 0].numel())
        )
        for layer in model.get_base_model().base_model.layers
    ]
    step(model, inputs)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("supervise_all", [False, True])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_the_last_mlp_runs_where_there_is_a_loss(padding: str, supervise_all: bool) -> None:
    model, inputs = adapted_model(), batch(padding=padding, supervise_all=supervise_all)
    changes = spare(model, spared_tokens=1)
    tokens = PREFIX + sum(LENGTHS) - ROWS * PREFIX if padding == "right" else ROWS * max(LENGTHS)
    scored = int((inputs["labels"] != IGNORED).sum())
    if supervise_all and padding == "right":
        scored = tokens - ROWS  # each but the last of a row, the shared ones once
    assert mlp_tokens(model, inputs) == [tokens, scored]
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    assert mlp_tokens(model, inputs) == [tokens, scored], "the last layer is not run again"
    model.get_base_model().gradient_checkpointing_disable()
    changes.undo()
    spare(model, spared_tokens=10**9)
    assert len(set(mlp_tokens(model, inputs))) == 1


def test_an_mlp_that_other_layers_share_runs_everywhere() -> None:
    model = adapted_model()
    first, last = model.get_base_model().base_model.layers
    last.mlp = first.mlp
    wanted = step(model, batch())
    assert "last_mlp" not in spare(model, spared_tokens=1).taken
    read, gradients = step(model, batch())
    assert read == pytest.approx(wanted[0], rel=1e-5, abs=1e-5)
    torch.testing.assert_close(gradients, wanted[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("attention", ["own", "eager"])
def test_under_autocast_float32_weights_get_gradients_close_to_the_exact_ones(attention: str) -> None:
    model = base_model().train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    assert spare(model, attention).taken == ALL
    _, exact = step(model, batch())
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch(), use_cache=False, fused_lm_head=True)
    (-outputs.log_probs.sum() / outputs.label_mask.sum()).backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None and gradient.dtype == torch.float32
        error = (gradient - exact[name]).norm() / exact[name].norm()
        assert 1e-5 < error < 0.05, f"{name}: {error}, computed in bfloat16, which has 8 bits"


@pytest.mark.usefixtures("large_layers")
def test_norms_are_held_within_a_pass_and_follow_the_weights_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the layers run again in the backward pass, which is outside."""
    inputs, looks, digest = batch(), [], norms._digest
    model, other = adapted_model(), adapted_model()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for one in (model, other):
        spare(one)
    step(model, inputs)
    for one in (model, other):
        for parameter in one.parameters():
            if parameter.requires_grad:
                parameter.data.mul_(1.5)
    read, gradients = step(model, inputs)
    wanted, wanted_gradients = step(other, inputs)
    assert read == pytest.approx(wanted)
    torch.testing.assert_close(gradients, wanted_gradients)
    monkeypatch.setattr(norms, "_digest", lambda tensor: looks.append(tensor.shape) or digest(tensor))
    before: list[int] = []
    model.get_base_model().get_input_embeddings().register_forward_hook(lambda *_: before.append(len(looks)))
    with torch.no_grad():
        model(**inputs, use_cache=False, fused_lm_head=True)
    assert before == [2 * 3 * 2]  # layers, targets, and their A and B; each W was looked at in the first pass
    assert len(looks) == before[0]


def test_scaled_logits_are_left_to_trl() -> None:
    scaled = adapted_model().get_base_model()
    scaled.config.final_logit_softcapping = 30.0
    assert spare(scaled).left["supervised_forward"] == {"its logits are scaled or capped": 1}


@pytest.mark.usefixtures("large_layers")
def test_where_trl_keeps_its_own_pass_outputs_are_kept_and_norms_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU; what it computes is the same."""
    made: list[object] = []
    product = linear.product_on_cpu
    for module in (linear, linear_output):
        monkeypatch.setattr(module, "product_on_cpu", lambda *args: made.append(args) or product(*args))
    model, inputs = adapted_model(), batch()
    wanted, wanted_gradients = step(model, inputs)
    assert len(made) > 2 * 3  # two layers with three adapters each
    model.get_base_model().config.logit_scale = 1.0  # TRL has read it before
    assert spare(model).taken == {"kept_outputs": 1}
    made.clear()
    held: list[bool] = []
    layers = dora_layers(model)
    model.get_base_model().get_input_embeddings().register_forward_hook(
        lambda *_: held.extend(layer.norms.held for layer in layers)
    )
    read, gradients = step(model, inputs)
    assert held == [True] * 2 * 3 and not any(layer.norms.held for layer in layers)
    assert len(made) == 2 * 3 and read == wanted
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted_gradients[name], msg=name)
