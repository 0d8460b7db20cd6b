"""Packs a batch into one sequence without padding: what all rows begin with, once, then each row's rest.

Whatever a model computes token by token (projections, MLPs, norms, adapters) then runs over real tokens only,
in one call per layer. Only attention needs rows: it unpacks queries, keys and values into a padded batch,
attends there and packs the result again. Short rows use ``attention.py`` where the model computes the same,
and otherwise the model's own eager attention. Long rows use PyTorch's fused attention.

transformers passes the model's keyword arguments on to the attention implementation. Ours is registered as
``PACKED``; in a call without a packed batch it is transformers' sdpa.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from doratune.speedups._internals import (
    AttentionMaskInterface,
    eager_attention,
    sdpa_attention_forward,
    sdpa_mask,
)
from doratune.speedups.attention import RowLayout, additive_mask, attend, lay_out
from doratune.speedups.same import difference, random

PACKED = "doratune_packed"
RECORDING = "doratune_recording"
"""The name of sdpa with a record of each call."""
Attention = Literal["own", "eager", "sdpa"]
"""What rows use: ``attention.py``, the model's own eager attention, or PyTorch's fused attention."""


@dataclass(frozen=True)
class PackedBatch:
    """How a batch of right-padded rows is packed into T tokens.

    Attributes:
        rows: How many rows there are.
        shared: How many tokens all rows begin with; they are stored once, before all others.
        longest: Length of the longest row without the shared tokens.
        tokens: Each packed token's index in the flattened batch, (T,), int64.
        positions: Each packed token's position in its row, (1, T), int64.
        own: Indices of the tokens after the shared ones in rows of ``longest`` tokens, flattened,
            (T - shared,).
        place: The packed index of each token of the batch, (rows, width), int64; meaningless for padding.
        mask: Boolean for sdpa, otherwise additive: (1, 1, longest, shared + longest).
        shared_mask: The same for the shared tokens among themselves, (1, 1, shared, shared).
        attention: What rows use.
        layouts: Those made so far, by heads of queries and of keys and by dtype.
    """

    rows: int
    shared: int
    longest: int
    tokens: Tensor
    positions: Tensor
    own: Tensor
    place: Tensor
    mask: Tensor
    shared_mask: Tensor
    attention: Attention
    layouts: dict[tuple[int, int, torch.dtype], RowLayout] = field(default_factory=dict)

    def layout(self, heads: int, key_heads: int, dtype: torch.dtype) -> RowLayout:
        """The layout for ``attend``; all layers share it."""
        if (heads, key_heads, dtype) not in self.layouts:
            self.layouts[heads, key_heads, dtype] = lay_out(
                self.own, self.rows, self.longest, self.shared, heads, key_heads, dtype
            )
        return self.layouts[heads, key_heads, dtype]


def pack(
    lengths: Tensor, width: int, shared: int, *, attention: Attention, dtype: torch.dtype
) -> PackedBatch:
    """Compute how to pack a batch.

    Args:
        lengths: Tokens of each row, (rows,), int64.
        width: Length of every row with its padding.
        shared: How many tokens all rows begin with, fewer than the shortest row has.
        attention: What rows use.
        dtype: The dtype of an additive mask.
    """
    rows, columns = len(lengths), torch.arange(width)
    longest = int(lengths.max()) - shared
    is_own = (columns >= shared) & (columns < lengths[:, None])
    first = torch.zeros_like(is_own)
    first[0, :shared] = True
    tokens = torch.cat([first.flatten().nonzero(), is_own.flatten().nonzero()])[:, 0]
    place = shared + is_own.flatten().cumsum(0).view(rows, width) - 1
    place[:, :shared] = columns[:shared]
    # A row's padding comes after its tokens, so causal attention hides it from all of them.
    mask = torch.ones(longest, shared + longest, dtype=torch.bool).tril(shared)
    shared_mask = torch.ones(shared, shared, dtype=torch.bool).tril()
    if attention != "sdpa":
        mask, shared_mask = additive_mask(mask, dtype), additive_mask(shared_mask, dtype)
    return PackedBatch(
        rows=rows,
        shared=shared,
        longest=longest,
        tokens=tokens,
        positions=(tokens % width)[None],
        own=is_own[:, shared : shared + longest].flatten().nonzero()[:, 0],
        place=place,
        mask=mask[None, None],
        shared_mask=shared_mask[None, None],
        attention=attention,
    )


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed: PackedBatch | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row to itself and the shared tokens: (1, heads, T, d) -> (1, T, heads, d)."""
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if packed.attention == "own" and not kwargs.get("dropout"):
        if torch.is_autocast_enabled(query.device.type):
            dtype = torch.get_autocast_dtype(query.device.type)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
        layout = packed.layout(query.shape[1], key.shape[1], query.dtype)
        return attend(query, key, value, layout, kwargs["scaling"])[None], None
    attention = sdpa_attention_forward if packed.attention == "sdpa" else eager_attention(module)
    shared = packed.shared
    keys, values = (
        torch.cat(
            [states[:, :, :shared].expand(packed.rows, -1, -1, -1), _rows(states[:, :, shared:], packed)],
            dim=2,
        )
        for states in (key, value)
    )
    out = attention(module, _rows(query[:, :, shared:], packed), keys, values, attention_mask, **kwargs)[0]
    out = out.flatten(0, 1).index_select(0, packed.own)
    if shared:
        query, key, value = query[:, :, :shared], key[:, :, :shared], value[:, :, :shared]
        out = torch.cat([attention(module, query, key, value, packed.shared_mask, **kwargs)[0][0], out])
    return out[None], None


def _rows(states: Tensor, packed: PackedBatch) -> Tensor:
    """(1, heads, T - shared, d) -> (rows, heads, longest, d), zero where a row has ended."""
    tokens = states[0].transpose(0, 1)
    padded = tokens.new_zeros(packed.rows * packed.longest, *tokens.shape[1:])
    return padded.index_copy(0, packed.own, tokens).unflatten(0, (packed.rows, -1)).transpose(1, 2)


@dataclass(frozen=True)
class AttentionCall:
    """What a layer passed to its attention implementation.

    Attributes:
        layer: The attention layer.
        heads: (H, h, d, d_v): how many heads of queries and of keys, and the sizes of a query and a value.
        arguments: Everything except the states and the mask.
    """

    layer: nn.Module
    heads: tuple[int, int, int, int]
    arguments: dict[str, Any]

    def difference(self, dtype: torch.dtype) -> str | None:
        """How the layer's own eager attention differs from ``attention.py``, given these arguments.

        Args:
            dtype: The model's dtype.

        Returns:
            The difference in words, or None if they are equal to rounding.
        """
        heads, key_heads, size, value_size = self.heads
        lengths = torch.tensor([5, 4])
        arguments = {**self.arguments, "dropout": 0.0}

        def packed(attention: Attention) -> Callable[..., Any]:
            def attend_packed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
                batch = pack(lengths, 5, 2, attention=attention, dtype=query.dtype)
                return packed_attention(self.layer, query, key, value, batch.mask, packed=batch, **arguments)[
                    0
                ]

            return attend_packed

        tokens = int(lengths.sum()) - 2
        # Large scores, in the tens, reveal a cap that small ones hide.
        states = (
            4.0 * random(1, heads, tokens, size),
            4.0 * random(1, key_heads, tokens, size).flip(-1),
            random(1, key_heads, tokens, value_size),
        )
        return difference(packed("eager"), packed("own"), states, dtype)


def recorded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    calls: list[AttentionCall],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Like sdpa, but appends the call to the list ``calls`` that the model was called with."""
    heads = (query.shape[1], key.shape[1], query.shape[-1], value.shape[-1])
    calls.append(AttentionCall(module, heads, kwargs))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


for _name, _attention in ((PACKED, packed_attention), (RECORDING, recorded_attention)):
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, sdpa_mask)
