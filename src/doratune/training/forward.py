"""The forward pass of training on a CPU, without work that the loss does not need.

- The head scores positions that are followed by a supervised token. TRL's SFTTrainer never forms the logits
  of a whole batch either, but on devices without Triton it scores every position, tile by tile: more than
  half of a step of SmolLM2-135M (docs/performance.md).
- What all rows of a batch begin with, a template's preamble, runs once and its keys and values are shared by
  the rows, as long as no dropout tells the rows apart.
- Right padding needs no attention mask: under causal attention no token sees what is behind it.
- Short rows run with eager attention, whose backward pass is the faster one there.

On other devices, and where a model does more than this, TRL's own forward pass is left as it is.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.utils.generic import ModelOutput

from doratune.training.encoded import IGNORED
from doratune.training.head import token_scores

SHARED_TOKENS = 128
"""Fewest tokens that sharing must save: a second pass through all layers has a cost of its own."""
EAGER_TOKENS = 160
"""Longest rows for eager attention. A step of SmolLM2-135M takes 0.80 of sdpa's time with it at 64 tokens and
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
    if not _is_plain(model, head):
        return False
    fused_forward, shares, drops = model.forward, _can_share(model), _has_dropout(model)
    chooses_attention = model.config._attn_implementation == "sdpa"

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        labels, ids = kwargs.get("labels"), kwargs.get("input_ids")
        # Labels that come shifted belong to sharded sequences.
        if not fused_lm_head or labels is None or ids is None:
            return fused_forward(*args, fused_lm_head=fused_lm_head, **kwargs)
        kwargs = {
            name: kwargs[name] for name in kwargs.keys() - {"labels", "num_items_in_batch", "use_cache"}
        }
        if _is_right_padded(kwargs.get("attention_mask")):
            kwargs["attention_mask"] = None
        attention = "eager" if ids.shape[1] <= EAGER_TOKENS else "sdpa"
        if chooses_attention and attention != self.config._attn_implementation:
            self.set_attn_implementation(attention)
        # Dropout tells rows apart that begin alike, and checkpointing takes no cache.
        alike = not self.training or not (drops or self.is_gradient_checkpointing)
        shared = _shared_tokens(ids, labels) if shares and alike and _is_bare(kwargs) else 0
        if shared:
            hidden = _run_shared(self.base_model, ids, shared)
        else:
            hidden = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        hidden, labels = hidden[:, :-1], labels[:, shared + 1 :]
        mask = labels != IGNORED
        log_probs, entropy, is_top1 = token_scores(hidden[mask], labels[mask], head.weight, head.bias)
        return SupervisedOutput(log_probs=log_probs, entropy=entropy, is_top1=is_top1, label_mask=mask)

    model.forward = types.MethodType(forward, model)
    return True


def _is_plain(model: PreTrainedModel, head: Any) -> bool:
    """On a CPU, with a linear head and nothing behind it or beside it."""
    config = model.config.get_text_config()
    does_more = getattr(config, "output_router_logits", False) or any(
        getattr(config, setting, None) is not None for setting in SCALED_LOGITS
    )
    if does_more or type(head) is not nn.Linear:
        return False
    return all(parameter.device.type == "cpu" for parameter in model.parameters())


def _can_share(model: PreTrainedModel) -> bool:
    """Whether all that a later token needs of earlier ones is their keys and values."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and getattr(config, "sliding_window", None) is None


def _has_dropout(model: PreTrainedModel) -> bool:
    """Whether anything is dropped in training."""
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return any((getattr(model.config.get_text_config(), "attention_dropout", 0.0), *rates))


def _is_right_padded(attention_mask: Tensor | None) -> bool:
    return attention_mask is not None and bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all())


def _is_bare(kwargs: dict[str, Any]) -> bool:
    """Whether the tokens are all there is to a row: no mask, no positions."""
    return all(value is None for name, value in kwargs.items() if name not in ("input_ids", "return_dict"))


def _shared_tokens(ids: Tensor, labels: Tensor) -> int:
    """How many tokens all rows begin with, up to the first hidden state that the loss needs; 0 if too few."""
    alike = (ids == ids[:1]).all(dim=0) & (labels.roll(-1, dims=1) == IGNORED).all(dim=0)
    shared = int(alike[:-1].int().cumprod(dim=0).sum())
    return shared if shared * (len(ids) - 1) >= SHARED_TOKENS else 0


def _run_shared(backbone: Any, ids: Tensor, shared: int) -> Tensor:
    """Last hidden states (rows, tokens - shared, d) of what follows the shared beginning."""
    cache = DynamicCache()
    backbone(input_ids=ids[:1, :shared], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(ids))
    return backbone(input_ids=ids[:, shared:], past_key_values=cache, use_cache=True).last_hidden_state
