"""Holds a model's norms for the time of one call of ``generate``.

Weights do not change while a model generates, so their content is checked once per call instead of once per
token and layer. A change between two calls is seen by the second one.

``enable`` puts the method on the model itself, not on its class, and ``disable`` takes it off. Every way to
generate with one of transformers' models ends in it: PEFT's ``generate``, pipelines, TRL, and the model
inside DDP. A loop of the user's own can use ``hold_norms``.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from torch import nn
from transformers import GenerationMixin

from doratune.peft.hold_norms import engine_layers, hold_norms


class HeldGenerate:
    """``model.generate`` with the norms held.

    It holds a weak reference, so that the model can be freed. The method of a copied or unpickled model
    belongs to the copy.

    Args:
        model: The model.
        before: The model's own ``generate``, if it is not its class's.
    """

    def __init__(self, model: Any, before: Any = None) -> None:
        self._model = weakref.ref(model)
        self.before = before
        functools.update_wrapper(self, type(model).generate, updated=())
        # Code that wants gradients calls what is below transformers' no_grad by this name.
        self.__wrapped__ = getattr(type(model).generate, "__wrapped__", type(model).generate)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as without the engine."""
        model = self._model()
        if model is None:
            raise ReferenceError("the model of this generate method no longer exists")
        with ExitStack() as held:
            held.enter_context(hold_norms(model))
            assistant = kwargs.get("assistant_model")  # generates too, a few tokens in each of many calls
            if isinstance(assistant, nn.Module):
                held.enter_context(hold_norms(assistant))
            if self.before is not None:
                return self.before(*args, **kwargs)
            return type(model).generate(model, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        model = self._model()
        copied = memo.get(id(model))
        return self if copied is None else HeldGenerate(copied, copy.deepcopy(self.before, memo))

    def __reduce__(self) -> tuple[Any, tuple[Any, Any]]:
        model = self._model()
        if engine_layers(model):  # type: ignore[arg-type]
            return HeldGenerate, (model, self.before)
        # Merged and unloaded: the file should not need doratune. The class's method, since a model that is
        # being unpickled has nothing else yet.
        return getattr, (model, "generate")


def hold_in_generate(model: nn.Module) -> None:
    """Have the models of transformers in ``model`` hold their norms in every call of ``generate``."""
    for one in _generating(model):
        before = one.__dict__.get("generate")
        if not isinstance(before, HeldGenerate):
            one.__dict__["generate"] = HeldGenerate(one, before)


def generate_as_before(model: nn.Module) -> None:
    """Undo ``hold_in_generate``; a method that other code has put over it stays."""
    for one in _generating(model):
        held = one.__dict__.get("generate")
        if isinstance(held, HeldGenerate):
            del one.__dict__["generate"]
            if held.before is not None:
                one.__dict__["generate"] = held.before


def _generating(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, GenerationMixin))
