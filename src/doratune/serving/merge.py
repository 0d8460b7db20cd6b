"""Merges an adapter into its base on the disk, and compares the result with base and adapter."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from doratune.environment import describe_environment
from doratune.errors import DoratuneError, InputError
from doratune.memory import available_memory_bytes
from doratune.models.on_disk import open_model
from doratune.peft import enable
from doratune.records.files import write_json_atomic, write_text_atomic
from doratune.records.serving import LogitCheck, MergeRecord
from doratune.serving.adapted import AdaptedBase, AdaptedLayer, hollow, open_adapted
from doratune.serving.card import merged_card
from doratune.serving.check import Logits, check_rows, compare_logits, filled, logits_of, recorded
from doratune.serving.config import MergeConfig
from doratune.serving.files import stage
from doratune.serving.merged_weights import MergedWeights
from doratune.serving.model_folder import Plan, plan_model, write_settings, write_weights
from doratune.serving.rounding import moved_parameters, moved_weight
from doratune.training.card import CARD_NAME

RECORD_NAME = "merge.json"
ALLOWED = 4.0
"""How many times as far the merged model may be from base and adapter as these are from themselves when their
weights move by a rounding."""
MODELS = 3
"""How many models in float32 must fit in the available memory to be held whole for the check."""


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
    _refuse_several(config)
    opened = open_adapted(
        config.run[0],
        base=config.base,
        allow_other_base=config.allow_other_base,
        dequantised=config.dequantised,
        trust_remote_code=config.trust_remote_code,
    )
    rows = check_rows(opened.base.tokenizer, config.check_data)
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
        fits = _fits(opened)
        if not fits:  # each row would read all weights again
            rows = [torch.cat(rows, dim=1)]
        check, noise, difference = _check(config, opened, plan, place.folder, rows, keep=fits)
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
            allowed=ALLOWED,
            usable=check.mean <= ALLOWED * noise.mean and check.largest <= ALLOWED * noise.largest,
            output=str(config.output),
            seconds=time.monotonic() - began,
            environment=describe_environment(),
        )
        if record.usable:
            write_text_atomic(place.folder / CARD_NAME, merged_card(record, opened.record))
        else:
            place.mark_unusable(unusable(record).message)
            record = record.model_copy(update={"output": str(place.output)})
        write_json_atomic(place.folder / RECORD_NAME, record.to_dict())
    return record


def unusable(record: MergeRecord) -> DoratuneError:
    """The error for a merged model that is too far from base and adapter."""
    check, noise = record.check, record.noise
    return DoratuneError(
        "the merged model is further from base and adapter than rounding explains",
        where=record.output,
        got=f"log-probabilities that differ by {check.mean:.3g} on average, {check.largest:.3g} at most",
        expected=f"at most {record.allowed:g} times what rounding to {record.dtype} does, "
        f"{noise.mean:.3g} on average and {noise.largest:.3g} at most",
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


def _fits(opened: AdaptedBase) -> bool:
    """Whether the models that the check compares fit comfortably in memory."""
    available = available_memory_bytes()
    return available is not None and 4 * MODELS * opened.base_record.parameters < available


def _check(
    config: MergeConfig,
    opened: AdaptedBase,
    plan: Plan,
    folder: Path,
    rows: Sequence[Tensor],
    *,
    keep: bool,
) -> tuple[LogitCheck, LogitCheck, LogitCheck | None]:
    """Compare the folder with base and adapter, all in float32.

    Returns:
        The comparison; the same for base and adapter whose weights moved by as much as rounding moves them;
        and, of a run in 4 bits, that of the adapter on its two bases.
    """
    record, trust = opened.record, config.trust_remote_code
    if record is None or record.config.get("engine", "doratune") == "doratune":
        enable(opened.model)
    model, logits = opened.model, logits_of(opened.model)
    with filled(model, opened.trained_weight, keep=keep):
        before = recorded(logits, rows)
    types = plan.rounded_types(opened.files, opened.base.parameters)
    with moved_parameters(model, types), filled(model, moved_weight(opened, types), keep=keep):
        noise = compare_logits(before, logits, rows)
    difference = None
    if other := opened.with_other_base(trust_remote_code=trust):
        with filled(model, other.trained_weight, keep=keep):
            full, seen = (before, logits) if opened.dequantised is None else (logits, before)
            difference = compare_logits(full, seen, rows)
    with _read_back(folder, trust, whole=keep) as after:
        return compare_logits(before, after, rows), noise, difference


@contextmanager
def _read_back(folder: Path, trust_remote_code: bool, *, whole: bool) -> Iterator[Logits]:
    """The logits of the written model, in float32."""
    if whole:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
        yield logits_of(model.eval())
        return
    written = open_model(str(folder), trust_remote_code=trust_remote_code)
    hollow(written.model)

    def weight(name: str) -> Tensor:
        return written.files.rows(written.tied.get(name, name))

    with filled(written.model, weight):
        yield logits_of(written.model)


def _layers(layers: Sequence[AdaptedLayer]) -> dict[str, int]:
    """How many layers are merged, by method and kind."""

    def kind(one: AdaptedLayer) -> str:
        if one.kind == "tokens":
            return "single tokens"
        return f"{'DoRA' if one.is_dora else 'LoRA'} {one.kind}"

    return dict(sorted(Counter(map(kind, layers)).items()))
