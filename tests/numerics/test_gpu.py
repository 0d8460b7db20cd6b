"""The engine on a GPU: its kernels against float64, and its layers against PEFT."""

import copy

import parity
import pytest
import torch
from layers import peft_linear, random_layer
from peft import LoraConfig, get_peft_model
from test_linear import assert_matches_reference
from test_norm_reuse import CHANGES, layer_of, weights_of
from test_peft_training import tiny_llama, train
from tolerances import assert_close, assert_elementwise
from torch import nn
from transformers.pytorch_utils import Conv1D

import doratune
from doratune.bench.config import OpBenchConfig
from doratune.bench.op.bench import measure_case
from doratune.bench.op.memory import saved_bytes
from doratune.bench.op.providers import PROVIDERS
from doratune.engine import norm_cache
from doratune.engine.norm_cache import DenseWeight
from doratune.functional import dora_row_norm
from doratune.peft.hold_norms import dora_layers, hold_norms
from doratune.records.bench import Case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"),
    pytest.mark.filterwarnings("default"),
]

LAYERS = {
    "linear": (lambda: nn.Linear(48, 40), (5, 7, 48), {}),
    "linear without bias": (lambda: nn.Linear(48, 40, bias=False), (5, 7, 48), {}),
    "large": (lambda: nn.Linear(576, 1536, bias=False), (3, 100, 576), {"r": 100}),
    "Conv1D": (lambda: Conv1D(40, 48), (5, 7, 48), {"fan_in_fan_out": True}),
    "Conv2d": (lambda: nn.Conv2d(6, 8, 3, padding=1), (2, 6, 9, 9), {}),
}


# PEFT drops a float32 copy of x. On a GPU, which elements are dropped depends on the dtype.
@pytest.mark.parametrize(
    ("dtype", "dropout"),
    [(torch.float32, 0.0), (torch.bfloat16, 0.0), (torch.float16, 0.0), (torch.float32, 0.3)],
)
@pytest.mark.parametrize("use_dora", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_equal_peft(kind, dropout, use_dora, dtype):
    build, shape, config = LAYERS[kind]
    stock = parity.adapted(build(), dtype=dtype, use_dora=use_dora, lora_dropout=dropout, **config).cuda()
    x = torch.randn(shape, device="cuda").to(dtype)
    actual, expected = parity.run(parity.on_engine(stock), x), parity.run(stock, x)
    parity.assert_same_dtypes(actual, expected)
    parity.assert_same("peft", dtype, actual, expected)


@pytest.mark.parametrize("use_dora", [True, False])
def test_an_embedding_equals_peft(use_dora):
    stock = parity.adapted(nn.Embedding(50, 24), use_dora=use_dora).cuda()
    ids = torch.randint(50, (4, 9), device="cuda")
    parity.assert_same(
        "peft", torch.float32, parity.run(parity.on_engine(stock), ids), parity.run(stock, ids)
    )


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.0, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_magnitudes_near_zero_and_rows_of_zeros(dtype, scale, bias, kept):
    """Where a magnitude is too small to divide by, z is computed again."""
    layer = random_layer(96, 200, 8, dtype=dtype, bias=bias, device="cuda", leading=(150,))
    with torch.no_grad():
        layer.m[3] *= scale
        layer.W[5], layer.B[5] = 0, 0
    output = layer.run()
    if not kept:
        output = output + 0  # keeps nothing of what it adds up, and lets go of the layer's own output
    assert_matches_reference(layer, output, dtype)


@pytest.mark.parametrize("adapter", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 16, 64, 100, 256])
@pytest.mark.parametrize(("d_out", "d_in"), [(4096, 4096), (300, 1000), (5, 17)])
def test_norms(d_out, d_in, rank, adapter):
    torch.manual_seed(0)
    W = (torch.randn(d_out, d_in) / d_in**0.5).to("cuda", torch.bfloat16)
    A = (torch.randn(rank, d_in) / d_in**0.5).to("cuda", adapter)
    B = (torch.randn(d_out, rank) / (2 * rank**0.5)).to("cuda", adapter)
    truth = (W.double() + 2 * B.double() @ A.double()).norm(dim=1)
    assert_elementwise("gpu norm", torch.float32, DenseWeight(W).norm(A, B, 2.0), truth)
    assert_elementwise("gpu norm", torch.float32, dora_row_norm(W, A, B, 2.0), truth)


def guarded_layer():
    """A layer whose norm takes longer than a look at its weights, and its first norm."""
    model = peft_linear(64, 48, bias=False, dtype=torch.bfloat16, r=40).cuda()
    doratune.enable(model)
    return model, norm_of(model)


def norm_of(model):
    (adapter,) = layer_of(model).active_adapters
    return layer_of(model).adapter_norm(adapter)


def assert_true(norm, model):
    W, A, B, _, scaling = weights_of(model)
    truth = (W.double() + scaling * B.double() @ A.double()).norm(dim=1)
    assert_elementwise("gpu norm", torch.float32, norm, truth)


def known_norms(model):
    """What is known on each stream."""
    (memory,) = layer_of(model).norms._on_gpu.values()
    return [known.norm for _, known in memory._known.values()]


@pytest.mark.parametrize("change", sorted(CHANGES.keys() - {"a write through NumPy", "to float64 and back"}))
def test_never_stale(change):
    model, before = guarded_layer()
    with torch.no_grad():
        CHANGES[change](model)
    after = norm_of(model)
    assert_true(after, model)
    if change not in ("EMA swap", "merged and unmerged"):
        assert not torch.equal(before, after), "the change did nothing"


def test_a_norm_is_computed_once_and_again_after_a_change():
    model, first = guarded_layer()
    known_norms(model)[0].fill_(7)
    assert (norm_of(model) == 7).all(), "computed again"
    assert not (first == 7).any(), "the result is the memory itself"
    weights_of(model)[0].data[5, 5] += 1
    assert_true(norm_of(model), model)
    known_norms(model)[0].fill_(7)
    assert (norm_of(model) == 7).all(), "computed again"
    with torch.cuda.stream(torch.cuda.Stream()):
        assert_true(norm_of(model), model)
    torch.cuda.synchronize()


def test_a_recorded_graph_keeps_to_its_own_memory():
    model, _ = guarded_layer()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        norm_of(model)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        norm = norm_of(model)
    for known in known_norms(model):
        known.fill_(7)
    weights_of(model)[1].data.mul_(2)
    graph.replay()
    assert_true(norm, model)
    assert all((known == 7).all() for known in known_norms(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_held_norms_are_those_of_each_call(monkeypatch, dtype):
    """In bfloat16 one launch computes them all."""
    model = tiny_llama(True).to(dtype).cuda()
    doratune.enable(model)
    launches, together = [], norm_cache.joint_row_norms
    monkeypatch.setattr(
        norm_cache, "joint_row_norms", lambda many: launches.append(together(many)) or launches[-1]
    )
    layers = dora_layers(model)
    expected = [layer.adapter_norm("default") for layer in layers]
    with hold_norms(model):
        held = [layer.adapter_norm("default") for layer in layers]
    torch.testing.assert_close(held, expected, rtol=1e-6, atol=0)
    (found,) = launches
    assert (dtype == torch.bfloat16) == any(norm is not None for norm in found)


def test_no_rows():
    stock = parity.adapted(nn.Linear(48, 40), dtype=torch.bfloat16).cuda()
    x = torch.randn(0, 48, device="cuda").to(torch.bfloat16)
    parity.assert_same("peft", torch.bfloat16, parity.run(parity.on_engine(stock), x), parity.run(stock, x))


@pytest.mark.parametrize("use_dora", [True, False])
@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_same_losses(use_dora, checkpointing):
    stock = tiny_llama(use_dora).cuda()
    engine = copy.deepcopy(stock)
    assert doratune.enable(engine).taken == {"Linear": 10}
    if checkpointing is not None:
        engine.enable_input_require_grads()
        engine.base_model.model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    expected, losses = train(stock), train(engine)
    assert_close("loss", torch.float32, losses, expected)
    assert losses[-3:].mean() < losses[:3].mean() - 0.5


@pytest.mark.slow
def test_same_losses_compiled():
    eager = tiny_llama(True).cuda()
    compiled = copy.deepcopy(eager)
    for model in (eager, compiled):
        doratune.enable(model)
    torch._dynamo.reset()
    compiled.forward = torch.compile(compiled.forward)
    assert_close("loss", torch.float32, train(compiled), train(eager))


@pytest.mark.parametrize("kind", ["linear", "Conv2d"])
def test_a_step_does_not_wait_for_the_gpu(kind):
    """Nothing in forward or backward asks for a value that the GPU has not computed yet."""
    build, shape, config = LAYERS[kind]
    model = parity.on_engine(parity.adapted(build(), dtype=torch.bfloat16, **config).cuda())
    x = torch.randn(shape, device="cuda").to(torch.bfloat16).requires_grad_()
    dy = torch.ones_like(model(x))
    model(x).backward(dy)  # kernels are compiled and loaded by now
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(x).backward(dy)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_keeps_what_lora_keeps():
    kept = []
    for use_dora in (True, False):
        torch.manual_seed(0)
        linear = nn.Sequential()
        linear.add_module("lin", nn.Linear(1024, 1024, bias=False))
        model = get_peft_model(
            linear.to(torch.bfloat16), LoraConfig(r=16, use_dora=use_dora, target_modules=["lin"])
        ).cuda()
        doratune.enable(model)
        x = torch.randn(512, 1024, device="cuda").to(torch.bfloat16).requires_grad_()
        kept.append(saved_bytes(model, x))
    assert kept[0] <= 1.02 * kept[1]


def quantised_on_gpu(bits, use_dora):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    make = bitsandbytes.nn.Linear4bit if bits == 4 else bitsandbytes.nn.Linear8bitLt
    options = (
        {"compute_dtype": torch.bfloat16, "quant_type": "nf4"} if bits == 4 else {"has_fp16_weights": False}
    )
    old, new = nn.Linear(256, 192), make(256, 192, **options)
    new.load_state_dict(old.state_dict())
    model = parity.OneLayer(new, parity.unchanged).cuda()
    setattr(model, f"is_loaded_in_{bits}bit", True)
    stock = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, use_dora=use_dora, target_modules=["layer"])
    ).cuda()
    parity.randomize_adapters(stock)
    return stock


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("use_dora", [True, False])
def test_quantised_equals_peft(bits, use_dora):
    stock = quantised_on_gpu(bits, use_dora)
    engine = parity.on_engine(stock)
    x = torch.randn(2, 9, 256, device="cuda").to(torch.bfloat16 if bits == 4 else torch.float16)
    actual, expected = parity.run(engine, x), parity.run(stock, x)
    parity.assert_same_dtypes(actual, expected)
    parity.assert_same("peft", torch.bfloat16, actual, expected)


def test_the_bench_records_what_it_times():
    data = {
        "name": "small",
        "d_in": 256,
        "d_out": 512,
        "rank": 8,
        "tokens": 64,
        "dtype": "bfloat16",
        "base": "dense",
    }
    result = measure_case(Case(**data), [], torch.device("cuda"), OpBenchConfig(rounds=3))
    assert len(result.providers) == len(PROVIDERS)
    for one in result.providers:
        assert one.gpu is not None and one.gpu.median < one.milliseconds.median
