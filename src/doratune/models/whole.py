"""A model is loaded whole or not at all: no weight left random, none left out, none that is not finite.

transformers fills what a file lacks with random numbers, leaves out what the model has no place for, and
says so in a log only.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from doratune.errors import InputError, first_of
from doratune.finite import is_finite

logger = logging.getLogger(__name__)

OLD_MASKS = re.compile(r"\bh\.\d+\.attn\.(attention\.)?((masked_)?bias|causal_mask)$")
"""Causal masks that old versions of transformers saved with GPT-J, GPT-Neo and CodeGen."""


class NotFiniteError(InputError):
    """A model has a NaN or an infinity among its weights."""


def load_whole(place: str, **kwargs: Any) -> PreTrainedModel:
    """A causal LM by transformers, every weight of which comes from its files.

    Args:
        place: A folder or a hub id.
        **kwargs: For ``from_pretrained``.

    Raises:
        InputError: If weights are missing, have another shape than the configuration says, or belong to a
            part of the model that the configuration leaves out.
    """
    # Other shapes are let through here, to be refused by name below.
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        place, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    model, found = loaded
    if mismatched := sorted(found["mismatched_keys"]):
        sizes = [f"{name} {tuple(in_file)}, not {tuple(wanted)}" for name, in_file, wanted in mismatched]
        raise _refused("weights have other shapes than the model", place, sizes)
    if missing := sorted(found["missing_keys"]):
        raise _refused("the model's files lack some of its weights", place, missing)
    unused = sorted(name for name in found["unexpected_keys"] if not OLD_MASKS.search(name))
    if left_out := [name for name in unused if _has_its_part(model, name)]:
        raise _refused("the model's files hold weights that its configuration leaves out", place, left_out)
    if unused:
        logger.warning("not used, as no causal LM has them: weights %s of %s", first_of(unused), place)
    return model


def refuse_not_finite(model: PreTrainedModel, name: str) -> None:
    """Refuse a model with a NaN or an infinity among its weights.

    Quantised weights hold none, and weights that are elsewhere (offloaded, on another process) are not read.

    Args:
        model: As it was loaded.
        name: What the user asked for, for the message.

    Raises:
        NotFiniteError: It has one; the first few are named.
    """
    read = {
        key: one.detach()
        for key, one in model.named_parameters()
        if one.is_floating_point() and not one.is_meta
    }
    _refuse(read, read.__getitem__, name)


def only_finite(weight: Callable[[str], Tensor], name: str) -> Callable[[str], Tensor]:
    """``weight``, which gives a parameter by its name, but refusing one that is not finite.

    Args:
        weight: Gives the values of one.
        name: What the user asked for, for the message.
    """

    def checked(key: str) -> Tensor:
        values = weight(key)
        _refuse([key], lambda _: values, name)
        return values

    return checked


def _refuse(keys: Iterable[str], weight: Callable[[str], Tensor], name: str) -> None:
    bad = [key for key in keys if not is_finite(weight(key))]
    if bad:
        raise NotFiniteError(
            "the model has weights that are not finite",
            where="--model",
            got=f"{name}: {first_of(bad)}",
            fix="the file is damaged, or its training diverged: get it again, or take an earlier checkpoint",
        )


def _has_its_part(model: PreTrainedModel, key: str) -> bool:
    """Whether a weight without a place belongs to a part of this model, as a layer too many or a bias does.

    A part that the causal LM has not at all, such as the image encoder beside it, is left out rightly.
    """
    modules = dict(model.named_modules())
    for name in (key, f"{model.base_model_prefix}.{key}"):
        parts = name.split(".")
        inside = [".".join(parts[:end]) for end in range(1, len(parts))]
        if any(part in modules and part != model.base_model_prefix for part in inside):
            return True
    return False


def _refused(what: str, place: str, names: Collection[str]) -> InputError:
    return InputError(
        what,
        where="--model",
        got=f"{place}: {first_of(names)}",
        fix="check that config.json belongs to these weights, or save the model again with save_pretrained",
    )
