"""The forward pass of training on a CPU, without work that the loss does not need.

- The head scores positions that are followed by a supervised token. TRL's SFTTrainer never forms the logits
  of a whole batch either, but on devices without Triton it scores every position, tile by tile: more than
  half of a step of SmolLM2-135M (docs/performance.md).
- Nor does the last layer's MLP run where there is no loss: see ``last_mlp.py``.
- Padding is left out, and what all rows of a batch begin with, a template's preamble, runs once as long as
  no dropout tells the rows apart: see ``packing.py``.
- Right padding needs no attention mask: under causal attention no token sees what is behind it.
- DoRA layers keep their outputs, so that none is computed again for its magnitude's gradient: less than a
  tenth of a step for a thirtieth of its memory.
- DoRA's norms are computed before the first layer, all in a row, rather than between large products.
- Short rows attend without PyTorch's fused attention, whose backward pass is slow: see ``attention.py``.

On other devices, and where a model does more than this, TRL's own forward pass is left as it is, but for
DoRA's outputs.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from doratune.data.encode import IGNORED
from doratune.engine.outputs import keep_outputs
from doratune.peft import hold_norms
from doratune.speedups.last_mlp import layer_with_last_mlp, run_at
from doratune.speedups.packing import PACKED, PackedBatch, attends_like_llama, pack
from doratune.speedups.token_loss import token_scores

SPARED_TOKENS = 128
"""Fewest tokens for which leaving them out pays: it takes a few copies of the others."""
OWN_TOKENS = 256
"""Longest rows for the attention of ``attention.py``. A step of SmolLM2-135M takes 0.8 of sdpa's time with it
at 128 tokens and 0.9 at 256, and 1.04 and 1.07 times its memory; at 512 it would be 1.2 times."""
EAGER_TOKENS = 160
"""Longest rows for a model's own eager attention. A step takes 0.80 of sdpa's time with it at 64 tokens and
0.77 at 128; at 256 both take the same, and eager attention 1.4 times the memory."""
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
    """What SFTTrainer reads of a model's output; n positions are followed by a supervised token.

    Attributes:
        log_probs: Of each supervised token, (n,), float32.
        entropy: Of each distribution a supervised token is drawn from, (n,), float32, in nats.
        is_top1: Whether the supervised token is the likeliest, (n,), bool.
        label_mask: Which positions they are, (rows, tokens), bool.
    """

    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    is_top1: Tensor | None = None
    label_mask: Tensor | None = None


def spare_forward(model: PreTrainedModel) -> bool:
    """Replace the forward pass that SFTTrainer gave a model, in place, where this one does the same for less.

    Args:
        model: The base model, adapted or trained itself, as SFTTrainer has prepared it.

    Returns:
        Whether it was replaced.
    """
    head: Any = model.get_output_embeddings()
    fused_forward = model.forward
    if not _is_plain(model, head):
        model.forward = types.MethodType(_keeping_outputs(fused_forward), model)
        return False
    last = layer_with_last_mlp(model)
    packs, drops = _can_pack(model), _has_dropout(model)
    chooses_attention = model.config._attn_implementation == "sdpa"
    short = OWN_TOKENS if packs and attends_like_llama(model) else EAGER_TOKENS

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        labels, ids = kwargs.get("labels"), kwargs.get("input_ids")
        # Labels that come shifted belong to sharded sequences.
        if not fused_lm_head or labels is None or ids is None:
            return fused_forward(*args, fused_lm_head=fused_lm_head, **kwargs)
        kwargs = {
            name: kwargs[name] for name in kwargs.keys() - {"labels", "num_items_in_batch", "use_cache"}
        }
        lengths = _row_lengths(ids, kwargs.get("attention_mask"))
        if lengths is not None:
            kwargs["attention_mask"] = None
        eager = not chooses_attention or ids.shape[1] <= short
        packed = None
        if packs and lengths is not None and _is_bare(kwargs):
            shared = 0 if drops and self.training else _shared_tokens(ids, lengths)
            packed = _pack(lengths, ids.shape[1], shared, eager=eager, dtype=self.dtype)
        attention = PACKED if packed else "eager" if eager else "sdpa"
        if (packs or chooses_attention) and attention != self.config._attn_implementation:
            self.set_attn_implementation(attention)
        mask = labels[:, 1:] != IGNORED
        shape = packed.positions.shape if packed else ids.shape
        places = packed.place if packed else torch.arange(ids.numel()).view(ids.shape)
        scored = places[:, :-1][mask]
        # A run trains adapters or everything, so no base weight of an adapter changes from step to step.
        norms = hold_norms(self, base_unchanged=True)
        with keep_outputs(), norms, _last_mlp_at(last, scored.unique(), shape):
            if packed:
                hidden = _run_packed(self.base_model, ids, packed)
            else:
                hidden = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        hidden = hidden.flatten(0, 1)[scored]
        log_probs, entropy, is_top1 = token_scores(hidden, labels[:, 1:][mask], head.weight, head.bias)
        return SupervisedOutput(log_probs=log_probs, entropy=entropy, is_top1=is_top1, label_mask=mask)

    model.forward = types.MethodType(forward, model)
    return True


def _keeping_outputs(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same forward pass, as a method, with the outputs of DoRA layers kept."""

    def keeping(self: Any, *args: Any, **kwargs: Any) -> Any:
        with keep_outputs():
            return forward(*args, **kwargs)

    return keeping


def _is_plain(model: PreTrainedModel, head: Any) -> bool:
    """On a CPU, with a linear head and nothing behind it or beside it."""
    config = model.config.get_text_config()
    does_more = getattr(config, "output_router_logits", False) or any(
        getattr(config, setting, None) is not None for setting in SCALED_LOGITS
    )
    if does_more or type(head) is not nn.Linear:
        return False
    return all(parameter.device.type == "cpu" for parameter in model.parameters())


def _can_pack(model: PreTrainedModel) -> bool:
    """Whether tokens read others by causal attention alone, through transformers' attention interface."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        kinds == {"full_attention"}
        and getattr(config, "sliding_window", None) is None
        and model._supports_attention_backend
        and config._attn_implementation in ("sdpa", "eager")
    )


def _has_dropout(model: PreTrainedModel) -> bool:
    """Whether anything is dropped in training."""
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return any((getattr(model.config.get_text_config(), "attention_dropout", 0.0), *rates))


def _row_lengths(ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
    """Tokens of each row, or None if there is padding before one."""
    if attention_mask is None:
        return torch.full((len(ids),), ids.shape[1])
    right_padded = attention_mask.ndim == 2 and bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all())
    return attention_mask.sum(dim=1) if right_padded else None


def _is_bare(kwargs: dict[str, Any]) -> bool:
    """Whether the tokens are all there is to a row: no mask, no positions."""
    return all(value is None for name, value in kwargs.items() if name not in ("input_ids", "return_dict"))


def _shared_tokens(ids: Tensor, lengths: Tensor) -> int:
    """How many tokens all rows begin with; every row keeps one to itself."""
    alike = (ids == ids[:1]).all(dim=0)
    return min(int(alike.int().cumprod(dim=0).sum()), int(lengths.min()) - 1)


def _pack(lengths: Tensor, width: int, shared: int, *, eager: bool, dtype: torch.dtype) -> PackedBatch | None:
    """The batch packed, or None where fused attention is faster than what that saves."""
    saved = (len(lengths) - 1) * shared
    saved = saved if saved >= SPARED_TOKENS else 0
    padding = len(lengths) * width - int(lengths.sum())
    if not eager and saved + padding < SPARED_TOKENS:
        return None
    return pack(lengths, width, shared if saved else 0, eager=eager, dtype=dtype)


def _last_mlp_at(last: Any, places: Tensor, shape: torch.Size) -> AbstractContextManager[None]:
    """The last layer's MLP at some places of a (rows, width) batch only, where that spares enough."""
    # A layer that is computed again in the backward pass would find the hooks gone.
    computed_again = getattr(last, "gradient_checkpointing", False)
    if last is None or computed_again or shape.numel() - len(places) < SPARED_TOKENS:
        return nullcontext()
    return run_at(last.mlp, places, shape)


def _run_packed(backbone: Any, ids: Tensor, packed: PackedBatch) -> Tensor:
    """Last hidden states of the packed tokens, (1, T, d)."""
    return backbone(
        input_ids=ids.flatten()[packed.tokens][None],
        position_ids=packed.positions,
        attention_mask=packed.mask,  # transformers takes a mask of four dimensions as it is
        packed=packed,
        use_cache=False,
    ).last_hidden_state
