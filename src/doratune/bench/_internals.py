"""Every private or moving name of torch and PEFT that the benchmarks use.

When an upgrade moves one, ``tests/unit/test_internals.py`` fails and names it.
"""

from __future__ import annotations

import torch

# PEFT's cache of a layer's update and norm in evaluation, measured for comparison.
from peft.helpers import DoraCaching

# Keeps a GPU busy for a number of cycles, so that calls queue behind it.
keep_gpu_busy = torch.cuda._sleep

__all__ = ["DoraCaching", "keep_gpu_busy"]
