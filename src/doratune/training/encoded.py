"""Examples -> token ids and labels, with nothing truncated."""

from __future__ import annotations

import logging

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from doratune.data.encode import encode_completion, encode_prompt
from doratune.data.examples import Example
from doratune.errors import InputError

logger = logging.getLogger(__name__)

IGNORED = -100


def encode_examples(
    examples: list[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    cutoff: int,
    drop_long_rows: bool,
    loss_on_prompt: bool,
) -> Dataset:
    """Token ids and labels of prompt + right answer + end of sequence.

    Args:
        examples: What to train on.
        tokenizer: The model's.
        cutoff: Longest row allowed, in tokens.
        drop_long_rows: Leave longer rows out instead of raising.
        loss_on_prompt: Supervise the prompt's tokens too.

    Returns:
        A dataset with ``input_ids`` and ``labels`` (-100 where there is no loss), one row per example kept.

    Raises:
        InputError: If rows are longer than ``cutoff`` and may not be dropped, or if none is left.
    """
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    too_long: list[tuple[Example, int]] = []
    for example in examples:
        prompt = encode_prompt(tokenizer, example.prompt)
        answer = [*encode_completion(tokenizer, example.candidates[example.gold]), tokenizer.eos_token_id]
        if len(prompt) + len(answer) > cutoff:
            too_long.append((example, len(prompt) + len(answer)))
            continue
        rows["input_ids"].append(prompt + answer)
        rows["labels"].append((prompt if loss_on_prompt else [IGNORED] * len(prompt)) + answer)
    if too_long:
        _report_long_rows(too_long, len(examples), cutoff, drop_long_rows)
    if not rows["input_ids"]:
        raise InputError("no training row is short enough", where="--cutoff", got=cutoff)
    return Dataset.from_dict(rows)


def _report_long_rows(too_long: list[tuple[Example, int]], total: int, cutoff: int, drop: bool) -> None:
    example, _ = too_long[0]
    longest = max(length for _, length in too_long)
    count = f"{len(too_long)} of {total} rows are longer than the cutoff of {cutoff} tokens"
    if drop:
        logger.warning("%s and are left out (the longest has %d)", count, longest)
        return
    raise InputError(
        "rows would lose their answer to the cutoff",
        where=f"row {example.row + 1}" + (f" of {example.task}" if example.task else ""),
        got=f"{count} (the longest has {longest})",
        fix=f"raise --cutoff to {longest}, or leave such rows out with --drop-long-rows",
    )
