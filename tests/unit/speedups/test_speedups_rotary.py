"""Rotary embedding with an explicit gradient, compared with float64 and inside transformers' layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.phi3 import modeling_phi3

from doratune.speedups.changes import Changes
from doratune.speedups.rotary import _rotation, speed_up_rotary

ERRORS = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}
"""Of three roundings to 24 and 8 bits, as a share of the largest value."""

SIZES = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=0,
)


def rotations(function: Any, q: Tensor, k: Tensor, *factors: Tensor, along: int) -> list[Tensor]:
    """Both outcomes, and the gradients of q and k."""
    q, k = (states.detach().requires_grad_() for states in (q, k))
    outcomes = function(q, k, *factors, along)
    gradients = torch.autograd.grad([y.sin().sum() for y in outcomes], (q, k))
    return [*(y.detach() for y in outcomes), *gradients]


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("along", [1, 2])
def test_outcomes_and_gradients_are_exact_to_rounding(dtype: torch.dtype, along: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 9, 4, 16), torch.randn(2, 9, 2, 16)
    if along == 1:  # heads before tokens, as the layers have it: strided
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    # The halves of cos and sin are alike in transformers; here they are not.
    inputs = [states.to(dtype) for states in (q, k, torch.randn(2, 9, 16), torch.randn(2, 9, 16))]
    found = rotations(_rotation(apply_rotary_pos_emb), *inputs, along=along)
    expected = rotations(apply_rotary_pos_emb, *(states.double() for states in inputs), along=along)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        atol = ERRORS[dtype] * other.abs().max().item()
        torch.testing.assert_close(one.double(), other, rtol=0, atol=atol)


def test_factors_of_another_dtype_are_left_to_transformers() -> None:
    torch.manual_seed(0)
    q, k, cos, sin = torch.randn(4, 1, 2, 9, 16)
    found = _rotation(apply_rotary_pos_emb)(q.bfloat16(), k.bfloat16(), cos[:, 0], sin[:, 0])
    assert found[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "kind"), [(LlamaConfig, LlamaForCausalLM), (MistralConfig, MistralForCausalLM)]
)
def test_a_model_is_the_same_with_it(config: Any, kind: Any) -> None:
    torch.manual_seed(0)
    model = kind(config(**SIZES))
    ids = torch.randint(1, 50, (3, 11))
    found = []
    for quick in (False, True):
        if quick:
            speed_up_rotary(model, Changes())
        assert sum("forward" in vars(module) for module in model.modules()) == 2 * quick
        model.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        generated = model.generate(ids, max_new_tokens=3, do_sample=False)
        found.append(
            [loss.detach(), generated, *(parameter.grad.clone() for parameter in model.parameters())]
        )
    for plain, quick in zip(*found, strict=True):
        torch.testing.assert_close(quick, plain, rtol=1e-4, atol=1e-6)


def test_a_model_that_rotates_part_of_each_head_is_left_alone() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    whole, part = (Phi3ForCausalLM(Phi3Config(**SIZES, **one)) for one in ({}, {"rope_parameters": rope}))
    for model, count in ((whole, 2), (part, 0)):
        changes = Changes()
        speed_up_rotary(model, changes)
        assert changes.taken["rotary"] == count
        assert sum("forward" in vars(module) for module in model.modules()) == count
    assert changes.left["rotary"] == {"only part of each head is rotated": 2}


def test_partly_rotated_heads_at_call_time_are_left_to_the_model() -> None:
    torch.manual_seed(0)
    partial = modeling_phi3.apply_rotary_pos_emb
    inputs = torch.randn(2, 3, 5, 16), torch.randn(2, 3, 5, 16), *torch.randn(2, 2, 5, 8)
    for one, other in zip(_rotation(partial)(*inputs), partial(*inputs), strict=True):
        assert torch.equal(one, other)


def _interleaved(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    turned = (torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2) for x in (q, k))
    return tuple(x * cos + y * sin for x, y in zip((q, k), turned, strict=True))


def _only_queries(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
    return apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)[0], k


def _other_way_round(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
    return apply_rotary_pos_emb(q, k, cos, -sin, unsqueeze_dim)


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("formula", [_interleaved, _only_queries, _other_way_round])
def test_another_formula_in_transformers_is_left_to_it(
    formula: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a release may bring one: what counts is what the function computes, not what it is called."""
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", formula)
    torch.manual_seed(0)
    model, ids = LlamaForCausalLM(LlamaConfig(**SIZES)).to(dtype), torch.arange(1, 9)[None]
    wanted, changes = model(ids).logits, Changes()
    speed_up_rotary(model, changes)
    assert torch.equal(model(ids).logits, wanted)
    ((reason, count),) = changes.left["rotary"].items()
    assert count == 2 and "something else" in reason
