"""Adapters for the tests of what comes after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM


def float32_model(folder: Path) -> Any:
    """A model in memory, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def save_adapter(base: Path, folder: Path, *targets: str, moved: float = 0.1, **settings: Any) -> Path:
    """An adapter of ``base`` whose trained parameters all moved, as PEFT saves it.

    Its configuration names ``base``.
    """
    torch.manual_seed(3)
    config = LoraConfig(
        **{"r": 4, "target_modules": list(targets) or ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
        | settings
    )
    model = get_peft_model(float32_model(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += moved * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def unmerged(base: Path, adapter: Path) -> Any:
    """PEFT's own model in float32: base and adapter."""
    return PeftModel.from_pretrained(float32_model(base), str(adapter)).eval()
