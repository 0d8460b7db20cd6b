"""Log-probabilities of tokens under a linear head, with little saved for the backward pass.

    z = h Wᵀ + b        log p(t) = z_t - log Σ exp z        ∂ log p(t) / ∂z = 1_t - softmax(z)

Under a frozen head the gradient of a token's log-probability is known as soon as its logits are, so it is
computed then: what is saved has the hidden states' size, and no logits are computed twice. The gradient of a
trained head depends on the incoming gradient, so the logits are recomputed in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import log_softmax

from doratune.engine.matmul import linear, matmul
from doratune.speedups.settings import SpeedupSettings


def token_scores(
    hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, settings: SpeedupSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """How likely each target is, given its hidden state.

    Args:
        hidden: Last hidden states, (n, d), floating.
        targets: Token ids, (n,), int64.
        weight: The head's, (V, d), frozen or trained.
        bias: The head's, (V,), frozen or trained, or None.
        settings: How many logits are computed at a time.

    Returns:
        Three tensors (n,): log p in float32, with a gradient to ``hidden`` and to the trained part of the
        head; the entropy of the distribution in nats, float32; and whether the target is its likeliest token,
        bool. The last two have no gradient. Where autocast is on, the logits are computed in its dtype.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    scores: Any = _TokenScores.apply(hidden, targets, weight, bias, settings)
    return scores


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        settings: SpeedupSettings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        log_probs = torch.empty(len(hidden), device=hidden.device)
        entropy, is_top1 = torch.empty_like(log_probs), torch.empty_like(targets, dtype=torch.bool)
        ctx.trains_head, ctx.settings = any(ctx.needs_input_grad[2:]), settings
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] and not ctx.trains_head else None
        for part in _parts(len(hidden), len(weight), settings.chunk_elements):
            logits = linear(hidden[part], weight, bias)
            for rows, scores, target in _log_probs(logits, targets[part], settings):
                log_probs[part][rows] = scores.gather(1, target)[:, 0]
                is_top1[part][rows] = scores.max(dim=1).indices == target[:, 0]  # argmax takes twice as long
                p = scores.exp()
                entropy[part][rows] = -torch.linalg.vecdot(p, scores)
                if slope is not None:
                    logits[rows] = _logit_slope(p, target)
            if slope is not None:
                slope[part] = matmul(logits, weight)
        ctx.mark_non_differentiable(entropy, is_top1)
        ctx.save_for_backward(*((hidden, targets, weight, bias) if ctx.trains_head else (slope,)))
        return log_probs, entropy, is_top1

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, d_log_probs: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        if ctx.trains_head:
            return *_gradients(ctx.needs_input_grad, ctx.settings, d_log_probs, *ctx.saved_tensors), None
        (slope,) = ctx.saved_tensors
        return (
            None if slope is None else (d_log_probs[:, None] * slope).to(slope.dtype),
            None,
            None,
            None,
            None,
        )


def _gradients(
    needs: tuple[bool, ...],
    settings: SpeedupSettings,
    d_log_probs: Tensor,
    hidden: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The gradients of ``hidden``, ``targets`` (None), ``weight`` and ``bias``; None if not needed."""
    d_hidden = torch.empty_like(hidden) if needs[0] else None
    d_weight = torch.zeros_like(weight, dtype=torch.float32) if needs[2] else None
    d_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs[3] else None
    for part in _parts(len(hidden), len(weight), settings.chunk_elements):
        d_logits = linear(hidden[part], weight, bias)
        for rows, scores, target in _log_probs(d_logits, targets[part], settings):
            slope = _logit_slope(scores.exp_(), target).mul_(d_log_probs[part][rows, None])
            if d_bias is not None:
                d_bias += slope.sum(dim=0)
            d_logits[rows] = slope
        if d_hidden is not None:
            d_hidden[part] = matmul(d_logits, weight)
        if d_weight is not None:
            d_weight += matmul(d_logits.T, hidden[part])
    return (
        d_hidden,
        None,
        None if d_weight is None else d_weight.to(weight.dtype),
        None if d_bias is None or bias is None else d_bias.to(bias.dtype),
    )


def _log_probs(
    logits: Tensor, targets: Tensor, settings: SpeedupSettings
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """A few rows of logits (n, V) at a time: the rows, their log-softmax in float32, and targets (rows, 1).

    The caller may overwrite the logits of rows that it has been given.
    """
    for rows in _parts(logits.shape[0], logits.shape[1], settings.block_elements):
        yield rows, log_softmax(logits[rows], dim=-1, dtype=torch.float32), targets[rows, None]


def _parts(positions: int, vocabulary: int, elements: int) -> Iterator[slice]:
    """Slices of positions with at most ``elements`` logits each, but at least one position."""
    size = max(1, elements // vocabulary)
    return (slice(start, start + size) for start in range(0, positions, size))


def _logit_slope(p: Tensor, target: Tensor) -> Tensor:
    """∂ log p(target) / ∂z, (n, V), in place of ``p``."""
    return p.neg_().scatter_add_(1, target, torch.ones_like(p[:, :1]))
