"""How long a row may be for a model."""

from __future__ import annotations

from transformers import PretrainedConfig


def positions(config: PretrainedConfig) -> int | None:
    """For how many tokens a model has positions, None where it does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def attention_window(config: PretrainedConfig) -> int | None:
    """How many tokens back a model's layers see, None where it is all of them."""
    return getattr(config.get_text_config(), "sliding_window", None)
