"""Runs a tiny batch through a few of a model's layers, to test whether another forward pass gives the same.

The rows are padded on the right, begin with the same tokens and have tokens without a loss, so the batch has
everything that a cheaper forward pass leaves out. They run through a copy of the model in float32 and in
evaluation mode, which has only the last layer of each class and a small vocabulary. The test compares the
log-probabilities of the supervised tokens and the gradient of the embedded tokens, which passes every layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from doratune.data.encode import IGNORED
from doratune.engine._internals import FakeTensor
from doratune.speedups.packing import RECORDING, AttentionCall
from doratune.speedups.same import random, unequal

LENGTHS, SHARED = (7, 4, 6), 2
WORDS = 32


class Trial:
    """A small copy of a model, and its own results on the tiny batch to compare others with.

    Args:
        model: A causal language model with TRL's fused head and one list of layers, on a CPU.

    Attributes:
        model: The copy.

    Raises:
        Exception: Whatever the model raises.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = _small_copy(model)
        self._own = self.model.forward
        # Quantised layers may compute in bfloat16, whatever they are given.
        quantised = any(not one.is_floating_point() for one in self.model.parameters())
        self._rounds_to = torch.bfloat16 if quantised else torch.float32
        self._inputs = _batch(self.model.get_input_embeddings().weight.shape[0])
        self._wanted = self._outcome(self._own)

    def difference(self, forward: Callable[..., Any]) -> str | None:
        """How another forward pass of the copy differs from its own.

        Args:
            forward: A function whose first argument is the copy.

        Returns:
            The difference in words, or None if they are equal to rounding.
        """
        try:
            return unequal(self._outcome(forward.__get__(self.model)), self._wanted, self._rounds_to)
        except Exception as error:  # a model's code may raise anything
            return f"the replacement raises {type(error).__name__}"

    def attention_calls(self) -> list[AttentionCall]:
        """What the layers pass to their attention; empty if they do not pass arguments on."""
        calls: list[AttentionCall] = []
        self.model.set_attn_implementation(RECORDING)
        try:
            with torch.no_grad():
                self.model.base_model(input_ids=self._inputs["input_ids"], use_cache=False, calls=calls)
        except TypeError:
            return []
        return calls

    def _outcome(self, forward: Callable[..., Any]) -> list[Tensor]:
        """Log-probabilities, and the gradient of the embedded tokens, summed by token."""
        leaves: list[tuple[Tensor, Tensor]] = []

        def cut(_embedding: nn.Module, args: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
            leaves.append((args[0], embedded.detach().requires_grad_()))
            return leaves[-1][1]

        handle = self.model.get_input_embeddings().register_forward_hook(cut)
        try:
            with torch.random.fork_rng(devices=[]):
                outputs = forward(**self._inputs, use_cache=False, fused_lm_head=True)
        finally:
            handle.remove()
        log_probs = outputs.log_probs
        if log_probs.ndim == 2:  # TRL's, of every token
            log_probs = log_probs[outputs.label_mask]
        (ids, leaf), *_ = leaves
        (gradient,) = torch.autograd.grad(log_probs, leaf, random(len(log_probs)))
        by_word = gradient.new_zeros(WORDS, gradient.shape[-1])
        by_word.index_add_(0, ids.flatten(), gradient.flatten(0, 1))
        return [log_probs.detach(), by_word]


def layers_name(model: PreTrainedModel) -> str | None:
    """The name of the list of layers in a model's backbone, or None unless there is exactly one."""
    count = model.config.get_text_config().num_hidden_layers
    names = [
        name
        for name, child in model.base_model.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    return names[0] if len(names) == 1 else None


def _small_copy(model: PreTrainedModel) -> Any:
    """A float32 copy with a few of the layers and words; the weights left out are not copied."""
    embedding, head = model.get_input_embeddings(), cast(nn.Module, model.get_output_embeddings())
    words = {id(one): one for module in (embedding, head) for one in module.parameters()}
    layers: Any = getattr(model.base_model, layers_name(model) or "")
    kept = {type(layer): number for number, layer in enumerate(layers)}.values()
    memo: dict[int, Any] = {
        key: nn.Parameter(
            (random(WORDS, *one.shape[1:]) if isinstance(one, FakeTensor) else one.detach()[:WORDS].clone()),
            requires_grad=False,
        )
        for key, one in words.items()
    }
    left_out = _tensors(layers).keys() | words.keys()
    rest = {key: one for key, one in _tensors([model]).items() if key not in left_out}
    rest |= _tensors(layers[number] for number in kept)
    memo |= {key: _drawn(one) for key, one in rest.items() if isinstance(one, FakeTensor)}
    memo[id(layers)] = nn.ModuleList(copy.deepcopy(layers[number], memo) for number in sorted(kept))
    # transformers' own ``float`` refuses quantised models; torch's leaves packed weights as they are.
    small: Any = nn.Module.float(copy.deepcopy(model, memo)).eval()
    small.get_input_embeddings().padding_idx = None
    for module in small.modules():
        # In evaluation mode bitsandbytes packs a 4-bit weight for inference on a CPU, and a packed one passes
        # no gradient.
        module.training = any(hasattr(one, "quant_state") for one in module.parameters(recurse=False))
    return small


def _drawn(one: Tensor) -> Tensor:
    """Random numbers in place of a parameter or buffer without content."""
    values = (random(*one.shape) * one.shape[-1] ** -0.5).to(one.dtype)
    return nn.Parameter(values, requires_grad=one.requires_grad) if isinstance(one, nn.Parameter) else values


def _tensors(modules: Iterable[nn.Module]) -> dict[int, Tensor]:
    """The parameters and buffers of modules, by id."""
    return {id(one): one for module in modules for one in (*module.parameters(), *module.buffers())}


def _batch(words: int) -> dict[str, Tensor]:
    width, columns = max(LENGTHS), torch.arange(max(LENGTHS))
    drawn = torch.randint(1, words, (len(LENGTHS), width), generator=torch.Generator().manual_seed(0))
    drawn[:, :SHARED] = drawn[0, :SHARED]
    mask = columns < torch.tensor(LENGTHS)[:, None]
    labels = drawn.masked_fill(~mask | (columns < SHARED + 1), IGNORED)
    labels[1, 1:] = drawn[1, 1:].masked_fill(~mask[1, 1:], IGNORED)  # a loss on a token that others share
    return {"input_ids": drawn * mask, "attention_mask": mask.long(), "labels": labels}
