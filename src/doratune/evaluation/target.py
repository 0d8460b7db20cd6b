"""Finds and loads the run, adapter or base model to evaluate."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from doratune.data.text import builtin_text
from doratune.environment import describe_environment
from doratune.errors import InputError, first_of
from doratune.evaluation.base import Asked, base_name, loading_base, other_base, trained_checksum, trained_on
from doratune.evaluation.config import EvalConfig
from doratune.evaluation.found import Found, output_folder
from doratune.evaluation.merge import merge, merge_obstacle
from doratune.evaluation.text_loss import text_loss
from doratune.finite import is_finite
from doratune.models.fingerprint import model_record
from doratune.models.load import LoadedModel, load_model, on_cpu
from doratune.peft import adapter_parameters, dora_norms, enable, has_lora, uses_dora
from doratune.peft.adapter_file import read_adapter_config
from doratune.peft.load import changes_base, load_adapter
from doratune.records.adapter_folder import read_adapter_settings
from doratune.records.run import (
    ModelRecord,
    ParameterCount,
    RunRecord,
    ScoredRecord,
    ScoredWeights,
    SpeedupRecord,
    TextLoss,
)
from doratune.speedups import speed_up

logger = logging.getLogger(__name__)

TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Question: is the sky blue on a clear day? Answer: yes, it is.",
    "def add(a, b):\n    return a + b\n",
)
"""Texts to check a merged model with, if there are no rows."""


@dataclass(frozen=True)
class Target:
    """A model with its adapter, if any.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        record: The record that evaluations are added to.
        output: The folder of that record.
        scored: Its weights and type, for the record of each evaluation.
        speedups: The speedups in the model.
        apart: Why an adapter was not merged; None if it was, or if there is none.
        other_base: The base model, if it is not the one in the record.
        text: How well it predicts the built-in text; None if that was not asked for.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    record: RunRecord
    output: Path
    scored: ScoredRecord
    speedups: tuple[SpeedupRecord, ...] = ()
    apart: str | None = None
    other_base: ModelRecord | None = None
    text: TextLoss | None = None


def load_target(config: EvalConfig, found: Found, texts: Sequence[str] = TEXTS) -> Target:
    """Load the model or adapter that ``config.target`` names.

    An adapter is merged into a float32 base, which is exact to rounding and makes evaluation as fast as
    the base. It is kept apart from a base in lower precision or 4 bits, which would lose small changes, and
    from one that uses an adapted weight twice, such as tied embeddings. So is one that PEFT cannot merge, or
    whose method says that it merges into nothing.

    Args:
        config: The evaluation's settings.
        found: The result of ``find_trained`` for it.
        texts: Texts on which a merged model must answer as before.

    Returns:
        The model, with speedups unless they are off, its record so far, and the folder of the record.

    Raises:
        InputError: If nothing is found, the adapter cannot be used or was trained for another base.
        DoratuneError: If merging the adapter changed the answers.
    """
    target = _load_target(config, found, texts)
    _log_scored(target)
    target.model.requires_grad_(False)
    trained_with = found.record.config.get("speedups") if found.record else None
    if (config.speedups or trained_with or "on") == "off":
        return target
    return replace(target, speedups=tuple(speed_up(target.model, training=False).record()))


def _load_target(config: EvalConfig, found: Found, texts: Sequence[str]) -> Target:
    record, adapter = found.record, found.adapter
    checksum, asked = trained_checksum(found), _asked(config)
    base = _load(config, record, found)
    base_record = model_record(base)
    output = output_folder(config, found)
    if found.model is not None and record is not None:
        other = other_base(record.model, base_record, asked, full=True)
        scored = _scored(base, "full", checksum, merged=False)
        text = _text(config, base.model, base.tokenizer, scored, other)
        return Target(base.model, base.tokenizer, record, output, scored, other_base=other, text=text)
    trained = trained_on(found, base_record, asked)
    other = other_base(trained, base_record, asked)
    if adapter is None:
        record = record or _new_record(config, base_record, "base", adapter=0)
        scored = _scored(base, "base", None, merged=False)
        text = _text(config, base.model, base.tokenizer, scored, other)
        return Target(base.model, base.tokenizer, record, output, scored, other_base=other, text=text)
    peft_model = _with_adapter(base, trained, adapter)
    if record is None:
        method = "dora" if uses_dora(peft_model) else str(read_adapter_settings(adapter)["peft_type"]).lower()
        record = _new_record(config, trained, method, adapter=adapter_parameters(peft_model))
    if record.config.get("engine", "doratune") == "doratune" and has_lora(peft_model):
        enable(peft_model)
    _refuse_overflow(peft_model, adapter)
    text = _text(config, peft_model, base.tokenizer, _scored(base, "adapter", checksum, merged=False), other)
    model: Any = peft_model
    apart, difference = merge_obstacle(base, peft_model, (record.definition or {}).get("merges")), None
    if apart is None:
        model, difference = merge(peft_model, base.tokenizer, texts)
    scored = _scored(base, "adapter", checksum, merged=apart is None, difference=difference)
    return Target(model, base.tokenizer, record, output, scored, apart=apart, other_base=other, text=text)


def _text(
    config: EvalConfig,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    scored: ScoredRecord,
    other: ModelRecord | None,
) -> TextLoss | None:
    """Score the built-in text, if that is asked for, before an adapter is merged and speedups change code."""
    return text_loss(model, tokenizer, builtin_text(), scored, other) if config.text else None


def _with_adapter(base: LoadedModel, trained: ModelRecord, folder: Path) -> PeftModel:
    """The base with the adapter, as it was in training.

    Some initialisations change the base. The change was rounded to the type that training computed in, also
    where the model now computes in float32.
    """
    model: Any = base.model
    was = getattr(torch, trained.dtype)
    if base.dtype == was or not changes_base(read_adapter_config(folder)):
        return load_adapter(model, folder)
    loaded: Any = load_adapter(model.to(was), folder)
    return loaded.to(base.dtype)


def _refuse_overflow(model: PeftModel, folder: Path) -> None:
    """Refuse a DoRA adapter so large that a norm overflows, which would make a layer's output zero."""
    if wrong := [name for name, norm in dora_norms(model).items() if not is_finite(norm)]:
        raise InputError(
            "DoRA norms of the adapter are not finite",
            where=str(folder),
            got=first_of(wrong),
            fix="its training diverged: take an earlier checkpoint, or train with a lower learning rate",
        )


def _log_scored(target: Target) -> None:
    """Log what is scored."""
    base, scored = target.record.model.name, target.scored
    if scored.weights == "base":
        what = f"the base model {base}"
    elif scored.weights == "full":
        what = f"the fully fine-tuned model of base {base}"
    elif scored.merged:
        what = f"the adapter merged into the base {base}"
    else:
        what = f"the adapter kept apart from the base {base} ({target.apart})"
    difference = scored.merge_difference
    merged = "" if difference is None else f"; merging moved a log-probability by at most {difference:.1g}"
    logger.info("scored: %s, in %s%s", what, scored.dtype, merged)


def _scored(
    base: LoadedModel,
    weights: ScoredWeights,
    checksum: str | None,
    *,
    merged: bool,
    difference: float | None = None,
) -> ScoredRecord:
    """What is scored, for the record."""
    return ScoredRecord(
        weights=weights,
        merged=merged,
        merge_difference=difference,
        dtype=str(base.dtype).removeprefix("torch."),
        weights_checksum=checksum,
    )


def _load(config: EvalConfig, record: RunRecord | None, found: Found) -> LoadedModel:
    """The base model, or the model of a fully fine-tuned run."""
    trained, asked = record.config if record else {}, _asked(config)
    if found.model is not None:
        if config.model is not None:
            raise InputError(
                "every weight of this run was trained, so it has no separate base model",
                where="--model",
                got=config.model,
                fix="leave --model out",
            )
        name = str(found.model)
    elif record is not None or found.adapter is not None:
        name = base_name(found, asked)
    else:
        name = config.target
    in_4bit = config.load_in_4bit or bool(trained.get("load_in_4bit"))
    # On a CPU, compute in float32, because rounding in a bfloat16 body changes answers, but with the weights
    # rounded as in training. 4-bit weights depend on the type they are quantised from, so they keep it.
    widened = config.dtype == "auto" and not in_4bit and on_cpu()
    dtype = record.model.dtype if record and config.dtype == "auto" else config.dtype
    if widened and dtype != "bfloat16":
        dtype = "float32"
    with loading_base(name, found, asked):
        loaded = load_model(
            name,
            dtype=dtype,
            load_in_4bit=in_4bit,
            device_map=config.device_map or trained.get("device_map"),
            trust_remote_code=config.trust_remote_code,
        )
    return replace(loaded, model=loaded.model.float(), dtype=torch.float32) if widened else loaded


def _asked(config: EvalConfig) -> Asked:
    return Asked(config.target, config.model, config.allow_other_base)


def _new_record(config: EvalConfig, base: ModelRecord, method: str, *, adapter: int) -> RunRecord:
    """A new record, for a base model or a plain adapter with ``adapter`` parameters."""
    now = datetime.datetime.now(datetime.UTC)
    total = base.parameters + adapter
    return RunRecord(
        name="base" if method == "base" else Path(config.target).name,
        method=method,
        config=config.model_dump(mode="json"),
        model=base,
        parameters=ParameterCount(trainable=adapter, total=total, share=adapter / total),
        data=[],
        seed=0,
        training=None,
        evaluations=[],
        environment=describe_environment(),
        started=now,
        finished=now,
    )
