"""DoRA's norms are found on the engine and on PEFT's own path."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from doratune.peft import disable, dora_norms, enable


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.conv = nn.Conv1d(8, 8, 3)
        self.linear = nn.Linear(8, 6)
        self.transposed = Conv1D(5, 6)


def adapted(*targets: str, use_dora: bool = True) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(
        r=2, use_dora=use_dora, target_modules=list(targets), fan_in_fan_out="transposed" in targets
    )
    model = get_peft_model(Net(), config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("target", ["embed", "conv", "linear", "transposed"])
def test_they_are_those_of_the_merged_weight(target: str) -> None:
    model = adapted(target)
    layer = model.base_model.model.get_submodule(target)
    W, update = layer.base_layer.weight.detach(), layer.get_delta_weight("default").detach()
    columns = target in ("embed", "transposed")  # (tokens, d_out) and (d_in, d_out)
    rows = (W + update).double().movedim(-1 if columns else 0, 0).flatten(1)
    expected = torch.linalg.vector_norm(rows, dim=1)
    classes, attributes = [type(one) for one in model.modules()], set(vars(layer))
    ((name, norm),) = dora_norms(model).items()
    assert name.endswith(target)
    assert torch.allclose(norm.double(), expected, rtol=1e-5)
    assert [type(one) for one in model.modules()] == classes and set(vars(layer)) == attributes
    enable(model)
    ((_, on_engine),) = dora_norms(model).items()
    assert torch.equal(on_engine, norm)
    disable(model)
    assert dora_norms(adapted(target, use_dora=False)) == {}


def test_a_norm_that_only_peft_s_type_cannot_hold_is_infinite_on_its_path() -> None:
    model = adapted("linear").half()
    with torch.no_grad():
        model.base_model.model.linear.lora_B["default"].weight.fill_(3e4)
        model.base_model.model.linear.lora_A["default"].weight.fill_(10)
    (norm,) = dora_norms(model).values()
    assert norm.isinf().all()
    enable(model)
    (norm,) = dora_norms(model).values()
    assert norm.isfinite().all(), "the engine's is float32"
