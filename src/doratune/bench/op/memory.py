"""What a layer keeps for its backward pass, and the most memory that calls of it add.

On a CPU the peak is resident memory, and each provider is measured in a fresh process, so that nothing is
left of an earlier one. glibc is told to take every larger block from the kernel and to give it back at once:
what is resident is then what is in use, to a few kilobytes from run to run, where free blocks that the
allocator keeps would make it vary by a tenth. The high-water mark is the kernel's, set back before the first
call. ``getrusage`` does not help: it cannot be set back, and a process inherits it from its parent.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from doratune.bench.child import begin
from doratune.bench.op.layer_data import LayerData, draw_layer
from doratune.bench.op.providers import Provider, Subject, build
from doratune.memory import resident_bytes
from doratune.records.bench import Case, PeakMemory

CALLS = 3
"""Calls that the peak is taken over: each allocates new gradients."""

_M_MMAP_THRESHOLD = -3  # from malloc.h
_KERNEL_BLOCK_BYTES = 1 << 16
_CLEAR_REFS = Path("/proc/self/clear_refs")


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes that autograd holds between forward and backward of one call.

    Counted are storages, each once and whole, that the forward pass gives autograd to save: the input and
    the output too where they are saved. The layer's own parameters and buffers are not. What a function
    hides from autograd by keeping it as an attribute of its context cannot be seen.

    Args:
        layer: The layer.
        x: Its input.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in chain(layer.parameters(), layer.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return sum(storage.nbytes() for storage in kept.values())


def cpu_peak(provider: Provider, case: Case, threads: int) -> PeakMemory | None:
    """Peak of resident memory in a fresh process; None where the kernel cannot tell (not Linux)."""
    if sys.platform != "linux":
        return None
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=begin) as pool:
        return pool.submit(measure_resident, provider, case, threads).result()


def measure_resident(provider: Provider, case: Case, threads: int) -> PeakMemory | None:
    """Peak of this process's resident memory over some calls of a new layer; None if not permitted."""
    torch.set_num_threads(threads)
    _use_blocks_of_the_kernel()
    device = torch.device("cpu")
    # What libraries load and set up on first use is no part of a layer's memory: a small layer goes first.
    small = case.model_copy(update={"d_in": 256, "d_out": 256, "tokens": 64})
    for one in (small, case):
        data = draw_layer(one, device)
        subject = build(provider, one, data)
        if one is small:
            _call(subject, data)
    if not _reset_high_water_mark():
        return None
    before = resident_bytes("VmRSS")
    _call(subject, data)
    return PeakMemory(before_bytes=before, growth_bytes=max(0, resident_bytes("VmHWM") - before))


def cuda_peak(subject: Subject, data: LayerData) -> PeakMemory:
    """Peak of the memory that torch has allocated on the GPU, over some calls."""
    subject.prepare(data)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _call(subject, data)
    torch.cuda.synchronize()
    growth = torch.cuda.max_memory_allocated() - before
    return PeakMemory(before_bytes=before, growth_bytes=growth)


def _call(subject: Subject, data: LayerData) -> None:
    for _ in range(CALLS):
        subject.prepare(data)
        subject.call(data)
    subject.prepare(data)


def _use_blocks_of_the_kernel() -> None:
    """Let glibc keep no free memory that a tensor could come from unseen; has no effect on others."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _KERNEL_BLOCK_BYTES)
        libc.malloc_trim(0)


def _reset_high_water_mark() -> bool:
    try:
        _CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
