"""DoRA and LoRA over quantised bases: against PEFT, and the norm against the dequantised weight."""

import copy
import sys
import warnings

import parity
import pytest
import torch
from layers import OneLinear, randomize_adapters
from peft import LoraConfig, get_peft_model
from peft.utils.integrations import dequantize_module_weight
from tolerances import assert_close, assert_elementwise
from torch import nn

import doratune
import doratune.peft.quantised as quantised_layers
from doratune import reference
from doratune.engine.weight_norm import norm_of_product
from doratune.peft.quantised import QuantisedWeight

bitsandbytes = pytest.importorskip("bitsandbytes")


def quantise_4bit(model, double):
    old = model.lin
    new = bitsandbytes.nn.Linear4bit(
        old.in_features,
        old.out_features,
        bias=old.bias is not None,
        compute_dtype=torch.bfloat16,
        compress_statistics=double,
        quant_type="nf4",
    )
    new.load_state_dict(old.state_dict())
    model.lin = new.to("cpu")
    model.is_loaded_in_4bit = True  # as transformers marks its models; PEFT chooses its layer by it


def quantise_8bit(model):
    old = model.lin
    new = bitsandbytes.nn.Linear8bitLt(
        old.in_features, old.out_features, bias=old.bias is not None, has_fp16_weights=False
    )
    new.load_state_dict(old.state_dict())
    model.lin = new.to("cpu")
    model.is_loaded_in_8bit = True


def quantise_torchao(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao deprecates its own names on import
        torchao = pytest.importorskip("torchao.quantization")
        model.to(torch.bfloat16)
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())


BASES = {
    "bnb-4bit": lambda model: quantise_4bit(model, double=False),
    "bnb-4bit-double": lambda model: quantise_4bit(model, double=True),
    "bnb-8bit": quantise_8bit,
    "torchao-int8": quantise_torchao,
}


def quantised(base, *, bias=True, **config):
    torch.manual_seed(0)
    model = OneLinear(128, 64, bias)
    BASES[base](model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*get_apply_tensor_subclass.*")
        settings = LoraConfig(
            **{"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["lin"], **config}
        )
        stock = get_peft_model(model, settings)
    randomize_adapters(stock)
    return stock


def layer_of(model):
    return model.base_model.model.lin


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("use_dora", [True, False])
def test_equals_peft(base, bias, dropout, use_dora):
    stock = quantised(base, bias=bias, lora_dropout=dropout, use_dora=use_dora)
    engine = copy.deepcopy(stock)
    report = doratune.enable(engine)
    assert list(report.taken.values()) == [1], report
    x = torch.randn(2, 9, 128, dtype=torch.bfloat16)
    actual, expected = parity.run(engine, x), parity.run(stock, x)
    parity.assert_same_dtypes(actual, expected)
    parity.assert_same("peft", torch.bfloat16, actual, expected)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("use_dora", [True, False])
def test_evaluation(base, use_dora):
    """bitsandbytes packs 4-bit weights anew on the first evaluation on a CPU with AVX-512 BF16."""
    model = quantised(base, use_dora=use_dora)
    layer = layer_of(model)
    x = torch.randn(2, 9, 128, dtype=torch.bfloat16)
    W = dequantize_module_weight(layer.base_layer)
    W = W.dequantize() if type(W) not in (torch.Tensor, nn.Parameter) else W
    A, B, s = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
    V = W.double() + s * B.double() @ A.double()
    g = layer.lora_magnitude_vector["default"].weight / V.norm(dim=1) if use_dora else torch.ones(64)
    expected = g.double() * (x.double() @ V.T) + layer.base_layer.bias.double()
    doratune.enable(model)
    model(x)  # in training
    model.eval()
    with torch.no_grad():
        for _ in range(2):
            assert_close("output", torch.bfloat16, model(x), expected)
    model.train()
    assert_close("output", torch.bfloat16, model(x), expected)


@pytest.mark.parametrize("base", BASES)
def test_the_norm_through_the_base_s_own_forward(base):
    """What docs/results/other-costs.md says of its error."""
    layer = layer_of(quantised(base))
    A, B, s = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
    weight = QuantisedWeight(layer.base_layer)
    W = dequantize_module_weight(layer.base_layer)
    W = W.dequantize() if hasattr(W, "dequantize") else W
    with torch.no_grad():
        norm = norm_of_product(weight.product(A), A, B, s, weight.row_norm_squared())
        exact = reference.row_norm(W, A, B, s)
    kind = torch.float32 if base == "bnb-8bit" else torch.bfloat16
    assert_elementwise("quantised norm", kind, norm, exact)


def test_a_packed_layout_is_known_by_its_values():
    """As after a release of bitsandbytes that renames the attribute by which it knows the layout."""
    layer = layer_of(quantised("bnb-4bit")).base_layer.eval()
    W = dequantize_module_weight(layer)
    state = layer.weight.quant_state

    class Hidden(type(state)):
        def __getattribute__(self, name):
            reader = sys._getframe(1).f_globals["__name__"]
            if name == "packing_format_for_cpu" and reader.startswith("doratune"):
                raise AttributeError(name)
            return super().__getattribute__(name)

    state.__class__ = Hidden
    with torch.no_grad():
        layer(torch.randn(9, 128, dtype=torch.bfloat16))
    if not getattr(state, "packing_format_for_cpu", False):
        pytest.skip("bitsandbytes packs weights on CPUs with AVX-512 BF16 only")
    squared = QuantisedWeight(layer).row_norm_squared()
    torch.testing.assert_close(squared.sqrt(), W.float().norm(dim=1), rtol=0.01, atol=0)


@pytest.mark.parametrize("base", BASES)
def test_a_wrong_dequantisation_is_detected(base, monkeypatch):
    layer = layer_of(quantised(base)).base_layer
    expected = QuantisedWeight(layer).row_norm_squared()

    def of_other_rows(module):
        W = dequantize_module_weight(module)
        return (W.dequantize() if hasattr(W, "dequantize") else W).roll(1, 0)

    monkeypatch.setattr(quantised_layers, "dequantize_module_weight", of_other_rows)
    squared = QuantisedWeight(layer).row_norm_squared()
    torch.testing.assert_close(squared, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("base", BASES)
def test_a_norm_first_needed_after_the_layer_was_called(base):
    """PEFT's own dequantisation leaves an 8-bit layer on a CPU without its scales then."""
    model = quantised(base)
    layer, x = layer_of(model), torch.randn(9, 128, dtype=torch.bfloat16)
    layer.base_layer(x)
    doratune.enable(model)
    before = model(x)
    layer.lora_B["default"].weight.data.zero_()
    layer.base_layer(x)
    assert model(x).isfinite().all() and not torch.equal(model(x), before)


@pytest.mark.parametrize("base", BASES)
def test_the_norm_follows_the_adapter_and_is_reused(base, monkeypatch):
    model = quantised(base)
    doratune.enable(model)
    x = torch.randn(9, 128, dtype=torch.bfloat16)
    computed = []
    product = QuantisedWeight.product
    monkeypatch.setattr(QuantisedWeight, "product", lambda self, A: computed.append(1) or product(self, A))
    before = model(x)
    model(x)
    assert len(computed) == 1
    layer_of(model).lora_B["default"].weight.data.mul_(3)
    assert not torch.equal(model(x), before)
    assert len(computed) == 2


def test_a_4_bit_base_written_through_data():
    model = quantised("bnb-4bit")
    doratune.enable(model)
    x = torch.randn(9, 128, dtype=torch.bfloat16)
    model(x)
    state = layer_of(model).base_layer.weight.quant_state
    state.absmax.data.mul_(2)
    stock = copy.deepcopy(model)
    doratune.disable(stock)
    assert_close("peft", torch.bfloat16, model(x), stock(x))


def test_dropout_of_the_adapter_only():
    model = quantised("bnb-4bit", lora_dropout=0.5, bias=True)
    doratune.enable(model, dropout="adapter")
    layer = layer_of(model)
    x = torch.randn(9, 128, dtype=torch.bfloat16)
    torch.manual_seed(3)
    y = model(x)
    torch.manual_seed(3)
    dropped = nn.functional.dropout(x, 0.5)
    W = dequantize_module_weight(layer.base_layer).double()
    A, B = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    s, m = layer.scaling["default"], layer.lora_magnitude_vector["default"].weight.double()
    g = m / reference.row_norm(W, A, B, s)
    expected = g * (x.double() @ W.T + s * (dropped.double() @ A.T) @ B.T) + layer.base_layer.bias.double()
    assert_close("output", torch.bfloat16, y, expected)


def test_thirty_steps_give_peft_s_losses():
    stock = quantised("bnb-4bit")
    engine = copy.deepcopy(stock)
    doratune.enable(engine)
    x, target = torch.randn(64, 128, dtype=torch.bfloat16), torch.randn(64, 64)

    def train(model):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        losses = []
        for _ in range(30):
            loss = (model(x).float() - target).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return torch.stack(losses)

    losses = train(engine)
    assert_close("peft", torch.bfloat16, losses, train(stock))
    assert losses[-1] < 0.8 * losses[0]


def test_autocast_and_other_input_dtypes():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        stock = quantised("bnb-4bit")
        engine = copy.deepcopy(stock)
        doratune.enable(engine)
        x = torch.randn(9, 128, dtype=dtype)
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                y, truth = engine(x), stock(x)
            assert y.dtype == truth.dtype
            assert_close("peft", torch.bfloat16, y, truth)
