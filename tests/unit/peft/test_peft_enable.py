"""What ``enable`` and ``disable`` do to a PEFT model: classes, parameters, keys, reports, errors."""

import logging

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import QALoraLinearVariant
from torch import nn
from transformers.pytorch_utils import Conv1D

from doratune.errors import InputError
from doratune.peft import disable, enable
from doratune.peft.linear import EngineLinear


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.conv = nn.Conv1d(8, 8, 1)
        self.first = nn.Linear(8, 6)
        self.second = nn.Linear(6, 6, bias=False)
        self.transposed = Conv1D(5, 6)

    def forward(self, ids):
        hidden = self.conv(self.embed(ids).transpose(1, 2)).transpose(1, 2)
        return self.transposed(self.second(self.first(hidden)))


LINEAR = ["first", "second"]
IDS = torch.arange(6).view(2, 3)


def adapted(targets=LINEAR, **config):
    torch.manual_seed(0)
    return get_peft_model(Net(), LoraConfig(r=2, use_dora=True, target_modules=targets, **config))


def classes(model):
    return [type(module) for module in model.modules()]


def test_report_counts_what_was_taken_and_says_why_the_rest_was_not(caplog):
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        model = adapted(["embed", "conv", "transposed", *LINEAR])
    model.base_model.model.second.base_layer.weight.requires_grad_()
    with caplog.at_level(logging.INFO, logger="doratune.peft.enable"):
        report = enable(model)
    assert report.taken == {"Embedding": 1, "Conv1d": 1, "Linear": 2}
    assert report.left == {("Linear", "base weight is being trained"): 1}
    assert str(report).splitlines() == [
        "1 Embedding layer on the engine",
        "1 Conv1d layer on the engine",
        "2 Linear layers on the engine",
        "1 Linear layer on PEFT's path: base weight is being trained",
    ]
    assert all(line in caplog.text for line in str(report).splitlines())
    model(IDS)


OBSTACLES = [
    ("base weight is being trained", lambda layer: layer.base_layer.weight.requires_grad_()),
    ("base weight Parameter of torch.float8_e4m3fn", lambda layer: layer.base_layer.to(torch.float8_e4m3fn)),
    ("hooks on the layer's parts", lambda layer: layer.lora_A["default"].register_forward_hook(print)),
    ("different devices", lambda layer: layer.base_layer.to("meta")),
    ("weights wrapped", lambda layer: layer.lora_B.update({"default": nn.Sequential()})),
    ("fan_in_fan_out does not match", lambda layer: setattr(layer, "fan_in_fan_out", True)),
    ("other code has replaced its forward pass", lambda layer: setattr(layer, "forward", print)),
    ("lora_bias", lambda layer: layer.lora_bias.update(default=True)),
    ("variant QALoraLinear not", lambda layer: layer.lora_variant.update(default=QALoraLinearVariant())),
]


@pytest.mark.parametrize(("why", "change"), OBSTACLES)
def test_a_layer_the_engine_cannot_compute_is_left(why, change):
    model = adapted()
    change(model.base_model.model.first)
    report = enable(model)
    assert report.taken == {"Linear": 1}
    ((kind, reason),) = report.left
    assert (kind, report.left[kind, reason]) == ("Linear", 1)
    assert why in reason
    assert type(model.base_model.model.first) is Linear


def test_plain_lora_is_on_the_engine_too():
    model = adapted(["first"])
    model.add_adapter("plain", LoraConfig(r=2, target_modules=["second"]))
    assert enable(model).taken == {"Linear": 2}


def test_both_ways_are_idempotent_and_disable_restores_peft():
    model = adapted()
    before, attributes = classes(model), set(vars(model.base_model.model.first))
    reports = [enable(model), enable(model)]
    assert reports[0] == reports[1]
    assert classes(model) != before
    assert isinstance(model.base_model.model.first, Linear)
    assert type(model.base_model.model.first) is EngineLinear
    assert disable(model) == 2
    assert classes(model) == before
    assert set(vars(model.base_model.model.first)) == attributes
    assert disable(model) == 0
    assert disable(nn.Linear(2, 2)) == 0


def test_parameters_and_keys_stay_the_same_objects():
    model = adapted()
    parameters = dict(model.named_parameters())
    keys = list(model.state_dict())
    enable(model)
    model(IDS)  # fills the caches
    assert list(model.state_dict()) == keys
    after = dict(model.named_parameters())
    assert after.keys() == parameters.keys()
    assert all(after[name] is parameter for name, parameter in parameters.items())


def test_both_ways_of_loading(tmp_path):
    adapted().save_pretrained(tmp_path)
    for trainable in (True, False):
        loaded = PeftModel.from_pretrained(Net(), tmp_path, is_trainable=trainable)
        assert enable(loaded).taken == {"Linear": 2}


def test_an_adapter_for_further_layers_needs_another_call():
    model = adapted(["first"])
    assert enable(model).taken == {"Linear": 1}
    model.add_adapter("more", LoraConfig(r=2, use_dora=True, target_modules=LINEAR))
    assert type(model.base_model.model.first) is EngineLinear
    assert enable(model).taken == {"Linear": 2}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Net(), "no PEFT LoRA or DoRA layer"),
        (lambda: adapted().merge_and_unload(), "no PEFT LoRA or DoRA layer"),
    ],
)
def test_nothing_to_enable(model, message):
    model = model()
    before = classes(model)
    with pytest.raises(InputError, match=message):
        enable(model)
    assert classes(model) == before


@pytest.mark.parametrize("option", [{"dropout": "adapter"}, {"detach_norm": False}])
def test_an_option_that_a_layer_cannot_have_is_refused(option):
    model = adapted(["embed", *LINEAR])
    model.base_model.model.first.base_layer.weight.requires_grad_()
    before = classes(model)
    with pytest.raises(
        InputError, match=r"does not support dropout or detach_norm(.|\n)*(being trained|always detached)"
    ):
        enable(model, **option)
    assert classes(model) == before


def test_an_unknown_dropout_form_is_refused():
    with pytest.raises(InputError, match="unknown dropout form"):
        enable(adapted(), dropout="both")


@pytest.mark.parametrize("width", [16, 400])  # a small layer, and one that is not
@pytest.mark.parametrize("use_dora", [False, True])
def test_a_forward_pass_without_memory(width: int, use_dora: bool) -> None:
    """As libraries do to learn shapes; a device without memory has no autocast either."""
    with torch.device("meta"):
        net = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Unflatten(1, (width, 1, 1)))
        net.append(torch.nn.Conv2d(width, 8, 1))
        model = get_peft_model(net, LoraConfig(target_modules=["0", "2"], use_dora=use_dora, r=2))
        enable(model)
        assert model(torch.empty(3, width)).shape == (3, 8, 1, 1)
