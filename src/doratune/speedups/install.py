"""The one place where a model's own code is replaced by faster code."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from doratune.errors import InputError
from doratune.speedups.changes import Changes, SpeedupReport
from doratune.speedups.frozen_linear import speed_up_frozen
from doratune.speedups.rms_norm import speed_up_norms
from doratune.speedups.rotary import speed_up_rotary
from doratune.speedups.settings import SpeedupSettings
from doratune.speedups.supervised_forward import spare_forward

logger = logging.getLogger(__name__)

_sped_up: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def speed_up(
    model: nn.Module, *, training: bool, settings: SpeedupSettings | None = None, sharded: bool = False
) -> SpeedupReport:
    """Replace parts of a model by faster code, in place; results stay the same to rounding.

    Each replacement is first tried on small random inputs, and left out where its values or gradients differ
    from those of the model's own code. In an evaluation only frozen layers are replaced, so that scores keep
    their rounding.

    Args:
        model: A causal language model of transformers, with or without adapters, and not sped up already. For
            training, as SFTTrainer has prepared it.
        training: Whether the model is trained; otherwise it is evaluated. On a CPU the base weights of DoRA
            layers must not change during training, since their part of the norm is computed once.
        settings: Thresholds; only measurements need other values.
        sharded: The weights will be sharded, as by FSDP. Parts that read one outside the call of its module
            are then left out. Modules whose weights are sharded already are left alone in any case.

    Returns:
        How many modules were replaced and why others were left alone, which is also logged. Its ``undo``
        restores everything.

    Raises:
        InputError: The model is sped up already.
    """
    unwrap: Any = getattr(model, "get_base_model", None)
    inner: Any = model if unwrap is None else unwrap()
    if inner in _sped_up:
        raise InputError("the model is sped up already", where="speed_up", fix="undo that first")
    changes = Changes()
    _sped_up.add(inner)
    changes.on_undo(lambda: _sped_up.discard(inner))
    try:
        # The checks need gradients, even where the caller has turned them off.
        with torch.inference_mode(False), torch.enable_grad():
            speed_up_frozen(inner, changes)  # not in one thread: it decides by the number of threads
            if training:
                with _one_thread():
                    speed_up_norms(inner, changes)
                    speed_up_rotary(inner, changes)
                    spare_forward(inner, settings or SpeedupSettings(), changes, sharded=sharded)
    except BaseException:  # interrupts too: without a report nothing could be undone
        changes.undo()
        raise
    report = changes.report()
    logger.info("faster code in the base model: %s", report)
    return report


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread inside: the checks are too small for several, which wait for each other on shared cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
