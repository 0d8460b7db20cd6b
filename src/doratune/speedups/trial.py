"""A tiny batch through a few of a model's layers: whether another forward pass gives the same loss.

The rows are padded on the right, begin alike and have tokens without a loss, so that everything that a
cheaper forward pass leaves out is there to be left out. The first layer of each class and the last one run,
in evaluation mode; what is compared are the log-probabilities of the supervised tokens and the gradient of
the embedded ones, which comes through every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from doratune.data.encode import IGNORED
from doratune.speedups._internals import attention_implementation
from doratune.speedups.packing import RECORDING, AttentionCall
from doratune.speedups.same import random, unequal

LENGTHS, SHARED = (7, 4, 6), 2
TOKENS = 32
"""How many different ids there are at most."""


class Trial:
    """A model's own outcome on the tiny batch, for others to be compared with.

    Args:
        model: A causal language model with TRL's fused head, on a CPU.

    Raises:
        Exception: Whatever the model raises.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._inputs = _batch(model.config.get_text_config().vocab_size)
        self._wanted = self._outcome(model.forward)

    def difference(self, forward: Callable[..., Any]) -> str | None:
        """How another forward pass differs from the model's own.

        Args:
            forward: Takes what the model's own takes.

        Returns:
            The difference in words, or None where they are equal to rounding.
        """
        try:
            return unequal(self._outcome(forward), self._wanted)
        except Exception as error:  # a model's code raises anything
            return f"ours raises {type(error).__name__} in its place"

    def attention_calls(self) -> list[AttentionCall]:
        """What the layers hand to their attention; none if they do not let arguments through."""
        calls: list[AttentionCall] = []
        with _few_layers(self._model), torch.no_grad():
            self._model.set_attn_implementation(RECORDING)
            try:
                self._model.base_model(input_ids=self._inputs["input_ids"], use_cache=False, calls=calls)
            except TypeError:
                calls.clear()
        return calls

    def _outcome(self, forward: Callable[..., Any]) -> list[Tensor]:
        """Log-probabilities, their entropies, and the gradient of the embedded tokens, summed by token."""
        leaves: list[tuple[Tensor, Tensor]] = []

        def cut(_embedding: nn.Module, args: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
            leaves.append((args[0], embedded.detach().requires_grad_()))
            return leaves[-1][1]

        embedding: Any = self._model.get_input_embeddings()
        handle = embedding.register_forward_hook(cut)
        try:
            with _few_layers(self._model), torch.enable_grad():
                outputs = forward(**self._inputs, use_cache=False, fused_lm_head=True)
                log_probs = outputs.log_probs
                if log_probs.ndim == 2:  # TRL's, of every token
                    log_probs = log_probs[outputs.label_mask]
                slopes = random(len(log_probs)).to(log_probs.dtype)
                (ids, leaf), *_ = leaves
                (gradient,) = torch.autograd.grad(log_probs, leaf, slopes)
        finally:
            handle.remove()
        by_token = gradient.new_zeros(TOKENS, gradient.shape[-1])
        by_token.index_add_(0, ids.flatten(), gradient.flatten(0, 1))
        return [log_probs.detach().to(leaf.dtype), by_token]


def _batch(vocabulary: int) -> dict[str, Tensor]:
    width, columns = max(LENGTHS), torch.arange(max(LENGTHS))
    drawn = torch.randint(1, min(TOKENS, vocabulary), (len(LENGTHS), width), generator=torch.Generator().manual_seed(0))
    drawn[:, :SHARED] = drawn[0, :SHARED]
    mask = columns < torch.tensor(LENGTHS)[:, None]
    labels = drawn.masked_fill(~mask | (columns < SHARED + 1), IGNORED)
    labels[1, 1:] = drawn[1, 1:].masked_fill(~mask[1, 1:], IGNORED)  # a loss on a token that others share
    return {"input_ids": drawn * mask, "attention_mask": mask.long(), "labels": labels}


@contextmanager
def _few_layers(model: PreTrainedModel) -> Iterator[None]:
    """The model with the first layer of each class and the last, in evaluation mode; all is given back."""
    backbone: Any = model.base_model
    name = layers_name(model)
    layers = getattr(backbone, name)
    chosen = {id(layer): layer for layer in {type(layer): layer for layer in reversed(layers)}.values()}
    chosen[id(layers[-1])] = layers[-1]
    training = [module for module in model.modules() if module.training]
    attention = attention_implementation(model)
    setattr(backbone, name, nn.ModuleList(layer for layer in layers if id(layer) in chosen))
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        setattr(backbone, name, layers)
        for module in training:
            module.training = True
        if attention_implementation(model) != attention:
            model.set_attn_implementation(attention)


def layers_name(model: PreTrainedModel) -> str | None:
    """The name of the list of a model's layers in its backbone, or None if there is not one such list."""
    count = model.config.get_text_config().num_hidden_layers
    names = [
        name
        for name, child in model.base_model.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    return names[0] if len(names) == 1 else None
