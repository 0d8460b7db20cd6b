"""The best LoRA of a rank, compared with NumPy's singular value decomposition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from doratune.serving.converting import low_rank
from doratune.serving.converting.low_rank import decompose, decompose_factors, dora_change


def layer(d_out: int, d_in: int, r: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(d_out)
    W, A, B = torch.randn(d_out, d_in), torch.randn(r, d_in), 0.3 * torch.randn(d_out, r)
    return W, A, B, 1 + 0.1 * torch.randn(d_out)


def numpy_best(change: np.ndarray, rank: int) -> tuple[np.ndarray, float]:
    """The best approximation, and the norm of what it leaves out."""
    U, S, Vh = np.linalg.svd(change, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank], float(np.sqrt((S[rank:] ** 2).sum()))


def product(A: torch.Tensor, B: torch.Tensor) -> np.ndarray:
    return (B.double() @ A.double()).numpy()


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32)])
@pytest.mark.parametrize("rank", [1, 8, 24])
def test_dora_is_numpys_best_approximation(shape: tuple[int, int], rank: int) -> None:
    W, A, B, gain = layer(*shape)
    exact = (gain[:, None].double() * (W.double() + 2.0 * (B.double() @ A.double())) - W.double()).numpy()
    change = dora_change(W.clone(), A, B, 2.0, gain)
    np.testing.assert_allclose(change.double().numpy(), exact, atol=1e-5)
    best, left = numpy_best(exact, rank)
    found = decompose(change, rank)
    np.testing.assert_allclose(product(*found.factors(rank)), best, atol=2e-5)
    assert found.left_out(rank) == pytest.approx(left, rel=1e-5, abs=1e-5)
    assert found.least_left_out(rank) == found.left_out(rank)
    assert found.norm == pytest.approx(float(np.linalg.norm(exact)), rel=1e-6)


def test_one_decomposition_serves_smaller_ranks() -> None:
    W, A, B, gain = layer(40, 24)
    change = dora_change(W, A, B, 2.0, gain)
    exact = change.double().numpy().copy()
    found = decompose(change, 16)
    for rank in (1, 4, 16):
        best, left = numpy_best(exact, rank)
        np.testing.assert_allclose(product(*found.factors(rank)), best, atol=2e-5)
        assert found.left_out(rank) == pytest.approx(left, rel=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 4, 7])
def test_lora_is_decomposed_from_its_factors(rank: int) -> None:
    _, A, B, _ = layer(40, 24)
    best, left = numpy_best(1.5 * product(A, B), rank)
    found = decompose_factors(A, B, 1.5)
    np.testing.assert_allclose(product(*found.factors(rank)), best, atol=1e-5)
    assert found.left_out(rank) == pytest.approx(left, rel=1e-5, abs=1e-9)
    assert found.left_out(4) == 0


def test_factors_are_balanced_and_filled_up_with_zeros() -> None:
    _, A, B, _ = layer(40, 24)
    a, b = decompose_factors(A, B, 1.5).factors(6)
    assert (a.shape, b.shape) == ((6, 24), (40, 6))
    assert a.norm().item() == pytest.approx(b.norm().item(), rel=1e-6)
    assert not a[4:].any() and not b[:, 4:].any()


@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_random_projection_of_a_large_matrix(monkeypatch: pytest.MonkeyPatch, spread: float) -> None:
    """Without any change of the rows' lengths ΔW falls off fast; with one it is nearly flat."""
    monkeypatch.setattr(low_rank, "SMALL", 64)
    W, A, B, _ = layer(300, 400, r=16)
    gain = 1 + spread * torch.randn(300)
    change = dora_change(W, A, B, 0.2, gain)
    exact = change.double().numpy().copy()
    before = torch.get_rng_state()
    found = decompose(change, 64)
    assert torch.equal(torch.get_rng_state(), before)
    for rank in (4, 16, 64):
        _, left = numpy_best(exact, rank)
        ours = float(np.linalg.norm(exact - product(*found.factors(rank))))
        norm = float(np.linalg.norm(exact))
        assert found.left_out(rank) == pytest.approx(ours, rel=1e-4, abs=1e-5 * norm)  # what it says is true
        assert ours <= 1.02 * left + 1e-5 * norm  # close to the best
        assert found.least_left_out(rank) <= left + 1e-5 * norm  # the bound holds
        assert found.least_left_out(rank) >= 0.6 * ours - 1e-5 * norm  # and says something


def test_a_change_of_zero_has_factors_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    for small in (1024, 8):
        monkeypatch.setattr(low_rank, "SMALL", small)
        found = decompose(torch.zeros(64, 80), 8)
        assert found.norm == found.left_out(8) == found.least_left_out(8) == 0
        assert not any(one.any() for one in found.factors(8))


def with_spectrum(S: torch.Tensor, d_out: int, d_in: int) -> torch.Tensor:
    """A dense matrix with these singular values: diag(S) between random reflections, which change none."""
    matrix = torch.zeros(d_out, d_in)
    matrix.diagonal().copy_(S)
    for _ in range(2):
        u, v = (torch.nn.functional.normalize(torch.randn(size), dim=0) for size in (d_out, d_in))
        matrix -= 2 * torch.outer(u, u @ matrix)
        matrix -= 2 * torch.outer(matrix @ v, v)
    return matrix


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "falling"])
def test_a_layer_of_a_7b_model_whose_singular_values_are_known(kind: str) -> None:
    """4096 by 11008; the best LoRA of a rank leaves out the singular values after it."""
    torch.manual_seed(0)
    number = torch.arange(4096, dtype=torch.float64)
    S = 2.0 * (1 - number / 8192) if kind == "flat" else 4.0 * 0.97**number + 0.01
    found = decompose(with_spectrum(S.float(), 4096, 11008), 64)
    for rank in (16, 64):
        best = torch.linalg.vector_norm(S[rank:]).item()
        assert found.least_left_out(rank) <= best * (1 + 1e-5), "the bound holds"
        assert best * (1 - 1e-5) <= found.left_out(rank) <= 1.01 * best
        assert found.least_left_out(rank) >= 0.85 * best, "and says something"
    assert found.norm == pytest.approx(torch.linalg.vector_norm(S).item(), rel=1e-5)
