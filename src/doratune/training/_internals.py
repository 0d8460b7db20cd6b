"""All undocumented names of PyTorch, accelerate, transformers and TRL that training uses.

``tests/unit/test_internals.py`` fails by name when an upgrade moves one.
"""

from __future__ import annotations

from typing import Any

import torch

# Makes a data loader that moves batches to a device and passes epochs on to its sampler.
from accelerate.data_loader import prepare_data_loader

# Identifies a storage without keeping it alive.
from torch.multiprocessing.reductions import StorageWeakRef

# Sees every operation.
from torch.utils._python_dispatch import TorchDispatchMode

# The trackers that transformers knows, and those that are installed.
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

# The file of pickled arguments in a saved model.
from transformers.trainer import TRAINING_ARGS_NAME

try:  # The head's kernels, and what TRL calls in their place where there is no Triton.
    from trl.kernels import chunked_logprob as head_kernels
except ImportError:  # TRL before 1.16
    head_kernels: Any = None

# The trainer and its arguments; type checkers find them only in these modules.
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

# Operations that create a tensor from its shape.
FACTORIES = (
    torch.ops.aten.eye.default,
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.full.default,
    torch.ops.aten.ones.default,
    torch.ops.aten.zeros.default,
)

DEVICES_NAME = "_n_gpu"
"""Where transformers' arguments keep the number of GPUs of this process, which they count themselves."""

__all__ = [
    "DEVICES_NAME",
    "FACTORIES",
    "INTEGRATION_TO_CALLBACK",
    "TRAINING_ARGS_NAME",
    "SFTConfig",
    "SFTTrainer",
    "StorageWeakRef",
    "TorchDispatchMode",
    "get_available_reporting_integrations",
    "head_kernels",
    "prepare_data_loader",
]
