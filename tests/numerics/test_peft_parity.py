"""One PEFT layer on the engine against the same layer on PEFT's path and against the reference."""

import copy
import pickle

import parity
import pytest
import torch
from layers import peft_linear, randomize_adapters
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import DoraLinearVariant
from tolerances import TOLERANCES, assert_close
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

import doratune.peft
import doratune.peft.linear as engine_linear
from doratune import reference
from doratune.peft.linear import EngineLinear


def on_engine(model):
    """A copy of ``model`` on the engine."""
    twin = copy.deepcopy(model)
    assert doratune.peft.enable(twin).taken == {"Linear": 1}
    return twin


def layer_of(model) -> Linear:
    return model.base_model.model.lin


@pytest.fixture
def engine_calls(monkeypatch):
    """A list that grows by one with every call of the engine."""
    calls = []

    def count(compute):
        def counted(*args, **kwargs):
            calls.append(kwargs)
            return compute(*args, **kwargs)

        return counted

    for name in ("adapted_linear", "dora_linear", "lora_linear"):
        monkeypatch.setattr(engine_linear, name, count(getattr(engine_linear, name)))
    return calls


def assert_same(dtype, actual, expected):
    parity.assert_same_dtypes(actual, expected)
    parity.assert_same("peft", dtype, actual, expected)


def truth_of(model, x):
    layer = layer_of(model)
    weights = [part["default"].weight for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector)]
    bias = layer.base_layer.bias
    return reference.forward(x, layer.base_layer.weight, *weights, layer.scaling["default"], bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("d_in", "d_out", "config"),
    [
        (48, 40, {}),
        (37, 53, {"r": 1}),
        (6, 5, {"r": 9, "lora_alpha": 16, "use_rslora": True}),
        (48, 40, {"r": 3, "lora_alpha": 16, "use_rslora": True}),
    ],
)
def test_equals_peft_and_the_reference(engine_calls, dtype, bias, d_in, d_out, config):
    stock = peft_linear(d_in, d_out, bias=bias, dtype=dtype, **config)
    x = torch.randn(2, 7, d_in).to(dtype)
    actual = parity.run(on_engine(stock), x)
    assert len(engine_calls) == 1
    assert_same(dtype, actual, parity.run(stock, x))
    assert_close("output", dtype, actual[0], truth_of(stock, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("config", [{}, {"r": 1}, {"r": 3, "lora_alpha": 16, "use_rslora": True}])
def test_plain_lora_equals_peft(engine_calls, dtype, bias, config):
    stock = peft_linear(bias=bias, dtype=dtype, use_dora=False, **config)
    x = torch.randn(2, 7, 48).to(dtype)
    actual = parity.run(on_engine(stock), x)
    assert len(engine_calls) == 1
    assert_same(dtype, actual, parity.run(stock, x))


@pytest.mark.parametrize("use_dora", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_weight_stored_transposed(engine_calls, use_dora, dropout):
    """GPT-2's Conv1D."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.lin = Conv1D(40, 48)
    nn.init.normal_(model.lin.bias)
    config = LoraConfig(
        r=4, use_dora=use_dora, lora_dropout=dropout, target_modules=["lin"], fan_in_fan_out=True
    )
    stock = get_peft_model(model, config)
    randomize_adapters(stock)
    x = torch.randn(2, 7, 48)
    actual = parity.run(on_engine(stock), x)
    assert len(engine_calls) == 1
    assert_same(torch.float32, actual, parity.run(stock, x))


@pytest.mark.parametrize("autocast", [False, True])
def test_float16(engine_calls, autocast):
    stock = peft_linear(dtype=torch.float32 if autocast else torch.float16)
    x = torch.randn(64, 48).to(torch.float32 if autocast else torch.float16)
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        actual = parity.run(on_engine(stock), x)
        expected = parity.run(stock, x)
    assert_same(torch.float16, actual, expected)
    assert len(engine_calls) == 1


def test_what_peft_refuses_is_refused():
    stock = peft_linear()
    for model in (stock, on_engine(stock)):
        with pytest.raises(RuntimeError, match="same dtype"):
            model(torch.randn(7, 48, dtype=torch.bfloat16))
        model.merge_adapter()
        with pytest.warns(UserWarning, match="[Aa]lready"):
            model.merge_adapter()


def test_modules_to_save_and_tied_layers():
    """A layer that occurs twice is one layer on the engine, and modules_to_save stay PEFT's."""
    torch.manual_seed(0)
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    model.head = nn.Linear(8, 2)
    config = LoraConfig(r=2, use_dora=True, target_modules=["0"], modules_to_save=["head"])
    stock = get_peft_model(model, config)
    randomize_adapters(stock)
    engine = copy.deepcopy(stock)
    assert doratune.peft.enable(engine).taken == {"Linear": 1}
    x = torch.randn(5, 8)
    assert_same(torch.float32, parity.run(engine, x), parity.run(stock, x))


@pytest.mark.parametrize("dropout", ["peft", "adapter"])
@pytest.mark.parametrize("detach_norm", [True, False])
def test_options_reach_the_engine(engine_calls, dropout, detach_norm):
    model = peft_linear(lora_dropout=0.4)
    doratune.peft.enable(model, dropout=dropout, detach_norm=detach_norm)
    model(torch.randn(7, 48))
    (call,) = engine_calls
    assert (call["dropout"], call["detach_norm"]) == (dropout, detach_norm)
    assert (call["norm"] is None) == (not detach_norm)


@pytest.mark.parametrize("bias", [True, False])
def test_dropout_is_peft_s(engine_calls, bias):
    stock = peft_linear(bias=bias, lora_dropout=0.4)
    engine = on_engine(stock)
    x = torch.randn(7, 48)
    trained = parity.run(engine, x)
    assert_same(torch.float32, trained, parity.run(stock, x))
    evaluated = parity.run(engine.eval(), x)
    assert_same(torch.float32, evaluated, parity.run(stock.eval(), x))
    assert [call.get("x_dropped") is None for call in engine_calls] == [False, True]
    assert not torch.equal(trained[0], evaluated[0])


@pytest.mark.parametrize("use_dora", [True, False])
def test_a_hook_on_the_adapters_dropout_is_called_as_peft_calls_it(use_dora):
    """Without dropout that module is an Identity, which PEFT's LoRA calls and its DoRA does not."""
    stock = peft_linear(use_dora=use_dora)
    engine = on_engine(stock)
    for model in (stock, engine):
        layer_of(model).lora_dropout["default"].register_forward_hook(lambda module, args, y: 2 * y)
    x = torch.randn(7, 48)
    assert_same(torch.float32, parity.run(engine, x), parity.run(stock, x))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_autocast(engine_calls, dropout):
    stock = peft_linear(lora_dropout=dropout)
    engine = on_engine(stock)
    x = torch.randn(64, 48)
    with torch.autocast("cpu", torch.bfloat16):
        expected = parity.run(stock, x)
        actual = parity.run(engine, x)
    assert actual[0].dtype == torch.bfloat16
    assert_same(torch.bfloat16, actual, expected)
    assert len(engine_calls) == 1


def test_zero_rows_are_finite_where_peft_is_not(engine_calls):
    stock = peft_linear()
    layer = layer_of(stock)
    with torch.no_grad():
        layer.base_layer.weight[3] = 0
        layer.lora_B["default"].weight[3] = 0
    x = torch.randn(7, 48)
    y, grads = parity.run(on_engine(stock), x)
    assert_close("output", torch.float32, y, truth_of(stock, x))
    assert all(grad.isfinite().all() for grad in grads.values())
    assert not stock(x).isfinite().all()


def second_adapter(model, **config):
    model.add_adapter("second", LoraConfig(r=2, target_modules=["lin"], **config))
    randomize_adapters(model, seed=5)


STATES = {
    "merged": (lambda model: model.merge_adapter(), 0),
    "merged safely": (lambda model: model.merge_adapter(safe_merge=True), 0),
    "merged and unmerged": (lambda model: (model.merge_adapter(), model.unmerge_adapter()), 1),
    "disabled": (lambda model: model.base_model.disable_adapter_layers(), 0),
    "disabled and enabled": (
        lambda model: (model.base_model.disable_adapter_layers(), model.base_model.enable_adapter_layers()),
        1,
    ),
    "second DoRA adapter": (
        lambda model: (second_adapter(model, use_dora=True), model.set_adapter("second")),
        1,
    ),
    "second LoRA adapter": (lambda model: (second_adapter(model), model.set_adapter("second")), 1),
    "second adapter inactive": (lambda model: second_adapter(model, use_dora=True), 1),
    "two active adapters": (
        lambda model: (second_adapter(model), model.base_model.set_adapter(["default", "second"])),
        0,
    ),
    "deleted adapter": (
        lambda model: (second_adapter(model), model.set_adapter("second"), model.delete_adapter("default")),
        1,
    ),
    "scaled": (lambda model: layer_of(model).scale_layer(3.0), 1),
    "trained base": (lambda model: layer_of(model).base_layer.weight.requires_grad_(), 0),
    "hooked base": (
        lambda model: layer_of(model).base_layer.register_forward_hook(lambda module, args, y: 2 * y),
        0,
    ),
    "PiSSA added twice": (lambda model: (pissa(model, "second"), pissa(model, "third")), 1),
    "merge that loses the weight's digits": (lambda model: lossy_merge(model), 2),
    "bfloat16 and back": (lambda model: (model.to(torch.bfloat16), model.to(torch.float32)), 1),
    "weight written in place": (lambda model: nn.init.eye_(layer_of(model).base_layer.weight), 1),
    "state loaded": (lambda model: load_other_state(model, assign=False), 1),
    "state assigned": (lambda model: load_other_state(model, assign=True), 1),
    "hooked A": (lambda model: part(model, "lora_A").register_forward_hook(doubled), 0),
    "hooked B, before": (lambda model: part(model, "lora_B").register_forward_pre_hook(unchanged), 0),
    "hooked magnitude": (
        lambda model: part(model, "lora_magnitude_vector").register_forward_hook(doubled),
        0,
    ),
    "hooked A, backward": (lambda model: part(model, "lora_A").register_full_backward_hook(unchanged), 0),
    "hook gone again": (lambda model: part(model, "lora_A").register_forward_hook(doubled).remove(), 1),
    "forward of the base replaced": (
        lambda model: setattr(layer_of(model).base_layer, "forward", lambda x: x[:, :40] * 2),
        0,
    ),
    "A replaced by another module": (
        lambda model: layer_of(model).lora_A.update({"default": Halved(part(model, "lora_A"))}),
        0,
    ),
    "A replaced by its like": (lambda model: layer_of(model).lora_A.update({"default": like_A()}), 1),
    "A parametrized": (
        lambda model: parametrize.register_parametrization(part(model, "lora_A"), "weight", nn.Tanh()),
        0,
    ),
    "base layer replaced by its like": (
        lambda model: setattr(layer_of(model), "base_layer", nn.Linear(48, 40).requires_grad_(False)),
        1,
    ),
    "base layer replaced by another": (
        lambda model: setattr(layer_of(model), "base_layer", Halved(layer_of(model).base_layer)),
        0,
    ),
    "data of A assigned": (lambda model: assign_data(part(model, "lora_A")), 1),
    "data of B assigned": (lambda model: assign_data(part(model, "lora_B")), 1),
    "data of the base assigned": (lambda model: assign_data(layer_of(model).base_layer), 1),
    "weight of A assigned": (
        lambda model: setattr(part(model, "lora_A"), "weight", like_A().weight),
        1,
    ),
    "base trained and frozen again": (
        lambda model: layer_of(model).base_layer.weight.requires_grad_().requires_grad_(False),
        1,
    ),
    "second adapter added and deleted": (
        lambda model: (second_adapter(model), model.delete_adapter("second")),
        1,
    ),
    "variant": (lambda model: layer_of(model).lora_variant.update(default=OtherVariant()), 0),
    "evaluated": (lambda model: model.eval(), 1),
    "evaluated and trained": (lambda model: (model.eval(), model.train()), 1),
}


def part(model, name):
    return getattr(layer_of(model), name)["default"]


def like_A():
    return nn.Linear(48, 4, bias=False)


def doubled(module, args, output):
    return 2 * output


def unchanged(*_):
    return None


def assign_data(module):
    module.weight.data = torch.randn_like(module.weight.data)


class Halved(nn.Module):
    """A layer inside another, as sharding and offloading wrap them."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

    def forward(self, x):
        return self.inner(x) / 2


class OtherVariant(DoraLinearVariant):
    """Another kind of adapter than DoRA."""


def pissa(model, name):
    """Adds an adapter whose initialisation takes a part out of the base weight."""
    model.add_adapter(name, LoraConfig(r=2, target_modules=["lin"], use_dora=True, init_lora_weights="pissa"))


def lossy_merge(model):
    """Merges and unmerges a plain LoRA adapter, which PEFT does in place, with a huge update."""
    second_adapter(model)
    model(torch.ones(1, 48))  # fills the cache that the new adapter has emptied
    with torch.no_grad():
        layer_of(model).lora_B["second"].weight.mul_(1e6)
    model.merge_adapter(["second"])
    model.unmerge_adapter()


def load_other_state(model, assign):
    generator = torch.Generator().manual_seed(7)
    state = {
        name: torch.rand(value.shape, generator=generator) + 0.1 for name, value in model.state_dict().items()
    }
    model.load_state_dict(state, assign=assign)


@pytest.mark.parametrize("state", STATES)
def test_every_state_gives_peft_s_result(engine_calls, state):
    """Each change comes after a first call, so that a stale cached norm would show."""
    change, calls = STATES[state]
    stock = peft_linear()
    engine = on_engine(stock)
    x = torch.randn(7, 48)
    engine(x)
    engine_calls.clear()
    for model in (stock, engine):
        torch.manual_seed(11)
        change(model)
    what = "unmerge" if "unmerged" in state else "peft"
    assert isinstance(layer_of(engine), EngineLinear)
    assert_close(what, torch.float32, engine(x), stock(x))
    assert len(engine_calls) == calls


DROPOUT_STATES = {
    "evaluated": lambda model: model.eval(),
    "the dropout alone evaluated": lambda model: part(model, "lora_dropout").eval(),
    "all but the dropout evaluated": lambda model: (model.eval(), part(model, "lora_dropout").train()),
    "another probability": lambda model: setattr(part(model, "lora_dropout"), "p", 0.9),
    "another dropout": lambda model: layer_of(model).lora_dropout.update({"default": nn.AlphaDropout(0.3)}),
    "none": lambda model: layer_of(model).lora_dropout.update({"default": nn.Identity()}),
}


@pytest.mark.parametrize("use_dora", [True, False])
@pytest.mark.parametrize("state", DROPOUT_STATES)
def test_every_state_of_dropout_is_peft_s(engine_calls, state, use_dora):
    stock = peft_linear(lora_dropout=0.4, use_dora=use_dora)
    engine, x = on_engine(stock), torch.randn(7, 48)
    engine(x)
    for model in (stock, engine):
        DROPOUT_STATES[state](model)
    assert_same(torch.float32, parity.run(engine, x), parity.run(stock, x))
    assert len(engine_calls) == 2


def test_another_dtype_is_seen(engine_calls):
    stock = peft_linear()
    engine = on_engine(stock)
    engine(torch.randn(7, 48))
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        for model in (stock, engine):
            model.to(dtype)
        x = torch.randn(7, 48, dtype=dtype)
        assert_same(
            dtype if dtype == torch.bfloat16 else torch.float32, parity.run(engine, x), parity.run(stock, x)
        )
    assert len(engine_calls) == 4


def test_adapters_disabled_in_a_context(engine_calls):
    stock = peft_linear()
    engine, x = on_engine(stock), torch.randn(7, 48)
    engine(x)
    with engine.disable_adapter():
        assert torch.equal(engine(x), layer_of(stock).base_layer(x))
    assert_close("peft", torch.float32, engine(x), stock(x))
    assert len(engine_calls) == 2


def test_mixed_batches_stay_with_peft(engine_calls):
    stock = peft_linear()
    second_adapter(stock)
    engine = on_engine(stock)
    x = torch.randn(2, 48)
    names = ["second", "__base__"]
    # ``adapter_names`` reaches the layer through PEFT's hooks in evaluation only
    expected = stock.eval()(x, adapter_names=names)
    assert torch.equal(engine.eval()(x, adapter_names=names), expected)
    assert engine_calls == []


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        model = peft_linear()
        doratune.peft.enable(model)
        x = torch.randn(7, 48)
        assert_close("output", torch.float32, model(x), truth_of(model, x))
        model.base_model.model.lin.base_layer.weight.mul_(2)
        assert_close("output", torch.float32, model(x), truth_of(model, x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_its_own_cache(engine_calls, duplicate):
    engine = on_engine(peft_linear())
    x = torch.randn(7, 48)
    before = engine(x)
    twin = duplicate(engine)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        layer_of(twin).base_layer.weight.mul_(2)
    assert_close("output", torch.float32, twin(x), truth_of(twin, x))
    assert torch.equal(engine(x), before)
    assert len(engine_calls) == 4


def test_the_norm_is_reused_and_fit_for_training(engine_calls):
    engine = on_engine(peft_linear(256, 200))  # not so small that it is computed at every call
    x = torch.randn(7, 256)
    with torch.inference_mode():
        engine(x)
    parity.run(engine, x)
    first, second = (call["norm"]() for call in engine_calls)
    assert first is second
    assert not first.is_inference()
    assert first.dtype == torch.float32


def test_merge_and_unload_equals_peft_and_the_reference():
    stock = peft_linear()
    engine = on_engine(stock)
    x = torch.randn(7, 48)
    truth = truth_of(stock, x)
    engine(x)
    merged, expected = engine.merge_and_unload(), stock.merge_and_unload()
    assert torch.equal(merged.lin.weight, expected.lin.weight)
    assert_close("peft", torch.float32, merged(x), truth)


def test_checkpoints_go_both_ways(tmp_path):
    stock = peft_linear()
    engine = on_engine(stock)
    x = torch.randn(7, 48)
    for saver, folder in ((stock, tmp_path / "stock"), (engine, tmp_path / "engine")):
        saver.save_pretrained(folder)
    files = [(folder / "adapter_model.safetensors").read_bytes() for folder in sorted(tmp_path.iterdir())]
    assert files[0] == files[1]
    base = copy.deepcopy(stock).unload()
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "engine")
    assert torch.equal(loaded(x), stock(x))
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "stock")
    doratune.peft.enable(loaded)
    assert torch.equal(loaded(x), engine(x))


def test_a_state_dict_needs_no_pickle(tmp_path):
    engine = on_engine(peft_linear())
    engine(torch.randn(7, 48))
    torch.save(engine.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert {type(value) for value in state.values()} == {torch.Tensor}
    assert state.keys() == peft_linear().state_dict().keys()


def test_table_is_finite():
    assert all(0 < tolerance.relative < 0.1 and tolerance.reason for tolerance in TOLERANCES.values())
