"""The check of ``doratune bench infer``: every provider has the logits of stock PEFT with the same adapter.

Each is given the tokens that PEFT writes, so that a rounding that tips one token does not hide the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from doratune.bench.figures import GateError
from doratune.bench.infer.providers import Writer
from doratune.records.bench import DType

LIMITS: dict[DType, float] = {
    # The base weights' own dtype rounds each layer's output; PEFT rounds it at other places, and merging
    # rounds the weights.
    "bfloat16": 5e-2,
    "float32": 1e-4,
}
"""The largest relative error of the logits."""


@dataclass(frozen=True)
class Agreement:
    """How a provider's logits compare with stock PEFT's.

    Attributes:
        error: ‖difference‖ / ‖logits‖ over all tokens.
        same_tokens: The share of tokens for which both have the same largest logit.
    """

    error: float
    same_tokens: float


def check_logits(writers: Mapping[str, Writer], dtype: DType) -> dict[str, Agreement]:
    """Compare the logits of the providers that have a counterpart.

    Args:
        writers: The providers by name, with their counterparts among them.
        dtype: The case's dtype.

    Raises:
        GateError: An error is above the limit, or logits are not finite.
    """
    expected: dict[str, tuple[Tensor, Tensor]] = {}
    found = {}
    for name, writer in writers.items():
        other = writer.provider.like
        if other is None:
            continue
        if other not in expected:
            expected[other] = _logits(writers[other], None)
        tokens, right = expected[other]
        _, ours = _logits(writer, tokens)
        error = float((ours - right).norm() / right.norm())
        if not error <= LIMITS[dtype]:
            raise GateError(
                "two providers with the same adapter have different logits, so there are no figures",
                where=f"{name} and {other}",
                got=f"a relative difference of {error:.1e}",
                expected=f"at most {LIMITS[dtype]:.0e}",
            )
        same = float((ours.argmax(dim=-1) == right.argmax(dim=-1)).float().mean())
        found[name] = Agreement(error, same)
    return found


class _Dictate(LogitsProcessor):
    """Has given tokens written, whatever the logits are.

    Args:
        tokens: (batch, prompt_tokens + new_tokens).
    """

    def __init__(self, tokens: Tensor) -> None:
        self._tokens = tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        chosen = self._tokens[:, input_ids.shape[1]]
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def _logits(writer: Writer, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
    """All tokens, and the logits of the new ones, (new_tokens, batch, vocabulary), in float32."""
    dictated: dict[str, Any] = (
        {} if tokens is None else {"logits_processor": LogitsProcessorList([_Dictate(tokens)])}
    )
    result = writer.generate(return_dict_in_generate=True, output_logits=True, **dictated)
    return result.sequences, torch.stack(result.logits).float()
