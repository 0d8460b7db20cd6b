"""``doratune convert --exact``: DoRA's gain in the base's weights, and an ordinary LoRA on that base.

DoRA's weight g ⊙ (W + s·B·A) is W' + s·B'·A with W' = g ⊙ W and B' = g ⊙ B. Nothing is left out, but the base
belongs to this adapter.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from doratune.environment import describe_environment
from doratune.errors import DoratuneError, InputError, first_of
from doratune.evaluation.config import EvalConfig
from doratune.models.fingerprint import model_record
from doratune.models.names import FOLDER_SOURCE
from doratune.models.on_disk import open_model
from doratune.peft.adapter_file import read_adapter_tensors
from doratune.peft.merge_layer import PREFIX
from doratune.records.adapter_folder import LORA_FACTORS
from doratune.records.files import write_json_atomic
from doratune.records.layout import ADAPTER_NAME, CONVERT_NAME
from doratune.records.serving import ConvertRecord, LogitCheck
from doratune.serving.adapted import AdaptedBase, AdaptedLayer, open_adapted
from doratune.serving.check import (
    Logits,
    compare_logits,
    filled,
    fits_whole,
    logits_of,
    predictions,
    recorded,
)
from doratune.serving.converting.card import write_card
from doratune.serving.converting.config import ConvertConfig
from doratune.serving.converting.cost import accuracies
from doratune.serving.converting.lora_folder import carried, short_targets, source_notes, write_lora
from doratune.serving.converting.zeros import notes_on_zeros, of_zeros, unadapted
from doratune.serving.files import stage
from doratune.serving.model_folder import plan_model, rounded, write_settings, write_weights
from doratune.serving.rounding import ALLOWED, moved

BASE_NAME = "base"
"""The folder of the base in the output; the adapter's is ``ADAPTER_NAME``."""


def convert_exactly(
    config: ConvertConfig, source: AdaptedBase, rows: Sequence[Tensor], evaluation: EvalConfig | None
) -> ConvertRecord:
    """Write a base with the gains in its weights and the LoRA that goes with it.

    Args:
        config: The settings.
        source: The adapter on its base.
        rows: What the two are compared on.
        evaluation: The evaluation of the source; None without tasks.

    Raises:
        InputError: The adapter has no gains, or layers whose gain is not one of a weight's rows.
        DoratuneError: The result differs from the adapter by more than rounding.
    """
    layers = _folded(source)
    tied = [name for name in layers if name in source.tied]
    dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
    plan = plan_model(source.base, layers, tied, dtype)
    zeros = _unadapted(source, layers.values())
    with stage(config.output, size=plan.size + _adapter_size(source, zeros)) as staged:
        base, adapter = staged.folder / BASE_NAME, staged.folder / ADAPTER_NAME
        base.mkdir()
        adapter.mkdir()
        gains: dict[str, Tensor] = {}

        def value(name: str, dtype: torch.dtype) -> Tensor:
            W = layers[name].initialised(layers[name].weight())
            gain = gains[layers[name].name] = _gain(layers[name], W, source)
            return rounded(W.mul_(gain if layers[name].is_transposed else gain[:, None]), dtype, name)

        write_weights(plan, source.files, base, value)
        write_settings(
            source.base,
            base,
            adapter=source.adapter,
            dtype=plan.main_dtype,
            untied=bool(tied),
            trust_remote_code=False,
        )
        _write_adapter(source, adapter, base, gains, zeros, named=str(config.output / BASE_NAME))
        types = plan.rounded_types(source.files, source.base.parameters)
        check, noise = _compared(predictions(source, rows), adapter, base, types, rows)
        if check.mean > ALLOWED * noise.mean:
            raise DoratuneError(
                "the conversion is further from the adapter than rounding explains",
                where=config.target,
                got=f"log-probabilities that differ by {check.mean:.3g} on average",
                expected=f"at most {ALLOWED:g} times what rounding to {plan.dtype(layers)} does, "
                f"{noise.mean:.3g}",
                fix="convert with --dtype float32, or with --rank",
            )
        notes = source_notes(source)
        notes += [f"{name} is no longer shared with {source.tied[name]}" for name in tied]
        notes += notes_on_zeros(zeros)
        record = ConvertRecord(
            source=config.target,
            method="dora",
            base=source.base_record,
            weights_checksum=source.checksum,
            rank=None,
            source_rank=max(one.rank for one in layers.values()),
            left_out=0.0,
            least=0.0,
            layers=[],
            tried=[],
            max_kl=None,
            check=check,
            noise=noise,
            tasks=accuracies(evaluation, adapter, base=base),
            notes=notes,
            environment=describe_environment(),
        )
        write_json_atomic(staged.folder / CONVERT_NAME, record.to_dict())
        write_card(staged.folder, record, source.record)
    return record


def _folded(source: AdaptedBase) -> dict[str, AdaptedLayer]:
    """The layers whose gain is folded, by their parameter."""
    where = str(source.adapter)
    if not source.config.use_dora:
        raise InputError(
            "the adapter is LoRA, which has no magnitudes to fold",
            where=where,
            fix="serve it as it is, or convert it to another rank with --rank",
        )
    layers = [one for one in source.layers() if one.kind != "tokens"]
    if other := [f"{one.name} ({one.kind})" for one in layers if not (one.is_plain and one.is_dora)]:
        raise InputError(
            "the gain of some layers cannot be folded into the base",
            where=where,
            got=first_of(other),
            expected="linear layers with DoRA",
            fix="convert with --rank, or merge: doratune merge",
        )
    shared = [one.parameter for one in layers if one.parameter in source.tied.values()]
    if shared:
        raise InputError(
            "an adapted weight is also another module's, which would change too",
            where=where,
            got=first_of(shared),
            fix="convert with --rank, or merge: doratune merge",
        )
    return {one.parameter: one for one in layers}


def _compared(
    before: Logits, adapter: Path, base: Path, types: Mapping[str, torch.dtype], rows: Sequence[Tensor]
) -> tuple[LogitCheck, LogitCheck]:
    """Compare the conversion with its source, and with itself when its base's weights move by a rounding.

    Args:
        before: The predictions of the source.
        adapter: The folder of the LoRA.
        base: The folder of its base.
        types: The types of the base's parameters that were rounded.
        rows: What they are compared on.
    """
    written = open_adapted(str(adapter), base=str(base), command="doratune convert", dequantised=None)
    keep, logits = fits_whole(written), logits_of(written.model)
    with filled(written.model, written.trained_weight, keep=keep):
        after = recorded(logits, rows)

    def moved_weight(name: str) -> Tensor:
        return moved(written.trained_weight(name), types.get(name), name)

    with filled(written.model, moved_weight, keep=keep):
        noise = compare_logits(after, logits, rows)
    return compare_logits(before, after, rows), noise


def _gain(layer: AdaptedLayer, W: Tensor, source: AdaptedBase) -> Tensor:
    gain = layer.gain(W)
    assert gain is not None
    if not gain.isfinite().all():
        raise InputError(
            "a gain is not finite",
            where=str(source.adapter),
            got=layer.name,
            fix="its training diverged: take an earlier checkpoint, or train with a lower learning rate",
        )
    return gain


def _write_adapter(
    source: AdaptedBase,
    folder: Path,
    base: Path,
    gains: Mapping[str, Tensor],
    zeros: Mapping[str, tuple[int, int]],
    *,
    named: str,
) -> None:
    """Write the LoRA with B' = g ⊙ B.

    Args:
        source: The adapter.
        folder: Where.
        base: The folder of the new base.
        gains: g of each layer.
        zeros: d_out and d_in of each layer that gets a LoRA of zeros.
        named: What the base's folder will be called.
    """
    tensors = carried(read_adapter_tensors(source.adapter))
    for layer in source.layers():
        if layer.kind == "tokens":
            continue
        # PEFT saves an adapted head's own weight too, which the new base has.
        for own in ("weight", "base_layer.weight"):
            tensors.pop(f"{PREFIX}{layer.name}.{own}", None)
        A, B, _ = layer.factors()
        factors = A, gains[layer.name][:, None] * B
        tensors |= {
            f"{PREFIX}{layer.name}.{part}": one for part, one in zip(LORA_FACTORS, factors, strict=True)
        }
    config = copy.copy(source.config)
    if zeros:
        names = [one.name for one in source.layers() if one.kind != "tokens"]
        tensors |= of_zeros(zeros, config.r)
        config.target_modules = short_targets(source.base.model, [*names, *zeros])
        config.layers_to_transform = config.layers_pattern = config.exclude_modules = None
    config.use_dora = False
    config.init_lora_weights = True  # what it changed is in the new base
    config.inference_mode = True
    config.base_model_name_or_path = named
    config.revision = None
    opened = open_model(str(base))
    record = model_record(opened.loaded, opened.files).model_copy(
        update={"name": named, "source": f"{FOLDER_SOURCE}{named}"}
    )
    write_lora(folder, config, tensors, source=source, base=record)


def _unadapted(source: AdaptedBase, layers: Iterable[AdaptedLayer]) -> dict[str, tuple[int, int]]:
    """The layers that get a LoRA of zeros for SGLang; none with several ranks, which it refuses anyway."""
    if source.config.rank_pattern:
        return {}
    return unadapted(source.base.model, (one.name for one in layers))


def _adapter_size(source: AdaptedBase, zeros: Mapping[str, tuple[int, int]]) -> int:
    """The bytes of A and B in float32."""
    shapes = [(one.rank, one.layer.get_base_layer().weight.shape) for one in source.layers()]
    shapes += [(source.config.r, shape) for shape in zeros.values()]
    return sum(4 * rank * sum(shape) for rank, shape in shapes)
