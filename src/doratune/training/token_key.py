"""What tokenised rows depend on, as one short name."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence

import xxhash
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from doratune import __version__
from doratune.data.examples import Example

FORMAT = 1
"""Of the rows below a key. To be raised when the same examples are to become other rows."""


def token_key(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, loss_on_prompt: bool
) -> str | None:
    """A hash of all that decides which rows the examples become.

    That is the texts in their order (the prompt template is inside them), the tokenizer, which tokens carry
    a loss, and the versions of what turns the one into the other. The cutoff is not in it: rows are kept
    whole, and the long ones are sorted out afterwards.

    Args:
        examples: What is trained on.
        tokenizer: The model's.
        loss_on_prompt: Whether the prompt's tokens are supervised too.

    Returns:
        32 hex digits, or None if the tokenizer cannot be told from others by what it says of itself: one that
        is wholly or partly in Python, or of a class that is not transformers' own.
    """
    backend = _serialised(tokenizer)
    if backend is None:
        return None
    parts = {
        "format": FORMAT,
        "doratune": __version__,
        **{name: importlib.metadata.version(name) for name in ("datasets", "tokenizers", "transformers")},
        "class": type(tokenizer).__qualname__,
        "backend": backend,
        "split_special_tokens": tokenizer.split_special_tokens,  # the backend does not write it down
        "eos": tokenizer.eos_token_id,
        "loss_on_prompt": loss_on_prompt,
    }
    digest = xxhash.xxh3_128(json.dumps(parts).encode())
    for example in examples:
        digest.update(json.dumps([example.prompt, example.candidates[example.gold]]).encode())
    return digest.hexdigest()


def _serialised(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Model, normaliser, special and added tokens, templates: all that the Rust tokenizer does, as JSON."""
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(tokenizer).__module__.partition(".")[0] != "transformers":
        return None
    try:
        return backend.to_str()
    except Exception:  # tokenizers raises no narrower one for a part written in Python
        return None
