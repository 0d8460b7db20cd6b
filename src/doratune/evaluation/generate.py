"""Protocol ``generate``: the model writes its answer, as in the paper's evaluation (beam 4, 32 new tokens).

Each prompt is run once, not once per beam: its keys and values are computed, repeated for the beams and
passed to transformers' ``generate``, which does the beam search.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from doratune.data.examples import Example
from doratune.errors import InputError
from doratune.evaluation.batching import (
    Progress,
    base_model,
    batches_by_length,
    check_lengths,
    common_prefix,
    evaluation_mode,
    not_finite,
    prefix_cache,
    prompt_ids,
    repeated,
    row_name,
)
from doratune.evaluation.turns import in_turns
from doratune.models.tokenizer import answer_ends
from doratune.processes import together


def generate_answers(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    batch_size: int,
    num_beams: int = 4,
    max_new_tokens: int = 32,
    progress: Progress | None = None,
) -> list[str]:
    """Write an answer to every example's prompt by beam search, without sampling.

    Several processes share the batches.

    Args:
        model: A causal language model of transformers, with or without PEFT adapters.
        tokenizer: Its tokenizer.
        examples: The rows; only their prompts are used.
        batch_size: Rows per call; each takes ``num_beams`` sequences.
        num_beams: Beams per row; 1 is greedy decoding.
        max_new_tokens: Where an answer is cut off.
        progress: Called after each batch, or turn of several processes, with the number of rows in it.

    Returns:
        The texts after the prompts, up to the end-of-sequence token, without special tokens, in the order of
        ``examples``.

    Raises:
        InputError: If a prompt has no tokens or is too long for the model, or neither the tokenizer nor the
            model names an end-of-sequence token.
        DoratuneError: If the logits of a row are not finite.
        OtherProcessError: Another process failed.
    """
    if not examples:
        return []
    base = base_model(model)
    with together():
        settings = _generation_settings(base, tokenizer, num_beams, max_new_tokens)
        prompts = prompt_ids(tokenizer, examples)
        lengths = [len(prompt) for prompt in prompts]
        check_lengths(base, examples, [length + max_new_tokens for length in lengths])
    with evaluation_mode(model), _own_settings_aside(base):
        prefix = common_prefix(prompts)
        cache = prefix_cache(base, prefix)

        def write(batch: list[int]) -> list[str]:
            check = _FiniteLogits([examples[row] for row in batch], num_beams)
            answers = _generate_batch(base, cache, prefix, [prompts[row] for row in batch], settings, check)
            return [str(tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers]

        return in_turns(batches_by_length(lengths, batch_size), write, progress)


def extract_answer(text: str, pattern: str, labels: Collection[str]) -> str | None:
    """The first match of the task's answer pattern in a generated text.

    Args:
        text: What the model wrote after the prompt.
        pattern: A regular expression, matched case-sensitively, such as ``true|false`` or ``answer[1-4]``.
        labels: The names of the row's candidates.

    Returns:
        The label, or None when nothing matches or the first match is not one of ``labels`` (``answer4`` for a
        row with three answers). Both count as a wrong answer; a later match does not rescue the row.
    """
    match = re.search(pattern, text)
    if match is None or match.group() not in labels:
        return None
    return match.group()


class _FiniteLogits(LogitsProcessor):
    """Refuses logits that are not finite, over which a search would silently produce some answer.

    Args:
        examples: The rows of the batch.
        num_beams: Sequences per row.
    """

    def __init__(self, examples: Sequence[Example], num_beams: int) -> None:
        self._examples, self._num_beams = examples, num_beams

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        # A softmax over NaN or +inf is NaN everywhere; a logit of -inf is legitimate.
        broken = ~torch.isfinite(scores.amax(dim=-1))
        if broken.any():
            row = int(broken.nonzero()[0, 0]) // self._num_beams
            raise not_finite(row_name(self._examples[row]), "logits that are NaN or infinite")
        return scores


def _generation_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_beams: int, max_new_tokens: int
) -> GenerationConfig:
    """Beam search that ends at the end-of-sequence tokens of the tokenizer or the model."""
    ends = answer_ends(model, tokenizer)
    if not ends:
        raise InputError(
            "no end-of-sequence token is known, so no answer would ever end",
            where="tokenizer and generation_config.json",
            fix="set eos_token in the tokenizer's configuration",
        )
    return GenerationConfig(
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=ends,
        pad_token_id=ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )


@contextmanager
def _own_settings_aside(model: PreTrainedModel) -> Iterator[None]:
    """Hide the model's settings (sampling, penalties), with which ``generate`` would fill gaps in ours."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _generate_batch(
    model: PreTrainedModel,
    cache: DynamicCache,
    prefix: list[int],
    prompts: list[list[int]],
    settings: GenerationConfig,
    check: LogitsProcessor,
) -> list[list[int]]:
    """New token ids of each row, cut before the first end-of-sequence token; ``cache`` holds the prefix."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), int(settings.pad_token_id))  # type: ignore[arg-type]
    mask = torch.zeros_like(ids)
    ids[:, : len(prefix)] = torch.tensor(prefix, dtype=torch.long)
    mask[:, : len(prefix)] = 1
    for row, prompt in enumerate(prompts):
        rest = prompt[len(prefix) :]
        ids[row, width - len(rest) :] = torch.tensor(rest)
        mask[row, width - len(rest) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    rows_cache = _prefill(model, repeated(cache, len(prompts)), len(prefix), ids[:, :-1], mask[:, :-1])
    rows_cache.batch_repeat_interleave(settings.num_beams)
    output = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        past_key_values=rows_cache,
        generation_config=settings,
        logits_processor=LogitsProcessorList([check]),
    )
    return [_until_end(row, settings.eos_token_id) for row in output[:, width:].tolist()]  # type: ignore[arg-type]


def _prefill(
    model: PreTrainedModel, cache: DynamicCache, done: int, ids: torch.Tensor, mask: torch.Tensor
) -> DynamicCache:
    """Add keys and values of ``ids`` (rows, tokens) from column ``done`` on to the cache."""
    if ids.shape[1] > done:
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        model.base_model(  # without the head
            input_ids=ids[:, done:],
            attention_mask=mask,
            position_ids=positions[:, done:],
            past_key_values=cache,
            use_cache=True,
        )
    return cache


def _until_end(ids: list[int], ends: list[int]) -> list[int]:
    """The ids before the first end-of-sequence token."""
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]
