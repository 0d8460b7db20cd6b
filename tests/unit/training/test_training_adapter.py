"""What a DoRA adapter of ``doratune train`` begins as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import LlamaConfig, LlamaForCausalLM

from doratune.training.adapter import add_adapter
from doratune.training.config import TrainConfig


def adapted(dtype: torch.dtype, engine: Any = "doratune") -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The model, and its logits without and with the adapter before any step."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    base = LlamaForCausalLM(config).to(dtype).eval()
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        plain = base(ids).logits
        settings = TrainConfig(rank=4, dropout=0.0, engine=engine, output=Path("run"))
        model = add_adapter(base, settings).eval()
        return model, plain, model(ids).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_magnitudes_are_the_norms_of_the_rows(dtype: torch.dtype) -> None:
    model, plain, started = adapted(dtype)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert len(layers) == 2 * 5
    for layer in layers:
        norm = layer.get_base_layer().weight.double().norm(dim=1)
        magnitude = layer.lora_magnitude_vector["default"].weight
        assert magnitude.dtype == torch.float32 and magnitude.requires_grad
        torch.testing.assert_close(magnitude.double(), norm, rtol=1e-6, atol=0)
    if dtype == torch.bfloat16:  # g rounds to 1, so nothing is changed at all
        assert started.equal(plain)
    torch.testing.assert_close(started, plain, rtol=1e-5, atol=1e-6)


def test_stock_peft_is_left_alone() -> None:
    model, _, _ = adapted(torch.bfloat16, engine="peft")
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    norm = layer.get_base_layer().weight.double().norm(dim=1)
    off = (layer.lora_magnitude_vector["default"].weight.double() / norm - 1).abs().max()
    assert 1e-4 < off < 2**-8, "rounded to bfloat16"
