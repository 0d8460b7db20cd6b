"""PEFT's convolutions on the engine against the same layers on PEFT's path and against float64."""

import copy

import pytest
import torch
from parity import (
    STATES,
    adapted,
    assert_same,
    assert_same_dtypes,
    assert_saves_the_same,
    assert_state,
    assert_unloads_the_same,
    count_peft_forwards,
    kept_bytes,
    layer_of,
    on_engine,
    run,
)
from peft.tuners.lora.layer import _ConvNd
from tolerances import TOLERANCES, assert_close, relative_error
from torch import nn
from torch.nn.functional import dropout as drop
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import doratune
from doratune import reference
from doratune.engine import channelwise

pytestmark = pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning")

PLAIN = {
    "1d": (lambda: nn.Conv1d(6, 10, 3), (9,)),
    "1d, strided": (lambda: nn.Conv1d(6, 10, 4, stride=2, padding=1, bias=False), (9,)),
    "2d": (lambda: nn.Conv2d(6, 10, 3, padding=1), (7, 5)),
    "2d, every number another": (
        lambda: nn.Conv2d(6, 10, (3, 2), stride=(2, 1), padding=(0, 1), bias=False),
        (7, 5),
    ),
    "2d, one by one": (lambda: nn.Conv2d(6, 10, 1), (4, 5)),
    "2d, one pixel left": (lambda: nn.Conv2d(6, 10, 3), (3, 3)),
    "same": (lambda: nn.Conv2d(6, 10, 3, padding="same"), (7, 5)),
    "valid": (lambda: nn.Conv1d(6, 10, 3, padding="valid"), (9,)),
    "3d": (lambda: nn.Conv3d(6, 10, 2, stride=(1, 2, 1)), (3, 4, 3)),
}
"""A layer and the size of its images: where A's convolution is of the same form as the base layer's."""

OTHERS = {
    "groups": (lambda: nn.Conv2d(8, 12, 3, groups=2), (7, 5)),
    "groups, 1d, no bias": (lambda: nn.Conv1d(8, 8, 3, padding=1, groups=4, bias=False), (9,)),
    "dilated": (lambda: nn.Conv2d(6, 10, 3, padding="same", dilation=2), (7, 5)),
    "dilated, one by one": (lambda: nn.Conv2d(6, 10, 1, dilation=2), (4, 5)),
    "reflected": (lambda: nn.Conv2d(6, 10, 3, padding=1, padding_mode="reflect"), (7, 5)),
    "circular": (lambda: nn.Conv1d(6, 10, 3, padding=1, padding_mode="circular", bias=False), (9,)),
}
"""The same where no single convolution does what PEFT does."""


held = []


def hold(y):
    """Keeps the output, as a backward pass does that has come to a later layer."""
    held[:] = [y]
    return y * 2


CONSUMERS = {
    "holds": hold,
    "keeps": lambda y: y * y,
    "lets go": lambda y: y * 2,
    "in place": lambda y: y.mul_(3).square(),
    "in rows": lambda y: y.view(*y.shape[:2], -1).square(),
    "in another order": lambda y: y.transpose(1, 2).square(),
    "expanded": lambda y: y.sum().expand(3),
}


@pytest.fixture(autouse=True)
def peft_forwards(monkeypatch):
    """See ``count_peft_forwards``."""
    return count_peft_forwards(monkeypatch, _ConvNd)


def make(name, **config):
    """A stock model and its input, (3, d_in, ...)."""
    build, size = {**PLAIN, **OTHERS}[name]
    conv = build()
    model = adapted(conv, **config)
    return model, torch.randn(3, conv.in_channels, *size).to(conv.weight.dtype)


def truth_of(stock, x, *, base_reads="x"):
    """The layer by its formula in float64, with dropout's seed and mask.

    Args:
        stock: A model on PEFT's path.
        x: Its input.
        base_reads: Whether the product with W inside the brackets reads ``"x"`` or ``"dropped"`` x.
    """
    model = copy.deepcopy(stock).double()
    layer, consumer = layer_of(model), model.base_model.model.consumer
    base, A, B = layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]
    p = getattr(layer.lora_dropout["default"], "p", 0.0)
    g, scaling = scale_of(layer), layer.scaling["default"]

    def call(x):
        x_dropped = drop(x, p)
        inner = x if base_reads == "x" else x_dropped
        z = base._conv_forward(inner, base.weight, None)
        y = g * (z + scaling * B(A(x_dropped))) - z + base._conv_forward(inner, base.weight, base.bias)
        return consumer(y if inner is x else y + base(x) - base(inner))

    return run(model, x.double(), call)


def scale_of(layer):
    """g for each channel, (1, d_out, 1, ...), as PEFT has it; 1 for LoRA."""
    if not layer.use_dora["default"]:
        return 1.0
    A, B, m = (part["default"].weight for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector))
    W, rank = layer.base_layer.weight, A.shape[0]
    # With groups the product is of another shape, (d_out / groups, d_in · ...), and PEFT reads it as W's.
    update = (B.reshape(-1, rank) @ A.reshape(rank, -1)).view(W.shape[0], -1)
    n = (W.flatten(1) + layer.scaling["default"] * update).norm(dim=1).detach().view(m.shape)
    return torch.where(n == 0, 0, m / torch.where(n == 0, 1, n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("use_dora", [True, False])
@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_equals_peft_and_float64(peft_forwards, name, use_dora, dtype):
    stock, x = make(name, dtype=dtype, use_dora=use_dora)
    expected = run(stock, x)
    peft_forwards.clear()
    actual = run(on_engine(stock), x)
    assert peft_forwards == []
    assert_same_dtypes(actual, expected)
    assert_same("peft", dtype, actual, expected)
    assert_same("gradient", dtype, actual, truth_of(stock, x))


@pytest.mark.parametrize("name", PLAIN)
def test_equals_one_convolution_with_the_merged_weight(name):
    stock, x = make(name)
    layer = layer_of(stock)
    modules = (layer.base_layer, layer.lora_A["default"], layer.lora_B["default"])
    m = layer.lora_magnitude_vector["default"].weight.flatten()
    matrices = (module.weight.flatten(1) for module in modules)
    merged = reference.merge(*matrices, m, layer.scaling["default"]).view(layer.base_layer.weight.shape)
    base = copy.deepcopy(layer.base_layer).double()
    assert_close(
        "output", torch.float32, on_engine(stock)(x), base._conv_forward(x.double(), merged, base.bias)
    )


@pytest.mark.parametrize("use_dora", [True, False])
@pytest.mark.parametrize("name", ["1d", "1d, strided", "2d", "groups", "3d"])
def test_dropout_is_peft_s(name, use_dora):
    stock, x = make(name, use_dora=use_dora, lora_dropout=0.4)
    engine = on_engine(stock)
    actual = run(engine, x)
    assert_same("peft", torch.float32, actual, run(stock, x))
    evaluated = run(engine.eval(), x)
    assert_same("peft", torch.float32, evaluated, run(stock.eval(), x))
    assert not torch.allclose(actual[0], evaluated[0])


@pytest.mark.parametrize("bias", [True, False])
def test_dropout_in_bfloat16(bias):
    name = "2d" if bias else "2d, every number another"
    stock, x = make(name, dtype=torch.bfloat16, lora_dropout=0.4, float32_adapter=False)
    assert_same("peft", torch.bfloat16, run(on_engine(stock), x), run(stock, x))


def test_dropout_with_a_float32_adapter_which_peft_cannot_do():
    stock, x = make("2d", dtype=torch.bfloat16, lora_dropout=0.4)
    with pytest.raises(RuntimeError, match="should be the same"):
        stock(x)
    actual = run(on_engine(stock), x)
    assert_same("gradient", torch.bfloat16, actual, truth_of(stock, x, base_reads="dropped"))


class CountConvolutions(TorchDispatchMode):
    """Counts convolutions with a weight of a given shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket is torch.ops.aten.convolution and args[1].shape == self.shape:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["1d", "2d, every number another"])
@pytest.mark.parametrize("form", ["peft", "adapter"])
@pytest.mark.parametrize("consumer", ["holds", "lets go"])
def test_both_forms_of_dropout(consumer, form, name):
    stock, x = make(name, lora_dropout=0.4, consumer=CONSUMERS[consumer])
    engine = on_engine(stock)
    doratune.enable(engine, dropout=form)
    with CountConvolutions(layer_of(stock).base_layer.weight.shape) as convolutions:
        engine(x)
    assert convolutions.count == (2 if form == "peft" else 1)
    expected = truth_of(stock, x, base_reads="x" if form == "adapter" else "dropped")
    assert_same("gradient", torch.float32, run(engine, x), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("use_dora", [True, False])
def test_autocast(use_dora, dropout):
    stock, x = make("2d", use_dora=use_dora, lora_dropout=dropout)
    with torch.autocast("cpu", torch.bfloat16):
        expected = run(stock, x)
        actual = run(on_engine(stock), x)
    assert actual[0].dtype == torch.bfloat16
    assert_same_dtypes(actual, expected)
    assert_same("peft", torch.bfloat16, actual, expected)


@pytest.mark.parametrize("name", ["2d", "2d, every number another"])
def test_zero_rows_are_finite_where_peft_is_not(name):
    stock, x = make(name)
    layer = layer_of(stock)
    with torch.no_grad():
        layer.base_layer.weight[3] = 0
        layer.lora_B["default"].weight[3] = 0
    assert_same("gradient", torch.float32, run(on_engine(stock), x), truth_of(stock, x))
    assert not stock(x).isfinite().all()


@pytest.mark.parametrize("scale", [1.0, 1e-2])
@pytest.mark.parametrize("name", ["2d", "2d, every number another"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_any_use_of_the_output(consumer, memory_format, name, scale):
    """Small magnitudes hide the output before scaling in what the layer gives out."""
    stock, x = make(name, consumer=CONSUMERS[consumer])
    layer_of(stock).lora_magnitude_vector["default"].weight.data.mul_(scale)
    expected = truth_of(stock, x)
    assert_same("gradient", torch.float32, run(on_engine(stock), x.to(memory_format=memory_format)), expected)


@pytest.mark.parametrize(
    ("consumer", "name", "scale", "recomputed"),
    [
        ("holds", "2d", 1.0, 0),
        ("holds", "2d", 0.1, 1),
        ("holds", "2d, every number another", 1.0, 0),
        ("holds", "2d, every number another", 0.1, 0),
        ("holds", "2d, every number another", 1e-2, 1),
        ("lets go", "2d", 1.0, 1),
        ("in place", "2d", 1.0, 1),
    ],
)
def test_the_convolution_is_computed_again_where_its_output_is_lost(consumer, name, scale, recomputed):
    stock, x = make(name, consumer=CONSUMERS[consumer])
    m = layer_of(stock).lora_magnitude_vector["default"].weight
    m.data.copy_(scale * m / scale_of(layer_of(stock)))  # g is now ``scale`` in every channel
    engine = on_engine(stock)
    y = engine(x.requires_grad_())
    with CountConvolutions(layer_of(stock).base_layer.weight.shape) as convolutions:
        y.sum().backward()
    assert convolutions.count == recomputed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [0.0, 30.0])
def test_a_large_trained_bias_costs_no_more_digits_than_in_peft(bias, dtype):
    """PEFT subtracts the bias from a rounded output of the base layer, the engine from its own output."""
    stock, x = make("2d", dtype=dtype, bias="lora_only", consumer=CONSUMERS["holds"])
    layer_of(stock).base_layer.bias.data.add_(bias)
    truth, peft, engine = (
        result[1] for result in (truth_of(stock, x), run(stock, x), run(on_engine(stock), x))
    )
    assert "base_model.model.layer.base_layer.bias" in truth
    usual = TOLERANCES["gradient", dtype].relative
    for name, grad in truth.items():
        assert relative_error(engine[name], grad) <= max(usual, 3 * relative_error(peft[name], grad)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("consumer", ["holds", "lets go"])
def test_blocks_of_images_change_nothing(monkeypatch, dtype, memory_format, consumer):
    """Fewer elements in the wide buffer than in one image, and than in one pixel's channels."""
    stock, x = make("2d", dtype=dtype, consumer=CONSUMERS[consumer])
    expected = truth_of(stock, x)
    monkeypatch.setattr(channelwise, "BUFFER_ELEMENTS", 4)
    actual = run(on_engine(stock), x.to(memory_format=memory_format))
    assert_same("gradient", dtype, actual, expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_output_lies_in_memory_as_peft_s(memory_format):
    stock, x = make("2d")
    x = x.to(memory_format=memory_format)
    expected = stock(x)
    assert on_engine(stock)(x).stride() == expected.stride()
    assert expected.is_contiguous(memory_format=memory_format)


def test_weights_with_channels_last_which_peft_cannot_do():
    stock, x = make("2d")
    expected = truth_of(stock, x)
    stock.to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        stock(x)
    assert_same("gradient", torch.float32, run(on_engine(stock), x), expected)


@pytest.mark.parametrize("state", STATES)
def test_every_state_gives_peft_s_result(peft_forwards, state):
    assert_state(state, *make("2d"), peft_forwards)


@pytest.mark.parametrize("which", ["base_layer", "lora_A", "lora_B"])
@pytest.mark.parametrize("name", ["2d", "groups"])
def test_never_stale(name, which):
    stock, x = make(name)
    engine = on_engine(stock)
    engine(x)
    for model in (stock, engine):
        layer = layer_of(model)
        module = layer.base_layer if which == "base_layer" else getattr(layer, which)["default"]
        module.weight.data[1].mul_(-3)
    assert_same("gradient", torch.float32, run(engine, x), truth_of(stock, x))


def test_merge_and_unload():
    assert_unloads_the_same(*make("2d"))


def test_checkpoint_files(tmp_path):
    assert_saves_the_same(make("2d")[0], tmp_path)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["1d", "2d, every number another"])
@pytest.mark.parametrize("consumer", ["keeps", "lets go"])
def test_gradient_checkpointing(reentrant, name, consumer):
    stock, x = make(name, consumer=CONSUMERS[consumer])
    engine = on_engine(stock)
    y = checkpoint(engine, x.requires_grad_(), use_reentrant=reentrant)
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape))
    for parameter, grad in run(engine, x)[1].items():
        found = x.grad if parameter == "x" else engine.get_parameter(parameter).grad
        assert_close("gradient", torch.float32, found, grad, parameter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("consumer", ["keeps", "lets go"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_keeps_what_peft_s_lora_keeps(dtype, bias, consumer, dropout):
    options = {
        "dtype": dtype,
        "float32_adapter": False,
        "lora_dropout": dropout,
        "consumer": CONSUMERS[consumer],
    }
    lora, dora = (
        adapted(nn.Conv2d(16, 24, 3, padding=1, bias=bias), use_dora=use_dora, **options)
        for use_dora in (False, True)
    )
    x = torch.randn(4, 16, 24, 24, dtype=dtype)
    budget = kept_bytes(lora, x)
    assert kept_bytes(on_engine(lora), x) <= budget
    assert kept_bytes(on_engine(dora), x) <= 1.02 * budget
    assert kept_bytes(dora, x) > 1.5 * budget  # so that there is something to be saved


LEFT = {
    "dropout with padding_mode='reflect'": lambda: make("reflected", lora_dropout=0.1),
    "lora_bias": lambda: make("2d", use_dora=False, lora_bias=True),
    "base layer Other": lambda: (adapted(other_convolution()), torch.randn(3, 6, 7, 5)),
}


def other_convolution():
    class Other(nn.Conv2d):
        def forward(self, input):
            return super().forward(input) * 2

    return Other(6, 10, 3)


@pytest.mark.parametrize("reason", LEFT)
def test_left_to_peft(reason):
    stock, x = LEFT[reason]()
    twin = copy.deepcopy(stock)
    report = doratune.enable(twin)
    assert report.taken == {}
    (((_, why), count),) = report.left.items()
    assert (reason in why, count) == (True, 1)
    torch.manual_seed(0)
    expected = stock(x)
    torch.manual_seed(0)
    assert torch.equal(twin(x), expected)


def test_dropout_of_lora_with_a_padding_mode():
    stock, x = make("reflected", lora_dropout=0.4, use_dora=False)
    assert_same("peft", torch.float32, run(on_engine(stock), x), run(stock, x))


@pytest.mark.parametrize("use_dora", [True, False])
def test_an_input_of_another_dtype_fails_as_in_peft(use_dora):
    stock, x = make("2d", use_dora=use_dora)
    for model in (stock, on_engine(stock)):
        with pytest.raises(RuntimeError, match=r"Input type .* should be the same"):
            model(x.double())


@pytest.mark.parametrize("use_dora", [True, False])
def test_what_peft_cannot_do_fails_as_in_peft(use_dora):
    stock = adapted(nn.Conv2d(6, 10, 3, dilation=2), use_dora=use_dora)
    x = torch.randn(3, 6, 9, 9)
    for model in (stock, on_engine(stock)):
        with pytest.raises(
            RuntimeError, match=r"size of tensor a \(5\) must match the size of tensor b \(7\)"
        ):
            model(x)


def test_without_the_batch_dimension(peft_forwards):
    stock, x = make("2d", use_dora=False)
    engine = on_engine(stock)
    assert torch.equal(engine(x[0]), stock(x[0]))
    stock, x = make("2d")
    for model in (stock, on_engine(stock)):
        with pytest.raises(RuntimeError, match="must match the size"):
            model(x[0])
