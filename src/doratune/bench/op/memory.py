"""Measures the memory a layer saves for its backward pass, and the peak that calls of it add.

On a CPU the peak is resident memory, and each provider is measured in a fresh process, free of remains of an
earlier one. glibc is told to take every larger block from the kernel and to return it at once. Resident
memory is then memory in use, and varies by a few kilobytes between runs; with free blocks that the allocator
keeps it would vary by a tenth. The high-water mark is the kernel's, reset before the first call.
``getrusage`` does not help: its peak cannot be reset, and a process inherits it from its parent.
"""

from __future__ import annotations

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
from doratune.memory import give_freed_memory_back, resident_bytes
from doratune.records.bench import Case, PeakMemory

CALLS = 3
"""The number of calls over which the peak is taken; each allocates new gradients."""

_KERNEL_BLOCK_BYTES = 1 << 16
_CLEAR_REFS = Path("/proc/self/clear_refs")


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes that autograd holds between forward and backward of one call.

    This counts, once and in full, each storage that the forward pass gives autograd to save, including the
    input and the output where they are saved, but not the layer's parameters and buffers. Tensors that a
    function hides from autograd as attributes of its context are not seen.

    Args:
        layer: The layer.
        x: Its input, (tokens, d_in).
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
    """Peak resident memory in a fresh process; None where the kernel does not report it (not Linux)."""
    if sys.platform != "linux":
        return None
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=begin) as pool:
        return pool.submit(measure_resident, provider, case, threads).result()


def measure_resident(provider: Provider, case: Case, threads: int) -> PeakMemory | None:
    """Peak of this process's resident memory over a few calls of a new layer; None if not permitted."""
    torch.set_num_threads(threads)
    give_freed_memory_back(_KERNEL_BLOCK_BYTES)  # what glibc reuses would go unseen
    device = torch.device("cpu")
    # A small layer runs first, so that what libraries load on first use is not counted.
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
    """Peak of the memory that torch allocates on the GPU, over a few calls."""
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


def _reset_high_water_mark() -> bool:
    try:
        _CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
