"""Warns if an adapter seems to be trained but is not.

An adapter that was loaded without ``is_trainable`` is frozen, yet a script that trains it runs to its end.
The first optimizer steps reveal it: they leave every parameter unchanged. Only autograd's change counters are
read, and a few elements, since some optimizers bypass the counters.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from doratune.engine._internals import version
from doratune.peft._internals import LoraLayer, register_optimizer_step_post_hook

_log = logging.getLogger(__name__)

STEPS = 3
"""Optimizer steps after which an unchanged adapter causes a warning; another optimizer's may come first."""
ELEMENTS = 64
"""Elements of each parameter that are compared."""

_watches: weakref.WeakKeyDictionary[nn.Module, _Watch] = weakref.WeakKeyDictionary()
_hook: Any = None


def watch(model: nn.Module) -> None:
    """Check once per model whether the first steps of any optimizer change its adapters."""
    global _hook
    if model in _watches:
        return
    _watches[model] = _Watch(told=bool(_rounded(model)))
    if _hook is None:
        _hook = register_optimizer_step_post_hook(_after_step)


def warn_of_rounded_magnitudes(model: nn.Module) -> None:
    """Log a warning if trained magnitudes lose small steps to rounding."""
    if kinds := _rounded(model):
        _log.warning(
            "doratune: %d magnitudes are trained in %s, which rounds small steps away; "
            "PEFT's default, autocast_adapter_dtype=True, keeps them in float32",
            len(kinds),
            kinds[0],
        )


def _rounded(model: nn.Module) -> list[str]:
    """The dtypes of the trained magnitudes in bfloat16 or float16."""
    return [
        str(one.dtype).removeprefix("torch.")
        for layer in _lora_layers(model)
        for one in layer.lora_magnitude_vector.parameters()
        if one.requires_grad and one.dtype in (torch.bfloat16, torch.float16)
    ]


class _Watch:
    """A model's adapters at the first check; ``told``: the warning about magnitudes has been logged."""

    def __init__(self, *, told: bool) -> None:
        self.told = told
        self.steps = 0
        self.first: dict[str, tuple[int, Tensor]] | None = None

    def is_over(self, model: nn.Module) -> bool:
        """Check a model after a step; return whether no more checks are needed."""
        if not model.training:
            return False  # a teacher or a reference model, or not trained yet
        named = model.named_parameters()
        adapters = {name: one for name, one in named if "lora_" in name and not one.is_meta}
        self.steps += 1
        if not adapters:
            return True  # removed
        if not any(one.requires_grad for one in adapters.values()):
            _log.warning(
                "doratune: an optimizer is running, but the model's adapters are frozen; load the adapter "
                "with is_trainable=True"
            )
            return True
        # A sharded parameter is a DTensor (FSDP2), or empty between the calls that need it (ZeRO-3).
        whole = {name: one for name, one in adapters.items() if type(one) is nn.Parameter and one.numel() > 0}
        if not whole:
            return True
        now = {name: (version(one), _sample(one)) for name, one in whole.items()}
        if self.first is None:
            self.first = now
            if not self.told:  # the model may have been cast since it was enabled
                warn_of_rounded_magnitudes(model)
            return False
        if now.keys() != self.first.keys() or any(
            changed != self.first[name][0] or not sample.equal(self.first[name][1])
            for name, (changed, sample) in now.items()
        ):
            return True
        if self.steps < STEPS:
            return False
        _log.warning(
            "doratune: %d optimizer steps changed no parameter of the model's adapters; does an optimizer "
            "have them, and does the loss depend on them?",
            self.steps,
        )
        return True


def _after_step(_optimizer: object, _args: object, _kwargs: object) -> None:
    global _hook
    for model, seen in list(_watches.items()):
        if seen.is_over(model):
            del _watches[model]
    if not _watches and _hook is not None:
        _hook.remove()
        _hook = None


def _sample(parameter: nn.Parameter) -> Tensor:
    flat = parameter.detach().flatten()
    return flat[:: max(flat.numel() // ELEMENTS, 1)].clone()


def _lora_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]
