"""All undocumented names of torch and transformers that loading uses.

``tests/unit/test_internals.py`` fails by name when an upgrade moves one.
"""

from __future__ import annotations

# Creates tensors with a shape and a dtype but no content.
from torch._subclasses.fake_tensor import FakeTensorMode

# Its ``tqdm`` draws the bar of the GGUF conversion, which transformers' own switch does not turn off.
from transformers import modeling_gguf_pytorch_utils as gguf_reader

__all__ = ["FakeTensorMode", "gguf_reader"]
