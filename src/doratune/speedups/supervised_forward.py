"""The forward pass for training on a CPU, without work that the loss does not need.

- The head scores only positions that are followed by a supervised token. TRL's SFTTrainer never forms the
  logits of a whole batch either, but on devices without Triton it scores every position, tile by tile, the
  largest part of a step of SmolLM2-135M (docs/notebook/cpu.md).
- The last layer's MLP runs only where there is a loss: see ``last_mlp.py``.
- Padding is left out. Tokens that all rows of a batch begin with, such as a template's preamble, run once,
  unless dropout makes the rows differ: see ``packing.py``.
- Right padding needs no attention mask: under causal attention no token sees a later one.
- DoRA layers keep their outputs, so that none is recomputed for the magnitude's gradient. That saves up to a
  tenth of a step's time and adds a thirtieth to its memory.
- All DoRA norms are computed before the first layer rather than between large products.
- Short rows avoid PyTorch's fused attention, whose backward pass is slow: see ``attention.py``.

Each of these is first tried on a tiny batch, and left out where it changes the loss or a gradient: see
``trial.py``. On other devices, and where a model computes more than this, TRL's forward pass stays, and only
DoRA's outputs are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from doratune.data.encode import IGNORED
from doratune.engine.output_recovery import keep_outputs
from doratune.engine.sharded import is_sharded
from doratune.peft import hold_norms
from doratune.speedups._internals import (
    ModelOutput,
    attention_implementation,
    has_fused_head,
    takes_attention,
)
from doratune.speedups.changes import Changes
from doratune.speedups.last_mlp import layer_with_last_mlp, run_at
from doratune.speedups.packing import PACKED, Attention, PackedBatch, pack
from doratune.speedups.same import configuration
from doratune.speedups.settings import SpeedupSettings
from doratune.speedups.token_loss import token_scores
from doratune.speedups.trial import Trial, layers_name

PART = "supervised_forward"
SCALED_LOGITS = (
    "final_logit_softcapping",
    "lm_head_multiplier",
    "logit_scale",
    "logits_scaling",
    "output_multiplier",
)
"""Settings of models whose logits are more than a product with the head's weight."""


@dataclass
class SupervisedOutput(ModelOutput):
    """The model output that SFTTrainer reads; n positions are followed by a supervised token.

    Attributes:
        log_probs: Each supervised token's log-probability, (n,), float32.
        entropy: Entropy of the distribution that predicts it, (n,), float32, in nats.
        is_top1: Whether it is the likeliest token, (n,), bool.
        label_mask: Which tokens after the first of a row are supervised, (rows, tokens - 1), bool.
    """

    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    is_top1: Tensor | None = None
    label_mask: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """What a forward pass leaves out.

    Attributes:
        packs: Whether it leaves out padding, and repetitions of the tokens that all rows begin with.
        own_attention: Whether short rows use ``attention.py``.
        last_mlp: Whether it leaves out the last layer's MLP where there is no loss.
        drops: Whether the model has dropout, which makes equal rows differ in training.
        attention: The model's original attention implementation.
        settings: When it pays off.
    """

    packs: bool
    own_attention: bool
    last_mlp: bool
    drops: bool
    attention: str
    settings: SpeedupSettings

    def attention_for(self, width: int) -> Attention:
        """What rows of a width use if the model's attention may be changed."""
        chosen = self.attention == "eager"
        if self.own_attention and (chosen or width <= self.settings.own_tokens):
            return "own"
        return "eager" if chosen or width <= self.settings.eager_tokens else "sdpa"


def spare_forward(
    model: PreTrainedModel, settings: SpeedupSettings, changes: Changes, *, sharded: bool = False
) -> None:
    """Replace, in place, the forward pass that SFTTrainer gave a model, as far as results stay the same.

    Args:
        model: The base model, adapted or trained itself, as SFTTrainer has prepared it.
        settings: When leaving something out pays off.
        changes: Counts what is replaced and what is left alone.
        sharded: The weights will be sharded.
    """
    attention, reason = attention_implementation(model), _obstacle(model, sharded=sharded)
    if reason is None:
        try:
            trial = Trial(model)
        except Exception as error:  # a model's code may raise anything
            reason = f"its own forward pass raises {type(error).__name__} on a few rows"
        else:
            plan = Plan(
                packs=False,
                own_attention=False,
                last_mlp=False,
                drops=_has_dropout(model),
                attention=attention,
                settings=settings,
            )
            reason = _difference(trial, plan)
            if reason is None:
                plan = _with_last_mlp(_with_packing(plan, trial, model, changes), trial, model, changes)
                changes.replace(PART, model, _supervised(model, plan))
                changes.on_undo(lambda: _set_attention(model, attention))
                return
    changes.leave(PART, reason)
    changes.replace("kept_outputs", model, _keeping_outputs(model.forward))


def _difference(trial: Trial, plan: Plan) -> str | None:
    """How a forward pass that leaves out all it can differs from the model's own."""
    eager = replace(plan, settings=replace(plan.settings, spared_tokens=1))
    return trial.difference(_supervised(trial.model, eager))


def _with_packing(plan: Plan, trial: Trial, model: PreTrainedModel, changes: Changes) -> Plan:
    """The plan with packing, and with ``attention.py``, each only if results stay the same."""
    packs = replace(plan, packs=True)
    long_rows = replace(packs, settings=replace(plan.settings, own_tokens=0, eager_tokens=0))
    reason = _packing_obstacle(model) or _difference(trial, packs) or _difference(trial, long_rows)
    if reason is not None:
        changes.leave("packing", reason)
        return plan
    changes.take("packing")
    calls = {configuration(call.layer): call for call in trial.attention_calls()}
    kinds = tuple({type(call.layer) for call in calls.values()})
    layers = sum(isinstance(module, kinds) for module in model.modules())
    reasons = [call.difference(model.dtype) for call in calls.values()] or ["it does not pass arguments on"]
    reason = next(filter(None, reasons), None)
    if reason is not None:
        changes.leave("attention", reason, layers)
        return packs
    changes.take("attention", layers)
    return replace(packs, own_attention=True)


def _with_last_mlp(plan: Plan, trial: Trial, model: PreTrainedModel, changes: Changes) -> Plan:
    """The plan with the last MLP run only where there is a loss, if results stay the same."""
    spares = replace(plan, last_mlp=True)
    found = layer_with_last_mlp(model) is not None  # not of the copy, which lacks layers
    reason = _difference(trial, spares) if found else "the last layer has no separate dense mlp"
    if reason is not None:
        changes.leave("last_mlp", reason)
        return plan
    changes.take("last_mlp")
    return spares


def _supervised(model: PreTrainedModel, plan: Plan) -> Callable[..., Any]:
    """A forward pass, as a method, to replace the one TRL gave a model."""
    fused_forward, head = model.forward, cast(nn.Linear, model.get_output_embeddings())
    last = layer_with_last_mlp(model) if plan.last_mlp else None

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        labels, ids = kwargs.get("labels"), kwargs.get("input_ids")
        # Sharded sequences come with shifted labels instead.
        if not fused_lm_head or labels is None or ids is None:
            return fused_forward(*args, fused_lm_head=fused_lm_head, **kwargs)
        kwargs = {
            name: kwargs[name] for name in kwargs.keys() - {"labels", "num_items_in_batch", "use_cache"}
        }
        lengths = _row_lengths(ids, kwargs.get("attention_mask"))
        if lengths is not None:
            kwargs["attention_mask"] = None
        how = plan.attention_for(ids.shape[1])
        packed = None
        if plan.packs and lengths is not None and _is_bare(kwargs):
            shared = 0 if plan.drops and self.training else _shared_tokens(ids, lengths)
            packed = _pack(lengths, ids.shape[1], shared, how, self.dtype, plan.settings.spared_tokens)
        if plan.packs or plan.attention == "sdpa":
            _set_attention(self, PACKED if packed else "sdpa" if how == "sdpa" else "eager")
        mask = labels[:, 1:] != IGNORED
        shape = packed.positions.shape if packed else ids.shape
        places = packed.place if packed else torch.arange(ids.numel()).view(ids.shape)
        scored = places[:, :-1][mask]
        # A run trains adapters or all weights, so the base weight of an adapter never changes.
        norms = hold_norms(self, base_unchanged=True)
        with keep_outputs(), norms, _last_mlp_at(last, plan, scored.unique(), shape):
            if packed:
                hidden = _run_packed(self.base_model, ids, packed)
            else:
                hidden = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        hidden = hidden.flatten(0, 1)[scored]
        weight, bias = head.weight, head.bias
        log_probs, entropy, is_top1 = token_scores(hidden, labels[:, 1:][mask], weight, bias, plan.settings)
        return SupervisedOutput(log_probs=log_probs, entropy=entropy, is_top1=is_top1, label_mask=mask)

    return forward


def _set_attention(model: PreTrainedModel, attention: str) -> None:
    if attention_implementation(model) != attention:
        model.set_attn_implementation(attention)


def _keeping_outputs(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same forward pass, as a method, with the outputs of DoRA layers kept."""

    def keeping(self: Any, *args: Any, **kwargs: Any) -> Any:
        with keep_outputs():
            return forward(*args, **kwargs)

    return keeping


def _obstacle(model: PreTrainedModel, *, sharded: bool) -> str | None:
    """Why TRL's forward pass is kept before any results are compared, or None."""
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    if sharded or any(map(is_sharded, model.parameters())):
        return "its weights are sharded, and it reads the head's outside a call"
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return "not on a CPU"
    if not has_fused_head(model):
        return "TRL has not prepared the model"
    if type(head) is not nn.Linear:
        return "its head is not a linear layer"
    if any(getattr(config, setting, None) is not None for setting in SCALED_LOGITS):
        return "its logits are scaled or capped"
    if getattr(config, "output_router_logits", False):
        return "its routers have a loss"
    return None if layers_name(model) else "its list of layers was not found"


def _packing_obstacle(model: PreTrainedModel) -> str | None:
    """Why packing may change results: tokens interact other than by causal attention that can be replaced."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None) is not None:
        return "its attention is not full in every layer"
    if not takes_attention(model) or attention_implementation(model) not in ("sdpa", "eager"):
        return "its attention cannot be replaced"
    return None


def _has_dropout(model: PreTrainedModel) -> bool:
    """Whether the model has dropout."""
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return any((getattr(model.config.get_text_config(), "attention_dropout", 0.0), *rates))


def _row_lengths(ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
    """The length of each row, or None unless all padding is on the right."""
    if attention_mask is None:
        return torch.full((len(ids),), ids.shape[1])
    right_padded = attention_mask.ndim == 2 and bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all())
    return attention_mask.sum(dim=1) if right_padded else None


def _is_bare(kwargs: dict[str, Any]) -> bool:
    """Whether a call has token ids only: no mask, no positions."""
    return all(value is None for name, value in kwargs.items() if name not in ("input_ids", "return_dict"))


def _shared_tokens(ids: Tensor, lengths: Tensor) -> int:
    """How many tokens all rows begin with, leaving each row at least one of its tokens."""
    alike = (ids == ids[:1]).all(dim=0)
    return min(int(alike.int().cumprod(dim=0).sum()), int(lengths.min()) - 1)


def _pack(
    lengths: Tensor, width: int, shared: int, how: Attention, dtype: torch.dtype, spared: int
) -> PackedBatch | None:
    """The packed batch, or None if its rows use fused attention and packing would save too few tokens."""
    saved = (len(lengths) - 1) * shared
    saved = saved if saved >= spared else 0
    padding = len(lengths) * width - int(lengths.sum())
    if how == "sdpa" and saved + padding < spared:
        return None
    return pack(lengths, width, shared if saved else 0, attention=how, dtype=dtype)


def _last_mlp_at(last: Any, plan: Plan, places: Tensor, shape: torch.Size) -> AbstractContextManager[None]:
    """Run the last layer's MLP only at some places of a (rows, width) batch, if that saves enough."""
    if last is None or shape.numel() - len(places) < plan.settings.spared_tokens:
        return nullcontext()
    return run_at(last, places, shape)


def _run_packed(backbone: Any, ids: Tensor, packed: PackedBatch) -> Tensor:
    """Last hidden states of the packed tokens, (1, T, d)."""
    return backbone(
        input_ids=ids.flatten()[packed.tokens][None],
        position_ids=packed.positions,
        attention_mask=packed.mask,  # transformers uses a four-dimensional mask as it is
        packed=packed,
        use_cache=False,
    ).last_hidden_state
