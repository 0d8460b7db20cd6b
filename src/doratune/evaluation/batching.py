"""The parts that both protocols share: batches of rows by length, and one pass over the rows' common prefix.

A batch is laid out as ``[prefix][padding][rest of the prompt]``. The prefix (the template's preamble) is the
same in every row, so its keys and values are computed once, with batch size 1, and repeated. The padding
after it is masked and has no positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from doratune.data.encode import encode_prompts
from doratune.data.examples import Example
from doratune.errors import DoratuneError, InputError
from doratune.evaluation.float32_head import float32_head
from doratune.models.context import attention_window, positions
from doratune.peft import hold_norms

Progress = Callable[[int], None]


def base_model(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside ``model``; PEFT's adapters stay active in it."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model  # type: ignore[return-value]


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """No gradients, no dropout, DoRA's norms as they are now and logits in float32.

    Training mode and the model's own head are restored afterwards.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), float32_head(base_model(model)), hold_norms(model):
            yield
    finally:
        model.train(was_training)


def row_name(example: Example) -> str:
    """An example's row and task, for messages, which count rows from 1."""
    return f"row {example.row + 1}" + (f" of task {example.task}" if example.task else "")


def not_finite(where: str, what: str) -> DoratuneError:
    """The error for scores or logits that are not finite."""
    return DoratuneError(
        "the model's weights or activations are not finite, so it cannot be evaluated",
        where=where,
        got=what,
        expected="finite numbers",
        fix="train it again with a lower learning rate, or evaluate with --dtype float32",
    )


def prompt_ids(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[list[int]]:
    """Token ids of each example's prompt.

    Raises:
        InputError: If a prompt has no tokens.
    """
    prompts = encode_prompts(tokenizer, [example.prompt for example in examples])
    for example, prompt in zip(examples, prompts, strict=True):
        if not prompt:
            raise InputError("the prompt has no tokens", where=row_name(example), got=repr(example.prompt))
    return prompts


def batches_by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row indices in batches of similar length, the longest first, so that a lack of memory shows at once.

    Raises:
        InputError: If ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise InputError("the batch size must be positive", got=batch_size, expected="1 or more")
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def common_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """The tokens that all prompts begin with, without the last token of any prompt."""
    # The common prefix of the first and the last in lexicographic order is common to all.
    first, last = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    return first[: next((place for place in range(limit) if first[place] != last[place]), limit)]


def prefix_cache(model: PreTrainedModel, prefix: list[int]) -> DynamicCache:
    """Keys and values of ``prefix``, computed with batch size 1; empty without a prefix."""
    cache = DynamicCache()
    if prefix:
        ids = torch.tensor([prefix], device=model.device)
        model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def repeated(cache: DynamicCache, rows: int) -> DynamicCache:
    """A copy of a batch-1 cache for a batch of ``rows``."""
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(rows)
    return cache


def check_lengths(model: PreTrainedModel, examples: Sequence[Example], lengths: Sequence[int]) -> None:
    """Refuse sequences longer than the model's context.

    Args:
        model: The model.
        examples: The rows.
        lengths: Tokens of each one's prompt with its longest answer.

    Raises:
        InputError: If they exceed the model's sliding attention window or its positions.
    """
    limits = {
        "sliding attention window": attention_window(model.config),
        "positions": positions(model.config),
    }
    for name, limit in limits.items():
        too_long = [row for row, length in enumerate(lengths) if limit is not None and length > limit]
        if too_long:
            first = too_long[0]
            raise InputError(
                f"a row is longer than the model's {name}",
                where=row_name(examples[first]),
                got=f"{lengths[first]} tokens with its answer; {len(too_long)} of {len(examples)} rows are "
                f"longer, the longest has {max(lengths)}",
                expected=f"at most {limit}",
                fix="leave the long rows out, or take a model with a longer context",
            )
