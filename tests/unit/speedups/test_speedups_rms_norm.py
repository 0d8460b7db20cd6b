"""RMSNorm with an explicit gradient, compared with float64 and with transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from doratune.speedups.changes import Changes
from doratune.speedups.rms_norm import speed_up_norms as speed_up_in_model

ERRORS = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}
"""Of a few roundings to 24 and 8 bits, as a share of the largest value."""


def speed_up_norms(model: nn.Module) -> Changes:
    changes = Changes()
    speed_up_in_model(model, changes)
    return changes


def norm(size: int, dtype: torch.dtype, kind: Any = LlamaRMSNorm, epsilon: float = 1e-5) -> Any:
    module = kind(size, eps=epsilon).to(dtype).requires_grad_(False)
    module.weight.copy_(torch.rand(size) + 0.5)
    return module


def exact(module: Any, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().double().requires_grad_()
    y = module.weight.double() * x / (x.square().mean(-1, keepdim=True) + module.variance_epsilon).sqrt()
    return y.detach(), torch.autograd.grad(y, x, dy.double())[0]


def run(module: Any, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = module(x)
    return y.detach(), torch.autograd.grad(y, x, dy)[0]


def assert_exact(found: Tensor, expected: Tensor) -> None:
    atol = ERRORS[found.dtype] * expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)


# √d is a number of bfloat16 for 576 and 2,304 elements, and is rounded by 0.2 and 0.3 % for 60 and 33.
@pytest.mark.parametrize("size", [576, 2304, 60, 33, 1])
@pytest.mark.parametrize("dtype", ERRORS)
def test_outputs_and_gradients_are_exact_to_rounding(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    quick = norm(size, dtype)
    x = (torch.randn(2, 7, size) * torch.logspace(-3, 3, 7)[:, None]).to(dtype)
    x[0, 3] = 0  # what ε is for
    dy = torch.randn(2, 7, size).to(dtype)
    plain_y, plain_dx = run(quick, x, dy)
    speed_up_norms(nn.Sequential(quick))
    y, dx = run(quick, x, dy)
    expected_y, expected_dx = exact(quick, x, dy)
    # Row by row: their gradients differ by six orders of magnitude.
    for row in range(2):
        for place in range(7):
            assert_exact(y[row, place], expected_y[row, place])
            if size > 1:  # of a single element little but rounding is left
                assert_exact(dx[row, place], expected_dx[row, place])
    if dtype == torch.bfloat16:
        assert torch.equal(y, plain_y)  # rounded where transformers rounds
    if size > 1:
        error, of_plain = ((found.double() - expected_dx).norm() for found in (dx, plain_dx))
        assert error <= 3 * of_plain  # measured up to 2.1


def test_any_strides() -> None:
    torch.manual_seed(0)
    module = norm(24, torch.float32)
    speed_up_norms(nn.Sequential(module))
    x, dy = torch.randn(24, 5, 3).permute(2, 1, 0), torch.randn(24, 3, 5).permute(1, 2, 0)
    for strided in (x, torch.randn(3, 5, 40)[..., 7:31]):
        for found, expected in zip(run(module, strided, dy), exact(module, strided, dy), strict=True):
            assert_exact(found, expected)


def test_norms_that_compute_the_same_are_replaced_and_no_others() -> None:
    model = nn.Sequential(
        *(norm(8, torch.float32, kind) for kind in (LlamaRMSNorm, Qwen3RMSNorm)),
        GemmaRMSNorm(8),
        nn.LayerNorm(8, bias=False),
        nn.LayerNorm(8),
    ).requires_grad_(False)
    changes = speed_up_norms(model)
    assert ["forward" in vars(module) for module in model] == [True, True, False, False, False]
    assert changes.taken == {"rms_norm": 2} and sum(changes.left["rms_norm"].values()) == 2


def _in_weight_s_dtype(self: Any, x: Tensor) -> Tensor:
    return self.weight * (x / (x.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt()) * 1.01


def _with_offset(self: Any, x: Tensor) -> Tensor:
    return _llama_forward(self, x) + x * self.weight


def _epsilon_outside(self: Any, x: Tensor) -> Tensor:
    return self.weight * (x / (x.square().mean(-1, keepdim=True).sqrt() + self.variance_epsilon))


def _another_gradient(self: Any, x: Tensor) -> Tensor:
    return _llama_forward(self, x.detach()) + 0.0 * x


_llama_forward = LlamaRMSNorm.forward


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("formula", [_in_weight_s_dtype, _with_offset, _epsilon_outside, _another_gradient])
def test_another_formula_in_transformers_is_left_to_it(
    formula: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a release may bring one: what counts is what the module computes, not what it is called."""
    torch.manual_seed(0)
    monkeypatch.setattr(LlamaRMSNorm, "forward", formula)
    model, x = nn.Sequential(norm(24, dtype)), torch.randn(3, 24).to(dtype)
    wanted = model(x)
    changes = speed_up_norms(model)
    assert torch.equal(model(x), wanted) and "forward" not in vars(model[0])
    ((reason, count),) = changes.left["rms_norm"].items()
    assert count == 1 and "something else" in reason


def test_norms_of_one_class_that_are_configured_differently_are_each_looked_at() -> None:
    class Scaled(LlamaRMSNorm):
        def __init__(self, size: int, scale: float) -> None:
            super().__init__(size)
            self.scale = scale

        def forward(self, hidden_states: Tensor) -> Tensor:
            return self.scale * super().forward(hidden_states)

    model = nn.Sequential(Scaled(8, 1.0), Scaled(8, 2.0), Scaled(8, 1.0)).requires_grad_(False)
    assert speed_up_norms(model).taken == {"rms_norm": 2}
    assert "forward" not in vars(model[1])


def test_what_is_trained_or_of_another_dtype_is_computed_as_before() -> None:
    torch.manual_seed(0)
    trained = norm(8, torch.float32).requires_grad_(True)
    speed_up_norms(nn.Sequential(trained))
    x = torch.randn(3, 8)
    plain = LlamaRMSNorm.forward(trained, x)
    y = trained(x)
    assert torch.equal(y, plain)
    y.sum().backward()
    assert trained.weight.grad is not None
    wide = norm(8, torch.float32)
    speed_up_norms(nn.Sequential(wide))
    assert wide(x.bfloat16()).dtype == torch.float32
    assert wide(x[:0]).shape == (0, 8)
    with torch.no_grad():
        torch.testing.assert_close(wide(x), LlamaRMSNorm.forward(wide, x))


def test_a_forward_pass_replaced_by_other_code_stays() -> None:
    module = norm(8, torch.float32)
    module.forward = own = lambda x: x
    speed_up_norms(nn.Sequential(module))
    assert module.forward is own
