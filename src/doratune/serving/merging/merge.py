"""Merges an adapter into its base on the disk, and compares the result with base and adapter."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from doratune.environment import describe_environment
from doratune.errors import DoratuneError, InputError
from doratune.memory import give_freed_memory_back
from doratune.models.on_disk import open_model
from doratune.records.files import write_json_atomic, write_text_atomic
from doratune.records.folders import refuse_output
from doratune.records.layout import MERGE_NAME
from doratune.records.serving import LogitCheck, MergeRecord
from doratune.serving.adapted import AdaptedBase, AdaptedLayer, hollow, open_adapted
from doratune.serving.check import (
    Logits,
    compare_logits,
    filled,
    fits_whole,
    logits_of,
    predictions,
    recorded,
    rows_for,
)
from doratune.serving.files import refuse_taken, stage
from doratune.serving.merged_weights import MergedWeights
from doratune.serving.merging.card import merged_card
from doratune.serving.merging.config import MergeConfig
from doratune.serving.model_folder import Plan, plan_model, write_settings, write_weights
from doratune.serving.rounding import ALLOWED, moved
from doratune.training.card import CARD_NAME

BLOCK_BYTES = 1 << 20
"""From this size on a freed tensor leaves the memory. Kept, such blocks doubled what a merge took."""


def merge(config: MergeConfig) -> MergeRecord:
    """Merge a run's adapter into its base, and check the result.

    Args:
        config: What to merge.

    Returns:
        The record, which is also in the folder, as merge.json. If ``usable`` is false, the folder has another
        name, and a README that says why.

    Raises:
        InputError: The adapter, the base or the output cannot be used. Nothing has been written.
    """
    began = time.monotonic()
    give_freed_memory_back(BLOCK_BYTES)
    _refuse_several(config)
    refuse_output(config.output)
    refuse_taken(config.output)
    opened = open_adapted(
        config.run[0],
        base=config.base,
        allow_other_base=config.allow_other_base,
        dequantised=config.dequantised,
        trust_remote_code=config.trust_remote_code,
    )
    rows = rows_for(opened, config.check_data)
    weights = MergedWeights(opened)
    plan = plan_model(opened.base, weights.changed, weights.untied, _dtype(config, opened))
    with stage(config.output, size=plan.size) as place:
        files = write_weights(plan, opened.files, place.folder, weights.rounded)
        write_settings(
            opened.base,
            place.folder,
            adapter=opened.adapter,
            dtype=plan.main_dtype,
            untied=bool(weights.untied),
            trust_remote_code=config.trust_remote_code,
        )
        check, noise, difference = _check(config, opened, plan, place.folder, rows)
        record = MergeRecord(
            target=config.run[0],
            base=opened.base_record,
            other_base=opened.other_base is not None,
            dequantised=config.dequantised,
            weights_checksum=opened.checksum,
            layers=_layers(opened.layers()),
            replaced=sorted(opened.replaced()),
            untied=sorted(weights.untied),
            dtype=plan.dtype(weights.changed),
            files=files,
            rounding=weights.rounding(),
            base_difference=difference,
            check=check,
            noise=noise,
            allowed=ALLOWED * noise.mean,
            usable=check.mean <= ALLOWED * noise.mean,
            output=str(config.output),
            seconds=time.monotonic() - began,
            environment=describe_environment(),
        )
        if record.usable:
            write_text_atomic(place.folder / CARD_NAME, merged_card(record, opened.record))
        else:
            place.mark_unusable(unusable(record).message)
            record = record.model_copy(update={"output": str(place.output)})
        write_json_atomic(place.folder / MERGE_NAME, record.to_dict())
    return record


def unusable(record: MergeRecord) -> DoratuneError:
    """The error for a merged model that is too far from base and adapter."""
    check = record.check
    return DoratuneError(
        "the merged model is further from base and adapter than rounding explains",
        where=record.output,
        got=f"log-probabilities that differ by {check.mean:.3g} on average, {check.largest:.3g} at most",
        expected=f"at most {record.allowed:.3g} on average, {ALLOWED:g} times what rounding to "
        f"{record.dtype} does",
        fix="do not use the folder; merge with --dtype float32, or in memory with PEFT's merge_and_unload",
    )


def _refuse_several(config: MergeConfig) -> None:
    if len(config.run) > 1 or config.weights is not None:
        raise InputError(
            "several runs cannot be merged together",
            where=" ".join(config.run),
            expected="one run: PEFT's add_weighted_adapter leaves DoRA's magnitudes out without a word",
            fix="merge each run by itself",
        )


def _dtype(config: MergeConfig, opened: AdaptedBase) -> torch.dtype | None:
    """The type to write; None: that of the base's files."""
    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    # Dequantised weights have the type that they were quantised from.
    return None if opened.dequantised is None else opened.dequantised.dtype


def _check(
    config: MergeConfig, opened: AdaptedBase, plan: Plan, folder: Path, rows: Sequence[Tensor]
) -> tuple[LogitCheck, LogitCheck, LogitCheck | None]:
    """Compare the folder with base and adapter, all in float32.

    Returns:
        The comparison; that of the folder's model with itself, its weights moved by as much as rounding moved
        them; and, of a run in 4 bits, that of the adapter on its two bases.
    """
    trust, before, difference = config.trust_remote_code, predictions(opened, rows), None
    if other := opened.with_other_base(trust_remote_code=trust):
        there = predictions(other, rows)
        full, seen = (before, there) if opened.dequantised is None else (there, before)
        difference = compare_logits(full, seen, rows)
    types = plan.rounded_types(opened.files, opened.base.parameters)
    after, again = (_read_whole if fits_whole(opened) else _read_by_block)(folder, types, rows, trust)
    return compare_logits(before, after, rows), compare_logits(after, again, rows), difference


Types = Mapping[str, torch.dtype]
"""The types of the parameters that were rounded."""


def _read_whole(folder: Path, types: Types, rows: Sequence[Tensor], trust: bool) -> tuple[Logits, Logits]:
    """The written model's logits in float32, as it is and with its weights moved by a rounding."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trust)
    after = recorded(logits_of(model.eval()), rows)
    for name, parameter in model.named_parameters():
        parameter.data = moved(parameter.data, types.get(name), name)
    return after, recorded(logits_of(model), rows)


def _read_by_block(folder: Path, types: Types, rows: Sequence[Tensor], trust: bool) -> tuple[Logits, Logits]:
    """The same with one block of the model in memory at a time."""
    written = open_model(str(folder), trust_remote_code=trust)
    hollow(written.model)

    def weight(name: str) -> Tensor:
        return written.files.rows(written.tied.get(name, name))

    def moved_weight(name: str) -> Tensor:
        name = written.tied.get(name, name)
        return moved(weight(name), types.get(name), name)

    logits = logits_of(written.model)
    with filled(written.model, weight):
        after = recorded(logits, rows)
    with filled(written.model, moved_weight):
        return after, recorded(logits, rows)


def _layers(layers: Sequence[AdaptedLayer]) -> dict[str, int]:
    """How many layers are merged, by method and kind."""

    def kind(one: AdaptedLayer) -> str:
        if one.kind == "tokens":
            return "single tokens"
        return f"{'DoRA' if one.is_dora else 'LoRA'} {one.kind}"

    return dict(sorted(Counter(map(kind, layers)).items()))
