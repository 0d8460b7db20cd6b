"""LoRA and DoRA as functions, for authors of other libraries: torch tensors in, torch tensors out.

Shapes: x (..., d_in), W (d_out, d_in), A (r, d_in), B (d_out, r), m (d_out,), bias (d_out,)::

    n = ‖W + s·B·A‖ per output row            detached (arXiv 2402.09353, section 4.3)
    y = (m / n) ⊙ (x Wᵀ + s·(x Aᵀ)Bᵀ) + b     (equation 5)
"""

from __future__ import annotations

from functools import partial
from typing import get_args

import torch
from torch import Tensor

from doratune.engine import linear as _engine
from doratune.engine import weight_norm as _norm
from doratune.engine.autocast import autocast_off, is_autocast
from doratune.engine.composite import Norm
from doratune.engine.dropout import DropoutForm, dora_with_dropout
from doratune.engine.matmul import frozen_linear
from doratune.engine.norm_cache import NormCache, dense_norm
from doratune.engine.weight_norm import row_norm_squared
from doratune.errors import InputError

__all__ = ["DropoutForm", "NormCache", "dora_linear", "dora_row_norm", "lora_linear", "row_norm_squared"]

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def dora_row_norm(
    W: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    weight_norm_sq: Tensor | None = None,
    *,
    detach: bool = True,
) -> Tensor:
    """Norm of each row of W + s·B·A, without forming B·A.

    Args:
        W: Base weight, (d_out, d_in), any floating dtype; one narrower than float32 is widened by blocks of
            rows.
        A: Down projection, (r, d_in), any floating dtype.
        B: Up projection, (d_out, r), any floating dtype.
        scaling: LoRA's s: alpha/r, or alpha/√r for rsLoRA.
        weight_norm_sq: ``row_norm_squared(W)``, (d_out,), float32 or float64. Computed here if absent; W is
            frozen, so compute it once and keep it.
        detach: Treat the norm as a constant of the backward pass (section 4.3). Otherwise gradients reach A
            and B.

    Returns:
        (d_out,), float32 (float64 if W, A or B is). Loses digits where s·B·A nearly cancels W: see
        ``doratune.engine.weight_norm``.

    Raises:
        InputError: A shape, dtype or device does not fit the others.
    """
    _check_weights(W, A, B, scaling)
    if weight_norm_sq is not None:
        _expect("weight_norm_sq", weight_norm_sq, (W.shape[0],), "(d_out,)", W)
    with autocast_off(W.device):
        if weight_norm_sq is None and detach:
            return _norm.current_row_norm(W, A, B, scaling)
        squared = row_norm_squared(W) if weight_norm_sq is None else weight_norm_sq
        return _norm.dora_row_norm(W, A, B, scaling, squared, detach=detach)


def lora_linear(
    x: Tensor,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    bias: Tensor | None = None,
    *,
    x_dropped: Tensor | None = None,
) -> Tensor:
    """A LoRA linear layer, ``x Wᵀ + s·(x Aᵀ)Bᵀ + b``: ``dora_linear`` without magnitude and norm.

    Args:
        x: Input, (..., d_in), any strides.
        W: Base weight, (d_out, d_in), frozen, in x's dtype (any floating dtype under autocast).
        A: Down projection, (r, d_in), any floating dtype.
        B: Up projection, (d_out, r), any floating dtype.
        scaling: LoRA's s: alpha/r, or alpha/√r for rsLoRA.
        bias: (d_out,), any floating dtype, or None.
        x_dropped: x after dropout, of x's shape: the adapter's input. Without it, dropout is off.

    Returns:
        (..., d_out), in x's dtype or autocast's.

    Raises:
        InputError: A shape, dtype or device does not fit the others, or W requires a gradient.
    """
    _check_weights(W, A, B, scaling)
    _check_layer(x, W, bias)
    x, x_dropped = _inputs(x, W, x_dropped)
    return _engine.adapted_linear(x, W, A, B, scaling, bias, x_adapter=x_dropped)


def dora_linear(
    x: Tensor,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    m: Tensor,
    scaling: float,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    norm_cache: NormCache | None = None,
    x_dropped: Tensor | None = None,
    dropout: DropoutForm = "peft",
    detach_norm: bool = True,
) -> Tensor:
    """A DoRA linear layer: equation 5 of arXiv 2402.09353.

    The products run in x's dtype, or in autocast's where it is on; A, B and m may be float32 while x and W
    are bfloat16, and get gradients in their own dtype. A row whose norm is zero gives the bias and zero
    gradients. Only first derivatives are available.

    Args:
        x: Input, (..., d_in), any strides.
        W: Base weight, (d_out, d_in), frozen, in x's dtype (any floating dtype under autocast).
        A: Down projection, (r, d_in), any floating dtype.
        B: Up projection, (d_out, r), any floating dtype.
        m: Magnitude, (d_out,), any floating dtype.
        scaling: LoRA's s: alpha/r, or alpha/√r for rsLoRA.
        bias: (d_out,), any floating dtype, or None; never scaled.
        norm: ``dora_row_norm(W, A, B, scaling)`` of the current weights, (d_out,), for a caller that already
            has it; or a function that returns it, called only if needed.
        norm_cache: This layer's cache, which computes the norm only if the content of W, A or B has changed.
            Without it and without ``norm``, every call computes the norm. Ignored if ``norm`` is a tensor or
            ``detach_norm`` is False.
        x_dropped: x after dropout, of x's shape; without it, dropout is off.
        dropout: ``"peft"``: everything but the frozen layer's own output uses the dropped input, as in PEFT::

                y = x Wᵀ + b + (g - 1) ⊙ (x_dropped Wᵀ) + g ⊙ s·(x_dropped Aᵀ)Bᵀ

            which costs a second product with W. ``"adapter"``: only the adapter uses it, as in LoRA::

                y = g ⊙ (x Wᵀ + s·(x_dropped Aᵀ)Bᵀ) + b
        detach_norm: Treat the norm as a constant of the backward pass (section 4.3). Otherwise gradients
            reach A and B through it too; ``norm`` must then be absent or attached.

    Returns:
        (..., d_out), in x's dtype or autocast's.

    Raises:
        InputError: A shape, dtype or device does not fit the others, W requires a gradient, or ``dropout``
            is not one of the two forms.
    """
    _check_weights(W, A, B, scaling)
    _check_layer(x, W, bias)
    _expect("m", m, (W.shape[0],), "(d_out,)", W)
    check_dropout_form(dropout, where="dora_linear")
    x, x_dropped = _inputs(x, W, x_dropped)
    if isinstance(norm, Tensor):
        _expect("norm", norm, (W.shape[0],), "(d_out,)", W)
    elif not detach_norm:
        norm = dora_row_norm(W, A, B, scaling, detach=False)
    elif norm_cache is not None:
        norm = partial(dense_norm, norm_cache, "", W, A, B, scaling)
    elif norm is None:
        norm = partial(dora_row_norm, W, A, B, scaling)

    def scaled(x: Tensor, x_adapter: Tensor, with_bias: bool) -> Tensor:
        apart = None if x_adapter is x else x_adapter
        added = bias if with_bias else None
        return _engine.adapted_linear(x, W, A, B, scaling, added, m=m, norm=norm, x_adapter=apart)

    def difference(x: Tensor, x_dropped: Tensor) -> Tensor:
        added = None if bias is None else bias.to(x.dtype)
        return frozen_linear(x - x_dropped, W, added)

    return dora_with_dropout(x, x_dropped, dropout, scaled=scaled, difference=difference)


def check_dropout_form(dropout: str, *, where: str) -> None:
    """Raise unless ``dropout`` is a ``DropoutForm``.

    Args:
        dropout: The name to check.
        where: The caller, for the message.

    Raises:
        InputError: It is neither of the two forms.
    """
    if dropout not in get_args(DropoutForm):
        raise InputError(
            "unknown dropout form", where=where, got=dropout, expected=" or ".join(get_args(DropoutForm))
        )


def _inputs(x: Tensor, W: Tensor, x_dropped: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The inputs x and x_dropped in the dtype of the products."""
    if is_autocast(x.device.type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    elif x.dtype != W.dtype:
        raise InputError(
            "x and W differ in dtype",
            where="functional",
            got=f"x {x.dtype}, W {W.dtype}",
            expected="the same dtype, or torch.autocast",
        )
    if x_dropped is None:
        return x, None
    _expect("x_dropped", x_dropped, tuple(x.shape), "the shape of x", W)
    return x, x_dropped.to(x.dtype)


def _check_weights(W: Tensor, A: Tensor, B: Tensor, scaling: float) -> None:
    if W.ndim != 2:
        raise InputError(
            "W is not a matrix", where="functional", got=tuple(W.shape), expected="(d_out, d_in)"
        )
    if not isinstance(scaling, (int, float)):
        raise InputError(
            "scaling is not a number",
            where="functional",
            got=type(scaling).__name__,
            expected="a float",
        )
    d_out, d_in = W.shape
    rank = A.shape[0] if A.ndim else 0
    _expect("W", W, (d_out, d_in), "(d_out, d_in)", W)
    _expect("A", A, (rank, d_in), "(r, d_in)", W)
    _expect("B", B, (d_out, rank), "(d_out, r)", W)


def _check_layer(x: Tensor, W: Tensor, bias: Tensor | None) -> None:
    if W.requires_grad and torch.is_grad_enabled():
        raise InputError(
            "W requires a gradient, but the base weight must be frozen",
            where="functional",
            fix="call W.requires_grad_(False) or pass W.detach()",
        )
    d_out, d_in = W.shape
    _expect("x", x, (*x.shape[:-1], d_in), "(..., d_in)", W)
    if bias is not None:
        _expect("bias", bias, (d_out,), "(d_out,)", W)


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...], spelled: str, W: Tensor) -> None:
    """Raise InputError unless ``tensor`` is floating, has ``shape`` and is on W's device."""
    if tensor.shape == shape and tensor.dtype in FLOATING and tensor.device == W.device:
        return
    if tensor.shape != shape:
        raise InputError(
            f"{name} has the wrong shape",
            where="functional",
            got=tuple(tensor.shape),
            expected=f"{spelled} = {shape}, with W {tuple(W.shape)}",
        )
    if tensor.dtype not in FLOATING:
        raise InputError(
            f"{name} has an unsupported dtype",
            where="functional",
            got=tensor.dtype,
            expected="float16, bfloat16, float32 or float64",
        )
    raise InputError(
        f"{name} is not on W's device",
        where="functional",
        got=tensor.device,
        expected=str(W.device),
    )
