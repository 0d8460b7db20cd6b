"""All undocumented names of accelerate, transformers and TRL that training uses.

``tests/unit/test_internals.py`` fails by name when an upgrade moves one.
"""

from __future__ import annotations

from typing import Any

# Makes a data loader that moves batches to a device and passes epochs on to its sampler.
from accelerate.data_loader import prepare_data_loader

# The file of pickled arguments in a saved model.
from transformers.trainer import TRAINING_ARGS_NAME

try:  # The head's kernels, and what TRL calls in their place where there is no Triton.
    from trl.kernels import chunked_logprob as head_kernels
except ImportError:  # TRL before 1.16
    head_kernels: Any = None

# The trainer and its arguments; type checkers find them only in these modules.
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

DEVICES_NAME = "_n_gpu"
"""Where transformers' arguments keep the number of GPUs of this process, which they count themselves."""

__all__ = [
    "DEVICES_NAME",
    "TRAINING_ARGS_NAME",
    "SFTConfig",
    "SFTTrainer",
    "head_kernels",
    "prepare_data_loader",
]
