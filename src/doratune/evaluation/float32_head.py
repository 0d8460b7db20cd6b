"""Computes logits in float32, whatever the type of the model.

In bfloat16 a logit near 20 is a multiple of 0.125, so thousands of candidates tie, and no later conversion
undoes that rounding. The model's later operations on the logits, such as capping or scaling, are then in
float32 too.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from doratune.engine.matmul import linear_in_float32
from doratune.evaluation._internals import forward_name, set_compute_dtype
from doratune.peft import hold_norms

logger = logging.getLogger(__name__)


@contextmanager
def float32_head(model: PreTrainedModel) -> Iterator[None]:
    """Compute a model's logits in float32 inside the ``with`` statement; its weights stay as they are.

    The weight of a plain head is never copied as a whole. A quantised head, or one with an adapter, is copied
    with its floats in float32. If that is impossible, the head is left as it is, with a warning.

    Args:
        model: A transformers model, with or without PEFT adapters.
    """
    head = model.get_output_embeddings()
    if head is None:
        _warn("the model does not say which module it is")
        yield
        return
    if all(one.dtype in (torch.float32, torch.float64) for one in head.parameters()):
        yield
        return
    name = forward_name(head)
    before = vars(head).get(name)
    forward, holding = _plain(head), nullcontext()
    if forward is None:
        twin = _float32_copy(head)
        if twin is None:
            yield
            return
        forward, holding = _checked(twin), hold_norms(twin)
    setattr(head, name, forward)
    try:
        with holding:
            yield
    finally:
        if before is None:
            delattr(head, name)
        else:
            setattr(head, name, before)


def _plain(head: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The forward pass of a linear layer, or None if ``head`` is something else."""
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter:
        return None

    def forward(hidden: Tensor) -> Tensor:
        # Looked up for each call: an offloaded head is moved here just for it.
        logits = linear_in_float32(hidden.reshape(-1, hidden.shape[-1]), head.weight, head.bias)
        return logits.view(*hidden.shape[:-1], -1)

    return forward


def _float32_copy(head: nn.Module) -> nn.Module | None:
    """A copy of a head with its floats in float32, or None if it cannot be made."""
    if any(one.is_meta for one in head.parameters()):
        _warn(f"its {type(head).__name__} is not in memory")
        return None
    try:
        # Tensors made in inference mode may not work with a layer's code.
        with torch.inference_mode(False), torch.no_grad():
            memo: dict[int, Any] = {
                id(one): nn.Parameter(one.detach().float(), requires_grad=False)
                for one in head.parameters()
                if type(one) is nn.Parameter and one.is_floating_point()
            }
            twin = copy.deepcopy(head, memo)
    except Exception as error:  # each library's layer raises its own exceptions
        _warn(f"its {type(head).__name__} cannot be copied ({error})")
        return None
    for module in twin.modules():
        set_compute_dtype(module, torch.float32)
    return twin


def _checked(twin: nn.Module) -> Callable[[Tensor], Tensor]:
    """The forward pass of a float32 copy; warns once if it rounds nevertheless."""
    said = False

    def forward(hidden: Tensor) -> Tensor:
        nonlocal said
        logits = twin(hidden.float())
        if not said and any(torch.equal(logits.to(half).to(logits.dtype), logits) for half in _HALVES):
            _warn(f"its {type(twin).__name__} rounds to fewer digits")
            said = True
        return logits

    return forward


_HALVES = (torch.bfloat16, torch.float16)


def _warn(why: str) -> None:
    logger.warning("the head is not computed in float32, so candidates may tie: %s", why)
