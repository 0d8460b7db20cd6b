"""The last norm of a matrix on a GPU: its value, and a hash of what it was computed from.

Both stay on the GPU, where one kernel compares the hashes and the next one computes the norm or copies it
(``content_hash.py``, ``tiled_norm.py``). So nothing waits for the GPU, and a norm is recomputed whenever a
bit has changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from doratune.engine.triton.select import capturing, current_stream
from doratune.engine.triton.sizes import hashed_parts, row_tiles


@dataclass(frozen=True)
class Known:
    """The last norm of one matrix W + s·B·A.

    Attributes:
        norm: (d_out,), float32.
        state: (4,), int64: the hash of the content, whether there is one, whether the last check found a
            change, and how many programs of the current check are done.
        hashes: (number of ``hashed_parts``,), int64: room for the hashes of the content's parts.
        arrivals: (``row_tiles``,), int32: how many tiles are done in each row of tiles; 0 between calls.
    """

    norm: Tensor
    state: Tensor
    hashes: Tensor
    arrivals: Tensor

    @classmethod
    def nothing(cls, W: Tensor, A: Tensor, B: Tensor) -> Known:
        """No norm yet, for W (d_out, d_in), A (r, d_in) and B (d_out, r)."""
        return cls(
            W.new_empty(W.shape[0], dtype=torch.float32),
            W.new_zeros(4, dtype=torch.int64),
            W.new_empty(sum(hashed_parts(W, A, B)), dtype=torch.int64),
            W.new_zeros(row_tiles(W.shape[0]), dtype=torch.int32),
        )


class NormMemory:
    """The last norm on each stream, since streams do not wait for one another.

    Attributes:
        lock: Held from ``of`` to the launch of the kernel that relies on the check, since two threads that
            share a stream could interleave their kernels.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self._known: dict[tuple[torch.device, int], tuple[object, Known]] = {}

    def of(self, W: Tensor, A: Tensor, B: Tensor, scaling: float) -> Known | None:
        """The last norm on the current stream; None while a CUDA graph is captured.

        A graph would write to this memory even after it has been freed.

        Args:
            W: (d_out, d_in), on a GPU.
            A: (r, d_in), on the same GPU.
            B: (d_out, r), on the same GPU.
            scaling: LoRA's s.
        """
        if capturing(W.device):
            return None
        place = W.device, current_stream(W.device)
        kind = scaling, W.shape, A.shape, W.dtype, A.dtype, B.dtype
        if place not in self._known or self._known[place][0] != kind:
            self._known[place] = kind, Known.nothing(W, A, B)
        return self._known[place][1]

    def forget(self) -> None:
        """Drop the norms of all streams."""
        self._known.clear()
