"""Every private name of PEFT, PyTorch and others that this package and ``training/adapter.py`` use.

An upgrade may move any of them without a note in its changelog. They are imported here and nowhere else;
attributes are listed in ``ATTRIBUTES``, each with its purpose. A test reads this file and names those that
are gone (``tests/unit/peft/test_peft_internals.py``).
"""

from __future__ import annotations

import functools
import sys
import types
from typing import Any

import torch

# Whether PEFT defines its layers over weights that bitsandbytes or torchao has quantised.
from peft.import_utils import is_bnb_4bit_available, is_bnb_available, is_torchao_available

# The hook that accelerate puts on the modules of a model on several devices. PEFT requires accelerate; the
# base install does not name it.
from peft.peft_model import AlignDevicesHook  # pyright: ignore[reportPrivateImportUsage]

# The base class of every LoRA and DoRA layer.
from peft.tuners.lora import LoraLayer

# The modules that hold the magnitudes; if the type is exact, the engine may read them without a call.
from peft.tuners.lora.dora import (
    DoraConv1dLayer,
    DoraConv2dLayer,
    DoraConv3dLayer,
    DoraEmbeddingLayer,
    DoraLinearLayer,
)

# The layer classes that the engine supports, by exact type.
from peft.tuners.lora.layer import Conv1d, Conv2d, Conv3d, Embedding, Linear

# The variants that mark an adapter as plain DoRA; any other is left to PEFT.
from peft.tuners.lora.variants import (
    DoraConv1dVariant,
    DoraConv2dVariant,
    DoraConv3dVariant,
    DoraEmbeddingVariant,
    DoraLinearVariant,
)

# The layer that trains single rows of an embedding.
from peft.tuners.trainable_tokens import TrainableTokensLayer

# ``BaseTuner.inject_adapter`` gives every PEFT model its layers; ``enable_automatically`` wraps it.
# ``BaseTunerLayer`` is the base class of all layers with an adapter, whatever PEFT's method.
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

# Return W of a quantised layer, and a weight that DeepSpeed has sharded.
from peft.utils.integrations import dequantize_module_weight, gather_params_ctx

# The base class of the wrappers of modules that an adapter brings whole, or some rows of.
from peft.utils.other import AuxiliaryTrainingWrapper

# Registers a hook that is called after every step of any optimizer.
from torch.optim.optimizer import register_optimizer_step_post_hook

# GPT-2's linear layer, whose weight is stored transposed.
from transformers.pytorch_utils import Conv1D

if is_bnb_available():
    # The layer over bitsandbytes' 8-bit base.
    from peft.tuners.lora.bnb import Linear8bitLt
if is_bnb_4bit_available():
    # The layer over bitsandbytes' 4-bit base.
    from peft.tuners.lora.bnb import Linear4bit
if is_torchao_available():
    # The layer over torchao's int8 base.
    from peft.tuners.lora.torchao import TorchaoLoraLinear

# accelerate's hook that runs several hooks in turn.
SequentialHook: Any = vars(sys.modules[AlignDevicesHook.__module__])["SequentialHook"]

if torch.distributed.is_available():
    from torch.distributed.fsdp import FSDPModule

    # The class that FSDP2 puts before the class of each module that it shards as a unit.
    FSDP_MODULES: tuple[type, ...] = (FSDPModule,)
else:
    FSDP_MODULES = ()
FSDP_STATES = "torch.distributed.fsdp."
"""Where the class is defined whose methods are the hooks of a unit."""

# The gradient of a lookup.
embedding_backward = torch.ops.aten.embedding_dense_backward

__all__ = [
    "FSDP_MODULES",
    "AlignDevicesHook",
    "AuxiliaryTrainingWrapper",
    "BaseTuner",
    "BaseTunerLayer",
    "Conv1D",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "DoraConv1dLayer",
    "DoraConv1dVariant",
    "DoraConv2dLayer",
    "DoraConv2dVariant",
    "DoraConv3dLayer",
    "DoraConv3dVariant",
    "DoraEmbeddingLayer",
    "DoraEmbeddingVariant",
    "DoraLinearLayer",
    "DoraLinearVariant",
    "Embedding",
    "Linear",
    "Linear4bit",
    "Linear8bitLt",
    "LoraLayer",
    "TorchaoLoraLinear",
    "TrainableTokensLayer",
    "dequantize_module_weight",
    "embedding_backward",
    "gather_params_ctx",
    "is_bnb_4bit_available",
    "is_bnb_available",
    "is_torchao_available",
    "register_optimizer_step_post_hook",
]

ATTRIBUTES: dict[str, dict[str, str]] = {
    "LoRA layer": {
        "_active_adapter": "like active_adapters, but read at every call without a property's cost",
        "active_adapters": "names of the active adapters",
        "base_layer": "the frozen layer",
        "_disable_adapters": "like disable_adapters, but read at every call without a property's cost",
        "disable_adapters": "whether the adapters are disabled",
        "fan_in_fan_out": "whether the weight is stored transposed",
        "get_base_layer": "the frozen layer, also below nested adapters",
        "lora_A": "the modules with A",
        "lora_B": "the modules with B",
        "lora_bias": "which adapters have a bias, which the engine leaves to PEFT",
        "lora_dropout": "the dropout before A",
        "lora_magnitude_vector": "the modules with m",
        "_caches": "what merging keeps so that it can be undone",
        "lora_variant": "the variant of an adapter that is not plain LoRA",
        "loftq_init": "the initialisation of this name, which changes W",
        "merge": "adds the adapter to the base weight",
        "merged_adapters": "adapters that are merged into the base weight",
        "olora_init": "the initialisation of this name, which changes W",
        "pissa_init": "the initialisation of this name, which changes W",
        "r": "the ranks of the adapters",
        "scaling": "s of every adapter",
        "use_dora": "which adapters are DoRA",
    },
    "LoRA embedding": {
        "_get_embed_scale": "the factor that the base multiplies its rows by, if any",
        "lora_embedding_A": "A",
        "lora_embedding_B": "B",
        "tp_layer": "set if the embedding is split over processes",
    },
    "LoRA convolution": {
        "_kernel_dim": "the kernel's number of dimensions, which tells the kind of convolution",
    },
    "tuner": {
        "inject_adapter": "puts adapters on a model",
    },
    "module": {
        "_backward_hooks": "if not empty, the module must be called",
        "_backward_pre_hooks": "if not empty, the module must be called",
        "_forward_hooks": "if not empty, the module must be called",
        "_forward_pre_hooks": "if not empty, the module must be called",
        "_modules": "read at every call, since the module's own getattr takes ten times as long",
        "_parameters": "read at every call, since the module's own getattr takes ten times as long",
    },
    "module with accelerate's hook": {
        "_hf_hook": "tells whether the hook does more than move the input",
        "_old_forward": "the forward pass that the hook calls",
    },
    "convolution": {
        "_conv_forward": "the convolution with a given weight and bias",
    },
    "4-bit layer": {
        "compute_dtype": "the dtype in which the layer multiplies",
    },
    "4-bit weight": {
        "quant_state": "the scales of its blocks, part of the weight's content",
    },
    "4-bit scales": {
        "absmax": "marks a state inside another: the scales are quantised too",
    },
}
"""Attributes and their purposes, by the kind of object that has them."""


def base_of(layer: Any) -> Any:
    """``layer.base_layer``."""
    return layer._modules["base_layer"]


def adapter_modules(layer: Any, name: str) -> list[Any]:
    """The modules that hold A, B and, for DoRA, m."""
    children = layer._modules
    modules = [children["lora_A"]._modules[name], children["lora_B"]._modules[name]]
    if layer.use_dora.get(name, False):
        modules.append(children["lora_magnitude_vector"]._modules[name])
    return modules


def adapter_weights(layer: Any, name: str) -> list[Any]:
    """A, B and, for DoRA, m of an adapter whose modules hold a ``weight``."""
    weights = []
    for module in adapter_modules(layer, name):  # ``weight_of``, without a call for each
        weight = module._parameters.get("weight")
        weights.append(module.weight if weight is None else weight)
    return weights


def dropout_of(layer: Any, name: str) -> Any:
    """The dropout before an adapter's A."""
    return layer._modules["lora_dropout"]._modules[name]


def weight_of(module: Any) -> Any:
    """``module.weight``."""
    weight = module._parameters.get("weight")
    return module.weight if weight is None else weight  # sharding replaces the parameter by a plain tensor


def bias_of(module: Any) -> Any:
    """``module.bias``."""
    parameters = module._parameters
    if "bias" not in parameters:
        return module.bias  # as in ``weight_of``
    return parameters["bias"]


def must_be_called(*modules: Any) -> bool:
    """Whether calling one of the modules does more than its class's forward pass and moving its input."""
    for module in modules:
        own = module.__dict__
        if (
            own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or ("forward" in own and replaces_forward(module))
        ):
            return True
    return False


def replaces_forward(module: Any) -> bool:
    """Whether a module's forward pass is another than its class's, save for accelerate moving the input."""
    own = module.__dict__
    forward, hook = own.get("forward"), own.get("_hf_hook")
    if forward is None:
        return False
    if hook is None:  # accelerate leaves the class's method behind when it removes a hook
        return not _is_own_method(forward, module)
    return not (
        isinstance(forward, functools.partial)
        and forward.func.__module__ == AlignDevicesHook.__module__
        and _is_own_method(own.get("_old_forward"), module)
        and _moves_input(hook)
    )


def _is_own_method(method: Any, module: Any) -> bool:
    return getattr(method, "__func__", None) is type(module).forward and method.__self__ is module


def _moves_input(hook: Any) -> bool:
    if type(hook) is SequentialHook:
        return not hook.no_grad and all(map(_moves_input, hook.hooks))
    return type(hook) is AlignDevicesHook and not (hook.no_grad or hook.offload or hook.io_same_device)


def device_hook(module: Any) -> Any:
    """The hook that accelerate has put on a module, or None."""
    return module.__dict__.get("_hf_hook")


def class_below_fsdp(module: Any) -> type:
    """A module's class, without the class that FSDP2 puts before it."""
    return next(one for one in type(module).__mro__ if not issubclass(one, FSDP_MODULES))


def is_fsdp_unit(module: Any) -> bool:
    """Whether a module is a unit of FSDP2 by itself and has no other hooks than FSDP2's."""
    own = module.__dict__
    hooks = [*own["_forward_pre_hooks"].values(), *own["_forward_hooks"].values()]
    return (
        isinstance(module, FSDP_MODULES)
        and not own["_backward_hooks"]
        and not own["_backward_pre_hooks"]
        and "forward" not in own
        # Of units with several modules the hooks are functions, which run once for all of them.
        and all(type(getattr(one, "__self__", None)).__module__.startswith(FSDP_STATES) for one in hooks)
    )


def rebind_forward(layer: Any, old: Any, new: Any) -> None:
    """Have accelerate's hook, if there is one, call the function ``new`` in place of ``old``."""
    own = layer.__dict__
    for name in ("forward", "_old_forward"):
        if getattr(own.get(name), "__func__", None) is old:
            own[name] = types.MethodType(new, layer)


def convolve(conv: Any, x: Any, bias: Any = None) -> Any:
    """The convolution of the module ``conv``, in x's dtype, with the given bias in place of the module's."""
    return conv._conv_forward(x, conv.weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
