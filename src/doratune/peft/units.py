"""Computes a layer inside calls of those of its modules that FSDP2 shards as units.

PEFT's policy for FSDP makes a unit of each module that holds a trained weight. The weight of such a module is
whole only while the module is called: hooks gather it before the call, shard it after, and gather it again
when the gradient of the call's output arrives. The engine has no use for the module's own product. But it can
compute the whole layer in its place: the modules are called one inside the other, and the innermost call
computes the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn


def inside(
    units: Iterable[nn.Module], compute: Callable[[Tensor], Tensor | None], x: Tensor
) -> Tensor | None:
    """Compute a layer's output while its units are called.

    Args:
        units: Modules with FSDP2's hooks and no instance's own forward pass.
        compute: From the input to the output; runs when all units' weights are whole.
        x: The layer's input.

    Returns:
        What ``compute`` returns.
    """
    first, *others = units

    def forward(x: Tensor) -> Tensor | None:
        del first.forward  # the class's again, in case ``compute`` calls the module
        return inside(others, compute, x) if others else compute(x)

    first.forward = forward
    try:
        return first(x)
    finally:
        vars(first).pop("forward", None)
