"""The check before timing: outputs and gradients against the float64 reference."""

from __future__ import annotations

import torch
from torch import Tensor

from doratune import reference
from doratune.bench.figures import GateError
from doratune.bench.op.layer_data import SCALING, LayerData
from doratune.bench.op.providers import Adapter, Subject, set_adapter
from doratune.records.bench import DType

LIMITS: dict[DType, float] = {
    # Intermediate results, norms and scales are rounded to 8 bits (2e-3 each on average).
    "bfloat16": 2e-2,
    # Sums of up to 11,008 products, each rounded by 6e-8.
    "float32": 1e-5,
}
"""The highest relative Frobenius error a provider may have, by the case's dtype."""


def truth(adapter: Adapter, data: LayerData, base_weight: Tensor) -> dict[str, Tensor]:
    """The correct output and gradients of a layer, from the dense reference.

    LoRA is DoRA with the norm as its magnitude; a frozen layer is LoRA with B = 0.

    Args:
        adapter: The kind of adapter.
        data: Input and adapter.
        base_weight: The frozen weight, (d_out, d_in), dequantised.

    Returns:
        The output as "y", and the gradients of x and of the adapter by name, in float64.
    """
    leaves = {name: getattr(data, name).detach().double() for name in ("x", "A", "B", "m")}
    if adapter == "none":
        leaves["B"].zero_()
    if adapter != "dora":
        leaves["m"] = reference.row_norm(base_weight, leaves["A"], leaves["B"], SCALING)
    names = {"none": ("x",), "lora": ("x", "A", "B"), "dora": ("x", "A", "B", "m")}[adapter]
    wanted = [leaves[name].requires_grad_() for name in names]
    y = reference.forward(leaves["x"], base_weight, leaves["A"], leaves["B"], leaves["m"], SCALING)
    gradients = torch.autograd.grad(y, wanted, data.dy.double())
    return {"y": y.detach(), **dict(zip(names, gradients, strict=True))}


def check(
    subject: Subject, data: LayerData, expected: dict[str, Tensor], *, limit: float
) -> dict[str, float]:
    """Compare one call of a layer with the reference.

    The layer is first called with a different adapter, which reveals a norm that is wrongly cached.

    Args:
        subject: The layer.
        data: Its input and adapter.
        expected: The result of ``truth``.
        limit: The highest relative Frobenius error.

    Returns:
        The error of the output "y" and of each gradient by name.

    Raises:
        GateError: An error is above the limit or not finite.
    """
    with torch.no_grad():
        for parameter in subject.adapter.values():
            parameter.mul_(2)
    subject.prepare(data)
    subject.call(data)
    subject.prepare(data)
    set_adapter(subject.adapter, data)
    y = subject.layer(data.x)
    y.backward(data.dy)
    found = {"y": y, "x": data.x.grad} | {name: one.grad for name, one in subject.adapter.items()}
    errors = {name: relative_error(found[name], right) for name, right in expected.items()}
    subject.prepare(data)
    wrong = [f"{name} {error:.1e}" for name, error in errors.items() if not error <= limit]
    if wrong:
        raise GateError(
            "a provider disagrees with the float64 reference, so nothing is timed",
            where=subject.provider.name,
            got=f"relative errors: {', '.join(wrong)}",
            expected=f"at most {limit:.0e}",
        )
    return errors


def relative_error(found: Tensor | None, right: Tensor) -> float:
    """‖found − right‖ / ‖right‖ (Frobenius); infinite if a gradient is missing or has another shape."""
    if found is None or found.shape != right.shape:
        return float("inf")
    return float((found.detach().double() - right).norm() / right.norm())
