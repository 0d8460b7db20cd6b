"""Counts what the host does for an adapted layer on a GPU: kernel launches and calls of Python functions.

    OMP_NUM_THREADS=1 python benchmarks/launches.py benchmarks/results/launches.json

In small steps the host launches kernels more slowly than a GPU runs them, and these counts decide the time.
No GPU is needed: the tensors are on the CPU, the engine takes them for a GPU's, and Triton's kernels are
counted instead of run. So nothing here is a time, and what is computed is not checked
(``tests/numerics/interpreted.py`` does that).

The layer is SmolLM2-135M's ``up_proj`` with an adapter of rank 32 on 256 tokens, forward and backward. Views
and allocations of memory are not launches. Norms are computed in each call, as after
``doratune.enable`` alone, or held for a pass, as in ``doratune train``. What holding them costs is counted
for all 210 linear layers together.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from doratune.engine.output_recovery import keep_outputs
from doratune.engine.triton import select
from doratune.environment import describe_environment
from doratune.peft import enable
from doratune.peft.hold_norms import dora_layers, hold_norms
from doratune.records.files import write_json_atomic

TOKENS, RANK, BLOCKS = 256, 32, 30
SHAPES = {"q": (576, 576), "k": (576, 192), "v": (576, 192), "o": (576, 576)}
SHAPES |= {"gate": (576, 1536), "up": (576, 1536), "down": (1536, 576)}
"""d_in and d_out of a block's linear layers."""
ONE = "up"
"""The layer whose calls are counted; the others differ in size only."""
ARMS = ("peft-lora", "peft-dora", "doratune-lora", "doratune-dora", "doratune-dora-held")
"""LoRA has no norms to hold."""
UNCOUNTED = {
    *("_unsafe_view", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand", "new_empty"),
    *("permute", "select", "slice", "split", "t", "transpose", "unbind", "unsqueeze", "view", "alias"),
}
"""Operations that launch nothing: views and uninitialised memory."""


class Block(nn.Module):
    """The linear layers of one block."""

    def __init__(self) -> None:
        super().__init__()
        for name, (d_in, d_out) in SHAPES.items():
            self.add_module(name, nn.Linear(d_in, d_out, bias=False))


def _wide_product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``torch.mm(..., out_dtype=...)``, which PyTorch has for GPUs only."""
    return a.to(dtype) @ b.to(dtype)


class Launches(TorchDispatchMode):
    """Counts the launches of PyTorch's kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in UNCOUNTED:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def like_a_gpu(kernels: Counter[str]) -> Iterator[None]:
    """Have the engine take CPU tensors for a GPU's, and count Triton's launches instead of running them."""
    from triton.runtime.jit import JITFunction

    def launch(kernel: Any, grid: Any) -> Callable[..., None]:
        def counted(*_args: object, **_kwargs: object) -> None:
            kernels[kernel.__name__] += 1

        return counted

    library = torch.library.Library("aten", "IMPL")
    library.impl("mm.dtype", _wide_product, "CPU")
    cuda = {
        "current_device": lambda: None,
        "current_stream": lambda _: SimpleNamespace(cuda_stream=0),
        "is_current_stream_capturing": lambda: False,
        "get_device_properties": lambda _: SimpleNamespace(shared_memory_per_block_optin=227 << 10),
    }
    with ExitStack() as stack:
        stack.callback(library._destroy)
        for name, value in {"is_cuda": True, "is_cpu": False}.items():
            as_said = property(lambda _, value=value: value)
            stack.enter_context(mock.patch.object(Tensor, name, as_said, create=True))
        for name, value in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(JITFunction, "__getitem__", launch))
        stack.enter_context(mock.patch.object(select, "_runs_on", lambda device: True))
        yield


def python_calls(run: Callable[[], Any]) -> int:
    """How many Python functions ``run`` calls, directly or not, also in the backward pass."""
    calls = 0

    def count(frame: Any, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename != __file__

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


def adapted(arm: str, dtype: torch.dtype, blocks: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.ModuleList(Block() for _ in range(blocks)).to(dtype)
    config = LoraConfig(r=RANK, use_dora=arm.split("-")[1] == "dora", target_modules=list(SHAPES))
    peft_model: Any = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    if arm.startswith("doratune"):
        enable(peft_model)
    return peft_model


def layer_counts(arm: str, dtype: torch.dtype) -> dict[str, Any]:
    """Launches and calls of one layer's forward and backward pass."""
    model: Any = adapted(arm, dtype, 1)
    layer = getattr(model.base_model.model[0], ONE)
    d_in, d_out = SHAPES[ONE]
    x, dY = torch.randn(TOKENS, d_in).to(dtype).requires_grad_(), torch.randn(TOKENS, d_out).to(dtype)
    kernels: Counter[str] = Counter()
    on_engine = arm.startswith("doratune")

    def step() -> None:
        y = layer(x)
        y.backward(dY)

    def clear() -> None:
        x.grad = None
        model.zero_grad()

    with ExitStack() as stack:
        if on_engine:
            stack.enter_context(like_a_gpu(kernels))
            stack.enter_context(keep_outputs())
            if arm.endswith("held"):
                stack.enter_context(hold_norms(model, base_unchanged=True))
        step()
        clear()
        kernels.clear()
        with Launches() as launches:
            step()
        clear()
        triton = Counter(kernels)
        step()
        clear()
        calls = python_calls(step)
    return counts(launches.names, triton, calls)


def held_norms(dtype: torch.dtype) -> dict[str, Any]:
    """Launches and calls that compute the norms of a whole model before a pass, from the second pass on."""
    model, kernels = adapted("doratune-dora", dtype, BLOCKS), Counter[str]()
    layers = dora_layers(model)

    def hold() -> None:
        with hold_norms(model, base_unchanged=True, layers=layers):
            pass

    with like_a_gpu(kernels):
        hold()
        kernels.clear()
        with Launches() as launches:
            hold()
        return counts(launches.names, Counter(kernels), python_calls(hold))


def counts(operations: Counter[str], kernels: Counter[str], calls: int) -> dict[str, Any]:
    return {
        "launches": operations.total() + kernels.total(),
        "of_triton": kernels.total(),
        "python_calls": calls,
        "operations": dict(operations + kernels),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="JSON file for the record")
    output = parser.parse_args().output
    layers: dict[str, Any] = {}
    norms: dict[str, Any] = {}
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        layers[name] = {arm: layer_counts(arm, dtype) for arm in ARMS}
        norms[name] = held_norms(dtype)
        for arm, found in {**layers[name], "norms of a model": norms[name]}.items():
            print(f"{name}, {arm}: {found['launches']} launches, {found['python_calls']} Python calls")
    write_json_atomic(
        output,
        {
            "layer": {"d_in": SHAPES[ONE][0], "d_out": SHAPES[ONE][1], "rank": RANK, "tokens": TOKENS},
            "layers_of_the_model": BLOCKS * len(SHAPES),
            "results": layers,
            "held_norms": norms,
            "environment": describe_environment().to_dict(),
        },
    )


if __name__ == "__main__":
    main()
