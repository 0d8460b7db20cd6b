"""Adding a method's adapter to a base model."""

from __future__ import annotations

import logging
import re
from dataclasses import fields
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model, prepare_model_for_kbit_training
from transformers import PreTrainedModel

from doratune.errors import InputError, did_you_mean
from doratune.methods.find import get_method, is_method_file, method_names
from doratune.methods.method import Method
from doratune.peft import enable
from doratune.peft._internals import LoraLayer, gather_params_ctx
from doratune.peft.adapter_file import NEEDS_MORE, config_classes
from doratune.peft.load import lost_base, refuse_conditional
from doratune.peft.quantised import dequantised
from doratune.training.config import TrainConfig

logger = logging.getLogger(__name__)

INITIALISATIONS = "true, gaussian, orthogonal, mica, pissa or olora"
"""Those of LoRA that training can begin with and that an adapter's file can be evaluated after."""


def add_adapter(model: PreTrainedModel, config: TrainConfig) -> PeftModel:
    """Wrap ``model`` with the adapter that ``config`` describes.

    Args:
        model: The base model; its weights are frozen.
        config: Method, rank, alpha, dropout, targets and engine.

    Returns:
        The PEFT model, on doratune's engine if the method is one of LoRA or DoRA and ``config.engine`` does
        not say otherwise.

    Raises:
        InputError: If a target matches no layer, or a layer that cannot have an adapter, PEFT refuses the
            method's arguments, or no gradient can flow through a layer's norm.
    """
    method = get_method(config.method)
    others = _check_targets(model, config.targets) if "targets" in method.given else {}
    rank = _matching_rank(model, config, method)
    if config.load_in_4bit:
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=config.gradient_checkpointing
        )
    peft: Any = peft_config(method, config, rank=rank)
    _check_named(model, peft, method, config)
    peft_model = _adapted(model, peft, method, config, others)
    if method.unused:
        logger.info("%s has no use for %s", method.title, ", ".join(sorted(method.unused)))
    if config.engine == "peft":
        return peft_model
    if method.engine:
        enable(peft_model, detach_norm=not method.norm_gradient)
        _set_exact_magnitudes(peft_model, with_update=peft.init_lora_weights is not True)
    else:
        logger.info("PEFT computes the layers of %s: the engine has LoRA and DoRA", method.title)
    return peft_model


def refuse_misfit(model: PreTrainedModel, method: Method, config: TrainConfig) -> None:
    """Refuse a method that PEFT cannot put on a model, as far as the layers' names and shapes tell.

    Args:
        model: The base model without its weights, on the meta device. It is used up.
        method: A method with an adapter.
        config: The settings of a run.

    Raises:
        InputError: As in ``add_adapter``.
    """
    others = _check_targets(model, config.targets) if "targets" in method.given else {}
    peft: Any = peft_config(method, config)
    _check_named(model, peft, method, config)
    if isinstance(peft, LoraConfig):
        peft.init_lora_weights = True  # some initialisations compute with the weights
    try:
        _adapted(model, peft, method, config, others, empty=True)
    except InputError as error:
        if not isinstance(error.__cause__, NotImplementedError):  # as tensors without values raise it
            raise
    except RuntimeError as error:
        logger.debug("%s is not checked without the model's weights: %s", method.title, error)


def peft_config(method: Method, config: TrainConfig, *, rank: int | None = None) -> PeftConfig:
    """The PEFT configuration of a run.

    Args:
        method: Its method, which has an adapter.
        config: Its rank, alpha, dropout and targets.
        rank: The rank, if it is not the configuration's; alpha is then as large in relation to it.

    Raises:
        InputError: PEFT does not have the method's class, or refuses an argument.
    """
    rank = rank or config.rank
    settings: dict[str, Any] = {
        "rank": rank,
        "alpha": config.alpha * rank / config.rank,
        "dropout": config.dropout,
        "targets": list(config.targets),
    }
    classes = config_classes()
    kind = classes.get(method.peft or "")
    if method.peft in NEEDS_MORE:
        raise InputError(
            "the training of this PEFT method needs further calls or inputs, which doratune does not make",
            where=f"{_source(method, config)}, peft",
            got=method.peft,
            expected=f"one of {', '.join(sorted(classes))}",
        )
    if kind is None:
        raise InputError(
            "the installed PEFT has no such configuration with layers to adapt",
            where=f"{_source(method, config)}, peft",
            got=method.peft,
            expected=f"one of {', '.join(sorted(classes))}",
            fix=did_you_mean(method.peft or "", list(classes)),
        )
    if method.arguments.get("init_lora_weights") == "eva":
        raise InputError(
            "EVA's initialisation takes a pass over the training rows, which doratune does not make; without "
            "it PEFT trains plain LoRA",
            where=f"{_source(method, config)}, arguments",
            got="init_lora_weights eva",
            expected=f"init_lora_weights {INITIALISATIONS}",
        )
    _refuse_unknown(kind, method, config)
    _refuse_values(kind, method, config)
    values = {argument: settings[name] for name, argument in method.given.items()}
    try:
        peft = kind(task_type=TaskType.CAUSAL_LM, **values, **method.arguments)
    except (TypeError, ValueError, ImportError, AttributeError) as error:
        raise _refused(method, config, error) from error
    refuse_conditional(peft, where=f"{_source(method, config)}, arguments")
    if reason := lost_base(peft):
        raise InputError(
            "the adapter could not be evaluated from its file: its initialisation changes the base in a way "
            "that loading cannot repeat",
            where=f"{_source(method, config)}, arguments",
            got=f"init_lora_weights {peft.init_lora_weights}, whose change comes from {reason}",
            expected=f"init_lora_weights {INITIALISATIONS}",
        )
    return peft


def _refuse_values(kind: Any, method: Method, config: TrainConfig) -> None:
    """Refuse values that PEFT takes without a word and that mean something else."""
    if method.arguments.get("inference_mode"):
        raise InputError(
            "an adapter in inference mode is not trained",
            where=f"{_source(method, config)}, arguments",
            got="inference_mode true",
            fix="leave it out",
        )
    switches = {field.name for field in fields(kind) if field.type in (bool, "bool")}
    for name in switches & method.arguments.keys():
        if not isinstance(method.arguments[name], bool):
            raise InputError(
                "an argument is on or off",
                where=f"{_source(method, config)}, arguments, {name}",
                got=repr(method.arguments[name]),
                expected="true or false",
            )


def _refuse_unknown(kind: Any, method: Method, config: TrainConfig) -> None:
    """Refuse names that are not arguments of the configuration's class."""
    known = [field.name for field in fields(kind) if field.init]
    named = [("arguments", name) for name in method.arguments]
    named += [(f"settings, {setting}", name) for setting, name in method.given.items()]
    for place, name in named:
        if name not in known:
            raise InputError(
                f"PEFT's {method.peft} has no such argument",
                where=f"{_source(method, config)}, {place}",
                got=name,
                fix=did_you_mean(name, known),
            )


def _check_named(model: PreTrainedModel, peft: Any, method: Method, config: TrainConfig) -> None:
    """Refuse arguments that name parts of the model which it lacks: PEFT would pass over them."""
    modules = [name for name, _ in model.named_modules() if name]
    for argument, fits in (
        ("modules_to_save", lambda key, name: name.endswith(key)),
        ("rank_pattern", lambda key, name: re.match(rf"(.*\.)?({key})$", name)),
        ("alpha_pattern", lambda key, name: re.match(rf"(.*\.)?({key})$", name)),
    ):
        for key in getattr(peft, argument, None) or ():
            if not any(fits(key, name) for name in modules):
                raise InputError(
                    "an argument names a part that the model lacks",
                    where=f"{_source(method, config)}, arguments, {argument}",
                    got=key,
                    fix=did_you_mean(key, sorted({name.rsplit(".", 1)[-1] for name in modules})),
                )


def _adapted(
    model: PreTrainedModel,
    peft: PeftConfig,
    method: Method,
    config: TrainConfig,
    others: dict[str, str],
    *,
    empty: bool = False,
) -> PeftModel:
    """``model`` with PEFT's layers, or PEFT's refusal as one message."""
    try:
        adapted = get_peft_model(model, peft, low_cpu_mem_usage=empty)
    except (TypeError, ValueError, ImportError, AttributeError, NotImplementedError) as error:
        if others:
            raise InputError(
                "a target is not a layer that can have an adapter",
                where="--targets",
                got=", ".join(f"{target} ({kind})" for target, kind in others.items()),
                expected="names of linear layers, embeddings or convolutions",
            ) from error
        raise _refused(method, config, error) from error
    assert isinstance(adapted, PeftModel)
    return adapted


def _refused(method: Method, config: TrainConfig, error: Exception) -> InputError:
    given = ", ".join(f"{name} {value}" for name, value in method.arguments.items())
    return InputError(
        f"PEFT refuses the arguments of {method.peft}",
        where=f"{_source(method, config)}, arguments",
        got=f"{given or 'none'}: {' '.join(str(error).split())}",
        fix="correct the method's file"
        if method.name not in method_names()
        else "change --rank or --targets, or leave the settings out that the message names",
    )


def _source(method: Method, config: TrainConfig) -> str:
    return config.method if is_method_file(config.method) else f"method {method.name}"


def _matching_rank(model: PreTrainedModel, config: TrainConfig, method: Method) -> int:
    """The run's rank, or the smallest from it on that trains as much as the method to match."""
    if method.match is None:
        return config.rank
    wanted = _size(model, get_method(method.match), config, config.rank)
    rank = config.rank
    while _size(model, method, config, rank) < wanted:
        rank += 1
    logger.info("rank %d of %s trains at least as much as %s", rank, method.title, method.match)
    return rank


def _size(model: PreTrainedModel, method: Method, config: TrainConfig, rank: int) -> int:
    """The number of parameters that a run trains, counted by PEFT on a model without content."""
    kind: Any = type(model)
    with torch.device("meta"):
        skeleton = kind(model.config)
    adapted = _adapted(skeleton, peft_config(method, config, rank=rank), method, config, {}, empty=True)
    return sum(one.numel() for one in adapted.parameters() if one.requires_grad)


@torch.no_grad()
def _set_exact_magnitudes(model: PeftModel, *, with_update: bool) -> None:
    """Start DoRA's linear layers at exactly m = ‖W + s·B·A‖, so that the adapted model starts as the base.

    PEFT rounds the norm to the type of W, in bfloat16 by up to 0.4 %: as much as training may change it.

    Args:
        model: A model with DoRA.
        with_update: Whether B starts at another value than zero.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        base = layer.get_base_layer()
        if not any(layer.use_dora.values()) or not isinstance(base, torch.nn.Linear) or base.weight.is_meta:
            continue
        with gather_params_ctx(base.parameters()):
            weight = dequantised(base)
        for name, magnitude in layer.lora_magnitude_vector.items():
            whole = weight
            if with_update:
                factors = layer.lora_B[name].weight.float(), layer.lora_A[name].weight.float()
                whole = weight.float() + layer.scaling[name] * (factors[0] @ factors[1])
            magnitude.weight.copy_(torch.linalg.vector_norm(whole, dim=1, dtype=torch.float32))


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
