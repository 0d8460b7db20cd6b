from __future__ import annotations

from typing import Any

import pytest
import torch
from bench_support import CPU, QUICK, available, small_case, subject_of
from torch import Tensor, nn

from doratune.bench.figures import GateError
from doratune.bench.op import bench as op
from doratune.bench.op.gate import LIMITS, check, truth
from doratune.bench.op.layer_data import SCALING, LayerData
from doratune.bench.op.providers import Subject

PEFT = ["floor", "peft-lora", "peft-dora"]


def errors_of(subject: Subject, data: LayerData) -> dict[str, float]:
    expected = truth(subject.provider.adapter, data, subject.base_weight)
    return check(subject, data, expected, limit=LIMITS["float32"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_provider_passes(dtype: str) -> None:
    case = small_case(dtype=dtype)
    result = op.measure_case(case, [], CPU, QUICK)
    assert [one.provider for one in result.providers] == available(case)
    assert {*PEFT, "doratune-dora", "doratune-dora-new-norm"} <= set(available(case))
    for one in result.providers:
        gradients = {"floor": ["x"], "peft-lora": ["x", "A", "B"], "doratune-lora": ["x", "A", "B"]}
        assert list(one.errors) == ["y", *gradients.get(one.provider, ["x", "A", "B", "m"])]
        assert max(one.errors.values()) <= result.error_limit
        assert min(one.errors.values()) > 0


def test_four_bit_base_is_compared_with_its_dequantised_weight() -> None:
    result = op.measure_case(small_case(base="bnb-4bit", dtype="bfloat16"), [], CPU, QUICK)
    assert set(PEFT) <= {one.provider for one in result.providers}
    subject, data = subject_of("peft-dora", small_case(base="bnb-4bit"))
    quantised = (subject.base_weight - data.W).norm() / data.W.norm()
    assert 0.02 < quantised < 0.2


def test_reference_of_lora_and_of_the_frozen_layer() -> None:
    _, data = subject_of("peft-lora")
    W, A, B, x, dy = (getattr(data, name).detach().double() for name in ("W", "A", "B", "x", "dy"))
    found = truth("lora", data, W)
    dense = W + SCALING * B @ A
    torch.testing.assert_close(found["y"], x @ dense.T)
    torch.testing.assert_close(found["x"], dy @ dense)
    torch.testing.assert_close(found["B"], SCALING * dy.T @ x @ A.T)
    torch.testing.assert_close(truth("none", data, W)["y"], x @ W.T)


class Wrong(nn.Module):
    """A layer whose output or gradient is off by a little."""

    def __init__(self, layer: nn.Module, factor: float, shift: float) -> None:
        super().__init__()
        self.layer, self.factor, self.shift = layer, factor, shift

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y * self.factor + self.shift * y.detach()


@pytest.mark.parametrize(
    ("factor", "shift", "named"),
    [
        (1.0001, 0.0, "y 1.0e-04, x 1.0e-04, A"),
        (0.9999, 0.0001, "x 1.0e-04, A"),
        (float("nan"), 0.0, "y nan"),
    ],
    ids=["output", "gradient only", "not finite"],
)
def test_a_wrong_layer_does_not_pass(factor: float, shift: float, named: str) -> None:
    subject, data = subject_of("peft-dora")
    subject.layer = Wrong(subject.layer, factor, shift)
    with pytest.raises(GateError, match="peft-dora") as caught:
        errors_of(subject, data)
    assert f"relative errors: {named}" in caught.value.message


def test_a_missing_gradient_does_not_pass() -> None:
    subject, data = subject_of("peft-lora")
    subject.adapter["A"].requires_grad_(False)
    with pytest.raises(GateError, match="A inf"):
        errors_of(subject, data)


class Stale(nn.Module):
    """DoRA with the norm of its first call."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.subject = [subject]  # not a submodule
        self.weight = subject.base_weight
        self.norm: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        A, B, m = self.subject[0].adapter.values()
        V = self.weight + SCALING * B @ A
        if self.norm is None:
            self.norm = V.detach().norm(dim=1)
        return x @ ((m / self.norm)[:, None] * V).T


def test_a_stale_norm_does_not_pass() -> None:
    subject, data = subject_of("peft-dora")
    subject.layer = Stale(subject)
    with pytest.raises(GateError):
        errors_of(subject, data)


def test_nothing_is_timed_when_one_provider_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = op.build

    def build(provider: Any, *args: Any) -> Subject:
        subject = right(provider, *args)
        if provider.name == "doratune-dora":
            subject.layer = Wrong(subject.layer, 1.01, 0.0)
        return subject

    def timed(*args: Any) -> None:
        raise AssertionError("timed")

    monkeypatch.setattr(op, "build", build)
    monkeypatch.setattr(op, "time_rounds", timed)
    with pytest.raises(GateError, match="doratune-dora"):
        op.measure_case(small_case(), [], CPU, QUICK)
