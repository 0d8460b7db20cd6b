"""From examples to token ids and labels, without truncation."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pyarrow.compute
from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from doratune.data.encode import IGNORED, encode_completions, encode_prompts
from doratune.data.examples import Example
from doratune.errors import InputError
from doratune.training.token_cache import load_rows, store_rows, token_key

logger = logging.getLogger(__name__)

FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
CHUNK = 1000
"""Examples held as lists at a time; Python's integers take ten times the memory of Arrow's."""


def encode_examples(
    examples: list[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    cutoff: int,
    drop_long_rows: bool,
    loss_on_prompt: bool,
    context: int | None = None,
) -> Dataset:
    """Token ids and labels of prompt + right answer + end of sequence, from the cache if it has them.

    Args:
        examples: The examples to train on, at least one.
        tokenizer: The model's.
        cutoff: Longest row allowed, in tokens.
        drop_long_rows: Leave out longer rows instead of raising.
        loss_on_prompt: Supervise the prompt's tokens too.
        context: The number of tokens that the model has positions for; None if it does not say.

    Returns:
        A dataset with one row per example kept: ``input_ids``, ``labels`` (-100 without a loss) and
        ``example``, its index in ``examples``.

    Raises:
        InputError: If rows are longer than ``cutoff`` and may not be dropped, if none is left, or if a
            remaining row is longer than the model's context.
    """
    rows: Any = _kept_or_encoded(examples, tokenizer, loss_on_prompt)
    rows = rows.add_column("example", np.arange(len(rows)))
    lengths = pyarrow.compute.call_function("list_value_length", [rows.data.column("input_ids")]).to_numpy()
    _check_context(examples, lengths, cutoff, context)
    too_long = np.flatnonzero(lengths > cutoff)
    if not too_long.size:
        return rows
    _report_long_rows(examples, lengths, cutoff, drop_long_rows)
    if len(too_long) == len(examples):
        raise InputError("no training row is short enough", where="--cutoff", got=cutoff)
    return rows.select(np.flatnonzero(lengths <= cutoff), keep_in_memory=True)


def _kept_or_encoded(
    examples: list[Example], tokenizer: PreTrainedTokenizerBase, loss_on_prompt: bool
) -> Dataset:
    """A row for every example of any length."""
    key = token_key(examples, tokenizer, loss_on_prompt=loss_on_prompt)
    if key is not None and (kept := load_rows(key)) is not None:
        return kept
    starts = range(0, len(examples), CHUNK)
    rows = concatenate_datasets(
        [_encode(examples[start : start + CHUNK], tokenizer, loss_on_prompt) for start in starts]
    )
    return rows if key is None else store_rows(key, rows)


def _encode(examples: list[Example], tokenizer: PreTrainedTokenizerBase, loss_on_prompt: bool) -> Dataset:
    prompts = encode_prompts(tokenizer, [example.prompt for example in examples])
    answers = encode_completions(tokenizer, [example.candidates[example.gold] for example in examples])
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for prompt, answer in zip(prompts, answers, strict=True):
        closed = [*answer, tokenizer.eos_token_id]
        rows["input_ids"].append(prompt + closed)
        rows["labels"].append((prompt if loss_on_prompt else [IGNORED] * len(prompt)) + closed)
    return Dataset.from_dict(rows, features=FEATURES)


def _report_long_rows(examples: list[Example], lengths: np.ndarray, cutoff: int, drop: bool) -> None:
    too_long = np.flatnonzero(lengths > cutoff)
    longest, first = int(lengths.max()), int(too_long[0])
    count = f"{len(too_long)} of {len(examples)} rows are longer than the cutoff of {cutoff} tokens"
    if drop:
        logger.warning("%s and are left out (the longest has %d)", count, longest)
        return
    raise InputError(
        "the cutoff would remove the answers of rows",
        where=_name(examples[first]),
        got=f"{lengths[first]} tokens with its answer; {count} (the longest has {longest})",
        fix=f"raise --cutoff to {longest}, or leave such rows out with --drop-long-rows",
    )


def _check_context(examples: list[Example], lengths: np.ndarray, cutoff: int, context: int | None) -> None:
    """Refuse rows within the cutoff that are longer than the model's context."""
    if context is None:
        return
    too_long = np.flatnonzero((lengths > context) & (lengths <= cutoff))
    if too_long.size:
        first = int(too_long[0])
        raise InputError(
            "a row is longer than the model's positions",
            where=_name(examples[first]),
            got=f"{lengths[first]} tokens with its answer; {len(too_long)} of {len(examples)} rows",
            expected=f"at most {context}",
            fix=f"leave such rows out with --cutoff {context} --drop-long-rows, or take another model",
        )


def _name(example: Example) -> str:
    return f"row {example.row + 1}" + (f" of {example.task}" if example.task else "")
