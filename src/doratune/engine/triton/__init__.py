"""Kernels for GPUs, each of which fuses several passes that PyTorch's operations make over large tensors.

All of them are optional: without Triton, or for a dtype that they do not take, PyTorch's operations compute
the same (``select.py``). The modules with kernels import Triton, so they are imported where they are called.
"""
