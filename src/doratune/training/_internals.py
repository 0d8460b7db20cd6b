"""All undocumented names of transformers and TRL that training uses.

``tests/unit/test_internals.py`` fails by name when an upgrade moves one.
"""

from __future__ import annotations

# The file of pickled arguments in a saved model.
from transformers.trainer import TRAINING_ARGS_NAME

# Divides the rows of an optimizer step into micro-batches of similar cost.
from transformers.trainer_pt_utils import BatchRebalanceSampler

# The trainer and its arguments; type checkers find them only in these modules.
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

DEVICES_NAME = "_n_gpu"
"""Where transformers' arguments keep the number of GPUs of this process, which they count themselves."""

__all__ = ["DEVICES_NAME", "TRAINING_ARGS_NAME", "BatchRebalanceSampler", "SFTConfig", "SFTTrainer"]
