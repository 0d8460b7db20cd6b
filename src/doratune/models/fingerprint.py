"""Telling base models apart by their weights, so that an adapter is not put on the wrong one.

``records.base_model`` tells the parts of a fingerprint and compares two.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable

import torch
import xxhash
from torch import Tensor
from transformers import PreTrainedModel

from doratune.errors import DoratuneError
from doratune.models.config_settings import config_record
from doratune.models.load import LoadedModel
from doratune.models.token_probes import tokenizer_record
from doratune.models.weights import WeightFiles, weights_folder
from doratune.models.whole import NotFiniteError, only_finite
from doratune.records.base_model import UNSEEN
from doratune.records.run import ModelRecord

logger = logging.getLogger(__name__)

HASHED = torch.bfloat16
"""Floats are rounded to this type first, so a model's fingerprint is the same in float32."""
EXACT = (torch.float32, HASHED)
"""Weights loaded in these types round to ``HASHED`` like those in the file; float16 loses small ones."""


def model_record(base: LoadedModel, files: WeightFiles | None = None) -> ModelRecord:
    """A base model as a run's record describes it.

    Args:
        base: The model as it was loaded, before any adapter is added.
        files: Its files, if its parameters have no content.
    """
    found = fingerprint(base) if files is None else fingerprint_of_files(base.model, files, base.name)
    return ModelRecord(
        name=base.name,
        source=base.source,
        dtype=str(base.dtype).removeprefix("torch."),
        parameters=base.model.num_parameters(),
        fingerprint=found,
        config=config_record(base.model),
        tokenizer=tokenizer_record(base.model, base.tokenizer),
    )


def fingerprint(base: LoadedModel) -> str | None:
    """A hash of all weights of a base model.

    It is the same in float32, bfloat16, float16 and 4 bits. Weights that were loaded in float16 or quantised
    differ from the file's, and offloaded ones are not in memory, so these are read from the file again. If
    that is impossible, only the weights of one dimension are hashed.

    Args:
        base: The model as it was loaded, before any adapter is added.

    Returns:
        ``v2:<16 hex digits>:<16 hex digits>``, the last part ``UNSEEN`` if the weights could not be read;
        None if even those of one dimension could not be read.

    Raises:
        NotFiniteError: If a weight in the file is not finite.
    """
    loaded = {name: one.detach() for name, one in base.model.named_parameters()}
    if all(weight.dtype in EXACT and not weight.is_meta for weight in loaded.values()):
        return fingerprint_of(loaded, loaded.__getitem__)
    try:
        return fingerprint_of_files(base.model, WeightFiles(weights_folder(base.name), base.model), base.name)
    except NotFiniteError:
        raise
    except DoratuneError as error:
        vectors = [name for name, one in loaded.items() if one.ndim == 1]
        if any(loaded[name].is_meta for name in vectors):
            logger.info("the base model has no fingerprint: %s", error.what)
            return None
        logger.info("the base model's fingerprint covers its norms only: %s", error.what)
        return fingerprint_of(vectors, loaded.__getitem__, complete=False)


def fingerprint_of_files(model: PreTrainedModel, files: WeightFiles, name: str) -> str:
    """The same from a model's files.

    Args:
        model: The model, whose parameters need no content.
        files: Its files.
        name: The name that the user gave, for the message.

    Raises:
        NotFiniteError: If a weight in the files is not finite.
        InputError: If the files lack a parameter.
    """
    names = [key for key, _ in model.named_parameters()]
    return fingerprint_of(names, only_finite(files.rows, name))


def fingerprint_of(names: Iterable[str], weight: Callable[[str], Tensor], *, complete: bool = True) -> str:
    """The same from a model's parameters, with one in memory at a time.

    Args:
        names: The parameters, in any order.
        weight: Returns the values of one.
        complete: Whether ``names`` are all of them.
    """
    vectors, everything = hashlib.sha256(), hashlib.sha256()
    for name in sorted(names):
        values = weight(name)
        header, content = f"{name} {tuple(values.shape)}".encode(), _content(values)
        everything.update(header + xxhash.xxh3_128_digest(content))
        if values.ndim == 1:
            vectors.update(header + bytes(content))
    return f"v2:{vectors.hexdigest()[:16]}:{everything.hexdigest()[:16] if complete else UNSEEN}"


def _content(values: Tensor) -> memoryview:
    """The bytes of a weight, floats rounded to ``HASHED``."""
    dtype = HASHED if values.is_floating_point() else values.dtype
    return values.to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data
