"""Log-probabilities of tokens under a frozen head, with little kept for the backward pass.

    z = h Wᵀ + b        log p(t) = z_t - log Σ exp z        ∂ log p(t) / ∂h = W_t - softmax(z) W

The gradient of a token's log-probability is known as soon as its logits are, so it is computed then: what is
kept is of the hidden states' size, and no logits are computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, log_softmax

CHUNK_ELEMENTS = 1 << 22
"""Most logits at a time: 16 MiB in float32."""


def token_scores(
    hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """How likely each target is after its hidden state.

    Args:
        hidden: Last hidden states, (n, d), floating.
        targets: Token ids, (n,), int64.
        weight: The head's, (V, d), frozen.
        bias: The head's, (V,), frozen, or None.

    Returns:
        Three tensors (n,): log p in float32, with a gradient to ``hidden``; the entropy of the distribution
        in nats, float32, and whether the target is its likeliest token, bool, both without a gradient.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    scores: Any = _TokenScores.apply(hidden, targets, weight, bias)
    return scores


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        log_probs = torch.empty(len(hidden), device=hidden.device)
        entropy, is_top1 = torch.empty_like(log_probs), torch.empty_like(targets, dtype=torch.bool)
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = max(1, CHUNK_ELEMENTS // len(weight))
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            target = targets[part, None]
            scores = log_softmax(linear(hidden[part], weight, bias), dim=-1, dtype=torch.float32)
            log_probs[part] = scores.gather(1, target)[:, 0]
            is_top1[part] = scores.argmax(dim=1) == target[:, 0]
            p = scores.exp()
            entropy[part] = -torch.linalg.vecdot(p, scores)
            if slope is not None:
                p.neg_().scatter_add_(1, target, torch.ones_like(p[:, :1]))
                slope[part] = p.to(weight.dtype) @ weight
        ctx.mark_non_differentiable(entropy, is_top1)
        ctx.save_for_backward(slope)
        return log_probs, entropy, is_top1

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, d_log_probs: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return None if slope is None else (d_log_probs[:, None] * slope).to(slope.dtype), None, None, None
