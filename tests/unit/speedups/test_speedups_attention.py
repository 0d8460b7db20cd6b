"""Attention of a packed batch compared with plain softmax attention, row by row, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from doratune.speedups.attention import attend, lay_out

LENGTHS = (9, 4, 7)


def places(shared: int) -> Tensor:
    longest = max(LENGTHS) - shared
    return torch.cat([row * longest + torch.arange(length - shared) for row, length in enumerate(LENGTHS)])


def plain(query: Tensor, key: Tensor, value: Tensor, shared: int, scaling: float) -> Tensor:
    """(T, heads, d) packed, in the dtype of the inputs, one row after the other."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    first, start, outputs = torch.arange(shared), shared, []
    for number, length in enumerate(LENGTHS):
        row = torch.cat([first, torch.arange(start, start + length - shared)])
        start += length - shared
        scores = torch.einsum("qhd,khd->hqk", query[row], key[row]) * scaling
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        p = scores.masked_fill(~causal, -torch.inf).softmax(-1)
        out = torch.einsum("hqk,khd->qhd", p, value[row])
        outputs.append(out if number == 0 else out[shared:])
    return torch.cat(outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("shared", [0, 1, 3])
def test_outputs_and_gradients_are_those_of_one_row_at_a_time(
    shared: int, heads: int, key_heads: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    tokens, d, d_value, scaling = sum(LENGTHS) - shared * (len(LENGTHS) - 1), 8, 6, 0.3
    shapes = (tokens, heads, d), (tokens, key_heads, d), (tokens, key_heads, d_value)
    states = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    d_out = torch.randn(tokens, heads, d_value).to(dtype)
    longest = max(LENGTHS) - shared
    layout = lay_out(places(shared), len(LENGTHS), longest, shared, heads, key_heads, dtype)
    out = attend(*states, layout, scaling)
    out.backward(d_out)
    exact = [one.detach().double().requires_grad_() for one in states]
    wanted = plain(*exact, shared, scaling)
    wanted.backward(d_out.double())
    assert out.dtype == dtype
    limit = 1e-6 if dtype == torch.float32 else 1e-2  # some roundings of 2⁻⁹ each
    for got, want in [(out, wanted), *((a.grad, b.grad) for a, b in zip(states, exact, strict=True))]:
        assert got is not None and want is not None
        assert (got.double() - want).norm() / want.norm() < limit


def test_more_shared_tokens_than_a_row_has_of_its_own() -> None:
    torch.manual_seed(0)
    states = [torch.randn(7, 2, 4).double().requires_grad_() for _ in range(3)]
    own = torch.tensor([0, 1])  # two rows of one token each behind five
    out = attend(*states, lay_out(own, 2, 1, 5, 2, 2, torch.float64), 1.0)
    out.sum().backward()
    query, key, value = states
    for last in (5, 6):
        row = [*range(5), last]
        p = torch.einsum("hd,khd->hk", query[last], key[row]).softmax(-1)
        torch.testing.assert_close(out[last], torch.einsum("hk,khd->hd", p, value[row]))
    torch.testing.assert_close(out[0], value[0])
