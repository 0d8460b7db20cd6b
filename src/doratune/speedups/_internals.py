"""The private and undocumented names of torch, transformers and TRL that the speed-ups touch, all of them.

``tests/unit/test_internals.py`` fails by name when an upgrade moves one.
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

# Which mask a model makes for an attention implementation, and the one that sdpa takes.
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

# The base class of a model's outputs; only this module exports it by name.
from transformers.utils.generic import ModelOutput

# The gradient of a softmax.
softmax_backward = torch.ops.aten._softmax_backward_data
# The gradient of g v/‖v‖, from which that of an RMSNorm follows.
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

# Under which names a model's file has its rotary embedding and its attention.
ROTARY = "apply_rotary_pos_emb"
EAGER_ATTENTION = "eager_attention_forward"


def attention_implementation(model: PreTrainedModel) -> str:
    """The name of a model's attention implementation; no public attribute tells it."""
    return str(model.config._attn_implementation)


def takes_attention(model: PreTrainedModel) -> bool:
    """Whether a model attends through the interface under which an implementation can be registered."""
    return model._supports_attention_backend


def eager_attention(module: nn.Module) -> Any:
    """The eager attention function in the file of a layer's model, or None."""
    return getattr(sys.modules[type(module).__module__], EAGER_ATTENTION, None)


def has_fused_head(model: PreTrainedModel) -> bool:
    """Whether TRL has given a model the forward pass that scores tokens, with its argument of this name."""
    return "fused_lm_head" in inspect.signature(model.forward, follow_wrapped=False).parameters


def with_parameters(module: nn.Module, **parameters: Tensor) -> Any:
    """A copy of a module with other parameters, which torch keeps in an attribute; it shares all else."""
    twin = copy.copy(module)
    twin.__dict__ = {**vars(module), "_parameters": {**module._parameters, **parameters}}
    return twin
