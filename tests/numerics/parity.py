"""One layer, of any kind, on PEFT's path and on the engine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from layers import randomize_adapters
from peft import LoraConfig, PeftModel, get_peft_model
from tolerances import assert_close
from torch import Tensor, nn
from torch._dynamo.utils import counters

import doratune
from doratune.bench.op.memory import saved_bytes
from doratune.peft.layer import EngineLayer

Result = tuple[Tensor, dict[str, Tensor]]
"""Output and gradients, by the names of what they belong to."""


class OneLayer(nn.Module):
    """The smallest model that PEFT can adapt, with an operation behind the layer that may keep its output."""

    def __init__(self, layer: nn.Module, consumer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.consumer = layer, consumer

    def forward(self, x: Tensor) -> Tensor:
        return self.consumer(self.layer(x))


def unchanged(y: Tensor) -> Tensor:
    return y


def adapted(
    layer: nn.Module,
    *,
    dtype: torch.dtype = torch.float32,
    float32_adapter: bool = True,
    consumer: Callable[[Tensor], Tensor] = unchanged,
    **config: Any,
) -> PeftModel:
    """A stock PEFT model of one layer with random weights; DoRA unless ``config`` says otherwise."""
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    settings = {"r": 4, "lora_alpha": 6, "use_dora": True, "target_modules": ["layer"], **config}
    model = get_peft_model(
        OneLayer(layer.to(dtype), consumer),
        LoraConfig(**settings),
        autocast_adapter_dtype=float32_adapter,
    )
    randomize_all(model)
    return model


def randomize_all(model: nn.Module, seed: int = 0) -> None:
    """``randomize_adapters`` for embeddings too."""
    randomize_adapters(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_embedding" in name:
                parameter.normal_(std=0.3)


def layer_of(model: nn.Module) -> Any:
    (layer,) = (module for name, module in model.named_modules() if name.endswith("model.layer"))
    return layer


def on_engine(model: nn.Module) -> Any:
    """A copy of ``model`` with its layer on the engine."""
    twin = copy.deepcopy(model)
    report = doratune.enable(twin)
    assert (sum(report.taken.values()), report.left) == (1, {})
    assert isinstance(layer_of(twin), EngineLayer)
    return twin


def count_peft_forwards(monkeypatch: Any, peft_class: type[nn.Module]) -> list[bool]:
    """A list of PEFT's own forward passes: for each, whether an engine layer called it."""
    calls: list[bool] = []
    forward = peft_class.forward

    def counted(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(isinstance(self, EngineLayer))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(peft_class, "forward", counted)
    return calls


def run(model: nn.Module, x: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> Result:
    """Output and gradients under one random seed; x gets a gradient where it can have one.

    Args:
        model: Whose parameters get gradients.
        x: Its input.
        call: What to call instead of the model.
    """
    inputs = {"x": x.detach().clone().requires_grad_()} if x.is_floating_point() else {}
    wanted = {**inputs, **{name: value for name, value in model.named_parameters() if value.requires_grad}}
    torch.manual_seed(0)
    y = (model if call is None else call)(inputs.get("x", x))
    torch.manual_seed(1)
    grads = torch.autograd.grad(y, tuple(wanted.values()), torch.randn(y.shape).to(y))
    return y, dict(zip(wanted, grads, strict=True))


def assert_same(what: str, dtype: torch.dtype, actual: Result, expected: Result) -> None:
    """Outputs and gradients within the tolerance of ``what``, gradients in the shape of what they are of."""
    assert_close(what, dtype, actual[0], expected[0], "output")
    assert actual[1].keys() == expected[1].keys()
    for name, grad in actual[1].items():
        assert_close(what, dtype, grad, expected[1][name], name)


def assert_same_dtypes(actual: Result, expected: Result) -> None:
    for one, other in zip(
        (actual[0], *actual[1].values()), (expected[0], *expected[1].values()), strict=True
    ):
        assert one.dtype == other.dtype


def second_adapter(model: PeftModel, **config: Any) -> None:
    model.add_adapter("second", LoraConfig(r=2, target_modules=["layer"], **config))
    randomize_all(model, seed=5)


def activate_second(model: PeftModel, **config: Any) -> None:
    second_adapter(model, **config)
    model.set_adapter("second")


def activate_both(model: PeftModel) -> None:
    second_adapter(model)
    model.base_model.set_adapter(["default", "second"])


def merge_and_unmerge(model: PeftModel) -> None:
    model.merge_adapter()
    model.unmerge_adapter()


def disable_and_enable(model: PeftModel) -> None:
    model.base_model.disable_adapter_layers()
    model.base_model.enable_adapter_layers()


def weight_of(model: nn.Module) -> Tensor:
    return layer_of(model).base_layer.weight


STATES: dict[str, tuple[Callable[[Any], object], bool]] = {
    "merged": (lambda model: model.merge_adapter(), False),
    "merged and unmerged": (merge_and_unmerge, True),
    "disabled": (lambda model: model.base_model.disable_adapter_layers(), False),
    "disabled and enabled": (disable_and_enable, True),
    "second DoRA adapter": (lambda model: activate_second(model, use_dora=True), True),
    "second LoRA adapter": (activate_second, True),
    "second adapter inactive": (second_adapter, True),
    "two active adapters": (activate_both, False),
    "scaled": (lambda model: layer_of(model).scale_layer(3.0), True),
    "trained base": (lambda model: weight_of(model).requires_grad_(), False),
    "hooked base": (
        lambda model: layer_of(model).base_layer.register_forward_hook(lambda module, args, y: 2 * y),
        False,
    ),
    "to bfloat16 and back": (lambda model: (model.to(torch.bfloat16), model.to(torch.float32)), True),
    "weight written": (lambda model: weight_of(model).data.mul_(2), True),
}
"""Changes of a PEFT model, and whether the engine computes it afterwards."""


def assert_state(state: str, stock: PeftModel, x: Tensor, peft_forwards: list[bool]) -> None:
    """The change comes after a first call, so that anything stale would show."""
    change, engine_computes = STATES[state]
    engine = on_engine(stock)
    engine(x)
    for model in (stock, engine):
        torch.manual_seed(11)
        change(model)
    peft_forwards.clear()
    what = "unmerge" if "unmerged" in state else "peft"
    assert_close(what, torch.float32, engine(x), stock(x))
    assert (True not in peft_forwards) == engine_computes


def assert_unloads_the_same(stock: PeftModel, x: Tensor) -> None:
    """``merge_and_unload``, and the same numbers after it as before."""
    engine = on_engine(stock)
    before = engine(x)
    merged, expected = engine.merge_and_unload(), stock.merge_and_unload()
    assert type(merged.layer) is type(expected.layer)
    assert torch.equal(merged.layer.weight, expected.layer.weight)
    assert_close("peft", torch.float32, merged(x), before)


def assert_saves_the_same(stock: PeftModel, folder: Any) -> None:
    engine = on_engine(stock)
    assert list(engine.state_dict()) == list(stock.state_dict())
    for model, name in ((stock, "stock"), (engine, "engine")):
        model.save_pretrained(folder / name)
    files = [(folder / name / "adapter_model.safetensors").read_bytes() for name in ("stock", "engine")]
    assert files[0] == files[1]


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """What autograd keeps of a forward pass, parameters apart."""
    return saved_bytes(model, x.detach().requires_grad_(x.is_floating_point()))


STEPS = 30


def losses_of(
    model: nn.Module, batches: list[tuple[Tensor, ...]], call: Callable[..., Tensor] | None = None
) -> Tensor:
    """The losses of 30 steps of AdamW.

    Args:
        model: Whose parameters are trained.
        batches: What it is called with, in turns.
        call: What to call instead of the model.
    """
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    losses = []
    for step in range(STEPS):
        loss = (model if call is None else call)(*batches[step % len(batches)])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def assert_trains_the_same(
    build: Callable[[], nn.Module], batches: list[tuple[Tensor, ...]], *, layers: int
) -> None:
    """The losses of PEFT and of the engine, from the same start, with so many layers on the engine."""
    stock, engine = build(), build()
    report = doratune.enable(engine)
    assert (sum(report.taken.values()), report.left) == (layers, {})
    expected = losses_of(stock, batches)
    assert_close("loss", torch.float32, losses_of(engine, batches), expected)
    assert expected[-3:].mean() < expected[:3].mean() * 0.9  # it learned, so the comparison means something


def assert_compiles_to_one_graph(
    build: Callable[[], nn.Module], batches: list[tuple[Tensor, ...]], *, layers: int
) -> None:
    """One graph for all steps, and the losses of the model on the engine without compilation."""
    eager, compiled = build(), build()
    for model in (eager, compiled):
        assert sum(doratune.enable(model).taken.values()) == layers
    torch._dynamo.reset()
    counters.clear()
    graph = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    actual = losses_of(compiled, batches, graph)
    assert counters["stats"]["unique_graphs"] == 1
    assert_close("loss", torch.float32, actual, losses_of(eager, batches))
