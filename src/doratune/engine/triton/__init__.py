"""Triton kernels for GPUs, each of which fuses several passes that PyTorch makes over large tensors.

All are optional: without Triton, or for a dtype they do not support, PyTorch's operations compute the same
(``select.py``). ``norm`` and ``tiled_norm`` compute weight norms, ``content_hash`` and ``norm_cache`` reuse
them, ``magnitude_forward`` and ``magnitude_backward`` scale outputs and compute the gradients. Modules with
kernels import Triton, so import them only where they are called.
"""
