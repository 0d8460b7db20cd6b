"""How DoRA is computed, in PyTorch only. The public face of this package is ``doratune.functional``."""
