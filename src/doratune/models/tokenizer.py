"""A tokenizer's special tokens, and whether its ids fit its model's embedding."""

from __future__ import annotations

import logging
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from doratune.errors import InputError

logger = logging.getLogger(__name__)


def ensure_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give a tokenizer without a pad token an existing token to pad with, so that no embedding is added.

    Args:
        model: Its configuration gets the pad token too.
        tokenizer: Gets the pad token if it has none.
        name: The name that the user gave, for the message.

    Raises:
        InputError: If the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token is None:
        raise InputError(
            "the tokenizer has no end-of-sequence token, so no answer would ever end",
            where="--model",
            got=name,
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        logger.info("the tokenizer has no pad token; padding with %s", tokenizer.pad_token)
    model.config.pad_token_id = tokenizer.pad_token_id


def answer_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a generated answer: the tokenizer's end of sequence and those the model names."""
    own: Any = getattr(model.generation_config, "eos_token_id", None)
    end: Any = tokenizer.eos_token_id
    return sorted({end, *(own if isinstance(own, list) else [own])} - {None})


def refuse_unembedded_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer with ids that the embedding has no row for.

    An embedding with more rows than the tokenizer has ids is usual: rows are padded to a round number.

    Args:
        model: The model with the embedding.
        tokenizer: Its tokenizer.
        name: The name that the user gave, for the message.

    Raises:
        InputError: If there is such an id, whether or not any text uses it.
    """
    embedded: Any = model.get_input_embeddings().num_embeddings
    beyond = sorted((id, token) for token, id in tokenizer.get_vocab().items() if id >= embedded)
    if beyond:
        first = ", ".join(f"{token!r} is {id}" for id, token in beyond[:3])
        raise InputError(
            "the tokenizer has more ids than the model's embedding has rows",
            where="--model",
            got=f"{name}: {len(beyond)} of the tokenizer's ids, the first ones {first}",
            expected=f"ids below {embedded}",
            fix="take the tokenizer that belongs to the model, or save the model after "
            "model.resize_token_embeddings(len(tokenizer))",
        )
