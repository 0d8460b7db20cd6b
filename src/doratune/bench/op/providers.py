"""The providers: ways to compute one layer, from the frozen layer alone to DoRA on the engine."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from doratune.bench.op.layer_data import DTYPES, SCALING, LayerData
from doratune.errors import DoratuneError, InputError
from doratune.peft import adapter_of, enable
from doratune.peft.quantised import dequantised
from doratune.records.bench import Case, DType

Adapter = Literal["none", "lora", "dora"]


@dataclass(frozen=True)
class Provider:
    """A way to compute a layer.

    Attributes:
        name: Its name in tables and records.
        adapter: The kind of adapter on the frozen weight.
        engine: Whether ``doratune.enable`` is called on the PEFT model.
        base_dtype: Whether A and B have the base's dtype; PEFT makes them float32.
        new_norm: Whether the adapter changes before each call, as after an optimizer step, so that no cached
            norm can be reused.
        lets_go: Whether no later operation saves the output for the backward pass, as when a sum follows the
            layer. Otherwise one does, as when a product follows.
    """

    name: str
    adapter: Adapter
    engine: bool = False
    base_dtype: bool = False
    new_norm: bool = False
    lets_go: bool = False


PROVIDERS = (
    Provider("floor", "none"),
    Provider("peft-lora", "lora", base_dtype=True),
    Provider("peft-dora", "dora"),
    Provider("doratune-lora", "lora", engine=True),
    Provider("doratune-dora", "dora", engine=True),
    Provider("doratune-dora-new-norm", "dora", engine=True, new_norm=True),
    Provider("doratune-dora-let-go", "dora", engine=True, lets_go=True),
)


class UnavailableError(DoratuneError):
    """A provider cannot run a case here."""


class Subject:
    """A provider's layer for one case, ready to be called.

    Args:
        provider: How it is computed.
        layer: The layer, frozen except for the adapter.
        base: The frozen layer, which ``layer`` is or contains.
        adapter: The trained parameters by their names in the equations: A, B and, for DoRA, m.
    """

    def __init__(
        self, provider: Provider, layer: nn.Module, base: nn.Module, adapter: dict[str, nn.Parameter]
    ) -> None:
        self.provider = provider
        self.layer = layer
        self.base = base
        self.adapter = adapter
        self._step = 2.0**-12

    @property
    def adapter_dtype(self) -> DType | None:
        """The name of A's and B's dtype; None without an adapter."""
        if not self.adapter:
            return None
        return next(name for name, dtype in DTYPES.items() if dtype == self.adapter["A"].dtype)

    @property
    def base_weight(self) -> Tensor:
        """The frozen weight that the layer computes with, (d_out, d_in), dequantised."""
        return dequantised(self.base)

    def prepare(self, data: LayerData) -> None:
        """Prepare a call, outside the measured time: clear gradients, and change the adapter if asked to."""
        data.x.grad = None
        for parameter in self.adapter.values():
            parameter.grad = None
        if self.provider.new_norm:
            with torch.no_grad():
                for parameter in self.adapter.values():
                    parameter.add_(self._step)
            self._step = -self._step  # there and back, so that the values stay close to those checked

    def call(self, data: LayerData) -> None:
        """Run forward and backward once; this call is measured."""
        if self.provider.lets_go:
            torch.autograd.backward(get_gradient_edge(self.layer(data.x)), data.dy)
        else:
            self.layer(data.x).backward(data.dy)


def build(provider: Provider, case: Case, data: LayerData) -> Subject:
    """A provider's layer with its own copy of the weights in ``data``.

    Raises:
        UnavailableError: The provider cannot run the case: a package is missing, or the engine does not
            support the layer.
    """
    base = _base_layer(case, data)
    if provider.adapter == "none":
        base.requires_grad_(False)
        return Subject(provider, base, base, {})
    model = _peft_model(base, case, dora=provider.adapter == "dora")
    layer = model.get_submodule("base_model.model.linear")
    adapter = adapter_of(layer)
    if provider.base_dtype:
        for parameter in adapter.values():
            parameter.data = parameter.data.to(DTYPES[case.dtype])
    set_adapter(adapter, data)
    if provider.engine:
        _enable(model)
    return Subject(provider, layer, base, adapter)


def set_adapter(adapter: Mapping[str, Tensor], data: LayerData) -> None:
    """Write the adapter of ``data`` into a layer's parameters, in place."""
    with torch.no_grad():
        for name, parameter in adapter.items():
            parameter.copy_(getattr(data, name))


class _OneLayer(nn.Module):
    """The smallest model that PEFT can adapt."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear


def _base_layer(case: Case, data: LayerData) -> nn.Module:
    if case.base == "dense":
        linear = nn.Linear(case.d_in, case.d_out, bias=False, device="meta")
        linear.weight = nn.Parameter(data.W.clone())
        return linear
    try:
        from bitsandbytes.nn.modules import Linear4bit, Params4bit
    except ImportError:
        raise UnavailableError("bitsandbytes is not installed (pip install 'doratune[bnb]')") from None
    dtype = DTYPES[case.dtype]
    quantised = Linear4bit(
        case.d_in, case.d_out, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
    )
    weight: Any = Params4bit  # its signature is that of __new__, which type checkers do not read
    quantised.weight = weight(data.W.clone(), requires_grad=False, quant_type="nf4", module=quantised)
    return quantised.to(data.W.device)  # quantises


def _peft_model(base: nn.Module, case: Case, *, dora: bool) -> PeftModel:
    config = LoraConfig(
        r=case.rank,
        lora_alpha=int(SCALING * case.rank),
        lora_dropout=0.0,
        use_dora=dora,
        target_modules=["linear"],
        init_lora_weights=False,
    )
    model: Any = _OneLayer(base)
    model.is_loaded_in_4bit = case.base == "bnb-4bit"  # the attribute by which PEFT chooses its layer
    return get_peft_model(model, config)  # pyright: ignore[reportReturnType]


def _enable(model: PeftModel) -> None:
    with _unlogged():
        try:
            report = enable(model)
        except InputError as error:
            raise UnavailableError(f"doratune.enable: {error.what}") from None
    if not report.taken:
        raise UnavailableError(f"doratune.enable: {', '.join(why for _, why in report.left)}")


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep ``enable`` from logging about these layers, which are not part of a user's model."""
    logger = logging.getLogger("doratune.peft")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
