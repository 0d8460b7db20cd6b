"""Adding a LoRA or DoRA adapter to a base model."""

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
        config: Method (lora or dora), rank, alpha, dropout, targets, engine and the gradient through DoRA's
            norm.

    Returns:
        The PEFT model, on doratune's engine unless ``config.engine`` is ``peft``.

    Raises:
        InputError: If a target matches no layer, or a layer that cannot have an adapter, or if no gradient
            can flow through a layer's norm.
    """
    others = _check_targets(model, config.targets)
    if config.load_in_4bit:
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=config.gradient_checkpointing
        )
    lora = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType] # PEFT only divides it, so a float works
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        use_dora=config.method == "dora",
        use_rslora=config.rslora,
    )
    try:
        peft_model = get_peft_model(model, lora)
    except ValueError as error:
        raise InputError(
            "a target is not a layer that can have an adapter",
            where="--targets",
            got=", ".join(f"{target} ({kind})" for target, kind in others.items()) or str(error),
            expected="names of linear layers, embeddings or convolutions",
        ) from error
    assert isinstance(peft_model, PeftModel)
    if config.engine == "doratune":
        enable(peft_model, detach_norm=not config.norm_gradient)
        _set_exact_magnitudes(peft_model)
    return peft_model


@torch.no_grad()
def _set_exact_magnitudes(model: PeftModel) -> None:
    """Start DoRA's linear layers at exactly m = ‖W‖, so that the adapted model starts as the base.

    PEFT rounds the norm to the type of W, in bfloat16 by up to 0.4 %: as much as training may change it.
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


def _check_targets(model: PreTrainedModel, targets: list[str]) -> dict[str, str]:
    """The targets that are not linear layers, with their classes; PEFT knows which of them it can adapt."""
    head = model.get_output_embeddings()
    others = {}
    linear = sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        }
    )
    for target in targets:
        found = [
            module for name, module in model.named_modules() if name == target or name.endswith(f".{target}")
        ]
        if not found:
            raise InputError(
                "a target matches no layer of the model",
                where="--targets",
                got=target,
                expected=f"names among {', '.join(linear)}",
                fix=did_you_mean(target, linear),
            )
        if any(module is head for module in found):
            raise InputError(
                "the head cannot have an adapter",
                where="--targets",
                got=f"{target}, whose weight the loss uses directly, without an adapter",
                expected=f"names among {', '.join(linear)}",
                fix="leave it out, or train every weight with --method full",
            )
        kinds = [type(module).__name__ for module in found if not isinstance(module, torch.nn.Linear)]
        if kinds:
            others[target] = kinds[0]
    return others
