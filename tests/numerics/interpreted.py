"""The GPU kernels in Triton's interpreter, compared with float64; ``test_triton.py`` runs this in a process.

The interpreter rounds to bfloat16 by cutting digits off, so that errors are twice those of a GPU, and all of
one sign.
"""

from collections import OrderedDict
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import triton.language as tl
from layers import random_layer, randomize_adapters
from peft import LoraConfig, get_peft_model
from tolerances import TOLERANCES, relative_error
from torch import nn
from triton.runtime import interpreter

import doratune
from doratune.engine import norm_cache, weight_norm
from doratune.engine.norm_cache import NormCache
from doratune.engine.triton import (
    content_hash,
    magnitude_backward,
    magnitude_forward,
    norm,
    select,
    sizes,
    tiled_norm,
)
from doratune.engine.triton.norm_cache import Known, NormMemory
from doratune.functional import lora_linear
from doratune.peft import hold_norms

ROUNDING = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
SIZES = [(70, 200, 5, 300), (64, 128, 64, 512), (3, 17, 1, 40), (300, 130, 20, 64)]


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch):
    """The interpreter holds bfloat16 as its bits, and would multiply those."""
    multiply = interpreter.InterpreterBuilder.create_dot

    def wide(operand):
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return interpreter.TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def product(self, a, b, *rest):
        return multiply(self, wide(a), wide(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", product)
    monkeypatch.setattr(norm, "shared_memory", lambda device: norm.LARGE_SHARED_MEMORY)
    for module in (content_hash, magnitude_backward, magnitude_forward, norm, tiled_norm):
        monkeypatch.setattr(module, "launching", lambda device: nullcontext())
    monkeypatch.setattr(norm, "current_stream", lambda device: 0)


class Layer:
    """Random tensors; one row of W + s·B·A is zero, and one magnitude too small to divide by."""

    def __init__(self, rows, d_out, rank, d_in, dtype):
        torch.manual_seed(0)
        self.x, self.W = torch.randn(rows, d_in).to(dtype), (torch.randn(d_out, d_in) / d_in**0.5).to(dtype)
        self.h, self.B = torch.randn(rows, rank).to(dtype), torch.randn(d_out, rank)
        self.m, self.norm = torch.rand(d_out) + 0.5, torch.rand(d_out) + 0.5
        self.m[1], self.norm[0] = 1e-3, 0
        self.bias, self.dY = torch.randn(d_out).to(dtype), torch.randn(rows, d_out).to(dtype)
        self.g = torch.where(self.norm == 0, 0, self.m.double() / self.norm)
        self.z = self.x.double() @ self.W.double().T + self.h.double() @ self.B.to(dtype).double().T


def assert_rounded(actual, exact, dtype):
    error = (actual.double() - exact).norm() / exact.norm()
    assert actual.isfinite().all() and error <= ROUNDING[dtype], error


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_output(sizes, with_bias, dtype):
    layer = Layer(*sizes, dtype)
    bias = layer.bias if with_bias else None
    shift = 0 if bias is None else bias.double()
    base = (layer.x.double() @ layer.W.double().T).to(dtype)
    exact = layer.g * (base.double() + layer.h.double() @ layer.B.to(dtype).double().T) + shift
    y = magnitude_forward.add_and_scale_(base.clone(), layer.h, layer.B, layer.m, layer.norm, bias)
    assert_rounded(y, exact, dtype)
    scaled = magnitude_forward.scale(base, layer.m, layer.norm, torch.empty_like(base), bias)
    assert_rounded(scaled, layer.g * base.double() + shift, dtype)
    by_g = magnitude_forward.scale(base, layer.g.float(), None, torch.empty_like(base), bias)
    assert_rounded(by_g, layer.g * base.double() + shift, dtype)


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients(sizes, with_bias, dtype):
    layer = Layer(*sizes, dtype)
    bias = layer.bias if with_bias else None
    dm = torch.where(layer.norm == 0, 0, (layer.dY.double() * layer.z).sum(0) / layer.norm)
    y = (layer.g * layer.z + (0 if bias is None else bias.double())).to(dtype)
    source = magnitude_backward.Source(layer.x, layer.W, layer.h, layer.B)
    for dZ, found in (
        magnitude_backward.gradients(layer.dY, layer.z.to(dtype), layer.m, layer.norm),
        magnitude_backward.gradients(layer.dY, y, layer.m, layer.norm, bias, source, 0.25),
    ):
        assert_rounded(dZ, layer.g * layer.dY.double(), dtype)
        assert_rounded(found, dm, dtype)
        assert found[0] == 0


def weights(d_out, rank, d_in, adapter):
    """W, A and B; one row of W + s·B·A is zero."""
    torch.manual_seed(0)
    W = (torch.randn(d_out, d_in) / d_in**0.5).to(torch.bfloat16)
    A = (torch.randn(rank, d_in) / d_in**0.5).to(adapter)
    B = (torch.randn(d_out, rank) / 4).to(adapter)
    W[0], B[0] = 0, 0
    return W, A, B


def assert_norm(found, W, A, B):
    exact = (W.double() + 2 * B.double() @ A.double()).norm(dim=1)
    torch.testing.assert_close(found.double(), exact, rtol=6e-5, atol=0)


@pytest.mark.parametrize("adapter", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(200, 5, 300), (128, 32, 512), (17, 1, 40), (130, 20, 64)])
def test_norm(sizes, adapter):
    layer = weights(*sizes, adapter)
    assert_norm(norm.dora_row_norm(*layer, 2.0), *layer)


def test_norms_of_many_layers_in_one_launch_per_kind():
    """Ranks in two blocks and two dtypes: of three kinds."""
    kinds = [(torch.float32, 32), (torch.float32, 5), (torch.bfloat16, 32)]
    layers = [
        (*weights(d_out, rank, d_in, dtype), scaling)
        for d_out, d_in in ((200, 304), (17, 48), (128, 512))
        for dtype, rank in kinds
        for scaling in (2.0, 0.5)
    ]
    matrices = [norm.Matrix(*layer) for layer in layers]
    assert all(map(norm.joinable, matrices))
    launches = norm._plan.cache_info().misses
    for _ in range(2):
        found = norm.dora_row_norms(matrices)
        for one, (W, A, B, scaling) in zip(found, layers, strict=True):
            torch.testing.assert_close(one, norm.dora_row_norm(W, A, B, scaling), rtol=0, atol=0)
            exact = (W.double() + scaling * B.double() @ A.double()).norm(dim=1)
            torch.testing.assert_close(one.double(), exact, rtol=6e-5, atol=0)
        for _, A, B, _ in layers:
            A.mul_(2), B.neg_()
    assert norm._plan.cache_info().misses - launches == len(kinds), "planned again, or not one for each kind"


def test_layers_that_one_launch_cannot_take_with_others():
    W, A, B = weights(64, 8, 64, torch.float32)
    assert norm.joinable(norm.Matrix(W, A, B, 2.0))
    assert not norm.joinable(norm.Matrix(W[:, 1:].contiguous(), A[:, 1:].contiguous(), B, 2.0))
    assert not norm.joinable(norm.Matrix(W.flatten()[64:].view(63, 64)[:, :], A.flatten()[1:], B, 2.0))
    assert not norm.joinable(norm.Matrix(W, torch.zeros(33, 64), torch.zeros(64, 33), 2.0))


@pytest.mark.parametrize("adapter", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(200, 33, 300), (128, 64, 512), (17, 1, 40), (1200, 100, 130)])
def test_tiled_norm(sizes, adapter):
    layer = weights(*sizes, adapter)
    assert_norm(tiled_norm.dora_row_norm(*layer, 2.0, None), *layer)


def swapped(tensor):
    tensor.copy_(tensor.flip(0))


def next_number(tensor):
    bits = tensor.view(torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32)
    bits[-1, -1] += 1


def signs_of_two(tensor):
    """The highest bits of two words that one lane takes one after the other."""
    words = tensor.view(torch.int64 if tensor.dtype == torch.bfloat16 else torch.int32).flatten()
    words[[3, 3 + sizes.LANES]] ^= torch.iinfo(words.dtype).min


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_last_norm_is_reused_until_something_changes(which):
    layer = weights(72, 72, 640, torch.float32)
    known = Known.nothing(*layer)

    def current():
        assert content_hash.hashable(layer[0])
        return tiled_norm.norm_unless_known(*layer, 2.0, known)

    assert_norm(current(), *layer)
    known.norm.fill_(7)
    assert (current() == 7).all(), "computed again"
    for change in (torch.Tensor.neg_, swapped, next_number, signs_of_two, signs_of_two):  # and back again
        known.norm.fill_(7)
        change(layer[which])
        assert_norm(current(), *layer)
    known.norm.fill_(7)
    assert (current() == 7).all(), "computed again"


@pytest.fixture
def gpus_path(monkeypatch, request):
    """The engine takes tensors on the CPU for a GPU's."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True), raising=False)
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda _: False), raising=False)
    monkeypatch.setattr(select, "_runs_on", lambda device: True)
    for module in (norm_cache, weight_norm):
        monkeypatch.setattr(module, "capturing", lambda device: False)
    only_on_gpus = torch.library.Library("aten", "IMPL")
    only_on_gpus.impl("mm.dtype", lambda a, b, dtype: a.to(dtype) @ b.to(dtype), "CPU")
    request.addfinalizer(only_on_gpus._destroy)


def lora_in_float64(layer):
    x, W, A, B, bias = (one.double() for one in (layer.x, layer.W, layer.A, layer.B, layer.bias))
    return x @ (W + layer.scaling * B @ A).T + bias


@pytest.mark.usefixtures("large_layers", "gpus_path")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [7, 300])
def test_a_layer_on_the_gpu_s_path(rows, dtype):
    layer = random_layer(64, 48, leading=(rows,), dtype=dtype)
    dY = torch.randn(rows, 48).to(dtype)
    for actual, expected in (
        (layer.run(), layer.truth()),
        (
            lora_linear(layer.x, layer.W, layer.A, layer.B, layer.scaling, layer.bias),
            lora_in_float64(layer),
        ),
    ):
        tensors = list(layer.tensors().values())
        wanted = torch.autograd.grad(expected, tensors, dY.to(expected.dtype), allow_unused=True)
        found = torch.autograd.grad(actual, tensors, dY, allow_unused=True)
        for one, other in zip((actual, *found), (expected, *wanted), strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert relative_error(one, other) <= 2 * TOLERANCES["gradient", dtype].relative


@pytest.mark.usefixtures("large_layers", "gpus_path")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_held_on_the_gpu_s_path_are_those_of_each_call(monkeypatch, dtype):
    layers = {
        "a": nn.Linear(64, 48),
        "b": nn.Linear(48, 80),
        "odd": nn.Linear(80, 19),
        "last": nn.Linear(19, 8),
    }
    config = LoraConfig(r=4, use_dora=True, target_modules=list(layers))
    model = get_peft_model(nn.Sequential(OrderedDict(layers)).to(dtype), config)
    randomize_adapters(model)
    doratune.enable(model)
    launches, launch = [], norm.dora_row_norms
    monkeypatch.setattr(norm, "dora_row_norms", lambda many: launches.append(len(many)) or launch(many))
    x = torch.randn(9, 64).to(dtype)

    def results():
        y = model(x)
        y.sum().backward()
        gradients = [one.grad for one in model.parameters() if one.requires_grad]
        model.zero_grad()
        return [y, *gradients]

    for _ in range(2):
        wanted = results()
        with hold_norms(model):
            found = results()
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        randomize_adapters(model, seed=7)
    assert launches == ([3, 3] if dtype == torch.bfloat16 else [])  # the last one's rows are not aligned


@pytest.mark.usefixtures("gpus_path")
def test_a_recorded_graph_of_a_compiled_model_computes_its_own_norms(monkeypatch):
    layer, cache = random_layer(64, 48, dtype=torch.bfloat16), NormCache()
    cache.hold(base_unchanged=True)
    cache.keep(torch.full((48,), 7.0), adapter="", scaling=2.0)
    inputs = layer.W, layer.A.detach(), layer.B.detach(), 2.0
    compiled = torch.ops.doratune.dense_norm
    assert (compiled(*inputs, "", cache.handle) == 7).all()
    monkeypatch.setattr(norm_cache, "capturing", lambda device: True)
    assert_norm(compiled(*inputs, "", cache.handle), *inputs[:3])


def test_an_interrupt_between_the_kernels_drops_the_last_norm(monkeypatch):
    layer, memory = weights(72, 72, 640, torch.float32), NormMemory()
    known = Known.nothing(*layer)
    memory._known["here"] = None, known
    monkeypatch.setattr(memory, "of", lambda *_: memory._known.get("here", (None, None))[1])

    class Interrupted:
        def __getitem__(self, grid):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tiled_norm, "_sum_squares", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            tiled_norm.dora_row_norm(*layer, 2.0, memory)
    assert known.state[1] == 1, "no content was noted"
    assert_norm(tiled_norm.dora_row_norm(*layer, 2.0, memory), *layer)
