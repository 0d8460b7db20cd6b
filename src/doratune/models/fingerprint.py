"""Telling base models apart, so that an adapter is not put on the wrong one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel


def fingerprint(model: PreTrainedModel) -> str:
    """A short hash of a base model's shapes and of its norm weights.

    The weights are rounded to bfloat16 before they are hashed, and matrices are left out, so that the same
    model loaded in another dtype or quantised to 4 bits keeps its fingerprint.

    Args:
        model: The model, before any adapter is added.

    Returns:
        16 hex digits.
    """
    return fingerprint_of((name, one.detach()) for name, one in model.named_parameters() if one.ndim == 1)


def fingerprint_of(vectors: Iterable[tuple[str, Tensor]]) -> str:
    """The same from the names and values of a model's parameters of one dimension."""
    digest = hashlib.sha256()
    for name, vector in sorted(vectors, key=lambda one: one[0]):
        digest.update(f"{name} {tuple(vector.shape)}".encode())
        digest.update(vector.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
