"""A trained adapter on a base model that stays on the disk: its layers are computed one at a time."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from doratune.errors import InputError, first_of
from doratune.evaluation.base import Asked, base_name, loading_base, other_base, trained_checksum, trained_on
from doratune.evaluation.found import Found, find_trained
from doratune.finite import is_finite
from doratune.models.fingerprint import model_record
from doratune.models.on_disk import ModelOnDisk, open_model
from doratune.models.weights import WeightFiles
from doratune.peft import merge_layer
from doratune.peft.adapter_file import read_lora_config
from doratune.peft.load import load_adapter
from doratune.peft.merge_layer import Kind
from doratune.records.run import ModelRecord, RunRecord
from doratune.serving.dequantised import Dequantised

UNMERGEABLE = ("layer_replication", "kasa_config")
"""Settings of PEFT whose model cannot be written with the base's own parameters."""


@dataclass(frozen=True)
class AdaptedLayer:
    """One adapted layer of a model.

    Attributes:
        name: The layer's name in the base model, such as model.layers.0.self_attn.q_proj.
        kind: What it is; ``tokens`` is an embedding of which the adapter brings some rows.
        layer: PEFT's layer, whose base weight has no content.
    """

    name: str
    kind: Kind
    layer: Any
    _base: AdaptedBase = field(repr=False)

    @property
    def parameter(self) -> str:
        """The name of its weight in the base model."""
        return f"{self.name}.weight"

    @property
    def rank(self) -> int:
        """The adapter's rank; 0 for single rows of an embedding."""
        return 0 if self.kind == "tokens" else merge_layer.rank(self.layer)

    @property
    def is_dora(self) -> bool:
        """Whether the adapter has magnitudes."""
        return self.kind != "tokens" and merge_layer.is_dora(self.layer)

    @property
    def is_plain(self) -> bool:
        """Whether it is a linear layer with LoRA or DoRA as in the papers: ``factors`` and ``gain`` hold."""
        return self.kind == "linear" and merge_layer.is_plain(self.layer)

    @property
    def is_transposed(self) -> bool:
        """Whether the weight is stored as (d_in, d_out)."""
        return self.kind == "linear" and merge_layer.is_transposed(self.layer)

    @property
    def bias(self) -> str | None:
        """The name of the base's bias, if the adapter adds to it."""
        return f"{self.name}.bias" if merge_layer.has_bias(self.layer) else None

    def weight(self) -> Tensor:
        """W of the base model, float32, as the files store it."""
        return self._base.weight(self.parameter).float()

    def initialised(self, W: Tensor) -> Tensor:
        """The weight that training started from: some initialisations (PiSSA, OLoRA, LoftQ) change W.

        The result is float32 where they do, and otherwise ``W``.
        """
        return merge_layer.initialised(self.layer, W, self._base.config, self._base.trained_dtype)

    def merged(self, W: Tensor) -> Tensor:
        """The weight with the adapter merged into it, float32, by PEFT's own code for this layer.

        Args:
            W: The base model's weight; it is left as it is.

        Raises:
            InputError: The result is not finite.
        """
        result = torch.empty(W.shape)
        for place, part in self.merged_parts(W):
            result[place] = part
        return result

    def merged_parts(self, W: Tensor) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """The same part by part, with the place of each part in the weight.

        Args:
            W: The base model's weight, of any type; it is left as it is.

        Raises:
            InputError: The result is not finite.
        """
        for place, part in merge_layer.merged_parts(self.layer, self.initialised(W)):
            if not is_finite(part):
                raise InputError(
                    "a merged weight is not finite",
                    where=str(self._base.adapter),
                    got=self.parameter,
                    fix="its training diverged: take an earlier checkpoint, or train with a lower learning "
                    "rate",
                )
            yield place, part

    def merged_bias(self, bias: Tensor) -> Tensor:
        """The base's bias, float32, with what the adapter adds."""
        return merge_layer.merged_bias(self.layer, bias)

    def factors(self) -> tuple[Tensor, Tensor, float]:
        """A (r, d_in) and B (d_out, r), float32, and s; only of a layer that ``is_plain``."""
        return merge_layer.factors(self.layer)

    def gain(self, W: Tensor) -> Tensor | None:
        """The gain g = m / ‖W + s·B·A‖, (d_out,), float32; None for LoRA. Only of a layer that ``is_plain``.

        Args:
            W: The weight that training started from (``initialised``), float32.
        """
        return merge_layer.gain(self.layer, W)


@dataclass(frozen=True)
class AdaptedBase:
    """A base model's files with an adapter.

    Attributes:
        target: What the user named.
        found: Its folders.
        base: The base model, without content.
        model: The base model with the adapter. The adapter's tensors are there; the base's weights are not.
        config: The adapter's configuration.
        base_record: The base model, as a run's record describes one.
        checksum: The checksum of the adapter's weights.
        other_base: The base model, if it is another than was trained on.
        dequantised: The 4-bit weights that training saw, if they are to take the place of the base's.
        trained_dtype: The type of the base in training, float32 if nothing says it.
    """

    target: str
    found: Found
    base: ModelOnDisk
    model: PeftModel
    config: LoraConfig
    base_record: ModelRecord
    checksum: str
    other_base: ModelRecord | None
    dequantised: Dequantised | None
    trained_dtype: torch.dtype
    _own: dict[str, Tensor]
    _replaced: dict[str, Tensor]

    @property
    def files(self) -> WeightFiles:
        """The base model's files."""
        return self.base.files

    @property
    def record(self) -> RunRecord | None:
        """The run's record; None for a plain adapter."""
        return self.found.record

    @property
    def adapter(self) -> Path:
        """The adapter's folder."""
        assert self.found.adapter is not None
        return self.found.adapter

    @property
    def tied(self) -> dict[str, str]:
        """Parameters that are another one in the base model, such as lm_head.weight, by that one's name."""
        return self.base.tied

    def layers(self) -> list[AdaptedLayer]:
        """The adapted layers in the model's order."""
        found = []
        for name, layer in merge_layer.tuner_layers(self.model):
            kind = merge_layer.layer_kind(layer)
            assert kind is not None, "open_adapted refuses others"
            found.append(AdaptedLayer(name, kind, layer, self))
        return found

    def replaced(self) -> dict[str, Tensor]:
        """What the adapter brings in place of the base's: ``modules_to_save``, trained biases, embeddings.

        Returns:
            The tensors in the adapter's type, by the base's names of the parameters.
        """
        return dict(self._replaced)

    def weight(self, name: str) -> Tensor:
        """A parameter of the base model that the adapter was trained on, in the type of its file.

        PEFT can save a whole embedding with an adapter; it then takes the place of the base's.
        """
        name = self.tied.get(name, name)
        own = self._own.get(name)
        values = self.files.rows(name) if own is None else own
        return values if self.dequantised is None else self.dequantised(name, values)

    def with_other_base(self, *, trust_remote_code: bool = False) -> AdaptedBase | None:
        """Of a run in 4 bits, the same on its other base: in full precision, or dequantised.

        Returns:
            The same model with other base weights; None for any other run.

        Raises:
            InputError: bitsandbytes is not installed.
        """
        if self.dequantised is not None:
            return replace(self, dequantised=None)
        if self.record is None or not self.record.config.get("load_in_4bit"):
            return None
        return replace(self, dequantised=_seen(self.base, self.record, trust_remote_code))

    def trained_weight(self, name: str) -> Tensor:
        """A parameter as training saw it, float32: ``weight``, changed by the adapter's initialisation."""
        values, layer = self.weight(name).float(), self._by_parameter.get(name)
        return values if layer is None else layer.initialised(values)

    @cached_property
    def _by_parameter(self) -> dict[str, AdaptedLayer]:
        return {one.parameter: one for one in self.layers()}


def open_adapted(
    target: str,
    *,
    base: str | None = None,
    allow_other_base: bool = False,
    dequantised: bool | None = False,
    command: str = "doratune merge",
    trust_remote_code: bool = False,
) -> AdaptedBase:
    """Open a run or adapter, with its base model on the disk.

    Args:
        target: A run directory, or the folder of a PEFT adapter.
        base: The base model, if it is not where the run or the adapter says.
        allow_other_base: Take a base model with other weights than were trained on.
        dequantised: Of a run in 4 bits, take the weights that training saw in place of the base's; None: the
            command cannot.
        command: How the command begins, for messages.
        trust_remote_code: Let a hub model run its own code.

    Returns:
        The adapter on its base. The base's files have been read once: they are the ones that were trained
        on, and finite.

    Raises:
        InputError: There is no such run or adapter, its weights have changed, its base is another, or it has
            parts that cannot be told from the base model's parameters.
    """
    asked = Asked(target, base, allow_other_base, command=command, flag="--base", does="used")
    found = find_trained(target)
    if found.adapter is None:
        raise _no_adapter(found, asked)
    _refuse_unnamed_base(found, asked, dequantised)
    checksum = trained_checksum(found)
    assert checksum is not None
    config = read_lora_config(found.adapter)
    _refuse_settings(config, found.adapter)
    name = base_name(found, asked)
    with loading_base(name, found, asked):
        opened = open_model(name, trust_remote_code=trust_remote_code, where=asked.flag)
    loaded = model_record(opened.loaded, opened.files)
    trained = trained_on(found, loaded, asked)
    other = other_base(trained, loaded, asked)
    # an adapter that gives only the name of its base does not say in which type it was trained
    dtype = torch.float32 if trained is loaded else getattr(torch, trained.dtype)
    placeholder = hollow(opened.model)
    model = load_adapter(opened.model, found.adapter, hollow=True, flag=asked.flag).eval()
    _refuse_layers(model, found.adapter)
    merge_layer.to_float32(model)
    own, replaced = _brought(model, opened, placeholder)
    seen = _seen(opened, found.record, trust_remote_code) if dequantised and found.record else None
    return AdaptedBase(
        target, found, opened, model, config, loaded, checksum, other, seen, dtype, own, replaced
    )


def _seen(base: ModelOnDisk, record: RunRecord, trust_remote_code: bool) -> Dequantised:
    """The weights that a run in 4 bits saw."""
    return Dequantised(base, getattr(torch, record.model.dtype), trust_remote_code=trust_remote_code)


def _refuse_unnamed_base(found: Found, asked: Asked, dequantised: bool | None) -> None:
    """A run in 4 bits has two bases: the model in its files, and the weights that training saw."""
    in_4bit = found.record is not None and bool(found.record.config.get("load_in_4bit"))
    if dequantised and not in_4bit:
        raise InputError(
            "only a run that was trained in 4 bits has a dequantised base",
            where="--dequantised",
            got=asked.target,
            fix="leave --dequantised out",
        )
    if in_4bit and not dequantised and asked.base is None:
        assert found.record is not None
        name = shlex.quote(found.record.model.name)
        raise InputError(
            "the run was trained in 4 bits, so it has to be said which base it goes onto",
            where=asked.target,
            expected="the base in full precision"
            + ("" if dequantised is None else ", or the dequantised weights that training saw"),
            fix=f"add {asked.flag} {name}" + ("" if dequantised is None else ", or --dequantised"),
        )


def _no_adapter(found: Found, asked: Asked) -> InputError:
    if found.model is not None:
        return InputError(
            "every weight of this run was trained, so it has no adapter",
            where=asked.target,
            fix=f"its model is a folder that transformers loads as it is: {found.model}",
        )
    if found.record is not None:
        return InputError("this folder holds evaluations of a base model, not an adapter", where=asked.target)
    return InputError(
        "there is no run and no adapter here",
        where=asked.target,
        expected="a run directory, or a folder with adapter_config.json and adapter_model.safetensors",
    )


def _refuse_settings(config: LoraConfig, folder: Path) -> None:
    if used := [key for key in UNMERGEABLE if getattr(config, key, None)]:
        raise InputError(
            "the adapter's model cannot be written with the base's parameters alone",
            where=str(folder),
            got=", ".join(used),
        )


def _refuse_layers(model: PeftModel, folder: Path) -> None:
    """Refuse adapted layers that are not one weight of the base model."""
    layers = list(merge_layer.tuner_layers(model))
    wrong = [
        f"{name} ({type(layer).__name__})" for name, layer in layers if not merge_layer.layer_kind(layer)
    ]
    names = [name for name, _ in layers]
    wrong += [f"{name} (adapted twice)" for name in dict.fromkeys(names) if names.count(name) > 1]
    if wrong:
        raise InputError(
            "the adapter has parts that are not one weight of the base model",
            where=str(folder),
            got=first_of(wrong),
            expected="linear layers, embeddings and convolutions",
        )


def hollow(model: nn.Module) -> Tensor:
    """Give all parameters of a model without content one element, so that they count as being on the CPU.

    PEFT puts an adapter on the device of the layer's base.

    Returns:
        The element.
    """
    element = torch.zeros(())
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in made:
                empty = element.expand(parameter.shape)
                made[id(parameter)] = nn.Parameter(empty, requires_grad=False)
            setattr(module, name, made[id(parameter)])
    return element


def _brought(
    model: PeftModel, base: ModelOnDisk, placeholder: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters of the base that the adapter's file brings.

    Returns:
        Those below adapted layers, and those that take the place of the base's.
    """
    empty = placeholder.untyped_storage().data_ptr()
    adapted = {f"{name}.weight" for name, _ in merge_layer.tuner_layers(model)}
    own, replaced = {}, {}
    for name, parameter in merge_layer.base_parameters(model):
        if parameter.untyped_storage().data_ptr() == empty:
            continue
        name, values = base.tied.get(name, name), parameter.data
        if base.files.rows(name).to(values.dtype).equal(values):
            continue
        own[name] = values
        shared = [name, *(alias for alias, one in base.tied.items() if one == name)]
        replaced |= {one: values for one in shared if one not in adapted}
    for name, module in merge_layer.whole_modules(model):
        replaced |= {f"{name}.{key}": one.data for key, one in module.named_parameters()}
    return own, replaced
