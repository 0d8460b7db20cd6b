"""Telling base models apart, so that an adapter is not put on the wrong one."""

from __future__ import annotations

import hashlib

import torch
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
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim != 1:
            continue
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
