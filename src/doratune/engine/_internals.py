"""Every private or undocumented name of torch that the engine uses.

They are bound here once, so that calls need no lookup. When an upgrade moves one,
``tests/unit/test_internals.py`` fails and names it.
"""

from __future__ import annotations

from typing import Any

import torch

# A tensor with a shape and a dtype but no content: training/memory_estimate.py trains models of them.
from torch._subclasses.fake_tensor import FakeTensor

# A weak reference to a tensor that stays valid while autograd keeps the tensor but no Python object does.
from torch.utils.weak import TensorWeakRef

# Batch norm that writes into existing tensors; ``out`` is undocumented.
batch_norm_out = torch.native_batch_norm
# Its gradient: dY ⊙ g and a sum over rows.
batch_norm_backward = torch.ops.aten.native_batch_norm_backward
# Reshapes an output without making it a view for autograd.
unsafe_view = torch.ops.aten._unsafe_view.default
# Counts the in-place changes of a tensor.
version = torch.Tensor._version.__get__  # pyright: ignore[reportAttributeAccessIssue]
# The hooks in force for tensors saved for the backward pass.
saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore[reportAttributeAccessIssue]
# oneDNN's linear layer, which PyTorch's compiler calls; None if this build of PyTorch lacks it.
onednn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)

__all__ = [
    "CHECKPOINT",
    "FakeTensor",
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
    """Whether tensors saved now go to non-reentrant checkpointing, which recomputes them when needed."""
    hooks: Any = saved_tensors_hooks(True)
    return hooks is not None and getattr(hooks[0], "__module__", None) == CHECKPOINT


def onednn_takes() -> frozenset[torch.dtype]:
    """Which of bfloat16 and float16 oneDNN multiplies, natively or by emulation; empty without oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return frozenset()
    takes = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    return frozenset(dtype for dtype, is_taken in takes.items() if is_taken)


def shared_memory_of(properties: Any) -> int:
    """Bytes of shared memory that one program may use on a GPU with these properties; 0 if unknown."""
    return getattr(properties, "shared_memory_per_block_optin", 0)
