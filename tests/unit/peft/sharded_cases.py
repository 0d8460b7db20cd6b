"""Trains a tiny LLaMA, sharded, in several processes, case by case; ``test_peft_sharded`` starts them."""

from __future__ import annotations

import faulthandler
import importlib
import os
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from accelerate.utils.other import get_module_children_bottom_up
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import fsdp_auto_wrap_policy
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

import doratune
from doratune.engine import norm_cache
from doratune.peft import dora_norms, first_calls, hold_norms
from doratune.speedups import SpeedupSettings, speed_up

STEPS, ROWS, WIDTH, VOCABULARY = 3, 4, 12, 64
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Case:
    """How the model is built and sharded.

    Attributes:
        engine: When ``enable`` is called: before or after sharding, or never.
        hold: Whether each forward pass is inside ``hold_norms``.
        speedups: When ``speed_up`` is called: before or after sharding, or "none".
        wrap: What shards the model, and its units. With FSDP2: ``blocks``, the decoder blocks; ``layers``,
            each LoRA layer too; ``leaves``, each module with a trained weight, as in PEFT's policy;
            ``transformer`` and ``peft``, the units that accelerate chooses for either policy. ``fsdp1``
            shards by block; ``zero2`` and ``zero3`` are DeepSpeed's stages.
    """

    engine: str = "never"
    wrap: str = "blocks"
    use_dora: bool = True
    reshard: bool = True
    bfloat16: bool = False
    checkpointing: bool = False
    hold: bool = False
    speedups: str = "none"
    targets: tuple[str, ...] = tuple(LINEAR)


@dataclass
class Result:
    """What a case gave.

    Attributes:
        losses: Mean over the processes, by step.
        adapter: The whole adapter after the last step.
        calls: What became of the first calls; None for stock PEFT.
        norms: Norms computed on this process, by step.
        collectives: What ``hold_norms`` and ``dora_norms`` sent before the first step.
        units: How many modules FSDP2 shards.
        held: What ``dora_norms`` gives inside ``hold_norms`` after the first forward pass.
        speedups: What ``speed_up`` reports.
        classes: How many layers have which class, at the end and after ``disable``.
        error: What a case raised; None if nothing.
    """

    losses: list[float] = field(default_factory=list)
    adapter: dict[str, Any] = field(default_factory=dict)
    calls: str | None = None
    norms: list[int] = field(default_factory=list)
    collectives: int = 0
    units: int = 0
    held: dict[str, Tensor] = field(default_factory=dict)
    speedups: str = ""
    classes: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    error: str | None = None


def name(case: Case) -> str:
    """The case in words."""
    default = Case(engine=case.engine, wrap=case.wrap)
    different = [f"{key}={value}" for key, value in vars(case).items() if value != getattr(default, key)]
    return " ".join([case.wrap, case.engine, *different])


def built(case: Case) -> Any:
    """The same model in every process and case."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,  # 192² elements are more than a small layer has
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    config = LoraConfig(
        r=4, lora_alpha=8, use_dora=case.use_dora, target_modules=list(case.targets), init_lora_weights=False
    )
    model = get_peft_model(base, config)
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def rows(step: int) -> Tensor:
    """All processes' rows of a step, (ROWS, WIDTH)."""
    return torch.randint(VOCABULARY, (ROWS, WIDTH), generator=torch.Generator().manual_seed(step))


def shard(model: Any, case: Case) -> Any:
    """Shard a model in place; returns it, or DeepSpeed's engine around it."""
    if case.wrap in ("zero2", "zero3"):
        deepspeed = importlib.import_module("deepspeed")
        trained = [one for one in model.parameters() if one.requires_grad]
        config = {
            "train_micro_batch_size_per_gpu": ROWS // distributed.get_world_size(),
            "zero_optimization": {"stage": int(case.wrap[-1]), "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True,
        }
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    if case.wrap == "fsdp1":
        blocks = model.get_base_model().model.layers
        for place, block in enumerate(blocks):
            blocks[place] = FullyShardedDataParallel(
                block, use_orig_params=True, device_id=torch.device("cpu")
            )
        return model
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16) if case.bfloat16 else MixedPrecisionPolicy()
    unit = partial(fully_shard, reshard_after_forward=case.reshard, mp_policy=mixed)
    if case.wrap == "leaves":
        policy = fsdp_auto_wrap_policy(model)
        for module in get_module_children_bottom_up(model):
            if module is model or policy(module, recurse=False, nonwrapped_numel=0):
                unit(module)
        return model
    if case.wrap in ("blocks", "layers"):
        for block in model.get_base_model().model.layers:
            if case.wrap == "layers":
                for layer in block.modules():
                    if isinstance(layer, LoraLayer):
                        unit(cast(nn.Module, layer))
            unit(block)
        unit(model)
        return model
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=case.reshard,
        mixed_precision_policy=mixed,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        cpu_ram_efficient_loading=False,
    )
    if case.wrap == "peft":
        plugin.auto_wrap_policy = fsdp_auto_wrap_policy(model)
    # accelerate offers no FSDP on CPUs, so its function gets what it reads of an Accelerator.
    accelerator: Any = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="bf16" if case.bfloat16 else "no",
        is_main_process=False,
        device=torch.device("cpu"),
    )
    return fsdp2_prepare_model(accelerator, model)


@contextmanager
def counted_norms() -> Iterator[Counter[str]]:
    """Count the norms of large layers; small ones are computed inside the layer."""
    count: Counter[str] = Counter()
    own = norm_cache.norm_of_product

    def counting(product: Tensor, *args: Any) -> Tensor:
        count["norms"] += 1
        assert not isinstance(product, DTensor)
        return own(product, *args)

    norm_cache.norm_of_product = counting
    try:
        yield count
    finally:
        norm_cache.norm_of_product = own


def loss_of(model: nn.Module, ids: Tensor, case: Case) -> Tensor:
    """The mean loss of a batch, by TRL's head if the case has speed-ups."""
    if case.speedups == "none":
        return model(input_ids=ids, labels=ids).loss
    return -model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs.mean()


def train(
    model: Any, case: Case, part: slice, held: dict[str, Tensor] | None = None
) -> Iterator[tuple[float, int]]:
    """Three AdamW steps; yields each loss and how many norms were computed; keeps the first held ones."""
    zero = case.wrap in ("zero2", "zero3")
    optimizer = (
        None if zero else torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    )
    for step in range(STEPS):
        ids = rows(step)[part]
        with counted_norms() as count:
            with hold_norms(model, base_unchanged=True) if case.hold else nullcontext():
                loss = loss_of(model, ids, case)
                if case.hold and not held and held is not None:
                    held.update(dora_norms(model))
            model.backward(loss) if zero else loss.backward()
        if optimizer is None:
            model.step()
        else:
            optimizer.step()
            optimizer.zero_grad()
        yield loss.item(), count["norms"]


def run(case: Case, folder: Path) -> Result:
    """A case on every process."""
    result, rank, processes = Result(), distributed.get_rank(), distributed.get_world_size()
    model = built(case)
    if case.engine == "before":
        doratune.enable(model)
    speed = partial(speed_up, model, training=True, settings=SpeedupSettings(spared_tokens=1))
    if case.speedups != "none":
        add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
    if case.speedups == "before":
        result.speedups = str(speed(sharded=True))
    sharded = shard(model, case)
    if case.engine == "after":
        doratune.enable(model)
    if case.speedups == "after":
        result.speedups = str(speed())
    result.units = sum(isinstance(module, FSDPModule) for module in model.modules())
    with CommDebugMode() as sent, hold_norms(model):
        dora_norms(model)
    result.collectives = sent.get_total_counts()
    each = ROWS // processes
    for loss, norms in train(sharded, case, slice(rank * each, (rank + 1) * each), result.held):
        mean = torch.tensor(loss)
        distributed.all_reduce(mean)
        result.losses.append(mean.item() / processes)
        result.norms.append(norms)
    calls = first_calls(model)
    result.calls = None if calls is None else str(calls)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    if case.wrap not in ("fsdp1", "zero2", "zero3"):  # FSDP1 cannot save on a CPU
        result.adapter = get_model_state_dict(model, options=options)
        if rank == 0:
            model.save_pretrained(folder, state_dict=result.adapter)
    result.classes = classes(model), Counter()
    doratune.disable(model)
    result.classes = result.classes[0], classes(model)
    ids = rows(STEPS)[:1]
    result.losses.append(sharded(input_ids=ids, labels=ids).loss.item())
    return result


def classes(model: nn.Module) -> Counter[str]:
    """How many LoRA layers have which class."""
    return Counter(type(layer).__name__ for layer in model.modules() if isinstance(layer, LoraLayer))


def run_all(cases: Sequence[Case], folder: Path, rank: int, processes: int) -> None:
    """Run the cases in one process group; rank 0 saves their results in FOLDER/results.pt."""
    torch.set_num_threads(1)
    faulthandler.enable()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))  # for DeepSpeed
    store: Any = vars(distributed)["FileStore"](str(folder / "store"), processes)
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=processes, timeout=timedelta(seconds=90)
    )
    results = {}
    for case in cases:
        print(case, flush=True)
        try:
            results[case] = run(case, folder / name(case))
        except Exception as error:  # told by the test, with the case
            traceback.print_exception(error)
            results[case] = Result(error=f"{type(error).__name__}: {error}")
    if rank == 0:
        torch.save(results, folder / "results.pt")
    distributed.destroy_process_group()
