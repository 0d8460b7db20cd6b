"""The properties of the processor that decide how matrices are multiplied."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from doratune.engine._internals import onednn_linear, onednn_takes

FEATURES = (
    "avx2",
    "avx512_f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_fp16",
    "bf16",
    "i8mm",
    "sve",
)
"""Instruction sets that matter for the speed of matrix products."""


@dataclass(frozen=True, eq=False)
class CpuTraits:
    """The processor's features, and what oneDNN supports on it.

    Compared by identity: decisions are cached per object.

    Attributes:
        x86: Whether it is an x86-64 processor; no other was measured.
        vendor: ``"AMD"``, ``"Intel"``, or the first word of any other name.
        avx512: Whether it has AVX-512.
        avx512_bf16: Whether that includes bfloat16 products.
        amx_bf16: Whether it has matrix units for bfloat16.
        onednn: Whether PyTorch includes oneDNN and the operation that calls its linear layer.
        onednn_takes: Which of bfloat16 and float16 oneDNN multiplies, emulation included.
    """

    x86: bool
    vendor: str
    avx512: bool
    avx512_bf16: bool
    amx_bf16: bool
    onednn: bool
    onednn_takes: frozenset[torch.dtype]

    @property
    def has_bfloat16(self) -> bool:
        """Whether the processor has instructions for bfloat16 products."""
        return self.avx512_bf16 or self.amx_bf16

    def is_fast_at(self, dtype: torch.dtype) -> bool:
        """Whether oneDNN multiplies a dtype at least as fast as float32.

        On processors with AVX-512 but no bfloat16 instructions (Skylake to Ice Lake), oneDNN emulates
        bfloat16, which takes about six times as long as float32.

        Args:
            dtype: ``torch.bfloat16`` or ``torch.float16``.
        """
        emulated = dtype == torch.bfloat16 and self.avx512 and not self.has_bfloat16
        return dtype in self.onednn_takes and not emulated


def cpu_traits() -> CpuTraits:
    """The traits of this machine's processor, or those set by ``assume_cpu``."""
    return _assumed or _detected()


def cpu_features() -> dict[str, bool]:
    """Which of ``FEATURES`` PyTorch reports, and whether the processor has them."""
    found = torch.cpu.get_capabilities()
    return {name: bool(found[name]) for name in FEATURES if name in found}


@contextmanager
def assume_cpu(traits: CpuTraits) -> Iterator[None]:
    """Make decisions as on another processor, in every thread; for tests."""
    global _assumed
    before, _assumed = _assumed, traits
    try:
        yield
    finally:
        _assumed = before


_assumed: CpuTraits | None = None


@functools.cache
def _detected() -> CpuTraits:
    found = torch.cpu.get_capabilities()
    # From the processor's features, not from a timing: every run on a machine must decide the same way.
    return CpuTraits(
        x86=found.get("architecture") == "x86_64",
        vendor=str(found.get("cpu_name", "")).partition(" ")[0],
        avx512=bool(found.get("avx512_f", False)),
        avx512_bf16=bool(found.get("avx512_bf16", False)),
        amx_bf16=bool(found.get("amx_bf16", False)),
        onednn=torch.backends.mkldnn.is_available() and onednn_linear is not None,
        onednn_takes=onednn_takes(),
    )
