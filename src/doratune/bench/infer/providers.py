"""The providers: ways to generate with a base model and an adapter, which share the base's frozen weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from doratune.bench._internals import DoraCaching
from doratune.peft import enable, parameter_kind
from doratune.records.bench import InferCase
from doratune.training.config import LLAMA_TARGETS

Method = Literal["none", "lora", "dora"]

UP, MAGNITUDE = 0.02, 0.05
"""The standard deviations of B and of the relative change of m: the adapter changes the model's output."""


@dataclass(frozen=True)
class Provider:
    """A way to generate.

    Attributes:
        name: Its name in tables and records.
        method: The kind of adapter.
        engine: Whether ``doratune.enable`` is called on the PEFT model.
        merged: Whether the adapter is merged into a copy of the base weights.
        cached: Whether PEFT keeps each layer's update and norm (``DoraCaching``).
        like: The provider whose logits it must have; None if it is not checked.
    """

    name: str
    method: Method
    engine: bool = False
    merged: bool = False
    cached: bool = False
    like: str | None = None


PROVIDERS = (
    Provider("base", "none"),
    Provider("merged", "dora", merged=True, like="peft-dora"),
    Provider("peft-lora", "lora"),
    Provider("peft-dora", "dora"),
    Provider("peft-dora-cache", "dora", cached=True, like="peft-dora"),
    Provider("doratune-lora", "lora", engine=True, like="peft-lora"),
    Provider("doratune-dora", "dora", engine=True, like="peft-dora"),
)


class Writer:
    """A provider's model, ready to generate.

    Args:
        provider: How it computes.
        model: Its model.
        case: What is generated.
        prompts: (batch, prompt_tokens).
    """

    def __init__(self, provider: Provider, model: Any, case: InferCase, prompts: Tensor) -> None:
        self.provider = provider
        self.model = model
        self._case, self._prompts = case, prompts

    @property
    def adapter_bytes(self) -> int:
        """The size of the adapter's parameters."""
        return _bytes(lambda name: ".lora_" in name, self.model)

    def generate(self, **how: Any) -> Any:
        """One call of ``generate``; ``how`` adds or replaces arguments."""
        caching: AbstractContextManager[Any] = DoraCaching() if self.provider.cached else nullcontext()
        count = self._case.new_tokens
        settings = {
            "input_ids": self._prompts,
            "attention_mask": torch.ones_like(self._prompts),
            "do_sample": False,
            "max_new_tokens": count,
            "min_new_tokens": count,
            "pad_token_id": 0,
        }
        with caching:
            return self.model.generate(**{**settings, **how})


def build(provider: Provider, base: PreTrainedModel, case: InferCase, prompts: Tensor) -> Writer:
    """A provider's model over ``base``, whose weights it shares unless it merges.

    Raises:
        InputError: The engine cannot compute the model's layers.
    """
    shared = {} if provider.merged else {id(one): one for one in (*base.parameters(), *base.buffers())}
    model: Any = copy.deepcopy(base, shared)  # pyright: ignore[reportArgumentType]
    if provider.method == "none":
        return Writer(provider, model, case, prompts)
    settings = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=case.rank,
        lora_alpha=case.alpha,
        lora_dropout=0.0,
        target_modules=list(LLAMA_TARGETS),
        use_dora=provider.method == "dora",
    )
    model = get_peft_model(model, settings)
    _draw_adapter(model)
    model.requires_grad_(False).eval()  # as PEFT loads an adapter
    if provider.merged:
        model = model.merge_and_unload()
    if provider.engine:
        enable(model)
    return Writer(provider, model, case, prompts)


def base_bytes(base: nn.Module) -> int:
    """The size of a model's parameters and buffers."""
    return _bytes(lambda _: True, base) + sum(one.nbytes for one in base.buffers())


@torch.no_grad()
def _draw_adapter(model: nn.Module) -> None:
    """Draw A and B, and change m, from a fixed seed: the same for every provider."""
    draw = torch.Generator().manual_seed(0)
    for name, one in model.named_parameters():
        kind = parameter_kind(name) if ".lora_" in name else "W"
        if kind in "AB":
            scale = UP if kind == "B" else one.shape[1] ** -0.5
            one.copy_(scale * torch.randn(one.shape, generator=draw))
    for name, one in model.named_parameters():
        if ".lora_" in name and parameter_kind(name) == "m":
            one.mul_((1 + MAGNITUDE * torch.randn(one.shape, generator=draw)).to(one.device))


def _bytes(chosen: Callable[[str], bool], model: nn.Module) -> int:
    return sum(one.nbytes for name, one in model.named_parameters() if chosen(name))
