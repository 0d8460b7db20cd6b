"""accelerate's FSDP2 on CPUs, where its launcher does not offer it: PyTorch's own works there, with gloo."""

from __future__ import annotations

import os
from typing import Any

from accelerate.state import AcceleratorState, DistributedType, PartialState


def use_fsdp2(**more: str) -> None:
    """Do what ``accelerate launch --use_fsdp --fsdp_version 2`` does in this process, on CPUs.

    Args:
        **more: Further environment variables that accelerate reads.
    """
    os.environ.update(
        ACCELERATE_USE_FSDP="true",
        FSDP_VERSION="2",
        FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
        FSDP_RESHARD_AFTER_FORWARD="true",
        FSDP_STATE_DICT_TYPE="SHARDED_STATE_DICT",
        FSDP_CPU_RAM_EFFICIENT_LOADING="true",
    )
    os.environ.update(more)
    original: Any = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **others: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **others)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init  # type: ignore[method-assign]
