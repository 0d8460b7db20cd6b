"""How well a model predicts a plain text: the negative log-likelihood of its tokens."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from doratune.data.encode import encode_completions
from doratune.data.text import BuiltinText
from doratune.evaluation.batching import base_model, evaluation_mode, not_finite
from doratune.models.context import attention_window, positions
from doratune.records.run import ModelRecord, ScoredRecord, TextLoss, TextPiece

LARGEST_EXPONENT = 700.0


def text_loss(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    text: BuiltinText,
    scored: ScoredRecord,
    other_base: ModelRecord | None = None,
) -> TextLoss:
    """Score a text, one paragraph at a time.

    Each paragraph follows the tokenizer's BOS token, or its EOS token if it has no BOS, so that every token
    is predicted. Every process of several scores the whole text.

    Args:
        model: A causal language model of transformers, with or without adapters.
        tokenizer: Its tokenizer.
        text: The text.
        scored: What is scored, for the record.
        other_base: The base model, if it is not the one in the run's record.

    Raises:
        DoratuneError: A loss is not finite.
    """
    first: Any = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    paragraphs = encode_completions(tokenizer, text.paragraphs)
    limits = (positions(base_model(model).config), attention_window(base_model(model).config))
    limit = min((one for one in limits if one is not None), default=max(map(len, paragraphs)))
    with evaluation_mode(model):
        _nll(model, first, paragraphs[0], limit)  # a first pass is slower than the others
        started = time.perf_counter()
        losses = [_nll(model, first, ids, limit) for ids in paragraphs]
        seconds = time.perf_counter() - started
    if not all(map(math.isfinite, losses)):
        raise not_finite(f"the text {text.name}", f"log-likelihoods {losses}")
    pieces = [
        TextPiece(tokens=len(ids), bytes=len(paragraph.encode("utf-8")), nll=loss)
        for paragraph, ids, loss in zip(text.paragraphs, paragraphs, losses, strict=True)
    ]
    tokens, nll = sum(one.tokens for one in pieces), math.fsum(losses)
    per_token = nll / tokens
    return TextLoss(
        name=text.name,
        sha256=text.sha256,
        pieces=pieces,
        nll_per_token=per_token,
        nll_per_byte=nll / sum(one.bytes for one in pieces),
        perplexity=math.exp(per_token) if per_token < LARGEST_EXPONENT else None,
        tokens_per_second=tokens / seconds,
        scored=scored,
        other_base=other_base,
    )


def _nll(model: torch.nn.Module, first: int, ids: list[int], limit: int) -> float:
    """The negative log-likelihood of a paragraph, in windows of the model's context if it is longer."""
    total = 0.0
    for start in range(0, len(ids), limit):
        context = torch.tensor([[first, *ids][start : start + limit]], device=_device(model))
        wanted = torch.tensor(ids[start : start + limit], device=context.device)
        logits = model(input_ids=context[:, : len(wanted)], use_cache=False).logits[0]
        total += torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum").item()
    return total


def _device(model: torch.nn.Module) -> torch.device:
    return base_model(model).device
