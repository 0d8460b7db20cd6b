"""Tests whether two functions compute the same: outputs and gradients on small random inputs.

A speed-up replaces other projects' code, which may change with any release, so the two are compared. Both run
in float32, where only a different formula shows, and in the model's dtype, where differences of dtype and
shape show too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from doratune.engine.autocast import autocast_off

TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""The largest difference that counts as rounding, relative to a tensor's largest value, by dtype. A few
roundings stay below a tenth of it."""


def random(*shape: int) -> Tensor:
    """Normally distributed numbers, (``shape``), float32, always the same; torch's generator is untouched."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def difference(
    own: Callable[..., Any], ours: Callable[..., Any], inputs: Sequence[Tensor], dtype: torch.dtype
) -> str | None:
    """How a function differs from its replacement, in float32 and in the model's dtype.

    Args:
        own: The model's function; takes ``inputs`` and returns one or more tensors.
        ours: Its replacement.
        inputs: Floating; those for which ``own`` has a gradient come first.
        dtype: The model's dtype.

    Returns:
        The difference in words, or None if the two are equal to rounding.
    """
    for kind in dict.fromkeys((torch.float32, dtype)):
        cast = [one.to(kind) for one in inputs]
        try:
            wanted = _outcome(own, cast)
        except Exception as error:  # other projects' code may raise anything
            return f"its own code raises {type(error).__name__}"
        try:
            found = _outcome(ours, cast)
        except Exception as error:
            return f"the replacement raises {type(error).__name__}"
        if (reason := unequal(found, wanted, kind)) is not None:
            return reason
    return None


def unequal(found: Sequence[Tensor], wanted: Sequence[Tensor], dtype: torch.dtype) -> str | None:
    """How tensors differ by more than rounding.

    Args:
        found: The replacement's tensors.
        wanted: The tensors of the model's own code.
        dtype: The dtype in which both were computed.

    Returns:
        The difference in words, or None.
    """
    if [(one.shape, one.dtype) for one in found] != [(one.shape, one.dtype) for one in wanted]:
        return "it returns different shapes or dtypes"
    worst = 0.0
    for one, other in zip(found, wanted, strict=True):
        largest = float(other.abs().max())
        error = float((one.double() - other.double()).abs().max())
        if not error <= TOLERANCES[dtype] * largest:  # also if it is NaN
            worst = max(worst, error / largest if largest else float("inf"))
    return None if worst == 0.0 else f"it computes something else (off by {100 * worst:.2g} %)"


def _outcome(function: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs, and the gradient of each input for random gradients of the outputs."""
    leaves = [one.detach().clone().requires_grad_() for one in inputs]
    with autocast_off(torch.device("cpu")):
        outputs = function(*leaves)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        slopes = [random(*one.shape).to(one.dtype) for one in outputs]
        gradients = torch.autograd.grad(outputs, leaves, slopes, allow_unused=True)
    return [*(one.detach() for one in outputs), *(one for one in gradients if one is not None)]


def configuration(module: nn.Module) -> Hashable:
    """Class, plain attributes and parameters' shapes and dtypes: modules that share them compute the same."""
    plain = {
        name: value for name, value in vars(module).items() if isinstance(value, int | float | str | None)
    }
    parameters = [(name, one.shape, one.dtype) for name, one in module.named_parameters()]
    return (type(module), tuple(plain.items()), tuple(parameters))
