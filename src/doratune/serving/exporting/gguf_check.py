"""Whether a GGUF file is the base model with the adapter, as transformers reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from doratune.errors import DoratuneError
from doratune.models.gguf import read_gguf
from doratune.records.serving import GgufCheck
from doratune.serving.adapted import AdaptedBase
from doratune.serving.check import compare_logits, logits_of, predictions
from doratune.serving.exporting.gguf_file import GgufFile
from doratune.serving.exporting.gguf_layout import EMBEDDING, HEAD, Layout
from doratune.serving.exporting.gguf_types import largest_rounding
from doratune.serving.merged_weights import MergedWeights

KL_FLOOR, KL_FACTOR = 1e-6, 500.0
"""The largest mean KL divergence: the floor, plus the factor times the largest distance of a weight squared.

For SmolLM2-135M in F16, BF16 and Q8_0 the factor was 40 to 90. A wrong weight is found by its limit first.
"""


def check_gguf(
    path: Path, opened: AdaptedBase, weights: MergedWeights, layout: Layout, rows: Sequence[Tensor]
) -> GgufCheck:
    """Read a GGUF file with transformers, and compare its weights and predictions with base plus adapter.

    The file's model is in memory in float32.

    Args:
        path: The file.
        opened: The adapter on its base.
        weights: The parameters that the file should have.
        layout: The arrangement of the base model's parameters.
        rows: Token ids, (1, n) each.

    Raises:
        DoratuneError: transformers cannot read the file.
    """
    before = predictions(opened, rows)
    try:
        model, _ = read_gguf(path, dtype=torch.float32)
    except DoratuneError as error:
        raise DoratuneError("transformers cannot read the file that was written", got=error.got) from error
    file = GgufFile(path)
    find = layout.tensors(file)
    worst, farthest, limit_there, weight, most = 0.0, 0.0, 0.0, "", 0.0
    for name, values in model.named_parameters():
        changed = name in weights.changed
        expected, tensor = weights.value(name) if changed else opened.weight(name), find(name)
        kind = file.type(EMBEDDING if tensor == HEAD and HEAD not in file.names else str(tensor))
        limit = largest_rounding(kind, expected.dtype)
        apart = _apart(values.detach(), expected.float())
        most = max(most, apart)
        if apart / limit >= worst:
            worst, farthest, limit_there, weight = apart / limit, apart, limit, name
    logits = compare_logits(before, logits_of(model.eval()), rows)
    kl_limit = KL_FLOOR + KL_FACTOR * most**2
    return GgufCheck(
        weights_apart=farthest,
        weights_limit=limit_there,
        weight=weight,
        logits=logits,
        kl_limit=kl_limit,
        usable=worst <= 1 and logits.kl_mean <= kl_limit,
    )


def _apart(values: Tensor, expected: Tensor) -> float:
    """The distance of two weights, relative to the norm of the one expected."""
    distance, norm = (values - expected).norm().item(), expected.norm().item()
    return distance / norm if norm else distance
