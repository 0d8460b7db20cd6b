"""Parameters that FSDP2 shards over processes, as a whole."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; for one that is sharded, every process has to ask at the same point."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of the tensor only."""
    return isinstance(tensor, DTensor)


def whole_weights(model: torch.nn.Module) -> dict[str, Any]:
    """The trained weights of a sharded model, whole and on the CPU, in the first process; every process asks."""
    adapter = isinstance(model, PeftModel)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapter)
    return get_model_state_dict(model, options=options)
