"""Kernels for GPUs, each for passes over large tensors that PyTorch's own operations make one by one.

Nothing here is needed: where Triton is missing, or does not take a dtype, PyTorch's operations do the same
(``select.py``). The modules with kernels import Triton, so they are imported where they are called.
"""
