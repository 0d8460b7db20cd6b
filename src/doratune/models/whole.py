"""A model is loaded completely or not at all: no weight is random, left out, or not finite.

transformers fills weights missing from a file with random numbers and leaves out those that the model has no
place for, and only logs it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from doratune.errors import InputError, first_of
from doratune.finite import is_finite
from doratune.models._internals import FakeTensorMode

logger = logging.getLogger(__name__)

OLD_MASKS = re.compile(r"\bh\.\d+\.attn\.(attention\.)?((masked_)?bias|causal_mask)$")
"""Causal masks that old versions of transformers saved with GPT-J, GPT-Neo and CodeGen."""


class NotFiniteError(InputError):
    """A model's weights contain NaN or infinity."""


def load_whole(place: str, **kwargs: Any) -> PreTrainedModel:
    """Load a causal LM with transformers; every weight must come from its files.

    Args:
        place: A folder or a hub id.
        **kwargs: For ``from_pretrained``.

    Raises:
        InputError: If weights are missing, differ in shape from the configuration, or belong to a part of the
            model that the configuration leaves out.
    """
    # Other shapes are let through here and refused below, by name.
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
        logger.warning("weights %s of %s are not used: no causal LM has them", first_of(unused), place)
    return model


def without_content(place: str, *, dtype: torch.dtype, **kwargs: Any) -> PreTrainedModel:
    """The model that a configuration describes, with parameters that have a shape but no content.

    Args:
        place: A folder or a hub id.
        dtype: The parameters' dtype.
        **kwargs: For ``AutoConfig.from_pretrained``.
    """
    config = AutoConfig.from_pretrained(place, **kwargs)
    with FakeTensorMode(allow_non_fake_inputs=True):
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=kwargs.get("trust_remote_code", False)
        )


def refuse_not_finite(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose weights contain NaN or infinity.

    Quantised weights cannot; weights elsewhere (offloaded, on another process) are not checked.

    Args:
        model: The loaded model.
        name: The name that the user gave, for the message.

    Raises:
        NotFiniteError: They do; the message names the first few.
    """
    read = {
        key: one.detach()
        for key, one in model.named_parameters()
        if one.is_floating_point() and not one.is_meta
    }
    _refuse(read, read.__getitem__, name)


def only_finite(weight: Callable[[str], Tensor], name: str) -> Callable[[str], Tensor]:
    """``weight`` with a check that refuses parameters that are not finite.

    Args:
        weight: Returns the values of a parameter by name.
        name: The name that the user gave, for the message.
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
    """Whether a weight without a place belongs to a part of this model, such as an extra layer or a bias.

    Parts that the causal LM does not have at all, such as an image encoder, are rightly left out.
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
