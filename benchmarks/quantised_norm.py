"""Measures the error of the norm computed through a quantised layer, against the dequantised weight.

    python benchmarks/quantised_norm.py benchmarks/results/quantised-norm-cpu.json

The figure is the largest relative error, against float64, over the rows of a 1024 x 1024 layer with rank 32,
for updates of about a tenth of the weight's norm and for updates about as large as the weight.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
import torchao.quantization as torchao
from torch import nn

from doratune import reference
from doratune.engine.weight_norm import norm_of_product
from doratune.environment import describe_environment
from doratune.peft.quantised import QuantisedWeight, dequantised
from doratune.records.files import write_json_atomic

SIZE, RANK, SCALING = 1024, 32, 2.0


def bnb_4bit(linear: nn.Linear) -> nn.Module:
    layer = bitsandbytes.nn.Linear4bit(
        SIZE, SIZE, compute_dtype=torch.bfloat16, quant_type="nf4", compress_statistics=True
    )
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


def bnb_8bit(linear: nn.Linear) -> nn.Module:
    layer = bitsandbytes.nn.Linear8bitLt(SIZE, SIZE, has_fp16_weights=False)
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


def torchao_int8(linear: nn.Linear) -> nn.Module:
    model = nn.Sequential(linear).to(torch.bfloat16)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    return model[0]


@torch.no_grad()
def measure(base: nn.Module, spread: float) -> dict[str, float]:
    weight, dense = QuantisedWeight(base), dequantised(base)
    A = (torch.rand(RANK, SIZE) * 2 - 1) / SIZE**0.5  # as PEFT draws it
    B = torch.randn(SIZE, RANK) * spread
    exact = reference.row_norm(dense, A, B, SCALING)
    norm = norm_of_product(weight.product(A), A, B, SCALING, weight.row_norm_squared())
    update = (SCALING * B @ A).norm(dim=1) / dense.float().norm(dim=1)
    return {"update": update.mean().item(), "largest_error": ((norm - exact) / exact).abs().max().item()}


def main() -> None:
    results: list[dict[str, Any]] = []
    for make in (bnb_4bit, bnb_8bit, torchao_int8):
        for spread in (0.01, 0.1):
            torch.manual_seed(0)
            results.append({"base": make.__name__, **measure(make(nn.Linear(SIZE, SIZE)), spread)})
            print(results[-1])
    environment = describe_environment().to_dict()
    write_json_atomic(Path(sys.argv[1]), {"results": results, "environment": environment})


if __name__ == "__main__":
    main()
