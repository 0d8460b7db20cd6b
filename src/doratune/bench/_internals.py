"""Every private name of torch that the benchmarks use.

When an upgrade moves one, ``tests/unit/test_internals.py`` fails and names it.
"""

from __future__ import annotations

import torch

# Keeps a GPU busy for a number of cycles, so that calls queue behind it.
keep_gpu_busy = torch.cuda._sleep

__all__ = ["keep_gpu_busy"]
