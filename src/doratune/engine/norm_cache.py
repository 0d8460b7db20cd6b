"""Norms that are reused for as long as the weights are unchanged.

A norm changes when A, B, W or the scaling do: once per optimizer step, not once per micro-batch. Nothing in
PyTorch records every change of a tensor: ``_version`` misses writes through ``.data`` and those of kernels
that were handed a pointer. So on a CPU the key is the content itself, hashed with XXH3 at the speed of
memory. On a GPU, reading a hash back would stall, so one kernel compares the hashes and the next acts on the
result (``triton/content_hash.py``), where that takes less time than the norm. In all other cases every call
computes the norm: on a GPU inside compiled or captured graphs, and for weights so small that hashing them
takes longer than the norm.

Where nothing can change for a while, as in one forward pass of a trainer, a call of ``generate`` or a whole
evaluation, ``peft/hold_norms.py`` computes the norms once and reuses them without checking. Only the thread
that holds them does: another thread may have changed the weights since.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any, NamedTuple, Protocol

import torch
import xxhash
from torch import Tensor

from doratune.engine import composite
from doratune.engine._internals import FakeTensor
from doratune.engine.autocast import autocast_off
from doratune.engine.triton.norm_cache import NormMemory
from doratune.engine.triton.select import capturing
from doratune.engine.weight_norm import (
    current_row_norm,
    joint_row_norms,
    norm_dtype,
    norm_of_product,
    over_norm,
    row_norm_squared,
    weighted_rows,
)


class BaseWeight(Protocol):
    """What the norm needs of a frozen weight W (d_out, d_in)."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that W is made of."""
        ...

    def row_norm_squared(self) -> Tensor:
        """‖W‖² per row, (d_out,), float32 or float64."""
        ...

    def product(self, A: Tensor) -> Tensor:
        """W Aᵀ, (d_out, r), float32 or float64, for A (r, d_in)."""
        ...

    def small_dense(self) -> Tensor | None:
        """W as a matrix if it is so small that hashing it would take longer than the norm; otherwise None."""
        return None

    def norm(self, A: Tensor, B: Tensor, scaling: float, memory: NormMemory | None) -> Tensor:
        """‖W + s·B·A‖ per row, (d_out,), float32 or float64, for A (r, d_in) and B (d_out, r).

        ``memory`` belongs to this adapter; without it nothing is reused.
        """
        return norm_of_product(self.product(A), A, B, scaling, self.row_norm_squared())


class DenseWeight(BaseWeight):
    """A weight that is stored as a matrix.

    Args:
        W: (d_out, d_in), any floating dtype and strides.
    """

    def __init__(self, W: Tensor) -> None:
        self._W = W

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """W."""
        return (self._W,)

    def row_norm_squared(self) -> Tensor:
        """‖W‖² per row, (d_out,), float32 (float64 for a float64 W)."""
        return row_norm_squared(self._W)

    def product(self, A: Tensor) -> Tensor:
        """W Aᵀ, (d_out, r), float32 (float64 if W or A is)."""
        return weighted_rows(self._W, A.to(norm_dtype(self._W, A)))

    def small_dense(self) -> Tensor | None:
        """W, if it is small."""
        return self._W if self._W.numel() <= composite.SMALL_ELEMENTS else None

    def norm(self, A: Tensor, B: Tensor, scaling: float, memory: NormMemory | None = None) -> Tensor:
        """‖W + s·B·A‖ per row, (d_out,), float32 (float64 if W, A or B is)."""
        return current_row_norm(self._W, A, B, scaling, memory)


@dataclass(slots=True)
class Hold:
    """What one thread reuses of a layer without checking its weights.

    Attributes:
        base_unchanged: Whether a base weight that has been checked before is not checked again.
        norms: By adapter and scaling.
        scales: g = m / norm, likewise, for calls without gradients.
        decision: What the layer has decided.
    """

    base_unchanged: bool
    norms: dict[tuple[str, float], Tensor] = field(default_factory=dict)
    scales: dict[tuple[str, float], Tensor] = field(default_factory=dict)
    decision: Any = None


class NormCache:
    """The norms of one layer's DoRA adapters, each recomputed only when its weights have changed.

    Pass the same cache to every call of a layer: ``dora_linear(x, W, A, B, m, s, norm_cache=cache)``. Every
    call checks the content of W, A and B, so no change is missed. A copy or an unpickled cache starts empty.
    """

    def __init__(self) -> None:
        self.handle = next(_handles)
        """Identifies this object inside compiled graphs."""
        _by_handle[self.handle] = self
        self._on_cpu, self._on_gpu = _HashedNorms(), _KernelNorms()
        self._holds: dict[int, Hold] = {}  # by thread

    @property
    def current_hold(self) -> Hold | None:
        """What this thread holds; not for compiled graphs, which would keep it."""
        return self._holds.get(get_ident()) if self._holds else None

    @property
    def held(self) -> bool:
        """Whether this thread reuses norms without checking the weights."""
        return self.current_hold is not None

    def hold(self, *, base_unchanged: bool) -> None:
        """Until ``let_go``, compute each adapter's norm once and reuse it in this thread without checking.

        Args:
            base_unchanged: Skip the check of a base weight that has been checked before.
        """
        self._holds[get_ident()] = Hold(base_unchanged)

    def let_go(self) -> None:
        """Check the weights again at every call of this thread."""
        self._holds.pop(get_ident(), None)

    def get(
        self,
        base: BaseWeight,
        A: Tensor,
        B: Tensor,
        scaling: float,
        *,
        adapter: str = "",
        remember: bool = True,
    ) -> Tensor:
        """The norm of each row of W + s·B·A.

        Args:
            base: W (d_out, d_in).
            A: Down projection, (r, d_in), any floating dtype.
            B: Up projection, (d_out, r), any floating dtype.
            scaling: LoRA's s.
            adapter: The adapter's name, if the layer has several.
            remember: On a GPU, keep the norm for the next call. Must be False inside a compiled graph, which
                may reuse memory that is allocated inside it.

        Returns:
            (d_out,), float32 (float64 where an input is), detached. Do not change it in place.
        """
        hold = self.current_hold
        if hold is not None and (adapter, scaling) in hold.norms:
            return hold.norms[adapter, scaling]
        base_unchanged = hold is not None and hold.base_unchanged
        with _computing(A.device):
            if all(tensor.is_cpu for tensor in (*base.tensors, A, B)):
                norm = self._on_cpu.get(adapter, base, A, B, scaling, base_unchanged=base_unchanged)
            else:
                norm = self._on_gpu.get(adapter, base, A, B, scaling, remember=remember)
        if hold is not None:
            hold.norms[adapter, scaling] = norm
        return norm

    def found(self, adapter: str, scaling: float) -> Tensor | None:
        """The norm of an adapter if it is held; not for compiled graphs, which would keep it."""
        hold = self.current_hold
        return None if hold is None else hold.norms.get((adapter, scaling))

    def scale(self, m: Tensor, *, adapter: str, scaling: float) -> Tensor | None:
        """``m / norm`` without gradients if the norm is held, likewise; do not change it in place."""
        hold = self.current_hold
        if hold is None:
            return None
        g = hold.scales.get((adapter, scaling))
        if g is None and (adapter, scaling) in hold.norms:
            with _computing(m.device):
                g = hold.scales[adapter, scaling] = over_norm(m, hold.norms[adapter, scaling])
        return g

    def keep(self, norm: Tensor, *, adapter: str, scaling: float) -> None:
        """Reuse a norm that was computed elsewhere, until ``let_go``; only while held."""
        hold = self.current_hold
        assert hold is not None
        hold.norms[adapter, scaling] = norm

    def __reduce__(self) -> tuple[type[NormCache], tuple[()]]:
        return NormCache, ()


class Adapter(NamedTuple):
    """A DoRA adapter over a dense weight, and the cache of its layer; see ``NormCache.get``."""

    cache: NormCache
    name: str
    W: Tensor
    A: Tensor
    B: Tensor
    scaling: float


def fill(adapters: Sequence[Adapter]) -> None:
    """Compute the norms of many layers whose caches are held: together where a kernel can, else in turn."""
    if not adapters:
        return
    with _computing(adapters[0].A.device):
        norms = joint_row_norms([(one.W, one.A, one.B, one.scaling) for one in adapters])
    for norm, (cache, name, W, A, B, scaling) in zip(norms, adapters, strict=True):
        if norm is None:
            dense_norm(cache, name, W, A, B, scaling)
        else:
            cache.keep(norm, adapter=name, scaling=scaling)


@contextmanager
def _computing(device: torch.device) -> Iterator[None]:
    # A tensor made in inference mode could not be used in training later.
    training = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    with training, torch.no_grad(), autocast_off(device):
        yield


class _HashedNorms:
    """Norms on a CPU, keyed by a hash of what they were computed from.

    Threads may share it: a key and its value are replaced together, and read together.
    """

    def __init__(self) -> None:
        self._weight: tuple[object, Tensor] | None = None  # its key, and ‖W‖² per row
        self._norms: dict[str, tuple[object, Tensor]] = {}  # by adapter

    def get(
        self, adapter: str, base: BaseWeight, A: Tensor, B: Tensor, scaling: float, *, base_unchanged: bool
    ) -> Tensor:
        dense = base.small_dense()
        if dense is not None:
            dtype = norm_dtype(dense, A, B)
            V = torch.addmm(dense.to(dtype), B.to(dtype), A.to(dtype), alpha=scaling)
            return torch.linalg.vector_norm(V, dim=1)
        weight = self._weight
        if weight is None or not base_unchanged:
            weight_key = tuple(map(_digest, base.tensors))
            if weight is None or weight[0] != weight_key:
                weight = self._weight = weight_key, base.row_norm_squared()
        weight_key, weight_norm_sq = weight
        key = (weight_key, _digest(A), _digest(B), scaling)
        known = self._norms.get(adapter)
        if known is None or known[0] != key:
            norm = norm_of_product(base.product(A), A, B, scaling, weight_norm_sq)
            known = self._norms[adapter] = key, norm
        return known[1]


class _KernelNorms:
    """Norms on a GPU, where kernels compare the hashes; on other devices nothing is reused."""

    def __init__(self) -> None:
        self._memories: defaultdict[str, NormMemory] = defaultdict(NormMemory)

    def get(
        self, adapter: str, base: BaseWeight, A: Tensor, B: Tensor, scaling: float, *, remember: bool
    ) -> Tensor:
        return base.norm(A, B, scaling, self._memories[adapter] if remember else None)


def dense_norm(cache: NormCache, adapter: str, W: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """``cache.get`` for a dense weight; in a compiled graph, and without content, it is one operation."""
    if torch.compiler.is_compiling() or isinstance(W, FakeTensor):
        return _dense_norm(W.detach(), A.detach(), B.detach(), scaling, adapter, cache.handle)
    return cache.get(DenseWeight(W), A, B, scaling, adapter=adapter)


_handles = itertools.count()
_by_handle: weakref.WeakValueDictionary[int, NormCache] = weakref.WeakValueDictionary()


@torch.library.custom_op("doratune::dense_norm", mutates_args=())
def _dense_norm(W: Tensor, A: Tensor, B: Tensor, scaling: float, adapter: str, handle: int) -> Tensor:
    if W.is_cuda and capturing(W.device):  # a graph would read a held norm long after it has been freed
        with _computing(W.device):
            return current_row_norm(W, A, B, scaling)
    # A copy: the compiler may reuse the memory of an operation's result.
    cache = _by_handle[handle]
    return cache.get(DenseWeight(W), A, B, scaling, adapter=adapter, remember=False).clone()


@_dense_norm.register_fake
def _(W: Tensor, A: Tensor, B: Tensor, scaling: float, adapter: str, handle: int) -> Tensor:
    return W.new_empty(W.shape[0], dtype=norm_dtype(W, A, B))


def _digest(tensor: Tensor) -> object:
    """A key for the content of a CPU tensor; for a tensor subclass, of the tensors inside it."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        return tuple(_digest(getattr(tensor, name)) for name in flatten()[0])
    dense = tensor.detach()
    if not dense.is_contiguous():
        dense = dense.T if dense.ndim == 2 and dense.T.is_contiguous() else dense.contiguous()
    # Not through numpy: PyTorch then never lets the storage shrink again, as FSDP2 does after each layer.
    content = (ctypes.c_char * dense.nbytes).from_address(dense.data_ptr())
    return tensor.dtype, tuple(tensor.shape), tensor.stride(), xxhash.xxh3_128_intdigest(content)
