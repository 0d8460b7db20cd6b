"""The weights that training in 4 bits saw: quantised to NF4 and dequantised again, one at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from doratune.models.load import four_bit
from doratune.models.on_disk import ModelOnDisk, skeleton
from doratune.peft.quantised import dequantised
from doratune.serving._internals import AutoHfQuantizer


class Dequantised:
    """The linear layers of a base model that bitsandbytes quantises.

    Args:
        base: The base model.
        dtype: The type that it was quantised from.
        trust_remote_code: Let a hub model run its own code.

    Attributes:
        dtype: The type that they were quantised from, and have dequantised.

    Raises:
        InputError: bitsandbytes is not installed.
    """

    def __init__(self, base: ModelOnDisk, dtype: torch.dtype, *, trust_remote_code: bool = False) -> None:
        model = skeleton(base.place, trust_remote_code=trust_remote_code)
        plain = dict(model.named_modules())
        quantizer: Any = AutoHfQuantizer.from_config(four_bit(dtype))
        quantizer.preprocess_model(model=model, device_map=None)
        self.dtype = dtype
        self._layers: dict[str, Any] = {
            f"{name}.weight": (one, plain[name])
            for name, one in model.named_modules()
            if one is not plain.get(name) and isinstance(one, nn.Linear)
        }

    @property
    def parameters(self) -> frozenset[str]:
        """The names of the weights that are quantised."""
        return frozenset(self._layers)

    def __call__(self, name: str, W: Tensor) -> Tensor:
        """A weight as training saw it, in the type that it was quantised from.

        Args:
            name: Its name.
            W: The weight of the base's files.
        """
        if name not in self._layers:
            return W
        layer, plain = self._layers[name]
        transposed = not isinstance(plain, nn.Linear)  # GPT-2's
        own: Any = layer.weight
        values = W.to(self.dtype)
        packed = type(own)(
            values.T.contiguous() if transposed else values.clone(),
            requires_grad=False,
            quant_type=own.quant_type,
            compress_statistics=own.compress_statistics,
        )
        layer.weight = packed.to("cpu")
        result = dequantised(layer)
        layer.weight = own
        return result.T.contiguous() if transposed else result
