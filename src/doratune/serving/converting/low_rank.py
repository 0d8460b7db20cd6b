"""The best LoRA of a given rank for a layer's change ΔW, and how much of ΔW it leaves out.

By the Eckart-Young theorem that is the truncated singular value decomposition. LoRA's ΔW = s·B·A is
decomposed from its factors. DoRA's ΔW = g ⊙ (W + s·B·A) - W is of full rank, since (g - 1) ⊙ W is, so it is
decomposed as a matrix: completely if that is small, else by random projection (Halko, Martinsson and Tropp,
SIAM Review 53, 2011), whose result comes with a bound on what the best would leave out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SMALL = 1024
"""A matrix with at most this many rows or columns is decomposed completely, in float64."""
OVERSAMPLED, POWER_ITERATIONS = 32, 4
"""For larger ones: dimensions projected onto beyond the rank, and passes that sharpen the projection."""
PROBES, POWER, CONFIDENCE = 20, 5, 2.0
"""For the bound: random vectors, passes, and the base of its chance to fail, CONFIDENCE ** -PROBES."""
SEED = 0


@dataclass(frozen=True)
class Decomposition:
    """The largest singular values and vectors of a layer's ΔW, in float32 or float64.

    Attributes:
        U: Left singular vectors, (d_out, k).
        S: Singular values, (k,), descending.
        V: Right singular vectors, (d_in, k).
        size: The smaller of d_out and d_in: a LoRA of this rank is exact.
        rest: Frobenius norm of ΔW - U·diag(S)·Vᵀ.
        largest_rest: A bound on the spectral norm of the same matrix; zero if U, S and V are exact.
    """

    U: Tensor
    S: Tensor
    V: Tensor
    size: int
    rest: float
    largest_rest: float = 0.0

    @property
    def norm(self) -> float:
        """‖ΔW‖, the Frobenius norm."""
        return self.left_out(0)

    def left_out(self, rank: int) -> float:
        """‖ΔW - B·A‖ for the factors of this rank.

        Args:
            rank: At most the number of singular values that were asked for, or any if those are all.
        """
        # The parts are orthogonal, so their squares add up, and nothing cancels.
        return math.hypot(self.rest, torch.linalg.vector_norm(self.S[rank:].double()).item())

    def least_left_out(self, rank: int) -> float:
        """A lower bound on ‖ΔW - X‖ for any X of this rank; ``left_out`` itself if U, S and V are exact.

        By Ky Fan's inequality the ``rank`` largest squared singular values of ΔW exceed those in S by at most
        ``rank`` times the rest's largest one.
        """
        squared = self.left_out(rank) ** 2 - rank * self.largest_rest**2
        later = torch.linalg.vector_norm(self.S[rank:].double()).item()  # never above ΔW's own
        return max(math.sqrt(max(squared, 0.0)), later)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """The LoRA of this rank with scaling 1, balanced so that A and B have the same norm, in float32.

        Args:
            rank: A rank above the number of singular values is filled up with zeros.

        Returns:
            A, (rank, d_in), and B, (d_out, rank).
        """
        kept = min(rank, len(self.S))
        root = self.S[:kept].sqrt()
        A, B = self.V.new_zeros(rank, len(self.V)), self.U.new_zeros(len(self.U), rank)
        A[:kept] = (self.V[:, :kept] * root).T
        B[:, :kept] = self.U[:, :kept] * root
        return A.float(), B.float()


def decompose_factors(A: Tensor, B: Tensor, scaling: float) -> Decomposition:
    """Decompose s·B·A completely, without forming the product.

    Args:
        A: (r, d_in).
        B: (d_out, r).
        scaling: s.

    Returns:
        At most r singular values, which are all but zeros.
    """
    # B = Q_B·R_B and Aᵀ = Q_A·R_A, so B·A = Q_B·(R_B·R_Aᵀ)·Q_Aᵀ.
    Q_B, R_B = torch.linalg.qr(B.double())
    Q_A, R_A = torch.linalg.qr(A.double().T)
    U, S, Vh = torch.linalg.svd(scaling * (R_B @ R_A.T), full_matrices=False)
    return Decomposition((Q_B @ U).float(), S.float(), (Q_A @ Vh.T).float(), min(len(B), A.shape[1]), 0.0)


def dora_change(W: Tensor, A: Tensor, B: Tensor, scaling: float, gain: Tensor) -> Tensor:
    """ΔW = (g - 1) ⊙ W + s·(g ⊙ B)·A of a DoRA layer, computed in W's memory.

    Args:
        W: (d_out, d_in); overwritten.
        A: (r, d_in).
        B: (d_out, r).
        scaling: s.
        gain: g, (d_out,).
    """
    return W.mul_((gain - 1)[:, None]).addmm_(gain[:, None] * B, A, alpha=scaling)


def decompose(change: Tensor, rank: int) -> Decomposition:
    """Decompose ΔW as a matrix.

    Args:
        change: ΔW, (d_out, d_in), float32 or float64; overwritten.
        rank: The largest rank of which factors will be asked.

    Returns:
        At least ``rank`` singular values, or all that there are.
    """
    size = min(change.shape)
    if size <= SMALL or rank + OVERSAMPLED >= size:
        U, S, Vh = torch.linalg.svd(change.double(), full_matrices=False)
        left = torch.linalg.vector_norm(S[rank:]).item()
        kept = slice(min(rank, size))
        return Decomposition(U[:, kept].float(), S[kept], Vh[kept].T.float(), size, left)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        U, S, V = torch.svd_lowrank(change, q=rank + OVERSAMPLED, niter=POWER_ITERATIONS)
        change.addmm_(U * S, V.T, alpha=-1)
        return Decomposition(U, S, V, size, _norm(change), _spectral_bound(change))


def _norm(matrix: Tensor) -> float:
    """The Frobenius norm, summed up in float64."""
    return torch.linalg.vector_norm(torch.linalg.vector_norm(matrix, dim=1).double()).item()


def _spectral_bound(E: Tensor) -> float:
    """A number that the spectral norm of E exceeds with a probability of less than one in a million.

    For Gaussian vectors ω, ‖M‖ ≤ c·√(2/π)·max ‖M·ω‖ but for a chance of 1/c per vector (lemma 4.1 of the
    paper above). With M = (E·Eᵀ)^p·E the root of degree 2p + 1 makes the bound tight.
    """
    scale = _norm(E)
    if scale == 0:
        return 0.0
    Y = E @ torch.randn(E.shape[1], PROBES, dtype=E.dtype) / scale
    for _ in range(POWER):
        Y = E @ (E.T @ Y) / scale**2
    longest = torch.linalg.vector_norm(Y.double(), dim=0).max().item()
    return scale * (CONFIDENCE * math.sqrt(2 / math.pi) * longest) ** (1 / (2 * POWER + 1))
