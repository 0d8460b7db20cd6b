"""PEFT's LoRA linear layer with DoRA computed by the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from doratune.functional import dora_linear
from doratune.peft.cache import WeightNormCache
from doratune.peft.support import adapter_obstacle


class EngineLinear(Linear):
    """A ``peft.tuners.lora.layer.Linear`` whose class was swapped; never constructed.

    A call with one active DoRA adapter runs on the engine; any other call (merged, disabled, several
    adapters, mixed batches, plain LoRA) is PEFT's own. Whatever may write to the base weight through
    ``.data`` drops the cached ‖W‖².
    """

    weight_norm_cache: WeightNormCache

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, (..., d_out), for x (..., d_in): PEFT's result in PEFT's dtype.

        Raises:
            InputError: x does not fit the base weight in shape, dtype or device.
        """
        adapter = None if args or kwargs else self._adapter_on_engine()
        if adapter is None:
            return super().forward(x, *args, **kwargs)
        # What PEFT's type hints leave open, adapter_obstacle has checked.
        base: Any = self.base_layer
        lora_A: Any = self.lora_A[adapter]
        lora_B: Any = self.lora_B[adapter]
        magnitude: Any = self.lora_magnitude_vector[adapter]
        dropout = self.lora_dropout[adapter]
        drops = self.training and not isinstance(dropout, nn.Identity)
        return dora_linear(
            x,
            base.weight,
            lora_A.weight,
            lora_B.weight,
            magnitude.weight,
            self.scaling[adapter],
            base.bias,
            weight_norm_sq=self.weight_norm_cache.get(base.weight),
            x_dropped=dropout(x) if drops else None,
        )

    def _adapter_on_engine(self) -> str | None:
        """The one active adapter, if the engine computes what PEFT would."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1:
            return None
        (name,) = active
        if name not in self.lora_magnitude_vector or adapter_obstacle(self, name) is not None:
            return None
        return name

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """PEFT's merge; it changes the base weight's data.

        While merged no call uses the cache, so dropping it here covers ``unmerge`` as well.
        """
        self.weight_norm_cache.drop()
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)

    def update_layer(self, *args: Any, **kwargs: Any) -> None:
        """PEFT's adding of an adapter; some initialisations (PiSSA, OLoRA) change the base weight's data."""
        self.weight_norm_cache.drop()
        super().update_layer(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EngineLinear:
        # .to(dtype) and .to(device) replace the data; a round trip could land on the same address.
        self.weight_norm_cache.drop()
        return super()._apply(fn, recurse)


def adopt(layer: Any) -> None:
    """Turn a ``peft.tuners.lora.layer.Linear`` into an EngineLinear, in place."""
    layer.__class__ = EngineLinear
    layer.weight_norm_cache = WeightNormCache()


def release(layer: Any) -> None:
    """Turn an EngineLinear back into PEFT's layer, in place."""
    del layer.weight_norm_cache
    layer.__class__ = Linear
