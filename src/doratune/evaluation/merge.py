"""Merging an adapter into its base, and comparing the merged model with the unmerged one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from doratune.errors import DoratuneError
from doratune.evaluation.batching import evaluation_mode
from doratune.models.load import LoadedModel
from doratune.peft import shared_layers
from doratune.peft.merge_layer import tuner_layers

ROWS, TOKENS, PLACES = 3, 128, 16
"""Number of texts compared, tokens of each, and positions at its end, compared over the whole vocabulary."""
TOLERANCE = 1e-3
"""Largest allowed difference of a log-probability, relative to the largest. Rounding gives 1e-6 to 1e-5."""


def merge_obstacle(base: LoadedModel, model: PeftModel, merges: str | None = None) -> str | None:
    """Why an adapter should not be merged into its base; None if it should.

    Args:
        base: The base.
        model: The base with the adapter.
        merges: Into what its method says that it merges; None: it does not say.
    """
    if merges == "nothing":
        return "its method says that it merges into nothing"
    if getattr(base.model, "is_quantized", False):
        return "a quantised base would round small changes away"
    if base.dtype != torch.float32:
        return f"a base in {str(base.dtype).removeprefix('torch.')} would round small changes away"
    if shared := shared_layers(model):
        return f"{shared[0]} shares its weight with another module, which would change too"
    return _refusal(model)


def _refusal(model: PeftModel) -> str | None:
    """What PEFT says if it cannot merge one of the layers; None if it can merge all.

    A merge that fails leaves a model that is merged in part, so it is tried first: on a copy of one layer of
    each class, with a bias and without.
    """
    tried: set[tuple[type, bool]] = set()
    for name, layer in tuner_layers(model):
        kind = type(layer), getattr(layer.get_base_layer(), "bias", None) is None
        if kind in tried:
            continue
        tried.add(kind)
        trial = copy.deepcopy(layer)
        try:
            trial.merge()
        except torch.OutOfMemoryError:
            raise
        except (ValueError, NotImplementedError, RuntimeError) as error:
            return f"PEFT cannot merge {name}: {' '.join(str(error).split()).rstrip('.')}"
    return None


def merge(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[PreTrainedModel, float]:
    """Merge an adapter into its base.

    Args:
        model: A base in float32 with its adapter.
        tokenizer: Its tokenizer.
        texts: Texts to compare the two models on; only the first few are used.

    Returns:
        The base with the adapter merged into it, and the largest difference of a log-probability from the
        unmerged model's.

    Raises:
        DoratuneError: The adapter cannot be merged, or merging changed more than rounding does.
    """
    rows = [ids[:TOKENS] for text in texts[:ROWS] if (ids := tokenizer(text).input_ids)]
    before = _log_probabilities(model, rows)
    try:
        merged: Any = model.merge_and_unload()
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise DoratuneError("PEFT cannot merge this adapter into its base", got=str(error)) from error
    after = _log_probabilities(merged, rows)
    differences = [(one - other).abs().max() for one, other in zip(before, after, strict=True)]
    difference = torch.stack(differences).max().item() if differences else 0.0
    largest = max([1.0, *(one.abs().max().item() for one in before)])
    if not difference <= TOLERANCE * largest:
        raise DoratuneError(
            "merging the adapter changed the model by more than rounding does",
            got=f"a log-probability that differs by {difference:.3g}",
            expected=f"at most {TOLERANCE * largest:.3g}, which rounding can do",
            fix="evaluate with --dtype bfloat16, where the adapter is kept apart from the base",
        )
    return merged, difference


def _log_probabilities(model: Any, rows: Sequence[list[int]]) -> list[torch.Tensor]:
    """Log-probabilities of the whole vocabulary at each row's last positions, (positions, vocabulary)."""
    with evaluation_mode(model):
        return [
            torch.log_softmax(
                model(
                    input_ids=torch.tensor([ids], device=model.device), use_cache=False, logits_to_keep=PLACES
                ).logits[0],
                dim=-1,
            )
            for ids in rows
        ]
