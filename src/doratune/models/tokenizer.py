"""What a tokenizer must have for the model that it comes with."""

from __future__ import annotations

import logging
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from doratune.errors import InputError

logger = logging.getLogger(__name__)


def ensure_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give a tokenizer without a pad token one that exists already, so that no embedding is added.

    Args:
        model: Whose configuration is to name it.
        tokenizer: May get a pad token.
        name: What the user asked for, for the message.

    Raises:
        InputError: If the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token is None:
        raise InputError(
            "the tokenizer has no end-of-sequence token, so no answer could ever end",
            where="--model",
            got=name,
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        logger.info("the tokenizer has no pad token; padding with %s", tokenizer.pad_token)
    model.config.pad_token_id = tokenizer.pad_token_id


def answer_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a generated answer: the tokenizer's end of sequence and the model's own ones."""
    own: Any = getattr(model.generation_config, "eos_token_id", None)
    end: Any = tokenizer.eos_token_id
    return sorted({end, *(own if isinstance(own, list) else [own])} - {None})


def refuse_unembedded_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that gives ids which the embedding has no row for.

    An embedding with more rows than the tokenizer has ids is usual: rows are padded to a round number.

    Args:
        model: Has the embedding.
        tokenizer: Gives the ids.
        name: What the user asked for, for the message.

    Raises:
        InputError: If there is such an id, whether or not any text has it.
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
