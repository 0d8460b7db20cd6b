"""Rotary embedding with a gradient written out, beside float64 and inside transformers' attention layers."""

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
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from doratune.speedups.rotary import _rotate_both, speed_up_rotary

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
    found = rotations(_rotate_both, *inputs, along=along)
    expected = rotations(apply_rotary_pos_emb, *(states.double() for states in inputs), along=along)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        atol = ERRORS[dtype] * other.abs().max().item()
        torch.testing.assert_close(one.double(), other, rtol=0, atol=atol)


def test_factors_of_another_dtype_are_left_to_transformers() -> None:
    torch.manual_seed(0)
    q, k, cos, sin = torch.randn(4, 1, 2, 9, 16)
    found = _rotate_both(q.bfloat16(), k.bfloat16(), cos[:, 0], sin[:, 0])
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
            speed_up_rotary(model)
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


def test_a_model_that_rotates_otherwise_is_left_alone() -> None:
    model = Phi3ForCausalLM(Phi3Config(**SIZES))
    speed_up_rotary(model)
    assert not any("forward" in vars(module) for module in model.modules())
