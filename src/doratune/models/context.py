"""How long a row a model can take."""

from __future__ import annotations

from transformers import PretrainedConfig


def positions(config: PretrainedConfig) -> int | None:
    """The number of tokens that a model has positions for; None if it does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def attention_window(config: PretrainedConfig) -> int | None:
    """How many tokens back a model's layers see; None if they see all."""
    return getattr(config.get_text_config(), "sliding_window", None)
