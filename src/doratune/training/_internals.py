"""The undocumented names of transformers that training touches, all of them.

``tests/unit/test_internals.py`` fails by name when an upgrade moves one.
"""

from __future__ import annotations

# The file of pickled arguments in a saved model.
from transformers.trainer import TRAINING_ARGS_NAME

__all__ = ["TRAINING_ARGS_NAME"]
