"""Text to token ids, once and the same for training and evaluation.

A supervised row is its prompt's ids + its completion's ids + [eos] in training and the same without the last
id when a completion is scored, so the boundary between prompt and completion never moves. Texts go to the
tokenizer in lists, which a fast one spreads over the processor's cores; the ids are those of one text alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from doratune.errors import DoratuneError

IGNORED = -100
"""Label of a token that carries no loss, as PyTorch and transformers have it."""
CHUNK = 1000
"""Texts in one call of the tokenizer, whose own notes on them take many times their ids' memory."""


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts that are to be continued.

    Special tokens which the tokenizer puts in front (such as LLaMA's BOS) are kept; those which it puts
    behind (an EOS, with ``add_eos_token``) are left out, because the completion follows.

    Args:
        tokenizer: The model's tokenizer.
        prompts: The full prompt texts.

    Returns:
        Each prompt's ids, possibly empty for an empty text.

    Raises:
        DoratuneError: If the tokenizer does more than put special tokens around the text's own tokens.
    """
    bare = encode_completions(tokenizer, prompts)
    full = _ids(tokenizer, prompts, special=True)
    return [_without_closing(tokenizer, *ids) for ids in zip(full, bare, strict=True)]


def encode_completions(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of completions: no special tokens before or after them, and no end-of-sequence token.

    Args:
        tokenizer: The model's tokenizer.
        texts: The completions, each encoded by itself, so that its ids do not depend on the
            prompt before it.
    """
    return _ids(tokenizer, texts, special=False)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    ids: list[list[int]] = []
    for start in range(0, len(texts), CHUNK):
        ids += tokenizer(list(texts[start : start + CHUNK]), add_special_tokens=special)["input_ids"]
    return ids


def _without_closing(tokenizer: PreTrainedTokenizerBase, full: list[int], bare: list[int]) -> list[int]:
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[: start + len(bare)]
    raise DoratuneError(
        "the tokenizer's special tokens cannot be told from the prompt's own",
        where=f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}",
        got=f"{len(full)} ids with special tokens, {len(bare)} without, the latter not inside the former",
        expected="the same ids with special tokens only before and after them",
    )
