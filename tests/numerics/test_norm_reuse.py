"""The norm is computed once per change of what it depends on, and after every change."""

import copy

import pytest
import torch
from layers import peft_linear, random_layer, randomize_adapters
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from tolerances import assert_close
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

import doratune
from doratune import reference
from doratune.engine import norm_cache as norms
from doratune.engine.norm_cache import DenseWeight
from doratune.functional import NormCache, dora_row_norm
from doratune.peft.hold_norms import dora_layers, hold_norms


@pytest.fixture(params=["small", "large"])
def sizes(request):
    """Every test with the layers as small ones, and as large ones are computed."""
    if request.param == "large":
        request.getfixturevalue("large_layers")


@pytest.fixture
def computed(monkeypatch, large_layers):
    """A list that grows by one with every norm that is computed."""
    calls = []
    norm_of_product = norms.norm_of_product

    def counted(*args):
        calls.append(args)
        return norm_of_product(*args)

    monkeypatch.setattr(norms, "norm_of_product", counted)
    return calls


def layer_of(model):
    return model.base_model.model.lin


def weights_of(model):
    layer = layer_of(model)
    (name,) = layer.active_adapters
    return (
        layer.base_layer.weight,
        *(part[name].weight for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector)),
        layer.scaling[name],
    )


def truth(model, x):
    W, A, B, m, scaling = weights_of(model)
    return reference.forward(x, W, A, B, m, scaling)


def ones_for(model, rows):
    W = weights_of(model)[0]
    return W.new_ones(rows, W.shape[1])


def stepped(optimizer):
    def step(model):
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        stepper = optimizer(parameters)
        with torch.enable_grad():
            model(ones_for(model, 3)).square().sum().backward()
        stepper.step()
        stepper.zero_grad()

    return step


def adam_of_bitsandbytes(parameters):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    return bitsandbytes.optim.AdamW8bit(parameters, lr=0.05, min_8bit_size=16)


def write_data(which, write):
    def change(model):
        write(weights_of(model)[which].data)

    return change


def ema_swap(model):
    """As EMA callbacks do: values are swapped in and out through ``.data``."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept = [parameter.data.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.data.copy_(parameter.data * 0.5)
    model(ones_for(model, 1))
    for parameter, value in zip(parameters, kept, strict=True):
        parameter.data.copy_(value)


def load_other_adapter(model):
    state = {name: torch.randn_like(value) for name, value in get_peft_model_state_dict(model).items()}
    set_peft_model_state_dict(model, state)


def load_other_state(model):
    model.load_state_dict({name: torch.rand_like(value) for name, value in model.state_dict().items()})


def switch_adapter(model):
    model.add_adapter("other", LoraConfig(r=2, lora_alpha=7, use_dora=True, target_modules=["lin"]))
    randomize_adapters(model, seed=3)
    model.set_adapter("other")


def merge_and_unmerge(model):
    model.merge_adapter()
    model.unmerge_adapter()


def swap_rows(data):
    data.copy_(data.flip(0))


def to_another_device_and_back(model):
    device = weights_of(model)[0].device
    model.to("meta").to_empty(device=device)
    load_other_state(model)


CHANGES = {
    "AdamW": stepped(lambda parameters: torch.optim.AdamW(parameters, lr=0.05, foreach=False)),
    "AdamW foreach": stepped(lambda parameters: torch.optim.AdamW(parameters, lr=0.05, foreach=True)),
    "AdamW fused": stepped(lambda parameters: torch.optim.AdamW(parameters, lr=0.05, fused=True)),
    "SGD": stepped(lambda parameters: torch.optim.SGD(parameters, lr=0.05)),
    "bitsandbytes 8-bit": stepped(adam_of_bitsandbytes),
    "A through .data": write_data(1, lambda data: data.mul_(2)),
    "B through .data": write_data(2, lambda data: data.neg_()),
    "W through .data": write_data(0, lambda data: data.mul_(2)),
    "one element of W through .data": write_data(0, lambda data: data[3, 5].add_(7)),
    "W's rows swapped through .data": write_data(0, swap_rows),
    "a write through NumPy": lambda model: weights_of(model)[2].detach().numpy().__imul__(3),
    "copy_": lambda model: weights_of(model)[2].copy_(torch.randn_like(weights_of(model)[2])),
    "load_state_dict": load_other_state,
    "set_peft_model_state_dict": load_other_adapter,
    "EMA swap": ema_swap,
    "adapter switched": switch_adapter,
    "set_scale": lambda model: layer_of(model).set_scale("default", 5.0),
    "scale_layer": lambda model: layer_of(model).scale_layer(3.0),
    "to float64 and back": lambda model: (model.to(torch.float64), model.to(torch.float32)),
    "to another device and back": to_another_device_and_back,
    "merged and unmerged": merge_and_unmerge,
}


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("change", CHANGES)
def test_never_stale(change):
    model = peft_linear(bias=False)
    doratune.enable(model)
    x = torch.randn(7, 48)
    before = model(x)
    with torch.no_grad():
        CHANGES[change](model)
    after = model(x)
    what = "unmerge" if "unmerged" in change else "output"
    assert_close(what, torch.float32, after, truth(model, x))
    if change not in ("EMA swap", "to float64 and back", "merged and unmerged"):
        assert not torch.allclose(before, after), "the change did nothing"


@pytest.mark.usefixtures("large_layers")
def test_a_copy_has_its_own_norms():
    model = peft_linear(bias=False)
    doratune.enable(model)
    x = torch.randn(7, 48)
    model(x)
    twin = copy.deepcopy(model)
    weights_of(twin)[0].data.mul_(2)
    assert_close("output", torch.float32, twin(x), truth(twin, x))
    assert_close("output", torch.float32, model(x), truth(model, x))


def tiny_llama():
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        )
    )
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    peft_model = get_peft_model(model, LoraConfig(r=2, use_dora=True, target_modules=targets))
    doratune.enable(peft_model)
    return peft_model


@pytest.mark.parametrize("reentrant", [True, False])
def test_one_norm_per_layer_and_optimizer_step(computed, reentrant):
    """Accumulation over 8 micro-batches, with gradient checkpointing."""
    model = tiny_llama()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    layers = 2 * 4
    for step in range(1, 4):
        for _ in range(8):
            ids = torch.randint(0, 32, (2, 5))
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert len(computed) == layers * step


def test_an_evaluation_computes_each_norm_once(computed):
    model = tiny_llama().eval()
    ids = torch.randint(0, 32, (2, 5))
    with torch.inference_mode():
        for _ in range(3):
            model(input_ids=ids)
    assert len(computed) == 2 * 4


def test_checkpointing_of_a_function_that_owns_the_layer(computed):
    model = peft_linear(bias=False)
    doratune.enable(model)
    x = torch.randn(7, 48, requires_grad=True)
    checkpoint(model, x, use_reentrant=False).sum().backward()
    assert len(computed) == 1


@pytest.fixture
def looks(monkeypatch, large_layers):
    """A list that grows by one with every tensor whose content is looked at."""
    seen, digest = [], norms._digest
    monkeypatch.setattr(norms, "_digest", lambda tensor: seen.append(tensor.shape) or digest(tensor))
    return seen


def test_held_norms_are_computed_first_and_never_checked(looks, computed):
    model = tiny_llama().eval()
    ids = torch.randint(0, 32, (2, 5))
    outside = model(input_ids=ids).logits
    seen = looks
    del seen[:]
    with hold_norms(model):
        at_entry = len(seen)
        assert at_entry == 2 * 4 * 3
        inside = model(input_ids=ids).logits
        model(input_ids=ids)
    assert len(seen) == at_entry
    assert len(computed) == 2 * 4
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


def test_a_base_weight_promised_unchanged_is_hashed_once(looks):
    model, x = peft_linear(bias=False), torch.randn(7, 48)
    doratune.enable(model)
    layer, seen = layer_of(model), looks
    for looked_at in (3, 2, 2):
        del seen[:]
        with hold_norms(model, base_unchanged=True):
            assert_close("output", torch.float32, model(x), truth(model, x))
        assert len(seen) == looked_at
        layer.lora_B["default"].weight.data.mul_(3)
    layer.base_layer.weight.data.mul_(2)
    assert_close("output", torch.float32, model(x), truth(model, x))
    with hold_norms(model):
        layer.base_layer.weight.data.mul_(2)
    with hold_norms(model):
        assert_close("output", torch.float32, model(x), truth(model, x))


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("ended", ["in order", "by an error"])
@pytest.mark.parametrize("change", CHANGES)
def test_never_stale_after_norms_were_held(change, ended):
    model = peft_linear(bias=False)
    doratune.enable(model)
    x = torch.randn(7, 48)
    try:
        with hold_norms(model):
            model(x)
            if ended == "by an error":
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    with torch.no_grad():
        CHANGES[change](model)
    what = "unmerge" if "unmerged" in change else "output"
    assert_close(what, torch.float32, model(x), truth(model, x))


def test_held_norms_are_asked_for_together_and_the_rest_in_turn(monkeypatch, looks):
    """As on a GPU, where one launch computes all but those that its kernel does not take."""
    asked = []

    def together(weights):
        asked.append(len(weights))
        norms = [reference.row_norm(*one).float() for one in weights]
        return [norm if place % 2 else None for place, norm in enumerate(norms)]

    model = tiny_llama().eval()
    ids = torch.randint(0, 32, (2, 5))
    outside = model(input_ids=ids).logits
    monkeypatch.setattr(norms, "joint_row_norms", together)
    del looks[:]
    with torch.inference_mode(), hold_norms(model):
        inside = model(input_ids=ids).logits
    assert asked == [2 * 4]
    assert len(looks) == 2 * 4 * 3 / 2, "half of them were computed in turn"
    assert_close("output", torch.float32, inside, outside)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_that_was_made_where_norms_are_held_is_never_stale(change):
    model = peft_linear(bias=False)
    doratune.enable(model)
    x = torch.randn(7, 48)
    with hold_norms(model):
        twin = copy.deepcopy(model)
    with torch.no_grad():
        CHANGES[change](twin)
    what = "unmerge" if "unmerged" in change else "output"
    assert_close(what, torch.float32, twin(x), truth(twin, x))


@pytest.mark.usefixtures("sizes")
def test_calls_where_norms_are_held_see_what_may_change():
    model = peft_linear(bias=False)
    doratune.enable(model)
    x, W = torch.randn(7, 48), weights_of(model)[0]
    plain = torch.nn.functional.linear(x, W)
    with torch.no_grad(), hold_norms(model):
        adapted = model(x)
        assert not torch.allclose(adapted, plain)
        with model.disable_adapter():
            torch.testing.assert_close(model(x), plain, rtol=0, atol=0)
        model.merge_adapter()
        assert_close("unmerge", torch.float32, model(x), adapted)
        model.unmerge_adapter()
        torch.testing.assert_close(layer_of(model)(x), adapted, rtol=1e-5, atol=1e-5)


def test_layers_that_have_left_the_engine_since_they_were_found_are_passed_over():
    model, x = peft_linear(bias=False), torch.randn(7, 48)
    doratune.enable(model)
    layers = dora_layers(model)
    assert layers == [layer_of(model)]
    with hold_norms(model, layers=layers):
        assert layers[0].norms.held
    doratune.disable(model)
    with hold_norms(model, layers=layers):
        assert_close("output", torch.float32, model(x), truth(model, x))


@pytest.mark.usefixtures("sizes")
def test_adapters_may_be_switched_and_scaled_where_norms_are_held():
    model = peft_linear(bias=False)
    doratune.enable(model)
    x = torch.randn(7, 48)
    with hold_norms(model):
        for change in (
            switch_adapter,
            lambda model: layer_of(model).set_scale("other", 5.0),
            merge_and_unmerge,
        ):
            with torch.no_grad():
                change(model)
            assert_close("unmerge", torch.float32, model(x), truth(model, x))
        with hold_norms(model):
            pass
        assert layer_of(model).norms.held


def test_a_hook_is_seen_where_norms_are_held_too():
    model, x, called = peft_linear(bias=False), torch.randn(7, 48), []
    doratune.enable(model)
    with hold_norms(model):
        model(x)
        hook = layer_of(model).lora_A["default"].register_forward_hook(lambda *_: called.append(1))
        assert_close("output", torch.float32, model(x), truth(model, x))
        assert called, "a hooked module is PEFT's to call"
        del called[:]
        hook.remove()
        assert_close("output", torch.float32, model(x), truth(model, x))
        assert not called


def test_a_model_may_leave_the_engine_where_norms_are_held():
    model = peft_linear(use_dora=True)
    doratune.enable(model)
    with hold_norms(model):
        assert doratune.disable(model) == 1
    doratune.enable(model)
    assert not layer_of(model).norms.held


def test_a_weight_that_changes_while_a_norm_is_computed_leaves_no_stale_one(large_layers):
    """As another thread may change and use it."""
    layer, cache = random_layer(), NormCache()

    class Changing(DenseWeight):
        def product(self, A):
            if not done:
                done.append(True)
                layer.W.mul_(2)
                cache.get(DenseWeight(layer.W), layer.A, layer.B, 2.0)
                layer.W.div_(2)
                U = super().product(A)
                layer.W.mul_(2)
                return U
            return super().product(A)

    done = []
    with torch.no_grad():
        cache.get(Changing(layer.W), layer.A, layer.B, 2.0)
    found = cache.get(DenseWeight(layer.W), layer.A, layer.B, 2.0)
    torch.testing.assert_close(found.double(), reference.row_norm(layer.W, layer.A, layer.B, 2.0))


def test_layers_off_the_engine_are_left_alone():
    model, x = peft_linear(bias=False), torch.randn(7, 48)
    with hold_norms(model):
        weights_of(model)[1].data.mul_(2)  # PEFT computes its norm at every call
        assert_close("output", torch.float32, model(x), truth(model, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_for_users_of_the_functions(computed, dtype):
    layer, cache = random_layer(dtype=dtype), NormCache()
    for _ in range(3):
        assert_close("output", dtype, layer.run(norm_cache=cache), layer.truth())
    assert len(computed) == 1
    layer.B.data.mul_(2)
    assert_close("output", dtype, layer.run(norm_cache=cache), layer.truth())
    layer.W.data.neg_()
    assert_close("output", dtype, layer.run(norm_cache=cache), layer.truth())
    layer.scaling = 5.0
    assert_close("output", dtype, layer.run(norm_cache=cache), layer.truth())
    assert len(computed) == 4


@pytest.mark.usefixtures("sizes")
def test_a_norm_may_come_from_a_function():
    layer = random_layer()
    output = layer.run(norm=lambda: dora_row_norm(layer.W, layer.A, layer.B, layer.scaling))
    assert_close("output", torch.float32, output, layer.truth())


@pytest.mark.parametrize("change", [lambda layer: layer.A.data.mul_(3), lambda layer: layer.W.data.mul_(3)])
def test_the_norm_of_a_small_weight_is_never_stale(change):
    layer, cache = random_layer(dtype=torch.bfloat16), NormCache()
    for _ in range(2):
        found = cache.get(DenseWeight(layer.W), layer.A, layer.B, 2.0)
        assert found.dtype == torch.float32 and not found.requires_grad
        assert_close("norm", torch.float32, found, reference.row_norm(layer.W, layer.A, layer.B, 2.0))
        change(layer)
