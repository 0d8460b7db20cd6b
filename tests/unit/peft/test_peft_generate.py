"""``generate`` on the engine: norms are checked once per call, and no change between calls is missed."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, TextIteratorStreamer

import doratune
from doratune.engine import composite
from doratune.engine import norm_cache as norms
from doratune.peft import hold_norms
from doratune.peft.layer import EngineLayer

TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]
LAYERS = 2 * len(TARGETS)
PROMPT = torch.tensor([[3, 5, 7, 11], [2, 4, 6, 8]])


def built(*, use_dora: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    """A model of PEFT's with random adapters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    settings = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=16, use_dora=use_dora, target_modules=TARGETS
    )
    model = get_peft_model(LlamaForCausalLM(config).to(dtype), settings)
    change(model)
    return model.eval()


@torch.no_grad()
def change(model: Any) -> None:
    """Change every adapter and the first base weight through ``.data``, which no counter sees."""
    for name, one in model.named_parameters():
        if "lora_" in name:
            one.data.add_(0.2 * torch.randn(one.shape))
    model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.data.mul_(1.5)


def written(model: Any, **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The generated tokens, and the logits of each."""
    result = model.generate(
        input_ids=PROMPT,
        attention_mask=torch.ones_like(PROMPT),
        **{"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **how},
        return_dict_in_generate=True,
        output_logits=True,
    )
    return result.sequences, torch.stack(result.logits)


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(actual[0], expected[0])


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that grows by one with every tensor whose content is looked at; layers count as large ones."""
    seen: list[Any] = []
    digest = norms._digest
    monkeypatch.setattr(norms, "_digest", lambda tensor: seen.append(tensor.shape) or digest(tensor))
    monkeypatch.setattr(composite, "SMALL_ELEMENTS", 0)
    return seen


HOWS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampled": {"do_sample": True, "top_k": 5},
    "without a cache": {"use_cache": False},
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("use_dora", [True, False])
def test_equals_peft_and_checks_each_layer_once_a_call(how: str, use_dora: bool, checks: list[Any]) -> None:
    stock, model = built(use_dora=use_dora), built(use_dora=use_dora)
    doratune.enable(model)
    for tokens in (2, 9):
        results = []
        for one in (stock, model):
            torch.manual_seed(1)
            del checks[:]
            results.append(written(one, **HOWS[how], max_new_tokens=tokens, min_new_tokens=tokens))
        assert len(checks) == (3 * LAYERS if use_dora else 0)
        assert_same(results[1], results[0])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("training", [True, False])
def test_changes_between_calls_are_seen(context: Any, training: bool) -> None:
    stock, model = (built().train(training) for _ in range(2))
    doratune.enable(model)
    for _ in range(3):
        with context():
            assert_same(written(model), written(stock))
        for one in (stock, model):
            torch.manual_seed(2)
            change(one)
    trained = model(input_ids=PROMPT, labels=PROMPT).loss
    trained.backward()
    stock(input_ids=PROMPT, labels=PROMPT).loss.backward()
    for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_bfloat16_is_nearer_to_the_truth_than_peft() -> None:
    exact = written(built(dtype=torch.float64), min_new_tokens=1, max_new_tokens=1)[1]
    model = built(dtype=torch.bfloat16)
    stock = written(model, min_new_tokens=1, max_new_tokens=1)[1]
    doratune.enable(model)
    ours = written(model, min_new_tokens=1, max_new_tokens=1)[1]
    assert (ours - exact).norm() <= 1.2 * (stock - exact).norm()


def test_the_base_model_inside_holds_too(checks: list[Any]) -> None:
    model = built()
    doratune.enable(model)
    written(model.get_base_model())
    assert len(checks) == 3 * LAYERS


def test_an_enclosing_hold_is_used(checks: list[Any]) -> None:
    model = built()
    doratune.enable(model)
    with hold_norms(model):
        del checks[:]
        written(model)
        assert not checks
        assert all(layer.norms.held for layer in layers_of(model))


def layers_of(model: Any) -> list[EngineLayer]:
    return [one for one in model.modules() if isinstance(one, EngineLayer)]


class Failing(LogitsProcessor):
    def __call__(self, input_ids: Any, scores: Any) -> Any:
        raise ZeroDivisionError


def test_an_exception_lets_go() -> None:
    stock, model = built(), built()
    doratune.enable(model)
    with pytest.raises(ZeroDivisionError):
        written(model, logits_processor=[Failing()])
    assert not any(layer.norms.held for layer in layers_of(model))
    for one in (stock, model):
        torch.manual_seed(2)
        change(one)
    assert_same(written(model), written(stock))


def test_the_assistant_is_held_for_the_whole_call(checks: list[Any]) -> None:
    model, assistant = built(), built()
    for one in (model, assistant):
        doratune.enable(one)
    ids = PROMPT[:1]
    alone = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
    del checks[:]
    assisted = model.generate(
        input_ids=ids, max_new_tokens=12, do_sample=False, pad_token_id=0, assistant_model=assistant
    )
    assert torch.equal(assisted, alone)
    assert len(checks) == 2 * 3 * LAYERS


def test_another_thread_checks_for_itself() -> None:
    """It may have changed the weights since the first thread's call began."""
    stock, model = built(), built()
    doratune.enable(model)
    found = {}

    def change_and_generate() -> None:
        torch.manual_seed(2)
        change(model)
        found["other"] = written(model)

    class Threaded(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            if not found:
                thread = threading.Thread(target=change_and_generate)
                thread.start()
                thread.join()
            return scores

    written(model, logits_processor=[Threaded()])
    torch.manual_seed(2)
    change(stock)
    assert_same(found["other"], written(stock))
    assert_same(written(model), written(stock))


class Words:
    """As much of a tokenizer as a streamer needs."""

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(f"{int(one)} " for one in ids)


def test_a_streamer_in_a_thread() -> None:
    model = built()
    expected = written(model)[0][0]
    doratune.enable(model)
    streamer: Any = TextIteratorStreamer(Words())  # pyright: ignore[reportArgumentType]
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    thread = threading.Thread(
        target=model.generate, kwargs={"input_ids": PROMPT[:1], "streamer": streamer, **how}
    )
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text.split() == [str(int(one)) for one in expected]
    assert not any(layer.norms.held for layer in layers_of(model))


def test_disable_takes_it_off_and_enable_puts_it_on_once() -> None:
    model = built()
    inner = model.get_base_model()
    for _ in range(2):
        doratune.enable(model)
        doratune.enable(model)
        doratune.disable(model)
        assert "generate" not in vars(inner)
        assert inner.generate.__func__ is LlamaForCausalLM.generate
    own = inner.generate = lambda *args, **kwargs: "own"
    doratune.enable(model)
    assert inner.generate() == "own"
    doratune.disable(model)
    assert inner.generate is own
    doratune.enable(model)
    later = inner.generate = lambda *args, **kwargs: "later"
    doratune.disable(model)
    assert inner.generate is later


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_generates_by_itself(how: Any, checks: list[Any]) -> None:
    model = built()
    doratune.enable(model)
    before = written(model)
    twin, stock = how(model), built()
    for one in (twin, stock):
        torch.manual_seed(2)
        change(one)
    del checks[:]
    assert_same(written(twin), written(stock))
    assert len(checks) == 3 * LAYERS
    assert_same(written(model), before)


def test_the_file_of_a_merged_model_needs_no_engine() -> None:
    model = built()
    doratune.enable(model)
    expected = written(model)
    merged = model.merge_and_unload()
    content = pickle.dumps(merged)
    assert b"doratune" not in content
    assert_same(written(pickle.loads(content)), expected)


def test_a_model_is_freed_without_the_garbage_collector() -> None:
    model = built().get_base_model()
    doratune.enable(model)
    gone = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_model_with_a_device_map(order: str, checks: list[Any]) -> None:
    stock, model = built(), built()
    places: dict[str, Any] = {"base_model.model.model": "cpu", "base_model.model.lm_head": "cpu"}
    if order == "before":
        doratune.enable(model)
    dispatch_model(model, places, force_hooks=True)
    if order == "after":
        doratune.enable(model)
    assert_same(written(model), written(stock))
    assert len(checks) == 3 * LAYERS


def test_gradients_through_what_is_below_no_grad() -> None:
    model = built()
    doratune.enable(model)
    inner = model.get_base_model()
    result = inner.generate.__wrapped__(
        inner,
        input_ids=PROMPT,
        max_new_tokens=2,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert torch.stack(result.logits).requires_grad
