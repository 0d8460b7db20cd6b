"""How far training moved the parameters, which shows whether a run trained at all."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from doratune.errors import DoratuneError
from doratune.peft import parameter_kind
from doratune.records.run import ChangeRecord
from doratune.training.sharded import whole

logger = logging.getLogger(__name__)

SAMPLE = 65536
"""The number of evenly spaced elements compared in a base weight; an adapter is compared as a whole."""


def starting_point(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable parameters on the CPU: the adapter, or a sample of every weight.

    A resumed run takes them before its checkpoint is loaded. The model is then as it was at step 0: the seed
    gives the same adapter, and the base's weights come from its files.

    Args:
        model: The model before its first step.
    """
    return {
        name: _compared(name, parameter).cpu().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def changes_since(start: Mapping[str, Tensor], model: nn.Module) -> dict[str, ChangeRecord] | None:
    """How far each kind of parameter moved, also logged.

    Args:
        start: The result of ``starting_point``.
        model: The same model, trained.

    Returns:
        The changes of A, B and m, or of the weights W; None if the model is sharded over processes.

    Raises:
        DoratuneError: Nothing moved.
    """
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    if trained.keys() != start.keys() or any(
        _compared(name, one).shape != start[name].shape for name, one in trained.items()
    ):
        logger.warning("how far the weights moved is not measured: they are sharded over processes")
        return None
    found: dict[str, list[ChangeRecord]] = {}
    for name, parameter in trained.items():
        change = (_compared(name, parameter).cpu().double() - start[name].double()).abs()
        one = ChangeRecord(
            largest=float(change.max()) if change.numel() else 0.0,
            rms=float(change.square().mean().sqrt()) if change.numel() else 0.0,
            elements=change.numel(),
            of=parameter.numel(),
        )
        found.setdefault(parameter_kind(name), []).append(one)
    changes = {kind: _together(records) for kind, records in sorted(found.items())}
    shown = (f"{kind} {one.rms:.2g} ({one.largest:.2g})" for kind, one in changes.items())
    logger.info("change of the weights since step 0, root mean square (largest): %s", ", ".join(shown))
    if not any(one.largest for one in changes.values()):
        raise DoratuneError(
            "training changed no weight",
            got=f"{sum(one.elements for one in changes.values()):,} elements without a change",
            expected="weights that move at a learning rate above zero",
            fix="raise --learning-rate, or keep the weights in float32, where small steps are not lost",
        )
    return changes


@torch.no_grad()
def _compared(name: str, parameter: nn.Parameter) -> Tensor:
    """The elements of a parameter that are compared."""
    if parameter_kind(name) != "W":
        return whole(parameter.detach())
    return whole(parameter.detach()).flatten()[:: max(math.ceil(parameter.numel() / SAMPLE), 1)]


def _together(records: list[ChangeRecord]) -> ChangeRecord:
    elements = sum(one.elements for one in records)
    squares = math.fsum(one.rms**2 * one.elements for one in records)
    return ChangeRecord(
        largest=max(one.largest for one in records),
        rms=math.sqrt(squares / elements) if elements else 0.0,
        elements=elements,
        of=sum(one.of for one in records),
    )
