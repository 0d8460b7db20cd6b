"""Text to token ids, once and the same for training and evaluation.

A supervised row is ``encode_prompt(prompt) + encode_completion(completion) + [eos]`` in training and the same
without the last id when a completion is scored, so the boundary between prompt and completion never moves.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from doratune.errors import DoratuneError


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a prompt that is to be continued.

    Special tokens which the tokenizer puts in front (such as LLaMA's BOS) are kept; those which it puts
    behind (an EOS, with ``add_eos_token``) are left out, because the completion follows.

    Args:
        tokenizer: The model's tokenizer.
        prompt: The full prompt text.

    Returns:
        The ids, possibly empty for an empty text.

    Raises:
        DoratuneError: If the tokenizer does more than put special tokens around the text's own tokens.
    """
    bare = encode_completion(tokenizer, prompt)
    full = list(tokenizer(prompt, add_special_tokens=True)["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[: start + len(bare)]
    raise DoratuneError(
        "the tokenizer's special tokens cannot be told from the prompt's own",
        where=f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}",
        got=f"{len(full)} ids with special tokens, {len(bare)} without, the latter not inside the former",
        expected="the same ids with special tokens only before and after them",
    )


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a completion: no special tokens before or after it, and no end-of-sequence token.

    Args:
        tokenizer: The model's tokenizer.
        text: The completion, encoded by itself, so that its ids do not depend on the prompt before it.
    """
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
