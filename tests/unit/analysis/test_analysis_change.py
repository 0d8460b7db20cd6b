"""ΔM and ΔD of weights whose change is known in closed form, and correlations of points made by hand."""

from __future__ import annotations

import math

import pytest
import torch

from doratune.analysis.change import Change, Rows, correlations, measure
from doratune.records.analysis import WeightChange


def weight(rows: int = 6, columns: int = 8) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def turned(W: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Each row turned by its angle in the plane of its first two columns, which it is put into first."""
    cos, sin = angles.cos(), angles.sin()
    x, y = W[:, 0], W[:, 1]
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=1)


def test_scaling_moves_the_magnitude_only() -> None:
    W, factors = weight(), torch.tensor([0.5, 1.0, 1.5, 2.0, 0.9, 1.1], dtype=torch.float64)
    change = measure([Rows(W, factors[:, None] * W)])
    assert change.magnitude == pytest.approx(((factors - 1).abs() * W.norm(dim=1)).mean().item(), rel=1e-12)
    assert change.direction == pytest.approx(0, abs=1e-30)
    assert change.gain_mean is None and change.gain_deviation is None


def test_rotation_moves_the_direction_only() -> None:
    W, angles = weight(columns=2), torch.tensor([0.1, -0.2, 0.3, 1.5, math.pi, 0.0], dtype=torch.float64)
    change = measure([Rows(W, turned(W, angles))])
    assert change.magnitude == pytest.approx(0, abs=1e-15)
    assert change.direction == pytest.approx((1 - angles.cos()).mean().item(), rel=1e-12)


def test_an_angle_far_below_the_last_bit_of_its_cosine_is_measured() -> None:
    W = weight(columns=2)
    change = measure([Rows(W, turned(W, torch.full((6,), 1e-9, dtype=torch.float64)))])
    assert math.cos(1e-9) == 1.0
    assert change.direction == pytest.approx(5e-19, rel=1e-5)


def test_the_magnitude_is_of_rows_not_columns() -> None:
    """The paper's column of W is PyTorch's row: scaling the inputs turns the rows."""
    W = weight()
    change = measure([Rows(W, W * torch.tensor([2.0] + [1.0] * 7))])
    assert change.direction > 1e-3


def test_the_result_does_not_depend_on_how_rows_are_split() -> None:
    W, m = weight(), torch.linspace(0.5, 2, 6, dtype=torch.float64)
    after = W + 0.1 * weight().flip(0)
    whole = measure([Rows(W, after, m)])
    parts = measure(Rows(W[at], after[at], m[at]) for at in (slice(0, 1), slice(1, 5), slice(5, 6)))
    for field in ("magnitude", "direction", "gain_mean", "gain_deviation"):
        assert getattr(parts, field) == pytest.approx(getattr(whole, field), rel=1e-12)


def test_with_m_the_length_of_v_does_not_matter() -> None:
    W, m = weight(columns=2), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    angles = torch.full((6,), 0.25, dtype=torch.float64)
    for length in (1.0, 3.0):
        change = measure([Rows(W, length * turned(W, angles), m)])
        norms = W.norm(dim=1)
        assert change.magnitude == pytest.approx((m - norms).abs().mean().item(), rel=1e-12)
        assert change.direction == pytest.approx(1 - math.cos(0.25), rel=1e-12)
        gains = m / (length * norms)
        assert change.gain_mean == pytest.approx(gains.mean().item(), rel=1e-12)
        assert change.gain_deviation == pytest.approx((gains - 1).square().mean().sqrt().item(), rel=1e-12)


def test_it_is_the_dense_weight_of_dora() -> None:
    W, V, m = weight(), weight() + 0.3 * weight().flip(1), torch.linspace(-1, 3, 6, dtype=torch.float64)
    merged = m[:, None] * V / V.norm(dim=1, keepdim=True)
    dense, factored = measure([Rows(W, merged)]), measure([Rows(W, V, m)])
    assert factored.magnitude == pytest.approx(dense.magnitude, rel=1e-12)
    assert factored.direction == pytest.approx(dense.direction, rel=1e-12), "m < 0 turns the row around"


def test_rows_of_zeros_have_no_direction() -> None:
    W, after = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    W[0] = W[1] = torch.tensor([3.0, 4.0])
    after[0], after[2] = torch.tensor([4.0, -3.0]), torch.tensor([1.0, 0.0])
    assert measure([Rows(W, after)]) == Change(magnitude=2.0, direction=pytest.approx(1.0))
    nothing = torch.zeros(2, 2, dtype=torch.float64)
    change = measure([Rows(nothing, nothing, torch.ones(2, dtype=torch.float64))])
    assert change == Change(0.0, 0.0, rounding=True, gain_mean=0.0, gain_deviation=1.0), (
        "as in training, 0 · (m / 0) is 0"
    )


def test_float32_rounding_does_not_count_as_movement() -> None:
    W = weight(64, 96)
    noise = torch.randn(64, 96, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    norms = W.norm(dim=1)
    assert measure([Rows(W, W)]).rounding
    assert measure([Rows(W, W, norms.float().double())]).rounding, "DoRA before the first update"
    assert measure([Rows(W, W.float().double())]).rounding, "kept in float32"
    for step in (1e-6, 1e-5):
        assert not measure([Rows(W, W + step * noise)]).rounding, "turned"
        assert not measure([Rows(W, W, (1 + step) * norms)]).rounding, "longer"
        assert not measure([Rows(W, W), Rows(W, W + step * noise)]).rounding, "half of it"


def test_rounding_has_no_correlation() -> None:
    moved = points("q_proj", (0.1, 1), (0.3, 2), (0.2, 4))
    noise = [
        one.model_copy(update={"rounding": True}) for one in points("v_proj", (1e-16, 1e-9), (2e-16, 2e-9))
    ]
    assert correlations(moved)[0].correlation == correlations([*moved, *noise])[0].correlation
    found = {one.kind: one for one in correlations([*moved, *noise])}
    assert found["v_proj"].correlation is None and found["v_proj"].points == 0
    assert found["all"].points == 3


def points(kind: str, *pairs: tuple[float, float]) -> list[WeightChange]:
    """(ΔD, ΔM) as records."""
    return [
        WeightChange(step=step, layer=f"layers.0.{kind}", kind=kind, magnitude=magnitude, direction=direction)
        for step, (direction, magnitude) in enumerate(pairs, start=1)
    ]


def test_correlations_are_of_all_and_of_each_kind() -> None:
    found = correlations([*points("q_proj", (0, 1), (1, 4)), *points("v_proj", (2, 5), (3, 3))])
    assert [(one.kind, one.points) for one in found] == [("all", 4), ("q_proj", 2), ("v_proj", 2)]
    # By hand, of all four: Sxx = 5, Syy = 8.75, Sxy = 3.5.
    assert [one.slope for one in found] == pytest.approx([0.7, 3.0, -2.0])
    assert [one.correlation for one in found] == pytest.approx([3.5 / math.sqrt(5 * 8.75), 1.0, -1.0])


@pytest.mark.parametrize("pairs", [[(1, 2)], [(1, 2), (1, 3)], [(1, 2), (2, 2)]])
def test_without_movement_there_is_no_correlation(pairs: list[tuple[float, float]]) -> None:
    for one in correlations(points("q_proj", *pairs)):
        assert one.correlation is None and one.slope is None and one.points == len(pairs)
