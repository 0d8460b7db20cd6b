"""Causal softmax attention of a packed batch on a CPU, with an explicit gradient.

transformers' eager attention repeats keys and values for every query head of a group, applies scale and mask
in separate passes and keeps probabilities in float32. PyTorch's fused attention has a slow backward pass.
Here a group's queries are rows of one product that includes scale and mask, and only what the gradient needs
is saved, in the model's dtype (in float32 where the engine widens products of that dtype)::

    P = softmax(s·Q Kᵀ + mask)      O = P V
    dV = Pᵀ dO      dS = P ⊙ (dO Vᵀ - Σ(P ⊙ dO Vᵀ))      dQ = s·dS K      dK = s·dSᵀ Q

Rows are gathered from the packed tokens head by head: the shared tokens come before each row's own, and an
extra last row holds the shared tokens themselves. No token sees a row's padding, which gets no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doratune.engine.autocast import autocast_off
from doratune.engine.matmul import is_widened
from doratune.speedups._internals import softmax_backward


@dataclass(frozen=True)
class RowLayout:
    """Maps the heads of T packed tokens to n rows of L queries and S + L keys, padding included.

    Attributes:
        rows: n.
        shared: Keys that all rows have in common, S.
        heads: Query heads, H.
        key_heads: Heads of keys and values, h; H/h query heads share one.
        queries: For each (row, key head, head of its group, query) its index in (T, H), flattened; arbitrary
            for padding.
        keys: For each (row, key head, key) its index in (T, h), flattened.
        queries_back: For each (token, head) its index in ``queries``.
        keys_back: For each (token after the shared ones, key head) its index in ``keys``.
        mask: Additive, (n·h, H/h·L, S + L).
    """

    rows: int
    shared: int
    heads: int
    key_heads: int
    queries: Tensor
    keys: Tensor
    queries_back: Tensor
    keys_back: Tensor
    mask: Tensor


def additive_mask(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive attention mask: 0 where a query sees a key, otherwise the dtype's lowest number.

    Args:
        sees: Boolean, any shape.
        dtype: The mask's dtype, floating.

    Returns:
        Of the shape of ``sees``.
    """
    return torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)


def lay_out(
    own: Tensor, rows: int, longest: int, shared: int, heads: int, key_heads: int, dtype: torch.dtype
) -> RowLayout:
    """Lay out a packed batch for its attention.

    Args:
        own: Indices of the tokens after the shared ones in rows of ``longest`` tokens, flattened.
        rows: How many rows there are.
        longest: Length of the longest row without the shared tokens.
        shared: How many tokens all rows begin with.
        heads: Query heads.
        key_heads: Heads of keys and values.
        dtype: The mask's dtype.
    """
    slots, n = max(longest, shared), rows + (shared > 0)
    # The slot of each token. The shared ones are in an extra last row.
    place = torch.cat([rows * slots + torch.arange(shared), own // longest * slots + own % longest])
    tokens = torch.zeros(n * slots, dtype=torch.long)
    tokens[place] = torch.arange(len(place))
    tokens = tokens.view(n, slots)
    key_tokens = torch.cat([torch.arange(shared).expand(n, shared), tokens], dim=1)
    head, key_head = torch.arange(heads).view(key_heads, -1, 1), torch.arange(key_heads)[:, None]
    row, slot = place[:, None] // slots, place[:, None] % slots
    sees = torch.ones(n, slots, shared + slots, dtype=torch.bool).tril(shared)
    if shared:
        sees[rows] = torch.ones(slots, shared + slots, dtype=torch.bool).tril()
    mask = additive_mask(sees, dtype)
    groups = heads // key_heads
    return RowLayout(
        rows=n,
        shared=shared,
        heads=heads,
        key_heads=key_heads,
        queries=(tokens[:, None, None] * heads + head).flatten(),
        keys=(key_tokens[:, None] * key_heads + key_head).flatten(),
        queries_back=((row * heads + torch.arange(heads)) * slots + slot).flatten(),
        keys_back=((row * key_heads + key_head.T) * (shared + slots) + shared + slot)[shared:].flatten(),
        mask=mask[:, None, None].expand(-1, key_heads, groups, -1, -1).flatten(2, 3).flatten(0, 1),
    )


def attend(query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, scaling: float) -> Tensor:
    """Attention of each token to itself and to those before it in its row.

    Args:
        query: (T, H, d), floating.
        key: (T, h, d), query's dtype.
        value: (T, h, d_v), query's dtype.
        layout: Maps the tokens to rows; its mask has query's dtype.
        scaling: The factor s of the scores.

    Returns:
        (T, H, d_v), in query's dtype.

    Raises:
        RuntimeError: From PyTorch, if shapes or dtypes do not fit.
    """
    if is_widened(query):
        wide = replace(layout, mask=layout.mask.float())
        return attend(query.float(), key.float(), value.float(), wide, scaling).to(query.dtype)
    out: Any = _Attention.apply(query, key, value, layout, scaling)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, scaling: float
    ) -> Tensor:
        batch = layout.rows * layout.key_heads
        Q, K, V = (
            states.flatten(0, 1).index_select(0, index).view(batch, -1, states.shape[-1])
            for states, index in ((query, layout.queries), (key, layout.keys), (value, layout.keys))
        )
        with autocast_off(query.device):
            P = torch.baddbmm(layout.mask, Q, K.mT, alpha=scaling).softmax(dim=-1)
            rows = torch.bmm(P, V)
        ctx.save_for_backward(Q, K, V, P)
        ctx.layout, ctx.scaling = layout, scaling
        return _queries_back(rows, layout)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, d_out: Tensor
    ) -> tuple[Tensor | None, ...]:
        Q, K, V, P = ctx.saved_tensors
        layout = ctx.layout
        dO = d_out.new_zeros(Q[..., 0].numel(), d_out.shape[-1])  # zero for padding
        dO.index_copy_(0, layout.queries_back, d_out.flatten(0, 1))
        dO = dO.view(len(Q), -1, d_out.shape[-1])
        with autocast_off(d_out.device):
            dV = torch.bmm(P.mT, dO)
            dS = softmax_backward(torch.bmm(dO, V.mT), P, -1, P.dtype).mul_(ctx.scaling)
            dQ, dK = torch.bmm(dS, K), torch.bmm(dS.mT, Q)
        return _queries_back(dQ, layout), _keys_back(dK, layout), _keys_back(dV, layout), None, None


def _queries_back(rows: Tensor, layout: RowLayout) -> Tensor:
    """(n·h, H/h·L, d) -> (T, H, d)."""
    return rows.flatten(0, 1).index_select(0, layout.queries_back).unflatten(0, (-1, layout.heads))


def _keys_back(rows: Tensor, layout: RowLayout) -> Tensor:
    """(n·h, S + L, d) -> (T, h, d), summed over the rows where they share a token."""
    own = rows.flatten(0, 1).index_select(0, layout.keys_back).unflatten(0, (-1, layout.key_heads))
    if not layout.shared:
        return own
    shared = rows.view(layout.rows, layout.key_heads, *rows.shape[1:])[:, :, : layout.shared].sum(dim=0)
    return torch.cat([shared.transpose(0, 1), own])
