"""The private and undocumented names of torch that the engine touches, all of them.

They are bound here once, so that no call looks them up. ``tests/unit/test_internals.py`` fails by name when
an upgrade moves one.
"""

from __future__ import annotations

from typing import Any

import torch

# A weak reference to a tensor that stays valid while autograd keeps the tensor but no Python object does.
from torch.utils.weak import TensorWeakRef

# Batch norm into tensors that are there already; ``out`` is undocumented.
batch_norm_out = torch.native_batch_norm
# Its gradient, which is dY ⊙ g and a sum over rows.
batch_norm_backward = torch.ops.aten.native_batch_norm_backward
# Reshapes an output without making it a view for autograd.
unsafe_view = torch.ops.aten._unsafe_view.default
# How often a tensor was changed in place.
version = torch.Tensor._version.__get__  # pyright: ignore[reportAttributeAccessIssue]
# The hooks that pack tensors which are saved now for the backward pass.
saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore[reportAttributeAccessIssue]
# oneDNN's linear layer, by which PyTorch's compiler multiplies; None where PyTorch comes without it.
onednn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)

__all__ = [
    "CHECKPOINT",
    "TensorWeakRef",
    "batch_norm_backward",
    "batch_norm_out",
    "onednn_linear",
    "onednn_takes",
    "saved_tensors_hooks",
    "saves_for_checkpoint",
    "shared_memory_of",
    "unsafe_view",
    "version",
]

# The module whose hooks are those of non-reentrant checkpointing.
CHECKPOINT = "torch.utils.checkpoint"


def saves_for_checkpoint() -> bool:
    """Whether tensors saved now go to non-reentrant checkpointing, which computes them again when needed."""
    hooks: Any = saved_tensors_hooks(True)
    return hooks is not None and getattr(hooks[0], "__module__", None) == CHECKPOINT


def onednn_takes() -> frozenset[torch.dtype]:
    """Which of bfloat16 and float16 oneDNN multiplies, be it by emulation; none without oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return frozenset()
    takes = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    return frozenset(dtype for dtype, is_taken in takes.items() if is_taken)


def shared_memory_of(properties: Any) -> int:
    """Bytes of shared memory that one program may take on a GPU of such properties; 0 if they do not say."""
    return getattr(properties, "shared_memory_per_block_optin", 0)
