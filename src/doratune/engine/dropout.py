"""The two forms of dropout in a DoRA layer, for every kind of base layer.

x' is x after dropout, h(x') = s·B·A x' the adapter's term, and f the frozen layer without its bias b::

    "peft":     y = f(x) + b + (g - 1) ⊙ f(x') + g ⊙ h(x') = g ⊙ (f(x') + h(x')) + (f(x) - f(x') + b)
    "adapter":  y = g ⊙ (f(x) + h(x')) + b

The first is PEFT's: only the frozen layer's unscaled term sees x. It needs a second pass through f.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

DropoutForm = Literal["peft", "adapter"]
"""PEFT's form, or dropout of the adapter's input only."""


def dora_with_dropout(
    x: Tensor,
    x_dropped: Tensor | None,
    form: DropoutForm,
    *,
    scaled: Callable[[Tensor, Tensor, bool], Tensor],
    difference: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The layer's output in one of the two forms.

    Args:
        x: The layer's input.
        x_dropped: x after dropout, of x's shape; None without dropout.
        form: PEFT's form or the adapter's.
        scaled: Called first, with u, u' and whether to add b; returns ``g ⊙ (f(u) + h(u'))``, plus b if so.
        difference: Called with x and x'; returns ``f(x) - f(x') + b``.

    Returns:
        y, in the shape and dtype of what ``scaled`` returns.
    """
    if x_dropped is None:
        return scaled(x, x, True)
    if form == "adapter":
        return scaled(x, x_dropped, True)
    return scaled(x_dropped, x_dropped, False) + difference(x, x_dropped)
