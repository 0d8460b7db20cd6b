"""Random DoRA layers for the numerical tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from doratune import reference
from doratune.functional import dora_linear

GRADIENTS = ("x", "A", "B", "m", "bias")


@dataclass
class Layer:
    """The tensors of one layer; the magnitude is far from the norm."""

    x: Tensor
    W: Tensor
    A: Tensor
    B: Tensor
    m: Tensor
    bias: Tensor | None
    scaling: float

    def tensors(self) -> dict[str, Tensor]:
        """What gets a gradient, by name."""
        return {name: getattr(self, name) for name in GRADIENTS if getattr(self, name) is not None}

    def run(self, **options: Any) -> Tensor:
        return dora_linear(self.x, self.W, self.A, self.B, self.m, self.scaling, self.bias, **options)

    def truth(self, **options: Any) -> Tensor:
        return reference.forward(self.x, self.W, self.A, self.B, self.m, self.scaling, self.bias, **options)


def random_layer(
    d_in: int = 48,
    d_out: int = 40,
    rank: int = 4,
    *,
    leading: tuple[int, ...] = (7,),
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    scaling: float = 2.0,
    device: str = "cpu",
) -> Layer:
    """x, W and bias in ``dtype``; the adapter in float32, or float64 with float64."""
    torch.manual_seed(d_in * 1000 + d_out * 10 + rank)
    master = torch.float64 if dtype == torch.float64 else torch.float32
    layer = Layer(
        x=torch.randn(*leading, d_in).to(device, dtype),
        W=(torch.randn(d_out, d_in) / d_in**0.5).to(device, dtype),
        A=(torch.randn(rank, d_in) / d_in**0.5).to(device, master),
        B=(torch.randn(d_out, rank) * 0.3).to(device, master),
        m=(torch.rand(d_out) * 3 + 0.1).to(device, master),
        bias=torch.randn(d_out).to(device, dtype) if bias else None,
        scaling=scaling,
    )
    for tensor in layer.tensors().values():
        tensor.requires_grad_()
    return layer


class OneLinear(nn.Module):
    """The smallest model that PEFT can adapt."""

    def __init__(self, d_in: int, d_out: int, bias: bool) -> None:
        super().__init__()
        self.lin = nn.Linear(d_in, d_out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x)


def randomize_adapters(model: nn.Module, seed: int = 0) -> None:
    """Make lora_B non-zero and move the magnitudes away from the norms."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
            elif "lora_magnitude_vector" in name:
                parameter.mul_(torch.rand_like(parameter) * 2 + 0.3)


def peft_linear(
    d_in: int = 48, d_out: int = 40, *, bias: bool = True, dtype: torch.dtype = torch.float32, **config: Any
) -> PeftModel:
    """A stock PEFT DoRA model of one linear layer with a random adapter."""
    torch.manual_seed(0)
    settings = {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["lin"], **config}
    model = get_peft_model(OneLinear(d_in, d_out, bias).to(dtype), LoraConfig(**settings))
    randomize_adapters(model)
    return model
