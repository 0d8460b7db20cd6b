"""Estimates the memory of training before any weight is loaded.

The run's own model, adapter and trainer are built with tensors that have a shape but no content
(``FakeTensor``), and one micro-batch of the longest rows passes forward and backward through them. No number
is computed, but PyTorch saves for the backward pass exactly what it saves in training, for any architecture,
and ``LiveBytes`` counts it. At the highest point of a micro-batch, a process holds::

    weights       the frozen base, or all weights in full fine-tuning
    adapters      what LoRA or DoRA trains
    gradients     one for each trained parameter that the backward pass has reached by then
    optimizer     AdamW's two averages of each trained parameter, in its dtype
    activations   what the layers have saved for the backward pass
    logits        what the head and the loss hold
    working       what the backward pass holds for a moment, with layers that checkpointing recomputes
    process       on a CPU: Python and its libraries

Sharding divides what it shards by the number of processes. To the weights it adds those that are whole for a
while: two blocks, one that is computed and one that is gathered meanwhile, and the head. 4-bit weights stay
whole, as accelerate leaves them. Models for other devices pass through the CPU's operations, which hold the
same tensors except for a GPU's few own buffers.
"""

from __future__ import annotations

import copy
import logging
import sys
import tempfile
import types
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from doratune.engine._internals import FakeTensor
from doratune.memory import resident_bytes
from doratune.models.gguf import first_line
from doratune.models.load import LoadedModel
from doratune.speedups.supervised_forward import keeping_outputs
from doratune.speedups.trial import layers_name
from doratune.training._internals import SFTConfig, head_kernels
from doratune.training.callbacks import MetricsCallback, StopCallback
from doratune.training.config import TrainConfig
from doratune.training.early import micro_batch
from doratune.training.estimate import loss_of
from doratune.training.live_bytes import LiveBytes
from doratune.training.train import build_trainer
from doratune.training.trainer import RowTrainer

logger = logging.getLogger(__name__)

Sharding = Literal["none", "zero-2", "fsdp"]
"""none: every process holds everything; zero-2: gradients and optimizer are divided; fsdp (and ZeRO-3): the
weights too."""
AVERAGES = 2
"""Numbers that AdamW keeps for each trained one."""
GATHERED_BLOCKS = 2
"""Blocks whose whole weights a process holds at a time if they are sharded."""
COUNTED_LAYERS = (2, 3)
"""Layers that are counted of a model with many."""
BYTES_PER_4BIT = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight in NF4: half a byte, and for 64 weights a scale of a byte, scaled again in groups of 256."""


@dataclass(frozen=True)
class Target:
    """Where a run will train.

    Attributes:
        device: cpu or cuda.
        processes: How many processes train together.
        sharding: What they divide among them.
    """

    device: str
    processes: int = 1
    sharding: Sharding = "none"


@dataclass(frozen=True)
class MemoryParts:
    """Bytes of a process at the highest point of a step; the module's docstring tells the parts."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    working: int
    process: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Estimate:
    """The size of a run.

    Attributes:
        trainable: Parameters that are trained.
        total: All parameters.
        memory: What a process holds; None if the model's code does not run without its weights.
    """

    trainable: int
    total: int
    memory: MemoryParts | None


def estimate_memory(config: TrainConfig, base: LoadedModel, rows: Dataset, target: Target) -> Estimate:
    """Estimate the memory of one process of a run at its highest.

    A model whose layers are all alike is counted with two and with three of them: each further layer adds as
    much as the third did.

    Args:
        config: The run's configuration.
        base: Its base model without content, from ``load_model(..., content=False)``. It is used up.
        rows: From ``encode_rows``.
        target: Where the run will train.

    Raises:
        InputError: As in ``build_trainer``.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")  # FakeTensorMode reads it
        counted = _count_layers(config, base, rows, target)
    if counted.problem:
        logger.warning(
            "the memory is not known: a step on tensors without content raises %s", counted.problem
        )
    accumulates = micro_batch(config, target.processes) * target.processes < config.batch_size
    parts = [_parts(counted, peak, target, accumulates) for peak in counted.peaks.values()]
    memory = max(parts, key=lambda one: one.total, default=None)
    return Estimate(counted.sizes["trainable"], counted.sizes["total"], memory)


def _count_layers(config: TrainConfig, base: LoadedModel, rows: Dataset, target: Target) -> _Counted:
    layers = _equal_layers(base.model, config)
    if len(layers) <= max(COUNTED_LAYERS):
        return _count(config, base, rows, target)
    few, more = (_count(config, _with_layers(base, count), rows, target) for count in COUNTED_LAYERS)
    return more.extended(few, len(layers) - max(COUNTED_LAYERS))


@dataclass(frozen=True)
class _Counted:
    """Sizes of a model and its adapter, and what a micro-batch holds at the peak of each phase.

    Numbers in ``sizes`` are bytes, except for the two that count parameters. If a micro-batch could not be
    computed, there are no peaks, and ``problem`` says why.
    """

    sizes: Counter[str]
    peaks: dict[str, Counter[str]]
    constant: Counter[str]
    problem: str | None

    def extended(self, fewer: _Counted, layers: int) -> _Counted:
        """For so many more layers, each of which adds what this has more than ``fewer``."""

        def extend(larger: Counter[str], smaller: Counter[str]) -> Counter[str]:
            return Counter({key: size + layers * (size - smaller[key]) for key, size in larger.items()})

        peaks = {phase: extend(peak, fewer.peaks[phase]) for phase, peak in self.peaks.items()}
        return _Counted(extend(self.sizes, fewer.sizes), peaks, self.constant, self.problem)


def _count(config: TrainConfig, base: LoadedModel, rows: Dataset, target: Target) -> _Counted:
    model = base.model
    quantised = _prepare_for_4bit(model) if config.load_in_4bit else []
    own_code = target.device == "cpu" and config.speedups == "on"
    mixed = config.method == "full" and config.dtype == "auto"  # float32 weights, computed in what is fast
    if mixed and target.device == "cuda":
        base = replace(base, dtype=torch.bfloat16)
    changed = {
        "batch_size": config.batch_size // target.processes,
        "micro_batch_size": micro_batch(config, target.processes),
        "load_in_4bit": False,
        "device_map": None,
        "dtype": "auto" if mixed and target.device == "cpu" else str(base.dtype).removeprefix("torch."),
        "speedups": "on" if own_code else "off",
        "report_to": [],
    }
    with tempfile.TemporaryDirectory(prefix="doratune-") as scratch:  # the Trainer creates its folder
        here = config.model_copy(update={**changed, "output": Path(scratch)})
        with patch.object(SFTConfig, "place_model_on_device", False):  # there is nothing to move
            trainer, _ = build_trainer(here, base, rows, MetricsCallback(here.output), StopCallback())
        if config.speedups == "on" and not own_code:
            model.forward = types.MethodType(keeping_outputs(model.forward), model)
        process = resident_bytes("VmRSS") if target.device == "cpu" and sys.platform == "linux" else 0
        _empty(trainer.model, next(model.parameters()))
        peaks, problem = {}, None
        try:
            peaks = _step(trainer, model, target.device)
        except Exception as error:  # a model's own code may need values, and raise anything without them
            problem = f"{type(error).__name__}: {first_line(error)}"
    adapted: Any = trainer.model
    trained = [one for one in adapted.parameters() if one.requires_grad]
    frozen = [one for one in (*adapted.parameters(), *adapted.buffers()) if not one.requires_grad]
    has_adapter = isinstance(adapted, PeftModel)
    sizes = Counter(
        trainable=sum(one.numel() for one in trained),
        total=sum(one.numel() for one in adapted.parameters()),
        weights=_size(frozen) - _size(quantised) + (0 if has_adapter else _size(trained)),
        packed=sum(round(BYTES_PER_4BIT * one.numel()) for one in quantised),
        adapters=_size(trained) if has_adapter else 0,
        trained=_size(trained),
    )
    constant = Counter(
        process=process,
        gathered=_gathered(model, quantised),
        dequantised=max((_size([one]) for one in quantised), default=0),
    )
    return _Counted(sizes, peaks, constant, problem)


def _parts(counted: _Counted, held: Counter[str], target: Target, accumulates: bool) -> MemoryParts:
    """What a process holds when a micro-batch holds so much."""
    sizes, constant = counted.sizes, counted.constant
    fsdp = target.sharding == "fsdp"
    weight_share = target.processes if fsdp else 1
    state_share = target.processes if target.sharding != "none" else 1
    # FSDP2 divides the gradients in the last micro-batch of a step, and keeps them whole until then.
    gradient_share = 1 if fsdp and accumulates else state_share
    working = held["working"] + constant["dequantised"]
    if target.processes > 1:
        if fsdp:
            working += constant["gathered"]
        elif target.sharding == "none":
            working += sizes["trained"]  # the gradients that DDP exchanges are a copy
    return MemoryParts(
        weights=sizes["packed"] + sizes["weights"] // weight_share,
        adapters=sizes["adapters"] // weight_share,
        gradients=held["gradients"] // gradient_share,
        optimizer=AVERAGES * sizes["trained"] // state_share,
        activations=held["activations"],
        logits=held["logits"],
        working=working,
        process=constant["process"],
    )


def _equal_layers(model: PreTrainedModel, config: TrainConfig) -> list[nn.Module]:
    """A model's layers if they are all alike, also in what is trained of them; otherwise none."""
    name = layers_name(model)
    layers: list[nn.Module] = list(getattr(model.base_model, name)) if name else []
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or [])
    shapes = {
        (type(layer), *((key, one.shape, one.dtype) for key, one in layer.named_parameters()))
        for layer in layers
    }
    alike = len(shapes) == 1 and len(kinds) <= 1 and not any("." in target for target in config.targets)
    return layers if alike else []


def _with_layers(base: LoadedModel, count: int) -> LoadedModel:
    """A model of the same configuration, but with so many layers."""
    model: Any = base.model
    weight: Any = next(model.parameters())
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    text.num_hidden_layers = count
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:count]
    before = torch.get_default_dtype()
    torch.set_default_dtype(weight.dtype)
    try:
        with weight.fake_mode:
            return replace(base, model=type(model)(config).eval())
    finally:
        torch.set_default_dtype(before)


def _step(trainer: RowTrainer, base: PreTrainedModel, device: str) -> dict[str, Counter[str]]:
    """Bytes, by part, when a micro-batch of the longest rows holds the most in each phase."""
    args, model = trainer.args, trainer.model
    adapted: Any = model
    adapted.train()
    if args.gradient_checkpointing:
        adapted.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
    lengths = trainer.batches.lengths
    longest = sorted(range(len(lengths)), key=lengths.__getitem__)[-args.per_device_train_batch_size :]
    inputs = trainer.inputs(longest)
    trained = [one for one in adapted.parameters() if one.requires_grad]
    fake: Any = next(base.parameters())
    counter = LiveBytes(fake.fake_mode, [*adapted.parameters(), *adapted.buffers()])
    handles = [
        one.register_post_accumulate_grad_hook(lambda one: counter.relabel(one.grad, "gradients"))
        for one in trained
    ]
    backbone: Any = base.base_model

    def to_logits(*_: Any) -> None:
        counter.phase = "logits"

    handles.append(backbone.register_forward_hook(to_logits))
    head = nullcontext() if device == "cpu" or head_kernels is None else _head_in_place()
    with counter, head:
        if args.gradient_accumulation_steps > 1:  # the gradients of earlier micro-batches
            counter.phase = "gradients"
            for one in trained:
                one.grad = torch.zeros_like(one)
        counter.phase = "activations"
        with trainer.accelerator.autocast():
            loss = loss_of(adapted, inputs)
        counter.phase = "working"
        loss.backward()
    for handle in handles:
        handle.remove()
    return dict(counter.peaks)


def _empty(model: Any, like: Any) -> None:
    """Take the content of the adapter, which PEFT has initialised."""
    for module in model.modules():
        for name, one in list(module.named_parameters(recurse=False)):
            if not isinstance(one, FakeTensor):
                empty = like.fake_mode.from_tensor(one.detach())
                setattr(module, name, nn.Parameter(empty, requires_grad=one.requires_grad))


@contextmanager
def _head_in_place() -> Iterator[None]:
    """Inside, TRL's head changes its logits in place, as its kernels for GPUs do."""

    def nothing(*_: Any, **__: Any) -> None:
        pass

    with (
        patch.object(head_kernels, "_forward_tile", nothing),
        patch.object(head_kernels, "_backward_tile", nothing),
    ):
        yield


def _prepare_for_4bit(model: PreTrainedModel) -> list[Tensor]:
    """Store a model as PEFT does with a quantised one: in float32, except for the linear layers.

    Returns:
        The weights that bitsandbytes will quantise.
    """
    head = model.get_output_embeddings()
    quantised = [
        module.weight for module in model.modules() if type(module) is nn.Linear and module is not head
    ]
    chosen = set(map(id, quantised))
    for one in model.parameters():
        if id(one) not in chosen:
            one.data = one.data.float()
    return quantised


def _gathered(model: PreTrainedModel, quantised: list[Tensor]) -> int:
    """Bytes that a process gathers, if weights are sharded: the largest blocks, and the head, which stays."""
    packed = set(map(id, quantised))
    name = layers_name(model)
    blocks: Any = getattr(model.base_model, name) if name else [model]
    block = max(_size(one for one in block.parameters() if id(one) not in packed) for block in blocks)
    head = model.get_output_embeddings()
    return GATHERED_BLOCKS * block + (_size(head.parameters()) if name and head is not None else 0)


def _size(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, each storage once."""
    storages = {id(storage): storage for storage in (one.untyped_storage() for one in tensors)}
    return sum(storage.nbytes() for storage in storages.values())
