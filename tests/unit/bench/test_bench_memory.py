from __future__ import annotations

import sys

import pytest
import torch
from bench_support import provider, small_case, subject_of
from torch import Tensor, nn

from doratune.bench.op.memory import cpu_peak, saved_bytes

TOKENS, D_IN, D_OUT, RANK = 32, 64, 96, 4  # of small_case, in float32


def test_a_trained_linear_saves_its_input_and_a_frozen_one_nothing() -> None:
    layer = nn.Linear(D_IN, D_OUT)
    x = torch.randn(TOKENS, D_IN, requires_grad=True)
    assert saved_bytes(layer, x) == 4 * TOKENS * D_IN
    assert saved_bytes(layer.requires_grad_(False), x) == 0


class Elementwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.randn(TOKENS, D_IN))

    def forward(self, x: Tensor) -> Tensor:
        # The product saves x and the buffer, the exponential its output, twice, once as a view of a part.
        power = (x * self.scale).exp()
        return power[:1] * power.exp()


def test_each_storage_counts_once_and_whole_and_buffers_do_not() -> None:
    x = torch.randn(TOKENS, D_IN, requires_grad=True)
    # Saved are power (its exponential's output, and a factor as a view) and power.exp() (output and factor).
    assert saved_bytes(Elementwise(), x) == 2 * 4 * TOKENS * D_IN


class PlainDora(nn.Module):
    """DoRA as autograd does it unaided."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(D_OUT, D_IN), requires_grad=False)
        self.A = nn.Parameter(torch.randn(RANK, D_IN))
        self.B = nn.Parameter(torch.randn(D_OUT, RANK))
        self.m = nn.Parameter(torch.rand(D_OUT))

    def forward(self, x: Tensor) -> Tensor:
        n = (self.W + self.B @ self.A).detach().norm(dim=1)
        z = x @ self.W.T + (x @ self.A.T) @ self.B.T
        return (self.m / n) * z


def test_dora_by_hand() -> None:
    x = torch.randn(TOKENS, D_IN, requires_grad=True)
    # x for A's gradient, h = x Aᵀ for B's, z for m's, n and m / n; B A saves parameters only.
    numbers = TOKENS * D_IN + TOKENS * RANK + TOKENS * D_OUT + 2 * D_OUT
    assert saved_bytes(PlainDora(), x) == 4 * numbers


def test_providers_by_hand() -> None:
    floor, data = subject_of("floor")
    assert saved_bytes(floor.layer, data.x) == 0
    lora, data = subject_of("peft-lora")
    assert saved_bytes(lora.layer, data.x) == 4 * (TOKENS * D_IN + TOKENS * RANK)
    dora, data = subject_of("peft-dora")
    assert saved_bytes(dora.layer, data.x) > saved_bytes(PlainDora(), data.x)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is Linux's")
def test_the_peak_is_what_calls_add_in_a_separate_process() -> None:
    held = torch.ones(100_000_000)  # 400 MB, which a process would inherit in getrusage's maximum
    case = small_case(d_in=1024, d_out=2048, tokens=4096)
    peak = cpu_peak(provider("floor"), case, threads=1)
    assert peak is not None
    live = 4 * (4096 * 2048 + 4096 * 1024)  # y and the gradient of x; dy is there before
    assert live <= peak.growth_bytes < 1.1 * live
    assert peak.before_bytes > 4 * (4096 * 1024 + 4096 * 2048 + 1024 * 2048)  # x, dy, W
    assert peak.before_bytes + peak.growth_bytes < held.nbytes * 4
