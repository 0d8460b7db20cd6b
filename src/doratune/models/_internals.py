"""All undocumented names of transformers that loading uses.

``tests/unit/test_internals.py`` fails by name when an upgrade moves one.
"""

from __future__ import annotations

# Its ``tqdm`` draws the bar of the GGUF conversion, which transformers' own switch does not turn off.
from transformers import modeling_gguf_pytorch_utils as gguf_reader

__all__ = ["gguf_reader"]
