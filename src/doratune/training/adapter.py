"""A base model -> the same model with a LoRA or DoRA adapter."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, prepare_model_for_kbit_training
from transformers import PreTrainedModel

from doratune.errors import InputError, did_you_mean
from doratune.peft import enable
from doratune.peft._internals import LoraLayer, gather_params_ctx
from doratune.peft.quantised import dequantised
from doratune.training.config import TrainConfig


def add_adapter(model: PreTrainedModel, config: TrainConfig) -> PeftModel:
    """Wrap ``model`` with the adapter that ``config`` describes.

    Args:
        model: The base model; its weights are frozen.
        config: Method (lora or dora), rank, alpha, dropout, targets, engine and whether DoRA's norm has a
            gradient.

    Returns:
        The PEFT model, on doratune's engine unless ``config.engine`` is ``peft``.

    Raises:
        InputError: If a target matches no linear layer, or a layer's norm cannot have a gradient.
    """
    _check_targets(model, config.targets)
    if config.load_in_4bit:
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=config.gradient_checkpointing
        )
    lora = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType] # PEFT divides it, a float is right
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        use_dora=config.method == "dora",
        use_rslora=config.rslora,
    )
    peft_model = get_peft_model(model, lora)
    assert isinstance(peft_model, PeftModel)
    if config.engine == "doratune":
        enable(peft_model, detach_norm=not config.norm_gradient)
        _set_exact_magnitudes(peft_model)
    return peft_model


@torch.no_grad()
def _set_exact_magnitudes(model: PeftModel) -> None:
    """Let DoRA of linear layers begin at m = ‖W‖, so that the adapted model begins as the base.

    PEFT rounds the norm to the type of W, in bfloat16 by up to 0.4 %: as much as training may change it by.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        base = layer.get_base_layer()
        if not any(layer.use_dora.values()) or not isinstance(base, torch.nn.Linear) or base.weight.is_meta:
            continue
        with gather_params_ctx(base.parameters()):
            norm = torch.linalg.vector_norm(dequantised(base), dim=1, dtype=torch.float32)
        for magnitude in layer.lora_magnitude_vector.values():
            magnitude.weight.copy_(norm)


def _check_targets(model: PreTrainedModel, targets: list[str]) -> None:
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name, _ in model.named_modules()):
            raise InputError(
                "a target matches no layer of the model",
                where="--targets",
                got=target,
                expected=f"names among {', '.join(sorted(linear))}",
                fix=did_you_mean(target, sorted(linear)),
            )
