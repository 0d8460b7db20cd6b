"""Text to token ids, the same way for training and evaluation.

In training a row is its prompt's ids + its completion's ids + [eos]; a scored completion has the same ids
without [eos]. So the boundary between prompt and completion is always the same. Texts go to the tokenizer in
lists, which a fast one spreads over the processor's cores; each gets the ids that it would get alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from doratune.errors import DoratuneError

IGNORED = -100
"""Label of a token without a loss, in PyTorch and transformers."""
CHUNK = 1000
"""Texts per call of the tokenizer, whose output takes many times the memory of the ids."""


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts for the model to continue.

    Special tokens that the tokenizer adds in front (such as LLaMA's BOS) are kept; those that it adds at the
    end (an EOS, with ``add_eos_token``) are left out, because the completion follows.

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
