"""``dora_linear`` against the float64 reference: outputs and all gradients."""

import weakref
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from layers import random_layer
from tolerances import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from doratune import reference
from doratune.engine import channelwise
from doratune.engine.output_recovery import keep_outputs
from doratune.functional import dora_linear, dora_row_norm, lora_linear, row_norm_squared

NO_CUDA = not torch.cuda.is_available()
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(NO_CUDA, reason="no CUDA")]),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SHAPES = [(48, 40, 4), (37, 53, 1), (6, 5, 9), (1, 1, 1)]


only_large = pytest.mark.parametrize("_sizes", ["large"], indirect=True)
"""For what PyTorch's own backward pass does in another way."""


@pytest.fixture(autouse=True, params=["small", "large"])
def _sizes(request):
    """Every test with the layers as small ones, and as large ones are computed."""
    if request.param == "large":
        request.getfixturevalue("large_layers")


def gradients(layer, output, dY):
    tensors = layer.tensors()
    grads = torch.autograd.grad(output, tuple(tensors.values()), dY.to(output.dtype))
    for name, grad in zip(tensors, grads, strict=True):
        assert grad.dtype == tensors[name].dtype, name
    return dict(zip(tensors, grads, strict=True))


def assert_matches_reference(layer, output, dtype):
    """Output and gradients of ``output`` are the reference's, within the table's ``dtype``."""
    dY = torch.randn(output.shape).to(output.device, dtype)
    assert_close("output", dtype, output, layer.truth())
    expected = gradients(layer, layer.truth(), dY)
    for name, grad in gradients(layer, output, dY).items():
        assert_close("gradient", dtype, grad, expected[name], name)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scaling", [2.0, 16 / 3**0.5])
def test_equals_the_reference(device, dtype, shape, bias, scaling):
    layer = random_layer(*shape, dtype=dtype, bias=bias, scaling=scaling, device=device)
    output = layer.run(norm=dora_row_norm(layer.W, layer.A, layer.B, scaling, row_norm_squared(layer.W)))
    assert output.dtype == dtype
    assert_matches_reference(layer, output, dtype)


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_any_leading_dimensions(leading):
    layer = random_layer(leading=leading)
    output = layer.run()
    assert output.shape == (*leading, 40)
    assert_matches_reference(layer, output, torch.float32)


def test_strided_input_and_expanded_gradient():
    layer = random_layer(leading=(6, 4))
    layer.x = torch.randn(48, 4, 6).permute(2, 1, 0).requires_grad_()
    assert not layer.x.is_contiguous()
    assert_matches_reference(layer, layer.run(), torch.float32)
    actual = torch.autograd.grad(layer.run().sum(), tuple(layer.tensors().values()))
    expected = torch.autograd.grad(layer.truth().sum(), tuple(layer.tensors().values()))
    for grad, truth in zip(actual, expected, strict=True):
        assert_close("gradient", torch.float32, grad, truth)


def test_a_transposed_gradient_where_the_magnitude_is_frozen():
    layer = random_layer(dtype=torch.bfloat16)
    layer.m = layer.m.detach()
    dY = torch.randn(40, 7).bfloat16().T
    wanted = (layer.x, layer.A, layer.B)
    strided, packed = (torch.autograd.grad(layer.run(), wanted, one) for one in (dY, dY.contiguous()))
    for one, other in zip(strided, packed, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("rows", [4, 2048])
def test_a_bias_of_another_dtype(rows, dropout, dtype):
    layer = random_layer(leading=(rows,))
    layer.bias = layer.bias.detach().to(dtype).requires_grad_()
    options = {"x_dropped": layer.x} if dropout else {}
    y = layer.run(**options)
    assert y.dtype == torch.float32
    assert_close("output", torch.float32, y, layer.truth())
    plain = lora_linear(layer.x, layer.W, layer.A, layer.B, layer.scaling, layer.bias, **options)
    assert plain.dtype == torch.float32
    (found,) = torch.autograd.grad(y.sum(), layer.bias)
    assert found.dtype == dtype and (found == rows).all()


def test_finite_differences_with_the_norm_held():
    layer = random_layer(6, 5, 2, dtype=torch.float64)
    n = dora_row_norm(layer.W, layer.A, layer.B, 2.0)

    def held(x, A, B, m, bias):
        return dora_linear(x, layer.W, A, B, m, 2.0, bias, norm=n)

    assert torch.autograd.gradcheck(held, tuple(layer.tensors().values()))


def test_starts_as_the_base_layer():
    layer = random_layer()
    layer.B, layer.m = torch.zeros_like(layer.B), row_norm_squared(layer.W).sqrt()
    base = torch.nn.functional.linear(layer.x, layer.W, layer.bias)
    assert_close("output", torch.float32, layer.run(), base)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_rows_give_the_bias_and_no_nan(dtype):
    layer = random_layer(dtype=dtype)
    zero = torch.tensor([0, 7])
    with torch.no_grad():
        layer.W[zero] = 0
        layer.B[zero] = 0
    output = layer.run()
    assert torch.equal(output[:, zero], layer.bias[zero].expand(7, 2))
    assert_matches_reference(layer, output, dtype)
    grads = gradients(layer, layer.run(), torch.ones_like(output))
    assert (grads["B"][zero] == 0).all()
    assert (grads["m"][zero] == 0).all()


@pytest.mark.parametrize("where_backward", ["outside", "inside"])
def test_autocast(where_backward):
    layer = random_layer(leading=(64,))
    dY = torch.randn(64, 40)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer.run()
        if where_backward == "inside":
            actual = gradients(layer, output, dY)
    assert output.dtype == torch.bfloat16
    if where_backward == "outside":
        actual = gradients(layer, output, dY)
    assert_close("output", torch.bfloat16, output, layer.truth())
    for name, expected in gradients(layer, layer.truth(), dY.bfloat16()).items():
        assert_close("gradient", torch.bfloat16, actual[name], expected, name)


@only_large
def test_a_float32_backward_under_autocast_stays_float32():
    layer = random_layer()
    output = layer.run()
    with torch.autocast("cpu", torch.bfloat16):
        assert_matches_reference(layer, output, torch.float32)


def test_bfloat16_does_not_round_the_magnitude():
    layer = random_layer(dtype=torch.bfloat16, bias=False)
    with torch.no_grad():
        layer.B.zero_()
        layer.x.fill_(1.0)
        layer.W.zero_()[:, 0] = 255.0
        layer.m.fill_(255.0 * (1 + 3 / 1024))  # bfloat16 has no number between 1 and 1 + 8/1024
    assert torch.equal(layer.run(), torch.full((7, 40), 256.0, dtype=torch.bfloat16))  # 255.75 rounded


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    layer = random_layer()
    with mode():
        output = layer.run()
    assert not output.requires_grad
    assert torch.equal(output, layer.run())


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    layer = random_layer()
    plain = gradients(layer, layer.run(), torch.ones(7, 40))
    names = ("x", "W", "A", "B", "m", "scaling", "bias")

    def run(*values):
        return type(layer)(**dict(zip(names, values, strict=True))).run()

    values = [getattr(layer, name) for name in names]
    output = checkpoint(run, *values, use_reentrant=reentrant)
    output.backward(torch.ones(7, 40))
    for name, tensor in layer.tensors().items():
        assert torch.equal(tensor.grad, plain[name]), name


class CountProducts(TorchDispatchMode):
    """Counts matrix products by their shape."""

    def __init__(self):
        super().__init__()
        self.flops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.flops.append(args[-1].numel() * args[-2].shape[0])
        elif func.name().startswith("mkldnn::_linear_pointwise"):
            self.flops.append(args[0].shape[0] * args[1].numel())
        return result


@only_large
@pytest.mark.parametrize(
    ("needed", "backward_products"),
    [
        (("x", "A", "B", "m"), 5),  # T, dx in two, dA, dB
        (("x",), 3),
        (("A",), 2),
        (("B",), 1),
        (("m",), 0),  # the output is still there
        (("A", "B", "m"), 3),
    ],
)
def test_no_product_without_need(needed, backward_products):
    d_in, d_out, tokens = 48, 40, 7
    layer = random_layer(d_in, d_out, 4, leading=(tokens,), bias=False)
    for name, tensor in layer.tensors().items():
        tensor.requires_grad_(name in needed)
    norm = dora_row_norm(layer.W, layer.A, layer.B, layer.scaling)
    with CountProducts() as forward:
        output = layer.run(norm=norm)
    with CountProducts() as backward:
        torch.autograd.grad(output.sum(), [getattr(layer, name) for name in needed])
    base = tokens * d_in * d_out
    assert forward.flops.count(base) == 1
    assert len(backward.flops) == backward_products
    assert backward.flops.count(base) == ("x" in needed)


def keeps(y):
    return y * y


def keeps_a_view(y):
    return y.view(7, 8, 5).transpose(0, 1).square().transpose(0, 1).reshape(7, 40)


def lets_go(y):
    return y * torch.arange(40.0)


def changes_in_place(y):
    return y.mul_(3).square()


def changes_in_place_through_a_view(y):
    y[2:4].zero_()
    return y.square()


CONSUMERS = {
    keeps: 0,
    keeps_a_view: 0,
    lets_go: 1,
    changes_in_place: 1,
    changes_in_place_through_a_view: 1,
}


@only_large
@pytest.mark.parametrize("keeping", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_the_magnitude_s_gradient_whether_or_not_the_output_is_kept(consumer, bias, keeping):
    """Of two layers the second is reached first by the backward pass, as in a model."""
    layer, second = random_layer(bias=bias), random_layer(40, 30)
    with torch.no_grad():
        layer.m += 3  # no g is too small
    dY = torch.randn(7, 30)

    def loss(run, dtype):
        hidden = consumer(run(layer)).to(dtype)
        return run(layer_with(second, hidden)).mul(dY).sum()

    tensors = layer.tensors()
    with CountProducts() as products:
        with keep_outputs() if keeping else nullcontext():
            run = loss(lambda one: one.run(), torch.float32)
        products.flops.clear()
        actual = torch.autograd.grad(run, tuple(tensors.values()))
    expected = torch.autograd.grad(loss(lambda one: one.truth(), torch.float64), tuple(tensors.values()))
    for name, grad, truth in zip(tensors, actual, expected, strict=True):
        assert_close("gradient", torch.float32, grad, truth, name)
    again = 0 if keeping and consumer is lets_go else CONSUMERS[consumer]
    assert products.flops.count(7 * 48 * 40) == 1 + again


@only_large
@pytest.mark.parametrize("keeping", [False, True])
def test_a_graph_that_is_dropped_keeps_no_output(keeping):
    layer, other = random_layer(bias=False), random_layer(40, 30, bias=False)
    with keep_outputs() if keeping else nullcontext():
        output = layer.run()
    reference_to_output = weakref.ref(output.untyped_storage())
    kept = output * output
    other.run().sum().backward()  # takes hold of the first layer's output too
    del output, kept
    assert reference_to_output() is None


@pytest.mark.parametrize("m", [0.0, 1e-30, -0.0])
def test_a_zero_magnitude_still_gets_its_gradient(m):
    layer = random_layer(bias=False)
    with torch.no_grad():
        layer.m[5] = m
    output = layer.run()
    assert_matches_reference(layer, output, torch.float32)
    grad = gradients(layer, layer.run(), torch.ones(7, 40))["m"]
    assert grad[5] != 0


@only_large
@pytest.mark.parametrize("bias", [False, True])
def test_non_reentrant_checkpointing_computes_no_product_twice_in_the_backward_pass(bias):
    """The layer's recomputed forward pass is one base product, its backward pass one more."""
    layer = random_layer(bias=bias)
    with torch.no_grad():
        layer.m += 3  # no g is too small
    output = checkpoint(lambda x: layer_with(layer, x).run(), layer.x, use_reentrant=False)
    with CountProducts() as backward:
        torch.autograd.grad(output.sum(), tuple(layer.tensors().values()))
    assert backward.flops.count(7 * 48 * 40) == 2


def layer_with(layer, x):
    return replace(layer, x=x)


@only_large
@pytest.mark.parametrize("keeps", [True, False])
def test_keeps_what_lora_keeps(keeps):
    """Bytes that autograd keeps, parameters apart: x and h, and nothing of the output's size."""
    d_in, d_out, rank, tokens = 64, 128, 4, 512
    layer = random_layer(d_in, d_out, rank, leading=(tokens,), bias=False)
    owned = {tensor.untyped_storage().data_ptr() for tensor in (layer.W, layer.A, layer.B, layer.m)}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = layer.run()
    if not keeps:
        output = output * 1
    lora = tokens * (d_in + rank) * 4
    assert lora <= sum(kept.values()) <= 1.02 * lora


def test_double_use_in_one_forward():
    layer = random_layer(40, 40)

    def twice(run):
        first = run(layer.x)
        return run(torch.tanh(first).to(layer.x.dtype))

    actual = twice(lambda x: layer_with(layer, x).run())
    expected = twice(lambda x: layer_with(layer, x).truth())
    assert_close("output", torch.float32, actual, expected)
    dY = torch.randn(7, 40)
    truth = gradients(layer, expected, dY)
    for name, grad in gradients(layer, actual, dY).items():
        assert_close("gradient", torch.float32, grad, truth[name], name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_norm_can_be_part_of_the_backward_pass(dtype, bias):
    layer = random_layer(dtype=dtype, bias=bias)
    dY = torch.randn(7, 40).to(dtype)
    expected = gradients(layer, layer.truth(detach_norm=False), dY)
    for name, grad in gradients(layer, layer.run(detach_norm=False), dY).items():
        assert_close("gradient", dtype, grad, expected[name], name)


def test_finite_differences_with_the_norm_attached():
    layer = random_layer(6, 5, 2, dtype=torch.float64)

    def attached(x, A, B, m, bias):
        return dora_linear(x, layer.W, A, B, m, 2.0, bias, detach_norm=False)

    assert torch.autograd.gradcheck(attached, tuple(layer.tensors().values()))


@only_large
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_dropout_of_the_adapter_only(method):
    layer = random_layer()
    kept = (torch.rand_like(layer.x) > 0.3) / 0.7
    dY = torch.randn(7, 40)

    def expected():
        x, dropped = layer.x.double(), (layer.x * kept).double()
        z = x @ layer.W.double().T + 2.0 * (dropped @ layer.A.double().T) @ layer.B.double().T
        if method == "lora":
            return z + layer.bias.double() + 0 * layer.m.sum()
        n = reference.row_norm(layer.W, layer.A, layer.B, 2.0).detach()
        return layer.m.double() / n * z + layer.bias.double()

    def actual():
        if method == "dora":
            return layer.run(x_dropped=layer.x * kept, dropout="adapter")
        rest = (layer.x, layer.W, layer.A, layer.B, 2.0, layer.bias)
        return lora_linear(*rest, x_dropped=layer.x * kept) + 0 * layer.m.sum()

    assert_close("output", torch.float32, actual(), expected())
    truth = gradients(layer, expected(), dY)
    with CountProducts() as forward:
        output = actual()
    assert forward.flops.count(7 * 48 * 40) == 1
    for name, grad in gradients(layer, output, dY).items():
        assert_close("gradient", torch.float32, grad, truth[name], name)


@only_large
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 300])
def test_blocks_of_rows_change_nothing(monkeypatch, dtype, rows):
    """More rows than one wide buffer holds, and a last block that is not full."""
    monkeypatch.setattr(channelwise, "BUFFER_ELEMENTS", 64 * 40)
    layer = random_layer(leading=(rows,), dtype=dtype, bias=False)
    assert_matches_reference(layer, layer.run(), dtype)


def test_float16():
    layer = random_layer(leading=(65,), dtype=torch.float16, bias=False)
    assert_matches_reference(layer, layer.run(), torch.float16)


def test_dropout_form():
    layer = random_layer()
    kept = (torch.rand_like(layer.x) > 0.3) / 0.7

    def expected():
        wide, dropped = layer.x.double(), replace(layer, x=layer.x * kept)
        return wide @ layer.W.double().T + dropped.truth() - dropped.x.double() @ layer.W.double().T

    dY = torch.randn(7, 40)
    output = layer.run(x_dropped=layer.x * kept)
    assert_close("output", torch.float32, output, expected())
    truth = gradients(layer, expected(), dY)
    for name, grad in gradients(layer, output, dY).items():
        assert_close("gradient", torch.float32, grad, truth[name], name)
