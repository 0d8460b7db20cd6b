"""Every private or undocumented name of torch, transformers and TRL that the speed-ups use.

When an upgrade moves one, ``tests/unit/test_internals.py`` fails and names it.
"""

from __future__ import annotations

import copy
import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# PyTorch's fused attention, as a function that an attention layer calls.
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# The kind of mask that a model makes for each attention implementation, and sdpa's.
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

# The base class of a model's outputs; only this module exports it by name.
from transformers.utils.generic import ModelOutput

# The gradient of a softmax.
softmax_backward = torch.ops.aten._softmax_backward_data
# The gradient of g v/‖v‖, from which an RMSNorm's follows.
weight_norm_backward = torch.ops.aten._weight_norm_interface_backward

__all__ = [
    "EAGER_ATTENTION",
    "ROTARY",
    "AttentionMaskInterface",
    "ModelOutput",
    "attention_implementation",
    "eager_attention",
    "has_fused_head",
    "sdpa_attention_forward",
    "sdpa_mask",
    "softmax_backward",
    "takes_attention",
    "weight_norm_backward",
    "with_parameters",
]

# The names of the rotary embedding and the eager attention in a model's file.
ROTARY = "apply_rotary_pos_emb"
EAGER_ATTENTION = "eager_attention_forward"


def attention_implementation(model: PreTrainedModel) -> str:
    """The name of a model's attention implementation, which no public attribute has."""
    return str(model.config._attn_implementation)


def takes_attention(model: PreTrainedModel) -> bool:
    """Whether a model uses the interface in which attention implementations are registered."""
    return model._supports_attention_backend


def eager_attention(module: nn.Module) -> Any:
    """The eager attention function in the file of a layer's model, or None."""
    return getattr(sys.modules[type(module).__module__], EAGER_ATTENTION, None)


def has_fused_head(model: PreTrainedModel) -> bool:
    """Whether TRL has given a model its forward pass that scores tokens, which has this argument."""
    return "fused_lm_head" in inspect.signature(model.forward, follow_wrapped=False).parameters


def with_parameters(module: nn.Module, **parameters: Tensor) -> Any:
    """A shallow copy of a module with some parameters replaced; it shares everything else."""
    twin = copy.copy(module)
    twin.__dict__ = {**vars(module), "_parameters": {**module._parameters, **parameters}}
    return twin
