"""Protocol ``likelihood``: rank the candidate answers by their probability after the prompt.

    log p(candidate | prompt) = sum over the candidate's tokens of log p(token | prompt, tokens before it)

with the head and everything after it in float32, without an end-of-sequence token. "Normalised" means divided
by the candidate's length in UTF-8 bytes.

The prompt is run once for all its candidates. They follow it in the same sequence as a tree of tokens
(``tree.py``). A 4D attention mask lets each tree node see only the prompt and its ancestors, and its position
continues from the prompt's length. The layout of a row, whose prefix comes from a cache:

    [prefix][padding][rest of the prompt][tree]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from doratune.data.encode import encode_completions
from doratune.data.examples import Example
from doratune.errors import DoratuneError, InputError
from doratune.evaluation._internals import attention_implementation
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
from doratune.evaluation.tree import CandidateTree, candidate_tree
from doratune.evaluation.turns import in_turns
from doratune.processes import together


@dataclass(frozen=True)
class CandidateScores:
    """One row's scores, in the order of its candidates.

    Attributes:
        raw: log p(candidate | prompt), in nats.
        normalised: ``raw`` divided by the candidate's UTF-8 bytes.
    """

    raw: tuple[float, ...]
    normalised: tuple[float, ...]


def score_candidates(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> list[CandidateScores]:
    """Score every example's candidates; several processes share the batches.

    Args:
        model: A causal language model of transformers with sdpa or eager attention, with or without adapters.
        tokenizer: Its tokenizer.
        examples: The rows; one row is one prompt with all its candidates.
        batch_size: Rows per forward pass.
        progress: Called after each batch, or turn of several processes, with the number of rows in it.

    Returns:
        The scores, in the order of ``examples``.

    Raises:
        InputError: If a prompt or candidate has no tokens, a row has no candidates or is too long for the
            model, or the attention implementation takes no 4D mask.
        DoratuneError: If a score is not finite, or the model does not follow the 4D mask. To check the mask,
            one row of the first batch is scored again candidate by candidate; the scores must agree.
        OtherProcessError: Another process failed.
    """
    if not examples:
        return []
    base = base_model(model)
    with together():
        _check_attention(base)
        candidates = [_encode_candidates(tokenizer, example) for example in examples]
        prompts = prompt_ids(tokenizer, examples)
        trees = [candidate_tree(row) for row in candidates]
        lengths = [len(prompt) + len(tree.tokens) for prompt, tree in zip(prompts, trees, strict=True)]
        longest = [len(prompt) + max(map(len, row)) for prompt, row in zip(prompts, candidates, strict=True)]
        check_lengths(base, examples, longest)
        batches = batches_by_length(lengths, batch_size)
    with evaluation_mode(model):
        prefix = common_prefix(prompts)
        cache = prefix_cache(base, prefix)

        def score(batch: list[int]) -> list[list[float]]:
            rests = [prompts[row][len(prefix) :] for row in batch]
            scores = _score_batch(base, cache, len(prefix), rests, [trees[row] for row in batch])
            for row, row_scores in zip(batch, scores, strict=True):
                if not all(map(math.isfinite, row_scores)):
                    raise not_finite(row_name(examples[row]), f"log-probabilities {row_scores}")
            if batch is batches[0]:
                # The shortest row has the most padding, so it depends on the mask the most.
                row = batch[-1]
                _check_scores(base, prompts[row], candidates[row], scores[-1], examples[row])
            return scores

        raw = in_turns(batches, score, progress)
    return [_with_normalised(scores, example) for scores, example in zip(raw, examples, strict=True)]


def _encode_candidates(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[list[int]]:
    if not example.candidates:
        raise InputError("a row has no candidate answers", where=row_name(example))
    encoded = encode_completions(tokenizer, example.candidates)
    for text, ids in zip(example.candidates, encoded, strict=True):
        if not ids:
            raise InputError(
                "a candidate answer has no tokens",
                where=row_name(example),
                got=repr(text),
                expected="at least one token",
            )
    if all(text.endswith(label) for text, label in zip(example.candidates, example.labels, strict=True)):
        _refuse_beginnings(example, encoded)
    return encoded


def _refuse_beginnings(example: Example, encoded: list[list[int]]) -> None:
    """Refuse labels of which one begins another in tokens: the longer one could never be more likely."""
    for (one, ids), (other, longer) in itertools.permutations(zip(example.labels, encoded, strict=True), 2):
        if len(ids) < len(longer) and longer[: len(ids)] == ids:
            raise InputError(
                "a label begins another for this tokenizer, so the longer one can never be the likeliest",
                where=row_name(example),
                got=f"{one!r} and {other!r}",
                fix="give the task other labels, such as letters, or evaluate with --protocol generate",
            )


def _with_normalised(raw: list[float], example: Example) -> CandidateScores:
    sizes = [len(text.encode("utf-8")) for text in example.candidates]
    return CandidateScores(tuple(raw), tuple(score / size for score, size in zip(raw, sizes, strict=True)))


def _score_batch(
    model: PreTrainedModel,
    cache: DynamicCache,
    prefix_length: int,
    rests: list[list[int]],
    trees: list[CandidateTree],
) -> list[list[float]]:
    """Scores of each row's candidates; ``rests`` are the prompts without the prefix that ``cache`` holds."""
    # A row's tree follows its prompt directly and the padding comes first, so all rows end together, and the
    # slots that need logits are the last ones of every row.
    width = max(len(rest) + len(tree.tokens) for rest, tree in zip(rests, trees, strict=True))
    slots = 1 + max(len(tree.tokens) for tree in trees)
    # Padding may hold any token, as nothing sees it.
    ids = torch.zeros(len(rests), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    for row, (rest, tree) in enumerate(zip(rests, trees, strict=True)):
        first = width - len(rest) - len(tree.tokens)
        length = prefix_length + len(rest)
        ids[row, first:] = torch.tensor(rest + tree.tokens)
        depths = [length + depth for depth in tree.depths]
        positions[row, first:] = torch.tensor([*range(prefix_length, length), *depths])
    mask = _tree_mask(prefix_length, width, [len(rest) for rest in rests], [tree.parents for tree in trees])
    if attention_implementation(model) == "eager":
        # Eager attention adds the mask to its scores; sdpa takes booleans, whatever the model's dtype.
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    logits = model(
        input_ids=ids.to(model.device),
        attention_mask=mask[:, None].to(model.device),
        position_ids=positions.to(model.device),
        past_key_values=repeated(cache, len(rests)),
        use_cache=True,
        # Indices, because a number of slots would give the head a strided slice. On a CPU, its product copies
        # the head's weight for every row, which took three quarters of the time.
        logits_to_keep=torch.arange(width - slots, width, device=model.device),
    ).logits
    return [_path_scores(row_logits, tree) for row_logits, tree in zip(logits, trees, strict=True)]


def _tree_mask(
    prefix_length: int, queries: int, lengths: list[int], parents: list[list[int]]
) -> torch.Tensor:
    """Which query sees which key, (rows, queries, prefix + queries); queries: [padding][prompt][tree]."""
    mask = torch.zeros(len(lengths), queries, prefix_length + queries, dtype=torch.bool)
    mask[:, :, :prefix_length] = True
    own = mask[:, :, prefix_length:]
    # Padding sees itself too: a query that sees nothing would be undefined.
    own.diagonal(dim1=1, dim2=2).fill_(True)
    for row, (length, row_parents) in enumerate(zip(lengths, parents, strict=True)):
        tree = queries - len(row_parents)
        own[row, tree - length : tree, tree - length : tree] = torch.ones(
            length, length, dtype=torch.bool
        ).tril()
        for node, parent in enumerate(row_parents):
            # Slot 0 is the prompt's last token, at tree - 1. A node sees itself and what its parent sees.
            own[row, tree + node] |= own[row, tree - 1 + parent]
    return mask


def _path_scores(logits: torch.Tensor, tree: CandidateTree) -> list[float]:
    """Sum of log-probabilities along each candidate's path; ``logits`` are (slots, vocabulary)."""
    log_probabilities = torch.log_softmax(logits[-len(tree.tokens) - 1 :].float(), dim=-1)
    scores = []
    for path in tree.paths:
        slots, tokens = zip(*path, strict=True)
        scores.append(log_probabilities[list(slots), list(tokens)].sum())
    return torch.stack(scores).tolist()


def _check_attention(model: PreTrainedModel) -> None:
    implementation = attention_implementation(model)
    if implementation not in ("sdpa", "eager"):
        raise InputError(
            "the attention implementation takes no 4D mask, which protocol likelihood needs",
            got=implementation,
            expected="sdpa or eager",
            fix="load the model with attn_implementation='sdpa', or use protocol generate",
        )


def _check_scores(
    model: PreTrainedModel,
    prompt: list[int],
    candidates: list[list[int]],
    scores: list[float],
    example: Example,
) -> None:
    """Compare one row's scores with plain forward passes, one per candidate."""
    for candidate, score in zip(candidates, scores, strict=True):
        ids = torch.tensor([prompt + candidate], device=model.device)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(candidate) + 1).logits[0, :-1]
        wanted = torch.log_softmax(logits.float(), dim=-1)[range(len(candidate)), candidate].sum().item()
        # Rounding changes a score by less than this (measured in bfloat16: 0.06), ignoring the mask by more.
        # Only the rounding of the hidden states counts, as the head is computed in float32.
        rounding = 1e-2 if model.dtype == torch.float32 else 0.25
        tolerance = rounding * max(1.0, abs(wanted))
        if not math.isfinite(wanted):
            raise not_finite(
                row_name(example), f"log-probability {wanted} of a candidate that is scored alone"
            )
        if abs(score - wanted) > tolerance:
            name = str(model.dtype).removeprefix("torch.")
            raise DoratuneError(
                "the model does not follow the attention mask that protocol likelihood gives it",
                where=f"{type(model).__name__}, {row_name(example)}",
                got=f"log-probability {score:.4f} with the prompt shared between candidates",
                expected=f"{wanted:.4f} to within {tolerance:.2g} ({name}), as with one candidate at a time",
                fix="use protocol generate for this model",
            )
