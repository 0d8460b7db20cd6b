"""The floor of a training step: the frozen model alone."""

from __future__ import annotations

from typing import Any

from torch.nn.functional import cross_entropy

from doratune.bench.step_base import load_base
from doratune.bench.step_providers import Frozen
from doratune.bench.step_rows import draw_rows
from doratune.bench.step_trainers import CHECKPOINTING
from doratune.data.encode import IGNORED
from doratune.records.bench import StepCase


class FrozenStep:
    """Forward, loss and backward to the embedded input, with logits only where there is a loss.

    Args:
        provider: Which attention.
        model: The base model, as ``step_base.load_base`` takes it.
        case: The rows.
    """

    def __init__(self, provider: Frozen, model: str, case: StepCase) -> None:
        self.model = load_base(model, case.dtype).model
        self.model.set_attn_implementation(provider.attention)
        self.model.requires_grad_(False).train()
        if case.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(CHECKPOINTING)
        rows = draw_rows(case, self.model.config.get_text_config().vocab_size).with_format("torch")
        self._ids, labels = (rows[:][name].to(self.model.device) for name in ("input_ids", "labels"))
        self._targets = labels[:, 1:]
        self._supervised = self._targets != IGNORED

    def __call__(self) -> float:
        """Run the step; its loss."""
        model: Any = self.model
        embedded = model.get_input_embeddings()(self._ids).requires_grad_()
        hidden = model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[:, :-1][self._supervised])
        loss = cross_entropy(logits.float(), self._targets[self._supervised])
        loss.backward()
        return loss.item()
