"""Parameters that FSDP2 shards over processes, as a whole."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from peft import PeftModel
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

logger = logging.getLogger(__name__)

RAM_EFFICIENT = "FSDP_CPU_RAM_EFFICIENT_LOADING"
"""Where ``accelerate launch`` says that only the first process reads the model, which is its default."""


def load_in_every_process() -> None:
    """Have every process read the model: the others need its weights for DoRA's magnitudes and all checks."""
    if parse_flag_from_env(RAM_EFFICIENT):
        logger.info("every process reads the whole model into its memory first; FSDP shards it then")
    os.environ[RAM_EFFICIENT] = "false"


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; for one that is sharded, every process has to ask at the same point."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: torch.nn.Module) -> dict[str, Any]:
    """The trained weights of a sharded model, whole, in the first process; every process has to ask."""
    adapter = isinstance(model, PeftModel)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapter)
    return get_model_state_dict(model, options=options)
