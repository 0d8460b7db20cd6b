"""The private names of torch that the benches touch, all of them.

``tests/unit/test_internals.py`` fails by name when an upgrade moves one.
"""

from __future__ import annotations

import torch

# Lets a GPU count so many of its cycles, so that calls queue behind it.
keep_gpu_busy = torch.cuda._sleep

__all__ = ["keep_gpu_busy"]
