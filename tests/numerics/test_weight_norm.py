"""The factored row norm against the dense one."""

import pytest
import torch
from layers import random_layer
from tolerances import assert_elementwise
from torch.utils._python_dispatch import TorchDispatchMode

from doratune import reference
from doratune.engine import weight_norm
from doratune.functional import dora_row_norm, row_norm_squared


class LargestNewTensor(TorchDispatchMode):
    """Records the largest tensor made that is not a view of ``given``."""

    def __init__(self, given):
        super().__init__()
        self.given = given.untyped_storage().data_ptr()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() != self.given:
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("d_in", "d_out", "rank"), [(48, 40, 4), (37, 53, 1), (6, 5, 9)])
@pytest.mark.parametrize("scaling", [2.0, 0.0, 16 / 3**0.5])
def test_equals_the_dense_norm(dtype, d_in, d_out, rank, scaling):
    layer = random_layer(d_in, d_out, rank, dtype=dtype)
    n = dora_row_norm(layer.W, layer.A, layer.B, scaling)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert n.dtype == wide
    assert not n.requires_grad
    assert_elementwise("norm", wide, n, reference.row_norm(layer.W, layer.A, layer.B, scaling).detach())


def test_a_float64_adapter_asks_for_a_float64_norm():
    layer = random_layer()
    A, B = layer.A.double(), layer.B.double()
    n = dora_row_norm(layer.W, A, B, 2.0, row_norm_squared(layer.W.double()))
    assert_elementwise("norm", torch.float64, n, reference.row_norm(layer.W, A, B, 2.0).detach())


def test_autocast_does_not_reach_the_norm():
    layer = random_layer()
    with torch.autocast("cpu", torch.bfloat16):
        n = dora_row_norm(layer.W, layer.A, layer.B, 2.0)
    assert torch.equal(n, dora_row_norm(layer.W, layer.A, layer.B, 2.0))


def test_the_given_weight_norm_is_used():
    layer = random_layer()
    squared = row_norm_squared(layer.W)
    n = dora_row_norm(layer.W, layer.A, layer.B, 2.0, squared)
    assert torch.equal(n, dora_row_norm(layer.W, layer.A, layer.B, 2.0))
    further = dora_row_norm(layer.W, layer.A, layer.B, 2.0, squared + 1)
    assert_elementwise("norm", torch.float32, further, (n.double().square() + 1).sqrt())


@pytest.mark.parametrize(("dtype", "chunk_rows"), [(torch.float32, None), (torch.bfloat16, 16)])
def test_no_large_temporary(monkeypatch, dtype, chunk_rows):
    d_in, d_out, rank = 256, 128, 4
    layer = random_layer(d_in, d_out, rank, dtype=dtype)
    monkeypatch.setattr(weight_norm, "BUFFER_ELEMENTS", 16 * d_in)
    with LargestNewTensor(layer.W) as largest:
        n = dora_row_norm(layer.W, layer.A, layer.B, 2.0)
    allowed = chunk_rows * d_in if chunk_rows else max(d_out, d_in) * rank
    assert allowed < min(d_out * d_in, d_in * d_in)
    assert 0 < largest.numel <= allowed
    expected = reference.row_norm(layer.W, layer.A, layer.B, 2.0).detach()
    assert_elementwise("norm", torch.float32, n, expected)


def test_cancelled_rows_are_as_precise_as_the_module_says():
    rank = 60  # rows enough for n² to be rounded to both sides of zero
    layer = random_layer(d_in=64, d_out=rank, rank=rank)
    A, B = layer.A.detach(), torch.eye(rank)
    shrink = torch.tensor([1e-1, 1e-2, 0.0]).repeat(rank // 3)
    W = (-A * (1 - shrink[:, None])).contiguous()  # s = 1: V = shrink ⊙ A
    n = dora_row_norm(W, A, B, 1.0).double()
    truth = reference.row_norm(W, A, B, 1.0)
    size = W.double().norm(dim=1) + A.double().norm(dim=1)
    bound = 4 * torch.finfo(torch.float32).eps * size.square()
    assert ((n.square() - truth.square()).abs() <= bound).all()
    assert n.isfinite().all()


def test_an_empty_weight_has_an_empty_norm():
    assert dora_row_norm(torch.ones(0, 3), torch.ones(2, 3), torch.ones(0, 2), 1.0).shape == (0,)
