"""The oracle itself: by hand, by invariants and by finite differences."""

import torch
from layers import random_layer
from tolerances import assert_close

from doratune import reference


def test_by_hand():
    W = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    A = torch.tensor([[0.0, 2.0]])
    B = torch.tensor([[1.0], [0.5]])
    # s·B·A = [[0, 4], [0, 2]] with s = 2, so V = [[3, 4], [0, 4]], n = (5, 4); m / n = (2, 0.25)
    m = torch.tensor([10.0, 1.0])
    merged = reference.merge(W, A, B, m, 2.0)
    torch.testing.assert_close(merged, torch.tensor([[6.0, 8.0], [0.0, 1.0]], dtype=torch.float64))
    y = reference.forward(torch.tensor([[1.0, 2.0]]), W, A, B, m, 2.0, torch.tensor([0.5, -0.5]))
    torch.testing.assert_close(y, torch.tensor([[22.5, 1.5]], dtype=torch.float64))


def test_rows_of_the_merged_weight_have_norm_m():
    layer = random_layer()
    merged = reference.merge(layer.W, layer.A, layer.B, layer.m, layer.scaling)
    assert_close("norm", torch.float64, merged.norm(dim=1), layer.m)


def test_gradients_with_the_norm_attached_by_finite_differences():
    layer = random_layer(6, 5, 2, dtype=torch.float64)

    def attached(x, A, B, m, bias):
        return reference.forward(x, layer.W, A, B, m, 2.0, bias, detach_norm=False)

    assert torch.autograd.gradcheck(attached, tuple(layer.tensors().values()))


def test_zero_rows_have_finite_gradients_with_the_norm_attached():
    layer = random_layer()
    with torch.no_grad():
        layer.W[3] = 0
        layer.B[3] = 0
    output = layer.truth(detach_norm=False)
    assert torch.equal(output[:, 3], layer.bias[3].double().expand(7))
    for grad in torch.autograd.grad(output.sum(), tuple(layer.tensors().values())):
        assert grad.isfinite().all()


def test_detaching_changes_the_gradient_of_the_direction_only():
    layer = random_layer(dtype=torch.float64)
    tensors = layer.tensors()
    grads = [
        torch.autograd.grad(layer.truth(detach_norm=detach).square().sum(), tuple(tensors.values()))
        for detach in (True, False)
    ]
    for name, detached, attached in zip(tensors, *grads, strict=True):
        assert torch.equal(detached, attached) is (name in ("x", "m", "bias")), name
