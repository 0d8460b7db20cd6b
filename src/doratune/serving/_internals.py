"""All undocumented names of transformers that this package uses.

``tests/unit/test_internals.py`` fails by name when an upgrade moves one.
"""

# Decides which layers bitsandbytes quantises, and puts its layers in their place.
from transformers.quantizers.auto import AutoHfQuantizer

# Finds a file of a folder or of the hub's cache.
from transformers.utils.hub import cached_file

__all__ = ["AutoHfQuantizer", "cached_file"]
