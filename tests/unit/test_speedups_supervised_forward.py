"""The spare forward pass of training beside TRL's own, on the same batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.mistral import modeling_mistral
from trl.trainer.utils import add_fused_lm_head

from doratune.data.encode import IGNORED
from doratune.engine import linear
from doratune.engine import norm_cache as norms
from doratune.peft import enable
from doratune.speedups import packing
from doratune.speedups import supervised_forward as spare
from doratune.speedups.packing import PACKED
from doratune.speedups.supervised_forward import spare_forward

PREFIX, ROWS = 10, 4
LENGTHS = (20, 17, 13, 15)


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


def batch(
    *, padding: str = "right", supervise_all: bool = False, rows: int = ROWS
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = LENGTHS * (rows // ROWS)
    width = max(lengths)
    prefix = torch.randint(1, 50, (PREFIX,), generator=generator)
    ids = torch.zeros(rows, width, dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        tokens = torch.cat([prefix, torch.randint(1, 50, (length - PREFIX,), generator=generator)])
        place = slice(0, length) if padding == "right" else slice(width - length, width)
        ids[row, place], mask[row, place] = tokens, 1
        supervised = tokens.clone()
        # The first token follows nothing but padding.
        supervised[: 1 if supervise_all else PREFIX + 1 + row % 2] = IGNORED
        labels[row, place] = supervised
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def step(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Sums of what SFTTrainer reads, and the gradients."""
    model.zero_grad(set_to_none=True)
    outputs = model(**inputs, use_cache=False, fused_lm_head=True)
    (-outputs.log_probs.sum() / outputs.label_mask.sum()).backward()
    names = ("log_probs", "entropy", "is_top1", "label_mask")
    read = {name: float(outputs[name].detach().sum()) for name in names}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return read, gradients


def widths(model: Any, inputs: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
    """Rows and tokens of each pass through the layers."""
    seen: list[tuple[int, int]] = []
    embedding = model.get_base_model().get_input_embeddings()
    handle = embedding.register_forward_hook(lambda _module, args, _output: seen.append(tuple(args[0].shape)))
    step(model, inputs)
    handle.remove()
    return seen


def use_attention(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention for short rows, ours or the model's own eager one, or PyTorch's for long ones."""
    for module in (packing, spare):
        monkeypatch.setattr(module, "attends_like_llama", lambda _module: which == "own")
    for name in ("OWN_TOKENS", "EAGER_TOKENS"):
        monkeypatch.setattr(spare, name, 0 if which == "sdpa" else 100)


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("supervise_all", [False, True])
@pytest.mark.parametrize("attention", ["own", "eager", "sdpa"])
@pytest.mark.parametrize("packs", ["all", "padding", "nothing"])
def test_it_computes_what_trl_computes(
    packs: str, attention: str, supervise_all: bool, padding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = {"all": 1, "padding": (ROWS - 1) * PREFIX + 1, "nothing": 10**9}[packs]
    monkeypatch.setattr(spare, "SPARED_TOKENS", saved)
    use_attention(attention, monkeypatch)
    model = adapted_model()
    inputs = batch(padding=padding, supervise_all=supervise_all, rows=ROWS * (4 if packs == "padding" else 1))
    wanted, wanted_gradients = step(model, inputs)
    assert spare_forward(model.get_base_model())
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
    spared_tokens: int, supervise_all: bool, padding: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare, "SPARED_TOKENS", spared_tokens)
    model = base_model(tie_word_embeddings=tied).train()
    inputs = batch(padding=padding, supervise_all=supervise_all)
    plain = base_model(tie_word_embeddings=tied).double()
    plain.load_state_dict(model.state_dict())
    wanted = plain(**inputs, use_cache=False).loss
    wanted.backward()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    assert spare_forward(model)
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


def test_the_common_beginning_runs_once_and_padding_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "SPARED_TOKENS", (ROWS - 1) * PREFIX)
    model = adapted_model()
    spare_forward(model.get_base_model())
    assert widths(model, batch()) == [(1, PREFIX + sum(LENGTHS) - ROWS * PREFIX)]
    assert model.get_base_model().config._attn_implementation == PACKED


def test_loss_on_a_shared_beginning_counts_for_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "SPARED_TOKENS", 1)
    model, inputs = adapted_model(), batch(supervise_all=True)
    spare_forward(model.get_base_model())
    assert step(model, inputs)[0]["label_mask"] == sum(LENGTHS) - ROWS


@pytest.mark.parametrize("why", ["dropout", "attention dropout"])
def test_dropout_tells_rows_apart_but_not_from_padding(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"attention_dropout": 0.1} if why == "attention dropout" else {}
    monkeypatch.setattr(spare, "SPARED_TOKENS", 1)
    model = adapted_model(dropout=0.1 if why == "dropout" else 0.0, **settings)
    spare_forward(model.get_base_model())
    assert widths(model, batch()) == [(1, sum(LENGTHS))]
    assert widths(model.eval(), batch())[0] == (1, PREFIX + sum(LENGTHS) - ROWS * PREFIX)


def test_checkpointing_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "SPARED_TOKENS", 1)
    model, inputs = adapted_model(), batch()
    spare_forward(model.get_base_model())
    _, wanted = step(model, inputs)
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.get_base_model().enable_input_require_grads()
    assert widths(model, inputs)[0] == (1, PREFIX + sum(LENGTHS) - ROWS * PREFIX)
    _, gradients = step(model, inputs)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)


@pytest.mark.parametrize("why", ["too little to save", "left", "sliding window"])
def test_it_runs_with_every_row_where_it_must_or_should(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_attention("sdpa", monkeypatch)
    monkeypatch.setattr(spare, "SPARED_TOKENS", 1000 if why == "too little to save" else 1)
    model = adapted_model()
    if why == "sliding window":
        model.get_base_model().config.sliding_window = 30
    spare_forward(model.get_base_model())
    assert widths(model, batch(padding="left" if why == "left" else "right")) == [(ROWS, 20)]


def test_a_call_that_is_not_packed_attends_as_ever_after_one_that_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spare, "SPARED_TOKENS", 1)
    model, inputs = adapted_model().eval(), batch(padding="left")
    base = model.get_base_model()
    inputs.pop("labels")
    wanted = base(**inputs).logits
    spare_forward(base)
    step(model, batch())
    assert base.config._attn_implementation == PACKED
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(base(**inputs).logits[seen], wanted[seen])


@pytest.mark.parametrize("own", [True, False])
def test_attention_follows_the_length_unless_it_was_chosen(
    own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short rows are packed even where that saves no token; long ones are not."""
    for chosen, tokens, used in (("sdpa", 20, PACKED), ("sdpa", 19, "sdpa"), ("eager", 19, PACKED)):
        use_attention("own" if own else "eager", monkeypatch)
        monkeypatch.setattr(spare, "OWN_TOKENS" if own else "EAGER_TOKENS", tokens)
        model = adapted_model()
        model.get_base_model().set_attn_implementation(chosen)
        spare_forward(model.get_base_model())
        step(model, batch())
        assert model.get_base_model().config._attn_implementation == used


def test_attention_with_soft_caps_or_sinks_is_the_models_own_to_compute() -> None:
    assert packing.attends_like_llama(base_model())
    for kind, alike in (
        (modeling_mistral.MistralModel, True),
        (modeling_gemma2.Gemma2Model, False),
        (modeling_gpt_oss.GptOssModel, False),
    ):
        assert packing.attends_like_llama(kind.__new__(kind)) == alike


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
def test_the_last_mlp_runs_where_there_is_a_loss(
    padding: str, supervise_all: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare, "SPARED_TOKENS", 1)
    model, inputs = adapted_model(), batch(padding=padding, supervise_all=supervise_all)
    spare_forward(model.get_base_model())
    tokens = PREFIX + sum(LENGTHS) - ROWS * PREFIX if padding == "right" else ROWS * max(LENGTHS)
    scored = int((inputs["labels"] != IGNORED).sum())
    if supervise_all and padding == "right":
        scored = tokens - ROWS  # each but the last of a row, the shared ones once
    assert mlp_tokens(model, inputs) == [tokens, scored]
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    assert mlp_tokens(model, inputs)[:2] == [tokens, tokens]
    model.get_base_model().gradient_checkpointing_disable()
    monkeypatch.setattr(spare, "SPARED_TOKENS", 10**9)
    assert len(set(mlp_tokens(model, inputs))) == 1


def test_an_mlp_that_other_layers_share_runs_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "SPARED_TOKENS", 1)
    model = adapted_model()
    first, last = model.get_base_model().base_model.layers
    last.mlp = first.mlp
    wanted = step(model, batch())
    assert spare_forward(model.get_base_model())
    read, gradients = step(model, batch())
    assert read == pytest.approx(wanted[0], rel=1e-5, abs=1e-5)
    torch.testing.assert_close(gradients, wanted[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("attention", ["own", "eager"])
def test_under_autocast_float32_weights_get_gradients_close_to_the_exact_ones(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_attention(attention, monkeypatch)
    model = base_model().train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    assert spare_forward(model)
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


def test_norms_are_held_within_a_pass_and_follow_the_weights_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the layers run again in the backward pass, which is outside."""
    inputs, looks, digest = batch(), [], norms._digest
    model, other = adapted_model(), adapted_model()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for one in (model, other):
        spare_forward(one.get_base_model())
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
    assert not spare_forward(scaled)


def test_where_trl_keeps_its_own_pass_the_outputs_of_dora_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU; what it computes is the same."""
    made: list[object] = []
    product = linear._product
    monkeypatch.setattr(linear, "_product", lambda *args: made.append(args) or product(*args))
    model, inputs = adapted_model(), batch()
    wanted, wanted_gradients = step(model, inputs)
    assert len(made) > 2 * 3  # two layers with three adapters each
    monkeypatch.setattr(spare, "_is_plain", lambda *_: False)
    assert not spare_forward(model.get_base_model())
    made.clear()
    read, gradients = step(model, inputs)
    assert len(made) == 2 * 3 and read == wanted
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted_gradients[name], msg=name)
